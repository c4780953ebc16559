"""What becomes of lost chunks is decided in one place, by kind and history alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobfleet._call.recovery import (
    MAX_DATA_LOSSES,
    MAX_DEATHS,
    after_death,
    after_loss,
    no_workers_left,
    report_every,
    runs_by_itself,
)
from jobfleet._engine.base import LostKind
from jobfleet.errors import ClusterError, NoWorkersError

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("kind", "losses", "again"),
    [
        (LostKind.DATA, 1, True),
        (LostKind.DATA, MAX_DATA_LOSSES, True),
        (LostKind.DATA, MAX_DATA_LOSSES + 1, False),
        (LostKind.SCHEDULER, 1, False),
        (LostKind.ABANDONED, 1, False),
        (LostKind.ENGINE, 1, False),
    ],
)
def test_decision(kind, losses, again):
    assert after_loss(kind, losses) is again


def started(poison, every):
    """Give what the scheduler has heard when the worker dies of the task at this position."""
    return None if not every else poison - poison % every


@given(st.data(), st.integers(1, 10_000))
def test_the_task_that_kills_is_found_at_the_price_of_three_workers(data, n_tasks):
    poison = data.draw(st.integers(0, n_tasks - 1))
    tasks, deaths, died, n_messages = list(range(n_tasks)), 0, 0, 0
    while True:
        every = report_every(len(tasks), deaths)
        position = tasks.index(poison)
        died += 1
        verdict = after_death(len(tasks), every, started(position, every), deaths, 1)
        n_messages += len(tasks) // every if every else 0
        if verdict.guilty is not None:
            break
        assert position in verdict.suspects
        tasks, deaths = [tasks[p] for p in verdict.suspects], verdict.deaths
    assert tasks[verdict.guilty] == poison
    assert died == MAX_DEATHS
    assert n_messages <= 202  # 10,000 tasks: 100 say that they start, then 100 of those that are left


@given(st.integers(1, 100), st.integers(1, MAX_DEATHS - 1))
def test_what_has_not_started_is_not_blamed(n_tasks, deaths):
    verdict = after_death(n_tasks, report_every(n_tasks, deaths), None, deaths, 1)
    assert verdict.guilty is None
    assert list(verdict.suspects) == list(range(n_tasks))
    assert verdict.deaths == deaths


@given(st.integers(1, 100), st.integers(1, MAX_DEATHS - 1))
def test_what_had_ended_is_not_blamed(n_tasks, deaths):
    verdict = after_death(n_tasks, report_every(n_tasks, deaths), n_tasks, deaths, 1)
    assert verdict.guilty is None
    assert not verdict.suspects


def test_a_scheduler_that_tries_by_itself_is_believed():
    """Without the plugin four workers have died when the client hears of it."""
    assert after_death(1, 0, None, 0, 4).guilty == 0
    assert after_death(2, 0, None, 0, 4).guilty is None


def test_one_death_separates_nobody_and_the_second_does():
    assert not runs_by_itself(1)
    assert runs_by_itself(2)
    assert report_every(100, 0) == 0


def test_the_last_worker_is_missed_in_words_that_help():
    error = no_workers_left(90.0)
    assert isinstance(error, NoWorkersError)
    assert isinstance(error, ClusterError)
    assert "90 seconds" in str(error)
    assert 'parallel_config("dask", wait_for_workers_timeout=180)' in str(error)
