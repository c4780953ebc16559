"""Worker processes that end are replaced, at a bounded rate."""

import pytest

from jobfleet._engine.embedded_cluster import RestartPolicy

REPLACED = """
def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
client = embedded_client()
before = set(client.run(os.getpid).values())
{end}
wait_for(lambda: len(set(client.run(os.getpid, on_error="ignore").values()) - before) >= {replaced})
wait_for(lambda: len(client.scheduler_info()["workers"]) == 2)
assert len(processes()) == 3, processes()
assert client.submit(int, "3").result() == 3
"""


@pytest.mark.parametrize(
    ("end", "replaced"),
    [
        ("os.kill(min(before), 9)", 1),
        ("[os.kill(pid, 9) for pid in before]", 2),
        ("client.retire_workers(list(client.scheduler_info()['workers'])[:1])", 1),
        # Takes one worker after the other until Dask gives it up, which may be the same one's heirs.
        ("assert 'KilledWorker' in type(client.submit(os._exit, 3).exception(30)).__name__", 1),
    ],
)
def test_worker_that_ends_is_replaced(program, end, replaced):
    program.run_script(REPLACED.format(end=end, replaced=replaced))


def test_processes_of_a_dead_worker_go_with_it(program):
    program.run_script("""
import subprocess
def start():
    os.sleeper = subprocess.Popen(["sleep", "1000"])
    return os.getpid(), os.sleeper.pid
client = embedded_client()
pid, sleeper = client.submit(start).result()
os.kill(pid, 9)
deadline = time.monotonic() + 10
while psutil.pid_exists(sleeper) and psutil.Process(sleeper).status() != psutil.STATUS_ZOMBIE:
    assert time.monotonic() < deadline
    time.sleep(0.01)
""")


def test_first_restart_is_immediate_and_later_ones_wait_longer():
    policy = RestartPolicy()
    delays = [policy.after_end(True, now=0.0) for _ in range(9)]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_old_ends_are_forgotten():
    policy = RestartPolicy()
    policy.after_end(True, now=0.0)
    assert policy.after_end(True, now=policy.window_s + 1) == 0.0


def test_process_that_never_works_is_given_up():
    policy = RestartPolicy()
    assert [policy.after_end(False, now=0.0) for _ in range(3)] == [0.0, 0.1, None]


def test_working_once_starts_the_count_again():
    policy = RestartPolicy()
    ends = [False, False, True, False, False, False]
    assert [policy.after_end(worked, now=0.0) is None for worked in ends] == [False] * 5 + [True]
