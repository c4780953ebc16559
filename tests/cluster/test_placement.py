"""Which worker a chunk goes to, where Dask does not put it right afterwards."""

import dask.config
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
