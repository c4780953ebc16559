"""Which tasks the scheduler is told to keep until a worker has room; on a real one: tests/embedded/test_queue.py."""

from types import SimpleNamespace

import pytest
from dask._task_spec import Task

from jobfleet._engine.waiting import keep


def is_kept(saturation=1.1, key="batch_of_f_2_calls-0", dependencies=()):
    run_spec = Task(key, int)
    task = SimpleNamespace(key=key, dependencies=set(dependencies), run_spec=run_spec)
    keep(None, SimpleNamespace(WORKER_SATURATION=saturation), task)
    return run_spec.data_producer


@pytest.mark.parametrize("saturation", [1.0, 1.1, 2.0])
def test_tasks_wait_on_the_scheduler_where_workers_have_room_for_so_many(saturation):
    assert is_kept(saturation)


@pytest.mark.parametrize(
    "changes",
    [{"saturation": float("inf")}, {"key": "('batch_of_f_2_calls-0', 0)"}, {"dependencies": ["data"]}],
    ids=["no bound", "inner call", "dependencies"],
)
def test_others_are_left_to_dask(changes):
    assert not is_kept(**changes)


def test_a_scheduler_that_knows_no_such_tasks_or_no_bound_is_left_alone():
    keep(None, SimpleNamespace(), SimpleNamespace(key="k", dependencies=set(), run_spec=Task("k", int)))
    keep(None, SimpleNamespace(WORKER_SATURATION=1.1), SimpleNamespace(key="k", dependencies=set(), run_spec=None))
