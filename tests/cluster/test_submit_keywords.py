"""Dask's submit keywords say where and how a call's tasks run, inner calls' too."""

import pytest
from distributed import get_worker
from joblib import Parallel, delayed, parallel_config

from tests.witness import Presence, count, mark, open_gate, pass_gate, wait_until


def worker_name(_=None):
    return str(get_worker().name)


def here_and_inside():
    return worker_name(), Parallel(n_jobs=2)(delayed(worker_name)(i) for i in range(3))


def test_workers_by_name_and_address(small_cluster):
    client = small_cluster({"name": "a"}, {"name": "b"}, {"name": "c"})
    address = next(a for a, w in client.scheduler_info()["workers"].items() if w["name"] == "b")
    for workers in (["b"], "b", [address], address):
        with parallel_config("dask", client=client, workers=workers):
            assert Parallel(batch_size=1)(delayed(worker_name)() for _ in range(8)) == ["b"] * 8
    with parallel_config("dask", client=client, workers=["a", "c"]):
        assert set(Parallel(batch_size=1)(delayed(worker_name)() for _ in range(12))) <= {"a", "c"}


def test_allow_other_workers(small_cluster):
    client = small_cluster({"name": "a"}, {"name": "b"})
    with parallel_config("dask", client=client, workers=["nowhere"], allow_other_workers=True):
        assert set(Parallel()(delayed(worker_name)() for _ in range(4))) <= {"a", "b"}


def test_inner_calls_stay_on_the_chosen_workers(small_cluster):
    client = small_cluster({"name": "a"}, {"name": "b", "nthreads": 2})
    with parallel_config("dask", client=client, workers=["b"]):
        for own, inner in Parallel()(delayed(here_and_inside)() for _ in range(3)):
            assert {own, *inner} == {"b"}


def test_resources(small_cluster):
    client = small_cluster({"name": "plain"}, {"name": "gpu", "resources": {"GPU": 1}, "nthreads": 2})
    with parallel_config("dask", client=client, resources={"GPU": 1}):
        assert Parallel(batch_size=1)(delayed(worker_name)() for _ in range(6)) == ["gpu"] * 6


def test_resources_bound_how_many_run_at_once(small_cluster, tmp_path):
    client = small_cluster({"name": "gpu", "resources": {"GPU": 1}, "nthreads": 3})

    def hold(index):
        with Presence(tmp_path) as presence:
            for _ in range(5):
                presence.look()
        return index

    with parallel_config("dask", client=client, resources={"GPU": 1}):
        assert Parallel(batch_size=1)(delayed(hold)(i) for i in range(9)) == list(range(9))
    assert Presence(tmp_path).peak() == 1


def test_inner_calls_keep_resources_without_deadlock(small_cluster):
    """An outer task that waits holds its resource; inner work must get through all the same."""
    client = small_cluster({"name": "plain"}, {"name": "gpu", "resources": {"GPU": 2}, "nthreads": 2})
    with parallel_config("dask", client=client, resources={"GPU": 1}):
        for own, inner in Parallel()(delayed(here_and_inside)() for _ in range(4)):
            assert {own, *inner} == {"gpu"}


def priorities(dask_scheduler):
    return [task.priority[0] for task in dask_scheduler.tasks.values() if task.state == "processing"]


@pytest.mark.parametrize("priority", [0, 10, -3])
def test_priority_reaches_the_scheduler(small_cluster, tmp_path, priority):
    client = small_cluster({"name": "a"})

    def hold():
        mark(tmp_path / "started")
        pass_gate(tmp_path / "gate")

    with parallel_config("dask", client=client, priority=priority):
        results = Parallel(return_as="generator")(delayed(hold)() for _ in range(2))
        wait_until(lambda: count(tmp_path / "started") >= 1, "a task started")
        seen = client.run_on_scheduler(priorities)
        open_gate(tmp_path / "gate")
        assert list(results) == [None, None]
    assert seen
    assert set(seen) == {-priority}


def priority_of_task():
    worker = get_worker()
    return worker.state.tasks[worker.get_current_task()].priority[0]


def priorities_of_three_levels(depth=2):
    # A short call that gives a list may be done by its caller, where it waits for nobody.
    inner = Parallel(return_as="generator")(delayed(priorities_of_three_levels)(depth - 1) for _ in range(depth > 0))
    return [priority_of_task(), *(priority for priorities in inner for priority in priorities)]


@pytest.mark.parametrize("priority", [0, 10])
def test_inner_work_goes_before_outer_work_that_has_not_started(small_cluster, priority):
    client = small_cluster({"name": "a"})
    with parallel_config("dask", client=client, priority=priority):
        (seen,) = Parallel()([delayed(priorities_of_three_levels)()])
    assert seen == [-priority, -priority - 1, -priority - 2]


def fail_first(directory, index, times):
    mark(directory / str(index))
    if count(directory / str(index)) <= times:
        raise ValueError(f"call {index} is not ready")
    return index


def test_without_retries_a_task_is_tried_once(small_cluster, tmp_path):
    client = small_cluster({"name": "a"})
    with parallel_config("dask", client=client), pytest.raises(ValueError, match="not ready"):
        Parallel()(delayed(fail_first)(tmp_path, i, 1) for i in range(1))
    assert count(tmp_path / "0") == 1


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_retries_try_again_what_failed(small_cluster, tmp_path, batch_size):
    client = small_cluster({"name": "a"}, {"name": "b"})
    with parallel_config("dask", client=client, retries=2):
        results = Parallel(batch_size=batch_size)(delayed(fail_first)(tmp_path, i, 2) for i in range(3))
    assert results == [0, 1, 2]
    assert all(count(tmp_path / str(i)) >= 3 for i in range(3))


def test_retries_end(small_cluster, tmp_path):
    client = small_cluster({"name": "a"})
    with parallel_config("dask", client=client, retries=2), pytest.raises(ValueError, match="call 0 is not ready"):
        Parallel()(delayed(fail_first)(tmp_path, i, 99) for i in range(1))
    assert count(tmp_path / "0") == 3


@pytest.mark.parametrize("n_jobs", [2, 3, -2, 8, -1])
def test_at_most_n_jobs_anywhere_on_the_cluster(small_cluster, tmp_path, n_jobs):
    """Four slots on two workers."""
    client = small_cluster({"nthreads": 2}, {"nthreads": 2})
    allowed = {2: 2, 3: 3, -2: 3, 8: 4, -1: 4}[n_jobs]

    def hold(index):
        with Presence(tmp_path) as presence:
            # The first ones stay until as many are here as may be: that proves the number, and gives
            # one too many its chance to be seen.
            wait_until(lambda: count(tmp_path / "seen") >= allowed, f"{allowed} at once", 10)
            for _ in range(10):
                presence.look()
        return index

    with parallel_config("dask", client=client):
        results = Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch="all")(delayed(hold)(i) for i in range(16))
    assert results == list(range(16))
    assert Presence(tmp_path).peak() == allowed


def test_a_cluster_of_one_slot_does_the_work(small_cluster):
    client = small_cluster({"name": "only"})
    for options in ({}, {"n_jobs": 2}, {"n_jobs": -1}):
        with parallel_config("dask", client=client, **options):
            assert Parallel()(delayed(worker_name)() for _ in range(4)) == ["only"] * 4
    with parallel_config("dask", client=client):
        for own, inner in Parallel()(delayed(here_and_inside)() for _ in range(2)):
            assert {own, *inner} == {"only"}
