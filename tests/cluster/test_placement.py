"""Slots of tasks that make calls: what is sent while they have them, and who has none."""

from concurrent.futures import ThreadPoolExecutor

import dask
import dask.config
import distributed
import pytest
from joblib import Parallel, delayed, parallel_config

from tests.witness import count, meet, wait_until


@pytest.fixture
def without_stealing():
    """Have Dask leave tasks where they are: it moves only some, and those after a second."""
    with dask.config.set({"distributed.scheduler.work-stealing": False}):
        yield


def test_inner_tasks_sent_before_their_caller_waits_use_its_slot_too(without_stealing, small_cluster, tmp_path):
    """Dask, told of both of them while their caller holds its worker, has one wait behind the other."""

    def inner(size):
        meet(tmp_path / str(size), size)

    def calls():
        yield delayed(inner)(2)
        yield delayed(inner)(2)
        wait_until(lambda: count(tmp_path / "2") >= 1, "the first one started")

    def outer():
        Parallel(n_jobs=2, batch_size=1)(calls())

    with parallel_config("dask", client=small_cluster({}, {})):
        Parallel()(delayed(inner)(1) for _ in range(4))  # a short wait behind them, as Dask then has it
        Parallel(n_jobs=2)(delayed(outer)() for _ in range(1))
    assert count(tmp_path / "2") == 2


clients = []
"""The tasks' one, which run in this process: what Dask would give them outlives the cluster."""


def call_without_slot():
    distributed.secede()
    return call()


def call():
    with parallel_config("dask", client=clients[-1]):
        return [Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(4)) for _ in range(2)]


@pytest.mark.parametrize(("task", "executor"), [(call_without_slot, "default"), (call, "other")])
def test_a_users_own_task_that_has_no_slot_to_give_up_may_call(small_cluster, task, executor):
    with ThreadPoolExecutor(1) as other:
        client = small_cluster({"executor": {"other": other}}, {})
        clients.append(client)
        with dask.annotate(executor=executor, workers=[0]):
            assert client.submit(task).result(timeout=30) == [[0, 1, 2, 3]] * 2
