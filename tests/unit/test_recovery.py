"""What becomes of lost chunks is decided in one place, by kind and history alone."""

import pytest

from jobfleet._call.recovery import MAX_DATA_LOSSES, Again, after_loss, no_workers_left
from jobfleet._engine.base import LostKind
from jobfleet.errors import ClusterError, NoWorkersError

pytestmark = pytest.mark.timeout(10)


@pytest.mark.parametrize(
    ("kind", "losses", "n_tasks", "decision"),
    [
        (LostKind.DATA, 1, 1, Again()),
        (LostKind.DATA, 1, 50, Again()),
        (LostKind.DATA, MAX_DATA_LOSSES, 50, Again()),
        (LostKind.DATA, MAX_DATA_LOSSES + 1, 50, None),
        (LostKind.DATA, MAX_DATA_LOSSES + 1, 1, None),
        (LostKind.WORKER, 1, 2, Again(alone=True)),
        (LostKind.WORKER, 5, 2, Again(alone=True)),
        (LostKind.WORKER, 1, 1, None),
        (LostKind.SCHEDULER, 1, 2, None),
        (LostKind.ENGINE, 1, 2, None),
    ],
)
def test_decision(kind, losses, n_tasks, decision):
    assert after_loss(kind, losses, n_tasks) == decision


@pytest.mark.parametrize("kind", LostKind)
def test_nothing_is_tried_for_ever(kind):
    n_tasks = 100
    for losses in range(1, 1000):
        decision = after_loss(kind, losses, n_tasks)
        if decision is None:
            return
        if decision.alone:
            n_tasks = 1
    pytest.fail(f"a chunk lost for {kind} runs again and again")


def test_the_last_worker_is_missed_in_words_that_help():
    error = no_workers_left(90.0)
    assert isinstance(error, NoWorkersError)
    assert isinstance(error, ClusterError)
    assert "90 seconds" in str(error)
    assert 'parallel_config("dask", wait_for_workers_timeout=180)' in str(error)
