"""What surrounds a task: initializers, thread limits, hints about threads and shared memory."""

import cProfile
import os
import threading

import numpy as np
import pytest
import threadpoolctl
from joblib import Parallel, cpu_count, delayed, parallel_config

from tests.witness import mark, marks, place

STATE = {}


def prepare(directory, value, key="value"):
    mark(directory)
    STATE[key] = value


def prepared(_):
    return os.getpid(), STATE.get("value")


def square(x):
    return x * x


def profiled_square(x):
    for _ in range(100):
        square(x)
    profile = cProfile.Profile()
    result = profile.runcall(square, x)
    return result, sum(entry.callcount for entry in profile.getstats() if entry.code is square.__code__)


@pytest.fixture(autouse=True)
def forget():
    yield
    STATE.clear()


def test_initializer_runs_before_the_tasks_once_per_process(backend, tmp_path):
    with backend(), Parallel(n_jobs=2, initializer=prepare, initargs=(tmp_path, 7)) as parallel:
        for _ in range(3):
            results = parallel(delayed(prepared)(i) for i in range(8))
            assert {value for _, value in results} == {7}
    ran_in = [entry["pid"] for entry in marks(tmp_path)]
    assert len(ran_in) == len(set(ran_in)), "more than once in a process"
    assert {pid for pid, _ in results} <= set(ran_in)


def test_initializer_by_the_block(backend, tmp_path):
    with backend(initializer=prepare, initargs=(tmp_path, 8)):
        for _ in range(2):
            results = Parallel(n_jobs=2)(delayed(prepared)(i) for i in range(8))
            assert {value for _, value in results} == {8}
    ran_in = [entry["pid"] for entry in marks(tmp_path)]
    assert len(ran_in) == len(set(ran_in)), "more than once in a process"


def test_an_initializer_without_arguments(backend):
    def start():
        STATE["value"] = "here"

    with backend():
        results = Parallel(n_jobs=2, initializer=start)(delayed(abs)(-i) for i in range(4))
    assert results == [0, 1, 2, 3]


def test_a_failing_initializer_is_a_clear_error(backend, against):
    def broken():
        raise OSError("the license server is away")

    if against != "jobfleet":
        pytest.skip("another error")
    with backend():
        with pytest.raises(Exception, match="the license server is away"):
            Parallel(n_jobs=2, initializer=broken)(delayed(square)(i) for i in range(4))
        assert Parallel()(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_prefer_threads_still_goes_to_the_cluster(backend):
    with backend():
        with_hint = Parallel(prefer="threads")(delayed(place)() for _ in range(6))
        results = Parallel(prefer="threads")(delayed(square)(i) for i in range(6))
    assert results == [i * i for i in range(6)]
    if backend.remote:
        assert os.getpid() not in {pid for pid, _ in with_hint}


def test_prefer_processes_is_no_obstacle(backend):
    with backend():
        assert Parallel(prefer="processes")(delayed(square)(i) for i in range(6)) == [i * i for i in range(6)]


def test_sharedmem_gives_threads_of_the_caller(backend):
    shared = []

    def append(i):
        shared.append((i, os.getpid()))

    with backend():
        Parallel(n_jobs=2, require="sharedmem")(delayed(append)(i) for i in range(6))
    assert sorted(shared) == [(i, os.getpid()) for i in range(6)]


def test_sharedmem_by_the_block(backend):
    shared = []
    with backend(require="sharedmem"):
        Parallel(n_jobs=2)(delayed(shared.append)(i) for i in range(6))
    assert sorted(shared) == list(range(6))


def thread_limits():
    np.ones((4, 4)) @ np.ones((4, 4))
    from sklearn.cluster import KMeans  # noqa: F401 - brings an OpenMP runtime

    return [(pool["user_api"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()]


@pytest.mark.parametrize("limit", [1, 2])
def test_inner_max_num_threads_is_what_the_task_sees(backend, limit):
    before = thread_limits()
    with backend(inner_max_num_threads=limit):
        for limits in Parallel(n_jobs=2)(delayed(thread_limits)() for _ in range(4)):
            assert {api for api, _ in limits} >= {"blas"}
            assert {number for _, number in limits} == {limit}, limits
    assert thread_limits() == before


@pytest.mark.engines("dask-processes")  # the limits of the caller's own process are the caller's
def test_by_default_tasks_do_not_oversubscribe_the_host(backend):
    allowed = max(cpu_count() // 2, 1)
    with backend():
        for limits in Parallel(n_jobs=2)(delayed(thread_limits)() for _ in range(4)):
            assert max(number for _, number in limits) <= allowed, limits


def test_environment_and_directory_of_the_caller_are_left_alone(backend):
    before = dict(os.environ), os.getcwd(), threading.current_thread().name
    with backend(inner_max_num_threads=1):
        Parallel()(delayed(square)(i) for i in range(4))
    assert (dict(os.environ), os.getcwd(), threading.current_thread().name) == before


def test_the_callers_block_is_not_left_inside_tasks(backend):
    """A task may select any backend of its own and the caller's block is as before."""

    def own_choice(i):
        with parallel_config("threading", n_jobs=2):
            return Parallel()(delayed(square)(i + k) for k in range(3))

    with backend():
        assert Parallel()(delayed(own_choice)(i) for i in range(3)) == [
            [(i + k) ** 2 for k in range(3)] for i in range(3)
        ]
        assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_tasks_may_profile_what_they_call(backend):
    with backend():
        for _ in range(2):  # a worker's second chunk, too
            assert Parallel(n_jobs=2)(delayed(profiled_square)(i) for i in range(4)) == [(i * i, 1) for i in range(4)]
