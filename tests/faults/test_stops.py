"""A call that is stopped: nothing of it starts afterwards, what runs is interrupted, the next call starts at once."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time

import pytest
from joblib import Parallel, delayed

from tests.faults.conftest import assert_nothing_is_left
from tests.witness import count, mark, names, wait_until, wait_until_still

N_TASKS = 20

pytestmark = pytest.mark.engines("scripted", "dask-inprocess", "dask-processes")  # "local" runs in the stopped thread


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


def square(i):
    return i * i


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


STOPS = [by_exception, by_ctrl_c, by_timeout, by_close, by_garbage_collection, by_leaving_the_block]


@pytest.fixture
def directory(tmp_path):
    """Give the tasks a place for their marks; tasks that nothing has ended end with the test."""
    yield tmp_path
    (tmp_path / "over").touch()
    wait_until(lambda: count(tmp_path / "ended") == count(tmp_path / "started"), "all tasks ended")


def assert_stopped(directory):
    """Say that all that had started has ended, long before it would have by itself, and nothing has come after."""
    started = wait_until_still(lambda: count(directory / "started"))
    wait_until(lambda: count(directory / "ended") == started, "what ran was interrupted")
    assert 1 <= started < N_TASKS


@pytest.mark.parametrize("stop", STOPS)
def test_what_runs_is_interrupted_and_the_rest_never_starts(backend, directory, stop):
    with backend():
        stop(directory)
        assert Parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]
        assert_stopped(directory)
    if backend.client is not None:
        assert_nothing_is_left(backend.client)


def in_native_code(directory):
    """Wait where no exception can be raised."""
    mark(directory / "started")
    held = threading.Lock()
    held.acquire()
    try:
        held.acquire(timeout=4)
    finally:
        mark(directory / "ended")


@pytest.mark.engines("dask-processes")  # a worker in this process would log here
def test_what_cannot_be_interrupted_holds_nothing_up_and_is_reported(backend, tmp_path):
    with backend():
        with pytest.raises(multiprocessing.TimeoutError):
            Parallel(batch_size=1, timeout=0.3)(delayed(in_native_code)(tmp_path) for _ in range(2))
        n_ended = count(tmp_path / "ended")
        assert Parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]
        assert n_ended == 0

    def reported():
        lines = [line for log in backend.client.get_worker_logs().values() for _, line in log]
        return [line for line in lines if "batch_of_in_native_code" in line and "native code" in line]

    wait_until(reported, "the tasks that still run are reported")
    started = count(tmp_path / "started")
    wait_until(lambda: count(tmp_path / "ended") == started, "the tasks ended by themselves")
    assert_nothing_is_left(backend.client)


def nested(directory):
    mark(directory / "outer")
    Parallel(batch_size=1)(delayed(run_for_ever)(directory) for _ in range(N_TASKS))
    mark(directory / "went on")


@pytest.mark.engines("dask-inprocess", "dask-processes")  # the others have no cluster for inner calls
def test_inner_tasks_are_interrupted_too(backend, directory):
    def inner_runs():
        yield delayed(nested)(directory)
        yield delayed(nested)(directory)
        wait_until(lambda: count(directory / "started") >= 1, "an inner task runs")
        raise InterruptedError

    with backend():
        with pytest.raises(InterruptedError):
            Parallel(batch_size=1, pre_dispatch="all")(inner_runs())
        assert Parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]
        assert_stopped(directory)
        assert not names(directory / "went on")
    assert_nothing_is_left(backend.client)


@pytest.mark.engines("dask-processes")  # it has an address
def test_what_runs_for_a_client_that_dies_is_interrupted(backend, directory, script):
    process = script.start(
        """
import sys
from pathlib import Path
from distributed import Client
from joblib import Parallel, delayed, parallel_config
from tests.faults.test_stops import N_TASKS, run_for_ever

with parallel_config("dask", client=Client(sys.argv[1])):
    Parallel(batch_size=1)(delayed(run_for_ever)(Path(sys.argv[2])) for _ in range(N_TASKS))
""",
        backend.client.scheduler.address,
        directory,
    )
    try:
        wait_until(lambda: count(directory / "started") >= 1 or process.poll() is not None, "a task runs")
    finally:
        process.kill()
        process.communicate()
    assert_stopped(directory)
    with backend():
        assert Parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]
    assert_nothing_is_left(backend.client)
