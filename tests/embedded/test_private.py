"""Nobody else can use the embedded cluster."""

import asyncio
import json
import os
import stat

import distributed
import psutil
import pytest
from distributed.comm import connect

SHOW = """
import json
client = embedded_client()
# The client itself uses no socket.
scheduler = client.run(lambda dask_worker: dask_worker.scheduler.address).popitem()[1]
addresses = [scheduler, *client.scheduler_info()["workers"]]
directories = list(client.run(lambda dask_worker: dask_worker.local_directory).values())
print(json.dumps([addresses, directories]), flush=True)
sys.stdin.read()
"""


async def ask(address, security):
    """Ask a scheduler or worker for its identity, as any connection may begin."""
    arguments = security.get_connection_args("client") if security else {}
    comm = await connect(address, timeout=3, **arguments)
    try:
        await comm.write({"op": "identity", "reply": True})
        return await asyncio.wait_for(comm.read(), 3)
    finally:
        comm.abort()


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_other_clients_are_refused(program, scheme):
    addresses, _ = json.loads(program.start_script(SHOW))
    security = distributed.Security.temporary() if scheme == "tls" else None
    for address in addresses:
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises((OSError, RuntimeError)):
            asyncio.run(ask(address.replace("tls", scheme), security))


def test_client_with_the_certificates_is_not_refused(program):
    # Shows that the test above fails for want of them.
    assert "type" in program.run_script(f"""
import asyncio
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_private import ask
client = embedded_client()
worker = client.scheduler_info()["workers"].popitem()[0]
print(asyncio.run(ask(worker, client.security)))
""")


def test_everything_listens_on_loopback_and_nothing_serves_http(program):
    addresses, _ = json.loads(program.start_script(SHOW))
    listening = set()
    for process in program.left():
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN or connection.type.name == "SOCK_DGRAM":
                listening.add(f"tls://{connection.laddr.ip}:{connection.laddr.port}")
    assert listening == set(addresses)


def test_files_are_private(program):
    _, directories = json.loads(program.start_script(SHOW))
    (top,) = program.temporary.iterdir()
    assert stat.S_IMODE(top.stat().st_mode) == 0o700
    assert top.stat().st_uid == os.getuid()
    assert all(directory.startswith(str(top)) for directory in directories)


def test_no_secret_in_arguments_or_environment(program):
    program.start_script(SHOW)
    for process in program.left():
        text = " ".join([*process.cmdline(), *process.environ().values()])
        assert "BEGIN" not in text
        assert "tls://" not in text
