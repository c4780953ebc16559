"""Nothing of the embedded cluster outlives the program, however it ends."""

import os
import signal

import psutil

from tests.embedded.conftest import until

WAIT = """
print(*[p.pid for p in processes()], flush=True)
sys.stdin.read()
"""


def test_exit_is_silent_and_leaves_nothing(program):
    assert program.run_script("embedded_client().submit(int).result()") == ""
    assert program.left() == []
    assert program.files() == []


def test_exit_while_tasks_run(program):
    out = program.run_script("""
client = embedded_client()
started = lambda: print("x", flush=True) or time.sleep(1000)
futures = [client.submit(started, pure=False) for _ in range(5)]
while sum(map(len, client.processing().values())) < 2:
    time.sleep(0.01)
before = time.monotonic()
close_embedded()
assert time.monotonic() - before < 1, time.monotonic() - before
""")
    assert set(out) <= {"x", "\n"}
    assert program.left() == []


def test_exit_while_tasks_hold_the_interpreters_lock(program):
    program.run_script("""
client = embedded_client()
def stuck(path):
    open(path, "w").close()
    __import__("re").match("(a+)+$", "a" * 60 + "b")
# A stuck worker cannot give away a task that waits behind the one it runs.
workers = list(client.run(os.getpid))
futures = [client.submit(stuck, f"stuck{i}", workers=workers[i]) for i in range(2)]
while not (os.path.exists("stuck0") and os.path.exists("stuck1")):
    time.sleep(0.01)
before = time.monotonic()
close_embedded()
assert time.monotonic() - before < 2, time.monotonic() - before
""")
    assert program.left() == []


def test_exception_at_the_end_of_the_program(program):
    popen = program.start(program.write("embedded_client()\n1 / 0"))
    _, err = popen.communicate(timeout=30)
    assert err.strip().splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert len(err.splitlines()) <= 5
    assert program.left() == []


def test_killed_client(program):
    program.start_script("embedded_client()" + WAIT)
    assert len(program.left()) == 4
    program.popen.kill()
    program.popen.wait()
    until(lambda: not program.left(), 5)
    until(lambda: not program.files(), 5)


def test_killed_client_while_tasks_hold_the_interpreters_lock(program):
    program.start_script(
        """
client = embedded_client()
def stuck(path):
    open(path, "w").close()
    __import__("re").match("(a+)+$", "a" * 60 + "b")
# A stuck worker cannot give away a task that waits behind the one it runs.
workers = list(client.run(os.getpid))
futures = [client.submit(stuck, f"stuck{i}", workers=workers[i]) for i in range(2)]
while not (os.path.exists("stuck0") and os.path.exists("stuck1")):
    time.sleep(0.01)
"""
        + WAIT
    )
    program.popen.kill()
    program.popen.wait()
    until(lambda: not program.left(), 5)
    until(lambda: not program.files(), 5)


def test_killed_client_that_has_forked(program):
    program.start_script("""
import multiprocessing, warnings
warnings.simplefilter("ignore")
embedded_client()
fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
pids = [p.pid for p in processes()]
fork.start()
print(fork.pid, flush=True)
sys.stdin.read()
""")
    program.popen.kill()
    program.popen.wait()
    left = until(lambda: len(program.left()) == 1 and program.left(), 5)
    left[0].kill()


def test_killed_client_and_janitor(program):
    # A worker without a task would end because the scheduler has gone.
    pids = program.start_script(
        """
client = embedded_client()
futures = [client.submit(time.sleep, 1000, workers=worker, pure=False) for worker in client.run(os.getpid)]
while sum(map(len, client.processing().values())) < 2:
    time.sleep(0.01)
"""
        + WAIT
    ).split()
    janitor = next(p for p in map(psutil.Process, map(int, pids)) if "-I" in p.cmdline())
    janitor.kill()
    program.popen.kill()
    program.popen.wait()
    until(lambda: not program.left(), 5)
    assert program.files()
    # The next cluster sweeps.
    program.run_script("embedded_client()")
    assert program.files() == []


def test_interrupt_from_the_terminal(program):
    program.start_script("""
client = embedded_client()
before = client.run(os.getpid)
try:
    print("ready", flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    pass
assert client.run(os.getpid) == before
""")
    # As the terminal does it: to the whole foreground process group.
    os.killpg(program.popen.pid, signal.SIGINT)
    _, err = program.popen.communicate(timeout=20)
    assert (program.popen.returncode, err) == (0, "")


def test_processes_that_a_task_has_started_go_with_the_client(program):
    program.start_script(
        """
import subprocess
client = embedded_client()
client.submit(lambda: subprocess.Popen(["sleep", "1000"]).pid).result()
"""
        + WAIT
    )
    assert len(program.left()) == 5
    program.popen.kill()
    program.popen.wait()
    until(lambda: not program.left(), 5)


def test_last_output_of_a_task_is_written(program):
    out = program.run_script("""
client = embedded_client()
client.submit(lambda: sys.__stdout__.write("written")).result()
""")
    assert out == "written"
