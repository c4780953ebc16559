"""A call that is stopped: nothing of it starts afterwards, what runs is interrupted, the next call starts at once."""

import multiprocessing
import threading

import pytest
from joblib import Parallel, delayed

from tests.faults.conftest import assert_nothing_is_left
from tests.faults.stops import DYING_CLIENT, N_TASKS, STOPS, assert_stopped, run_for_ever
from tests.faults.tasks import square
from tests.witness import count, mark, names, wait_until

pytestmark = pytest.mark.engines("scripted", "dask-inprocess", "dask-processes")  # "local" runs in the stopped thread


@pytest.fixture
def directory(tmp_path):
    """Give the tasks a place for their marks; tasks that nothing has ended end with the test."""
    yield tmp_path
    (tmp_path / "over").touch()
    wait_until(lambda: count(tmp_path / "ended") == count(tmp_path / "started"), "all tasks ended")


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
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
        DYING_CLIENT,
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
