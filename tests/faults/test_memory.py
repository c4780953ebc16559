"""Workers that have not enough memory: one task is lost, not the call; and where none can go on, the call ends."""

import re

import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet.errors import NoWorkersError, WorkerLostError
from tests.faults.conftest import assert_nothing_is_left
from tests.faults.tasks import fill_up, ones_if_large, square, until_paused
from tests.witness import wait_until

N_TASKS = 8
LARGE = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_a_result_that_is_too_large_is_one_task_lost_and_the_error_has_both_figures(cluster):
    client = cluster("--memory-limit", "500MB", n_workers=1, nanny=True)
    with parallel_config("dask", client=client, return_exceptions=True):
        results = Parallel(batch_size=1)(delayed(ones_if_large)(LARGE, 700_000_000, i) for i in range(N_TASKS))
    error = results[LARGE]
    assert isinstance(error, WorkerLostError)
    assert [r for i, r in enumerate(results) if i != LARGE] == [i * i for i in range(N_TASKS) if i != LARGE]
    assert f"call {LARGE}, ones_if_large(" in str(error)
    assert re.search(r"it used \d+\.\d+ MiB of its memory limit of 476\.84 MiB", str(error)), error
    assert "its result" in str(error)
    assert_nothing_is_left(client)


def test_where_all_workers_are_paused_the_call_ends(cluster):
    """Dask pauses a worker that is nearly full, and never ends it: what waits for it would wait for ever."""
    client = cluster("--memory-limit", "600MB", n_workers=1)

    def status(dask_scheduler):
        return [worker.status.name for worker in dask_scheduler.workers.values()]

    with parallel_config("dask", client=client, wait_for_workers_timeout=2):
        assert Parallel()([delayed(fill_up)(0.88)]) > [0]
        wait_until(lambda: client.run_on_scheduler(status) == ["paused"], "the worker is paused")
        with pytest.raises(NoWorkersError, match="memory is nearly used up"):
            Parallel()(delayed(square)(i) for i in range(N_TASKS))
    assert_nothing_is_left(client)


def test_where_all_workers_are_paused_in_the_middle_of_a_call_it_ends(cluster):
    client = cluster("--memory-limit", "600MB", n_workers=1)
    tasks = [delayed(fill_up)(0.88), delayed(until_paused)(), *[delayed(square)(i) for i in range(N_TASKS)]]
    with (
        parallel_config("dask", client=client, wait_for_workers_timeout=2),
        pytest.raises(NoWorkersError, match=r"paused because their memory is nearly used up.* for 2 seconds"),
    ):
        Parallel(batch_size=1)(tasks)
    assert_nothing_is_left(client)
