"""Whether a task has its result in time is decided once."""

import threading

import pytest

from jobfleet._worker.interrupt import Interruptible
from jobfleet._worker.limit import GRACE_S, Overrun, TimeLimit, watch

pytestmark = pytest.mark.timeout(20)


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limit(clock):
    return TimeLimit(3.0, clock)


def test_each_task_has_the_whole_time(limit, clock):
    assert limit.left_s() == 3.0, "none runs yet"
    for _ in limit.each("abc"):
        assert limit.left_s() == 3.0
        clock.now_s += 2.0
        assert limit.left_s() == 1.0
        limit.keep()
    limit.end()
    assert limit.left_s() is None
    assert limit.overrun is None


def test_the_one_that_takes_longer_is_known_and_has_no_result(limit, clock):
    calls = limit.each("abc")
    next(calls)
    limit.keep()
    next(calls)
    clock.now_s += 3.0
    assert limit.left_s() == 0.0
    assert limit.overrun == 1
    with pytest.raises(Overrun):
        limit.keep()


def test_one_that_has_its_result_is_left_alone_however_late(limit, clock):
    """An interruption would hit the next one."""
    calls = limit.each("abc")
    next(calls)
    clock.now_s += 3.0
    limit.keep()
    assert limit.left_s() == 3.0
    assert limit.overrun is None


def test_rebuilding_the_arguments_counts(limit, clock):
    def slow():
        clock.now_s += 5.0
        yield "a"

    calls = limit.each(slow())
    next(calls)
    assert limit.left_s() == 0.0


def test_it_is_looked_at_again_when_the_running_one_can_have_taken_too_long(limit, clock):
    later = []
    watch(limit, Interruptible(), lambda delay_s, again: later.append((delay_s, again)), pytest.fail)
    (delay_s, look), later[:] = later[0], []
    assert delay_s == 3.0
    calls = limit.each("ab")
    next(calls)
    clock.now_s += 1.0
    limit.keep()
    next(calls)
    clock.now_s += 2.0
    look()
    (delay_s, look), later[:] = later[0], []
    assert delay_s == 1.0
    limit.end()
    look()
    assert not later


def test_what_does_not_react_is_overdue_after_the_grace():
    reached, go_on, later, overdue, regions = threading.Event(), threading.Event(), [], [], []
    limit = TimeLimit(0.001)

    def in_native_code():
        next(calls)
        reached.set()
        go_on.wait(15)

    def run():
        regions.append(Interruptible())
        regions[0].run(in_native_code)

    calls = limit.each("a")
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert reached.wait(5)
    watch(limit, regions[0], lambda delay_s, again: later.append((delay_s, again)), lambda: overdue.append(1))
    asked_for_s = 0.0
    while not overdue:
        delay_s, again = later.pop(0)
        asked_for_s += delay_s
        threading.Event().wait(delay_s)
        again()
    assert asked_for_s <= GRACE_S + 1
    go_on.set()
    thread.join(5)
    assert limit.overrun == 0
