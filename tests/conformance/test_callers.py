"""Several threads use the backend at once; each gets its own results, errors and warnings."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from joblib import Parallel, delayed

from tests.witness import meet, open_gate, pass_gate, wait_until


def square(x):
    return x * x


def fail_at(x, bad):
    if x == bad:
        raise LookupError(f"bad {bad}")
    return x


def use(backend, caller, number=30):
    with backend():
        return Parallel()(delayed(square)(100 * caller + i) for i in range(number))


def test_threads_at_once_get_their_own_results(backend):
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(use, backend, caller) for caller in range(6)]
        for caller, future in enumerate(futures):
            assert future.result(timeout=40) == [(100 * caller + i) ** 2 for i in range(30)]


def test_an_error_in_one_thread_is_not_the_others(backend):
    def failing(caller):
        with backend(), pytest.raises(LookupError, match=f"bad {caller}"):
            Parallel()(delayed(fail_at)(i, caller) for i in range(20))
        return True

    with ThreadPoolExecutor(4) as threads:
        bad = [threads.submit(failing, caller) for caller in range(3)]
        good = [threads.submit(use, backend, caller) for caller in range(3)]
        assert all(future.result(timeout=40) for future in bad)
        for caller, future in enumerate(good):
            assert future.result(timeout=40) == [(100 * caller + i) ** 2 for i in range(30)]


@pytest.mark.engines("dask-inprocess", "dask-processes")  # slots that run at once
def test_two_threads_really_share_the_slots(backend, tmp_path):
    """One call holds a slot until the other's task has been run."""

    def hold():
        pass_gate(tmp_path / "gate")
        return "held"

    def first():
        with backend():
            return Parallel(n_jobs=2)(delayed(hold)() for _ in range(1))

    thread = ThreadPoolExecutor(1)
    with thread:
        holding = thread.submit(first)
        with backend():
            assert Parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]
        open_gate(tmp_path / "gate")
        assert holding.result(timeout=20) == ["held"]


def test_one_block_is_the_threads_own(backend):
    """joblib's block is thread-local: a thread started inside it runs sequentially, and is not harmed."""
    results = []
    with backend():
        thread = threading.Thread(
            target=lambda: results.append(Parallel(n_jobs=1)(delayed(square)(i) for i in range(5)))
        )
        thread.start()
        thread.join(20)
        assert Parallel()(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]
    assert results == [[0, 1, 4, 9, 16]]


def test_a_call_from_a_thread_that_ends(backend):
    """A generator made in a thread that is gone is finished by another."""
    made = []

    def make():
        with backend():
            made.append(Parallel(n_jobs=2, return_as="generator")(delayed(square)(i) for i in range(20)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join(20)
    assert list(made[0]) == [i * i for i in range(20)]


@pytest.mark.engines("dask-inprocess", "dask-processes")
def test_calls_of_two_threads_meet(backend, tmp_path):
    """A task of each caller waits for the other's: neither call keeps the cluster to itself."""

    def together(directory):
        meet(directory, 2, timeout_s=15)
        return True

    def call():
        with backend():
            return Parallel(n_jobs=2)(delayed(together)(tmp_path) for _ in range(1))

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(call) for _ in range(2)]
        wait_until(lambda: all(future.done() for future in futures), "both calls over", 30)
        assert [future.result() for future in futures] == [[True], [True]]
