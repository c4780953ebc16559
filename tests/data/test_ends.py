"""Nothing stays in shared memory, however a client or a worker ends."""

import os
import subprocess
import sys

import numpy as np
import pytest
from distributed import Client, LocalCluster
from joblib import Parallel, delayed, parallel_config

from tests.data.for_workers import look
from tests.witness import wait_until

pytestmark = [pytest.mark.timeout(90), pytest.mark.slow]

#: A host notices after half a minute that a client it has something of is gone.
GONE_WITHIN_S = 60

PROGRAM = """
import sys
import numpy as np, jobfleet
from distributed import Client, LocalCluster
from joblib import Parallel, delayed, parallel_config
from tests.data.for_workers import look

def main(how, scheduler_file, end):
    if how == "local":
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
            with Client(cluster) as client:
                work(end, client=client)
    elif how == "embedded":
        work(end)
    else:
        with Client(scheduler_file=scheduler_file) as client:
            work(end, client=client)

def work(end, **config):
    array = np.ones(300_000)
    with parallel_config("dask", scatter=[array], **config):
        Parallel()(delayed(look)(array + i // 4) for i in range(8))
        results = Parallel(return_as="generator")(delayed(look)(array) for i in range(4))
        next(results)
        print("ready", flush=True)
        sys.stdin.readline()
        if end == "error":
            raise ZeroDivisionError
        if end == "normal":
            list(results)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture
def program(hosts, tmp_path):
    """Start a program, and wait until it has used large buffers."""
    (tmp_path / "program.py").write_text(PROGRAM)
    started = []

    def start(how, end):
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), how, str(hosts.scheduler_file), end],
            env=hosts.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        assert hosts.files()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", ["normal", "error", "kill"])
@pytest.mark.parametrize("how", ["local", "embedded", "far"])
def test_a_client_leaves_nothing(hosts, program, how, end):
    if how == "far":
        hosts.start_worker("far")
    process = program(how, end)
    if how == "far":
        assert hosts.files("far")
    if end == "kill":
        process.kill()
    process.stdin.write("\n")
    process.communicate(timeout=30)
    wait_until(lambda: not hosts.files(), "nothing on the client's host", 15)
    wait_until(lambda: not hosts.left(), "nothing anywhere", GONE_WITHIN_S)


def test_closing_the_client_is_enough(shared_memory):
    """Though the process goes on, and the client object is still there."""
    import dask.config

    array = np.ones(300_000)
    with (
        dask.config.set({"jobfleet.shared-memory": shared_memory}),
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
    ):
        client = Client(cluster, set_as_default=False)
        with parallel_config("dask", client=client):
            Parallel()(delayed(look)(array) for _ in range(4))
        assert os.listdir(shared_memory)
        client.close()
        wait_until(lambda: not os.listdir(shared_memory), "nothing is left", 10)


@pytest.mark.parametrize("nanny", [False, True])
def test_killed_workers_leave_nothing_after_the_next_start(hosts, connect, nanny):
    victim = hosts.start_worker("far", nanny=nanny)
    array = np.ones(300_000)
    client = connect(1)
    with parallel_config("dask", client=client):
        Parallel()(delayed(look)(array) for _ in range(4))
    assert hosts.files("far")
    hosts.kill(victim)
    client.close()
    assert hosts.files("far")  # nobody is there to remove it
    hosts.start_worker("far")
    again = connect(1)
    with parallel_config("dask", client=again):
        Parallel()(delayed(look)(array) for _ in range(4))
        wait_until(lambda: len(hosts.files("far")) == 1, "only what is used", 10)
    again.close()
    wait_until(lambda: not hosts.left(), "nothing is left", GONE_WITHIN_S)


def test_a_large_buffer_of_a_task_that_kills_its_worker_goes_too(hosts, connect):
    hosts.start_worker("", nanny=True)
    hosts.start_worker("", nanny=True)
    client = connect(2)
    with parallel_config("dask", client=client), pytest.raises(Exception, match="die"):
        Parallel()(delayed(die)(np.ones(300_000)) for _ in range(2))
    client.close()
    wait_until(lambda: not hosts.left(), "nothing is left", GONE_WITHIN_S)


def die(array):
    os.kill(os.getpid(), 9)
