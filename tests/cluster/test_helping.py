"""A task does a short call of its own itself; a longer one is for the whole cluster."""

import os
import time

import pytest
from joblib import Parallel, delayed, parallel_config

pytestmark = pytest.mark.slow

SHORT_S, LONG_S = 0.0005, 0.3


def inner(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return os.getpid()


def outer(seconds, n_calls=3):
    """Give this process, and those of each inner call's tasks; the first of them shows how long they take."""
    calls = [Parallel(n_jobs=2)(delayed(inner)(seconds) for _ in range(4)) for _ in range(n_calls)]
    return os.getpid(), [set(pids) for pids in calls]


def test_a_short_call_known_as_such_stays_with_its_task(process_client):
    with parallel_config("dask", client=process_client):
        ((pid, (_, *later)),) = Parallel(n_jobs=2)(delayed(outer)(SHORT_S) for _ in range(1))
    assert later == [{pid}, {pid}]


def test_long_calls_use_the_cluster(process_client):
    """Also when there were so many like them that Dask takes them for a large group."""
    with parallel_config("dask", client=process_client):
        ((_, calls),) = Parallel(n_jobs=2)(delayed(outer)(LONG_S, 4) for _ in range(1))
    assert [len(pids) for pids in calls] == [2] * 4


def test_a_call_that_only_seemed_short_uses_the_cluster(process_client):
    """The first task shows that it is not; the others are not kept from the other slot."""

    def misjudged():
        Parallel(n_jobs=2)(delayed(inner)(SHORT_S) for _ in range(4))
        return os.getpid(), set(Parallel(n_jobs=2)(delayed(inner)(LONG_S) for _ in range(6)))

    with parallel_config("dask", client=process_client):
        ((_, pids),) = Parallel(n_jobs=2)(delayed(misjudged)() for _ in range(1))
    assert len(pids) == 2


def fail():
    raise LookupError("inner")


def test_an_error_of_a_call_that_stayed_with_its_task_is_the_tasks(process_client):
    def task():
        for _ in range(2):
            try:
                Parallel(n_jobs=2)(delayed(fail)() for _ in range(2))
            except LookupError as error:
                last = str(error)
        return last

    with parallel_config("dask", client=process_client):
        assert Parallel(n_jobs=2)(delayed(task)() for _ in range(2)) == ["inner"] * 2
