"""Every kind of program can start the embedded cluster."""

import os
import subprocess

import pytest

WORK = """
client = embedded_client()
pids = client.run(os.getpid).values()
assert len(pids) == expected_workers() == 2, pids
assert os.getpid() not in pids
print(client.submit(lambda: 6 * 7).result())
"""


@pytest.fixture
def head():
    from tests.embedded.conftest import HEAD

    return HEAD


def test_script_without_a_guard(program):
    assert program.run_script(WORK) == "42\n"


def test_program_on_standard_input(program, head):
    assert program.run("-", stdin=head + WORK) == "42\n"


def test_program_on_the_command_line(program, head):
    assert program.run("-c", head + WORK) == "42\n"


def test_inside_a_running_event_loop(program):
    body = WORK.replace("\n", "\n    ")
    assert program.run_script(f"import asyncio\nasync def main():\n    {body}\nasyncio.run(main())") == "42\n"


def test_two_threads_at_once_start_one_cluster(program):
    program.run_script("""
import threading
clients = []
barrier = threading.Barrier(2)
def use():
    barrier.wait()
    clients.append(embedded_client())
threads = [threading.Thread(target=use) for _ in range(2)]
[t.start() for t in threads]
[t.join() for t in threads]
assert clients[0] is clients[1]
assert len(processes()) == 3, processes()  # two workers and the janitor
""")


def test_client_is_reused_until_closed(program):
    program.run_script("""
import distributed
client = embedded_client()
assert embedded_client() is client and is_embedded(client)
try:
    distributed.default_client()
except ValueError:
    pass
else:
    raise AssertionError("set as default")
client.close()
second = embedded_client()
assert second is not client and second.submit(int, "1").result() == 1
close_embedded()
close_embedded()
assert not processes() and expected_workers() == 0
third = embedded_client()
assert third.submit(int, "1").result() == 1
""")


def test_module_beside_the_script(program):
    (program.directory / "beside.py").write_text("def f(): return __name__")
    assert (
        program.run_script("""
import beside
print(embedded_client().submit(beside.f).result())
""")
        == "beside\n"
    )


def test_module_named_like_one_of_the_standard_library_in_the_current_directory(program, head):
    for name in ("json", "socket", "queue", "asyncio"):
        (program.directory / f"{name}.py").write_text("raise RuntimeError('shadowed')")
    # A script elsewhere does not see the current directory, so its workers must not.
    (program.directory / "elsewhere").mkdir()
    script = program.directory / "elsewhere" / "script.py"
    script.write_text(head + WORK)
    assert program.run(script) == "42\n"


def test_other_configuration_is_left_alone(program):
    program.environment |= {
        "DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:9",
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": "/nowhere.pem",
        "DASK_DISTRIBUTED__SCHEDULER__CONTACT_ADDRESS": "tls://127.0.0.1:9",
        "DASK_DISTRIBUTED__SCHEDULER__IDLE_TIMEOUT": "1ms",
        "DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION": "1ms",
    }
    configured = 'assert client.submit(lambda: __import__("dask").config.get("scheduler-address")).result() is None'
    assert program.run_script(WORK + configured) == "42\n"


def test_the_event_loop_is_the_one_that_is_configured(program):
    """`uvloop` here is a stand-in for the package, which need not be installed."""
    (program.directory / "uvloop.py").write_text(
        "import asyncio\nclass Loop(asyncio.SelectorEventLoop): pass\nnew_event_loop = Loop\n"
    )
    program.environment["DASK_DISTRIBUTED__ADMIN__EVENT_LOOP"] = "uvloop"
    kinds = """
def kind(client):
    return type(client.loop.asyncio_loop).__name__
def on_worker():
    from distributed import get_worker
    return kind(get_worker())
print(kind(client), client.submit(on_worker).result())
"""
    assert program.run_script(WORK + kinds) == "42\nLoop Loop\n"


def test_tasks_can_start_processes(program):
    assert (
        program.run_script("""
def inner():
    from joblib import Parallel, delayed
    return Parallel(n_jobs=2, backend="loky")(delayed(int)(x) for x in "12")
def forked():
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(abs, [-3])
import warnings
print(embedded_client().submit(inner).result(), embedded_client().submit(forked).result())
""")
        == "[1, 2] [3]\n"
    )


def test_native_libraries_share_the_cpus(program):
    program.environment.pop("OMP_NUM_THREADS", None)
    program.environment["MKL_NUM_THREADS"] = "7"
    assert (
        program.run_script("""
get = lambda: [os.environ[f"{x}_NUM_THREADS"] for x in ("OMP", "MKL")]
print(embedded_client().submit(get).result())
""")
        == "['1', '7']\n"
    )


def test_fork_gets_a_cluster_of_its_own(program):
    out = program.run_script("""
import warnings
warnings.simplefilter("ignore")
client = embedded_client()
ours = set(client.run(os.getpid).values())
# Large enough for Dask to pack it on a thread, which the fork will not have.
large = b"x" * 30_000_000
assert client.submit(len, large).result() == len(large)
child = os.fork()
if child == 0:
    assert not is_embedded(client) and expected_workers() == 0
    other = embedded_client()
    theirs = set(other.run(os.getpid).values())
    assert len(theirs) == 2 and not theirs & ours, theirs
    assert other.submit(len, large).result(20) == len(large)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert set(client.run(os.getpid).values()) == ours
print("both")
""")
    assert out == "both\n"


def test_interpreter_that_cannot_import_distributed(program):
    broken = program.directory / "broken"
    broken.mkdir()
    (broken / "distributed.py").write_text("raise ImportError('no such luck')")
    out = program.run_script(f"""
import distributed
from jobfleet._engine.embedded import EmbeddedClusterError
sys.path.insert(0, {str(broken)!r})
before = time.monotonic()
try:
    embedded_client()
except EmbeddedClusterError as error:
    print(error)
assert time.monotonic() - before < 20
assert not processes()
""")
    assert "no such luck" in out
    assert "exit status 1" in out
    assert "Likely causes" in out


def test_current_directory_that_was_removed(program):
    (program.directory / "gone").mkdir()
    assert (
        program.run_script(f"""
os.chdir("gone")
os.rmdir("../gone")
{WORK}""")
        == "42\n"
    )


def test_closed_standard_input(program):
    code = subprocess.list2cmdline([str(program.write(WORK))])
    assert program.run("-c", f"import os, runpy; os.close(0); runpy.run_path({code!r}, run_name='__main__')") == "42\n"
    assert os.path.isdir(program.temporary)
