"""Workers that come late, from zero, or never."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from distributed import get_worker
from joblib import Parallel, delayed, parallel_config

from tests.witness import count, mark, open_gate, pass_gate, wait_until


def square(x):
    return x * x


def worker_name():
    return str(get_worker().name)


def n_waiting(dask_scheduler):
    return len(dask_scheduler.unrunnable) + len(dask_scheduler.queued)


def waiting(client):
    return client.run_on_scheduler(n_waiting)


def test_a_cluster_without_workers_is_waited_for(small_cluster):
    client = small_cluster()

    def call():
        with parallel_config("dask", client=client):
            return Parallel()(delayed(square)(i) for i in range(5))

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(call)
        wait_until(lambda: waiting(client) or future.done(), "the call waits for a worker")
        assert not future.done(), future.exception()
        client.cluster.scale(1)
        assert future.result(timeout=30) == [0, 1, 4, 9, 16]


def test_adaptive_from_zero(small_cluster):
    client = small_cluster()
    client.cluster.adapt(minimum=0, maximum=2, interval="50ms", wait_count=1000)
    with parallel_config("dask", client=client):
        assert Parallel()(delayed(square)(i) for i in range(20)) == [i * i for i in range(20)]
    client.cluster.scale(0)


def test_no_worker_within_the_time_allowed_is_a_clear_error(small_cluster, against):
    client = small_cluster()
    with (
        pytest.raises(TimeoutError, match="worker") as caught,
        parallel_config("dask", client=client, wait_for_workers_timeout=0.3),
    ):
        Parallel()(delayed(square)(i) for i in range(3))
    assert "wait_for_workers_timeout" in str(caught.value)
    if against == "jobfleet":
        from jobfleet.errors import JobfleetError

        assert isinstance(caught.value, JobfleetError)
        assert client.scheduler.address in str(caught.value)
    client.cluster.scale(1)
    with parallel_config("dask", client=client):
        assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_no_worker_has_the_resource_is_a_clear_error(small_cluster, against):
    if against == "builtin":
        pytest.skip("hangs")
    from jobfleet.errors import JobfleetError

    client = small_cluster({"name": "plain"})
    with (
        pytest.raises(JobfleetError, match="GPU"),
        parallel_config("dask", client=client, resources={"GPU": 1}, wait_for_workers_timeout=0.3),
    ):
        Parallel()(delayed(square)(i) for i in range(3))


def test_a_worker_that_joins_in_the_middle_is_used(small_cluster, tmp_path):
    """The first task waits until one has run on the worker that came later."""
    client = small_cluster({"name": "first"})

    def task(index):
        here = worker_name()
        mark(tmp_path / ("first" if here == "first" else "late"))
        if index == 0:
            open_gate(tmp_path / "started")
            wait_until(lambda: count(tmp_path / "late") >= 1, "a task on the late worker", 20)
        return index

    with parallel_config("dask", client=client), ThreadPoolExecutor(1) as thread:
        joining = thread.submit(lambda: (pass_gate(tmp_path / "started"), client.cluster.scale(2)))
        assert Parallel(batch_size=1)(delayed(task)(i) for i in range(30)) == list(range(30))
        joining.result(timeout=10)
    assert count(tmp_path / "late") >= 1


def test_a_worker_that_leaves_properly_takes_nothing_along(small_cluster, tmp_path):
    client = small_cluster({"name": "a"}, {"name": "b"})

    def task(index):
        mark(tmp_path / "started", index)
        if index < 2:
            pass_gate(tmp_path / "gate")
        return index

    with parallel_config("dask", client=client):
        results = Parallel(batch_size=1, return_as="generator")(delayed(task)(i) for i in range(20))
        wait_until(lambda: count(tmp_path / "started") >= 1, "a task started")
        open_gate(tmp_path / "gate")
        leaving = next(a for a, w in client.scheduler_info()["workers"].items() if w["name"] == "b")
        client.retire_workers([leaving], close_workers=True)
        assert list(results) == list(range(20))
