"""Ways to stop a call, and what is to be said afterwards: nothing of it starts any more, what runs is interrupted."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time

import pytest
from joblib import Parallel, delayed

from tests.witness import count, mark, wait_until, wait_until_still

N_TASKS = 20

#: A client that is killed while its call runs.
DYING_CLIENT = """
import sys
from pathlib import Path
from distributed import Client
from joblib import Parallel, delayed, parallel_config
from tests.faults.stops import N_TASKS, run_for_ever

with parallel_config("dask", client=Client(sys.argv[1])):
    Parallel(batch_size=1)(delayed(run_for_ever)(Path(sys.argv[2])) for _ in range(N_TASKS))
"""


def run_for_ever(directory):
    """Run Python code until the test is over, catching what a task may well catch."""
    mark(directory / "started")
    try:
        while not (directory / "over").exists():
            with contextlib.suppress(Exception):
                time.sleep(0.005)
    finally:
        mark(directory / "ended")


def fail_when_others_run(directory, others):
    wait_until(lambda: count(directory / "started") >= others, "other tasks run")
    raise InterruptedError("on purpose")


def by_exception(directory):
    tasks = [delayed(fail_when_others_run)(directory, 1), *[delayed(run_for_ever)(directory)] * N_TASKS]
    with pytest.raises(InterruptedError, match="on purpose"):
        Parallel(batch_size=1)(tasks)


def by_ctrl_c(directory):
    def press():
        wait_until(lambda: count(directory / "started") >= 1, "a task runs")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        Parallel(batch_size=1)(delayed(run_for_ever)(directory) for _ in range(N_TASKS))
    thread.join()


def by_timeout(directory):
    with pytest.raises(multiprocessing.TimeoutError, match=r"0\.5 s.* call 0, run_for_ever\("):
        Parallel(batch_size=1, timeout=0.5)(delayed(run_for_ever)(directory) for _ in range(N_TASKS))


def started_generator(directory, parallel=None):
    parallel = parallel or Parallel(batch_size=1, return_as="generator")
    results = parallel(delayed(run_for_ever)(directory) for _ in range(N_TASKS))
    wait_until(lambda: count(directory / "started") >= 1, "a task runs")
    return results


def by_close(directory):
    with pytest.warns(UserWarning, match="have been cancelled"):
        started_generator(directory).close()


def by_garbage_collection(directory):
    results = [started_generator(directory)]
    with pytest.warns(UserWarning, match="have been cancelled"):
        results.clear()


def by_leaving_the_block(directory):
    with Parallel(batch_size=1, return_as="generator") as parallel:
        results = [started_generator(directory, parallel)]
    assert_stopped(directory)
    with pytest.warns(UserWarning, match="have been cancelled"):
        results.clear()


STOPS = {
    "a task raises": by_exception,
    "Ctrl-C": by_ctrl_c,
    "timeout= passes": by_timeout,
    "a generator is closed": by_close,
    "a generator is let go": by_garbage_collection,
    "the with block is left": by_leaving_the_block,
}


#: A stop that needs a program of its own.
CLIENT_DIES = "the client is killed"


def assert_stopped(directory):
    """Say that all that had started has ended, long before it would have by itself, and nothing has come after."""
    started = wait_until_still(lambda: count(directory / "started"))
    wait_until(lambda: count(directory / "ended") == started, "what ran was interrupted")
    assert 1 <= started < N_TASKS
