"""The garbage collector: looked after less often while tiny tasks are made, and as before when the call is over."""

import gc
import math
import os
import signal
import time

import pytest
from joblib import Parallel, delayed, parallel_config
from tests.witness import wait_until

from jobfleet._call import collecting
from jobfleet._call.collecting import RARE_THRESHOLD, RareCollection

pytestmark = pytest.mark.timeout(60)

USUAL = 700
N_TASKS = 20_000


@pytest.fixture(autouse=True)
def usual():
    """Have the threshold that Python 3.11 has, and what there was before in the end."""
    before = gc.get_threshold()
    gc.set_threshold(USUAL, 10, 10)
    yield
    gc.set_threshold(*before)


@pytest.fixture(autouse=True)
def here():
    """Run tasks in this process."""
    with parallel_config("dask", engine="local"):
        yield


def young():
    return gc.get_threshold()[0]


def roots(seen, n=N_TASKS, made_in_s=0.0):
    """Give square roots to be taken; `seen` takes the thresholds there were while they were made."""
    for i in range(n):
        until_s = time.thread_time() + made_in_s
        while made_in_s and time.thread_time() < until_s:
            pass
        seen.add(young())
        yield delayed(math.sqrt)(i)


def test_garbage_is_looked_for_rarely_while_tiny_tasks_are_made_and_as_before_after_that():
    seen = set()
    assert Parallel(n_jobs=2)(roots(seen)) == [math.sqrt(i) for i in range(N_TASKS)]
    assert seen == {USUAL, RARE_THRESHOLD}
    assert gc.get_threshold() == (USUAL, 10, 10)


def test_it_is_looked_for_as_before_while_a_generators_results_are_not_taken():
    seen = set()
    results = Parallel(n_jobs=2, return_as="generator")(roots(seen, 1_000_000))
    assert [next(results) for _ in range(N_TASKS)] == [math.sqrt(i) for i in range(N_TASKS)]
    assert RARE_THRESHOLD in seen
    wait_until(lambda: young() == USUAL, "the call has as many results as it may")
    with pytest.warns(UserWarning, match="not used"):
        results.close()


def test_it_is_as_before_when_the_iterable_has_raised():
    def failing(seen):
        yield from roots(seen)
        raise LookupError("no more")

    seen = set()
    with pytest.raises(LookupError):
        Parallel(n_jobs=2)(failing(seen))
    assert RARE_THRESHOLD in seen
    wait_until(lambda: young() == USUAL, "the call's thread has ended")


def test_nothing_changes_where_making_a_task_takes_long():
    seen = set()
    Parallel(n_jobs=2)(roots(seen, 500, made_in_s=0.0005))
    assert seen == {USUAL}


@pytest.mark.parametrize("chosen", [0, RARE_THRESHOLD + 1])
def test_a_threshold_that_is_higher_or_none_is_left_alone(chosen):
    gc.set_threshold(chosen, 10, 10)
    seen = set()
    Parallel(n_jobs=2)(roots(seen))
    assert seen == {chosen}
    assert young() == chosen


def test_a_threshold_that_is_set_meanwhile_stays():
    def changing(seen):
        for task in roots(seen):
            if young() == RARE_THRESHOLD:
                gc.set_threshold(2000, 5, 5)
            yield task

    seen = set()
    Parallel(n_jobs=2)(changing(seen))
    assert RARE_THRESHOLD in seen
    assert gc.get_threshold() == (2000, 5, 5)


def test_calls_share_the_change_and_the_last_undoes_it():
    one, other = RareCollection(), RareCollection()
    one.begin()
    other.begin()
    one.begin()
    assert young() == RARE_THRESHOLD
    one.end()
    one.end()
    assert young() == RARE_THRESHOLD
    other.end()
    assert young() == USUAL


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_meanwhile_starts_anew():
    of_parent = RareCollection()
    of_parent.begin()
    collecting._lock.acquire()  # as a call's thread may, at that moment
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not pytest's, for the parent
        signal.alarm(10)
        own, seen = RareCollection(), [young()]
        own.begin()
        seen.append(young())
        own.end()
        seen.append(young())
        os._exit(0 if seen == [USUAL, RARE_THRESHOLD, USUAL] else 1)
    collecting._lock.release()
    of_parent.end()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert young() == USUAL
