"""Interruption of a thread arrives where it was meant for, and nowhere else."""

import cProfile
import gc
import sys
import threading
import time
import weakref

import pytest
from tests.witness import wait_until

from jobfleet._worker import interrupt
from jobfleet._worker.interrupt import Interrupted, Interruptible, insist, uninterrupted

WITHIN_S = 10


@pytest.fixture
def quick_switches():
    """Have threads take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Subject:
    """Runs a function in a thread of its own, in an `Interruptible`."""

    def __init__(self, function):
        self.started = threading.Event()
        self.outcome = []
        self.region = None
        self.after = []
        self._function = function
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.started.wait(WITHIN_S)

    def _run(self):
        self.region = Interruptible()
        self.started.set()
        try:
            self.outcome.append(self.region.run(self._function))
            self.after.append("went on")
        except BaseException as error:  # the test looks at it
            self.outcome.append(error)

    def join(self):
        self.thread.join(WITHIN_S)
        assert not self.thread.is_alive()
        return self.outcome[0]


def interrupt_all_the_time(function, regions):
    """Run a function in a thread and interrupt the last of its regions until it ends; gives how often one was hit."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    hits = 0
    while thread.is_alive():
        if regions:
            hits += regions[-1].interrupt()
    return hits


def spin(reached):
    reached.set()
    while True:
        pass


def interrupt_until_over(region):
    give_up_at = time.monotonic() + WITHIN_S
    while region.interrupt():
        assert time.monotonic() < give_up_at


def test_what_is_not_interrupted_gives_its_result():
    region = Interruptible()
    assert region.run(lambda: 7) == 7
    assert not region.requested


def test_a_loop_ends_and_the_thread_goes_on():
    reached = threading.Event()
    subject = Subject(lambda: spin(reached))
    reached.wait(WITHIN_S)
    interrupt_until_over(subject.region)
    assert subject.join() is None
    assert subject.after == ["went on"]


def test_what_was_interrupted_before_it_began_does_not_begin():
    region = Interruptible()
    assert not region.interrupt()
    assert region.run(lambda: 7) is None


def test_an_interruption_that_the_task_catches_comes_again():
    reached, caught = threading.Event(), []

    def stubborn():
        while len(caught) < 3:
            try:
                spin(reached)
            except BaseException as error:
                caught.append(type(error))
        spin(reached)

    subject = Subject(stubborn)
    reached.wait(WITHIN_S)
    interrupt_until_over(subject.region)
    assert subject.join() is None
    assert caught == [Interrupted] * 3


def test_clean_up_of_the_task_is_left_in_peace():
    reached, cleaning, go_on, cleaned = (threading.Event() for _ in range(4))

    def task():
        try:
            spin(reached)
        finally:
            cleaning.set()
            go_on.wait(WITHIN_S)
            cleaned.set()

    subject = Subject(task)
    reached.wait(WITHIN_S)
    assert subject.region.interrupt()
    assert cleaning.wait(WITHIN_S)
    for _ in range(100):
        assert subject.region.interrupt()
    go_on.set()
    subject.join()
    assert cleaned.is_set()


def test_an_import_is_not_interrupted(tmp_path, monkeypatch):
    importing, go_on = threading.Event(), threading.Event()
    module = tmp_path / "imported_slowly.py"
    module.write_text(
        "import sys\nimporting, go_on = sys.slow_events\nimporting.set()\ngo_on.wait(20)\nspun = sum(range(9))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "slow_events", (importing, go_on), raising=False)
    reached = threading.Event()

    def task():
        import imported_slowly

        spin(reached) if imported_slowly.spun == 36 else None

    subject = Subject(task)
    assert importing.wait(WITHIN_S)
    assert subject.region.interrupt()
    go_on.set()
    assert reached.wait(WITHIN_S)
    interrupt_until_over(subject.region)
    assert subject.join() is None
    assert sys.modules.pop("imported_slowly").spun == 36


class Thing:
    """Can be referred to weakly."""


class Finalized:
    """Calls a function when it goes."""

    def __init__(self, function):
        self.function = function

    def __del__(self):
        self.function()


def in_a_finalizer(function):
    Finalized(function)


def in_a_weak_callback(function):
    thing = Thing()
    weakref.finalize(thing, function)
    del thing


def in_a_callback_of_the_collector(function):
    def called(phase, info):
        if phase == "start" and threading.current_thread() is thread:
            function()

    thread = threading.current_thread()
    gc.callbacks.append(called)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(called)


def in_the_hook_for_what_is_swallowed(function):
    def fail():
        raise ValueError("in a finalizer")

    before, thread = sys.unraisablehook, threading.current_thread()

    def hook(unraisable):
        if threading.current_thread() is thread:
            function()

    sys.unraisablehook = hook
    try:
        Finalized(fail)
    finally:
        sys.unraisablehook = before


@pytest.mark.parametrize(
    "where",
    [in_a_finalizer, in_a_weak_callback, in_a_callback_of_the_collector, in_the_hook_for_what_is_swallowed],
)
def test_what_python_would_swallow_it_in_is_finished_first(where):
    """It would be printed and lost, and what the callback has to do left undone."""
    inside, go_on, done, reached = (threading.Event() for _ in range(4))

    def callback():
        inside.set()
        while not go_on.is_set():
            pass
        done.set()

    def task():
        where(callback)
        spin(reached)

    subject = Subject(task)
    assert inside.wait(WITHIN_S)
    for _ in range(100):
        assert subject.region.interrupt()
    go_on.set()
    assert done.wait(WITHIN_S)
    assert reached.wait(WITHIN_S)
    interrupt_until_over(subject.region)
    assert subject.join() is None


def test_code_of_ours_is_finished_first():
    reached, go_on, steps = threading.Event(), threading.Event(), []

    def task():
        with uninterrupted():
            reached.set()
            go_on.wait(WITHIN_S)
            steps.append("ours")
        steps.append("the user's")

    subject = Subject(task)
    reached.wait(WITHIN_S)
    assert subject.region.interrupt()
    go_on.set()
    subject.join()
    assert steps == ["ours"]


def test_an_inner_call_is_interrupted_in_place_of_the_outer_one():
    reached, inner = threading.Event(), []

    def task():
        inner.append(Interruptible())
        inner.append(inner[0].run(lambda: spin(reached)))
        inner.append("not reached")

    subject = Subject(task)
    reached.wait(WITHIN_S)
    interrupt_until_over(subject.region)
    assert subject.join() is None
    assert len(inner) == 1
    assert inner[0].requested


def profiled():
    """Profile a function that has run often: Python 3.11 would not come back from it while an interruption is due."""

    def warm():
        return 7

    for _ in range(100):
        warm()
    profile = cProfile.Profile()
    profile.enable()
    try:
        return warm()
    finally:
        profile.disable()


def test_code_may_be_profiled():
    region = Interruptible()
    region.run(lambda: None)
    assert region.run(profiled) == 7
    assert profiled() == 7


@pytest.mark.usefixtures("quick_switches")
def test_code_may_be_profiled_after_an_interruption_that_did_not_arrive():
    """Whether one arrives is up to the moment: of hundreds, some do not."""
    regions, profiles = [], []

    def many_runs():
        for i in range(1000):
            regions.append(Interruptible())
            regions[-1].run(lambda i=i: sum(range(i % 400)))
            profiles.append(profiled())

    assert interrupt_all_the_time(many_runs, regions)
    assert profiles == [7] * 1000


def test_other_errors_pass():
    region = Interruptible()
    with pytest.raises(ZeroDivisionError):
        region.run(lambda: 1 / 0)
    assert region.run(lambda: 7) == 7


@pytest.mark.usefixtures("quick_switches")
def test_nothing_arrives_after_the_end():
    """Thousands of short runs, hit at any moment: before, while and after they end."""
    regions, escaped, begun, finished = [], [], [], []

    def task(i):
        sum(range(i % 400))
        with uninterrupted():
            begun.append(i)
            sum(range(i % 100))
            finished.append(i)

    def many_short_runs():
        for i in range(4000):
            region = Interruptible()
            regions.append(region)
            try:
                region.run(lambda i=i: task(i))
                sum(range(100))
            except BaseException as error:
                escaped.append(error)

    assert interrupt_all_the_time(many_short_runs, regions)
    assert escaped == []
    assert begun == finished


def test_an_interruption_on_the_way_into_code_of_ours_takes_nothing_from_who_raised_it(monkeypatch):
    reached, go_on, ended, over = (threading.Event() for _ in range(4))
    really_raise = interrupt._raise_in
    steps = []

    def task():
        reached.set()
        go_on.wait(WITHIN_S)
        with uninterrupted():
            steps.append("not reached")

    def run():
        region.append(Interruptible())
        region[0].run(task)
        ended.set()
        while not over.is_set():
            pass
        steps.append("went on")

    def is_in(*names):
        frame = sys._current_frames()[thread.ident]
        for name in names:
            if frame is None or frame.f_code.co_name != name:
                return False
            frame = frame.f_back
        return True

    def raise_late(thread_id):
        go_on.set()
        wait_until(lambda: is_in("_hold", "masked"), "it waits for who interrupts it")
        really_raise(thread_id)
        wait_until(lambda: is_in("_hold", "_run") or ended.is_set(), "it was interrupted there")

    region, thread = [], threading.Thread(target=run, daemon=True)
    thread.start()
    assert reached.wait(WITHIN_S)
    monkeypatch.setattr(interrupt, "_raise_in", raise_late)
    region[0].interrupt()
    monkeypatch.undo()
    assert ended.wait(WITHIN_S)
    for _ in range(100):
        region[0].interrupt()
    over.set()
    thread.join(WITHIN_S)
    assert steps == ["went on"]


def test_what_handles_an_interruption_may_call_code_of_ours():
    reached, steps = threading.Event(), []

    def task():
        try:
            spin(reached)
        except Interrupted:
            with uninterrupted():
                steps.append("described")
            steps.append("told")
            raise

    subject = Subject(task)
    assert reached.wait(WITHIN_S)
    subject.region.interrupt()
    assert subject.join() is None
    assert steps == ["described", "told"]


def test_what_does_not_end_is_reported_once():
    reached, go_on = threading.Event(), threading.Event()
    reports, later = [], []

    def in_native_code():
        reached.set()
        go_on.wait(WITHIN_S)

    subject = Subject(in_native_code)
    reached.wait(WITHIN_S)
    clock = iter([0.0, 0.1, 0.2, 1.3, 2.4])
    insist(
        subject.region, lambda delay_s, again: later.append(again), lambda: reports.append(1), now=lambda: next(clock)
    )
    for expected in ([], [1], [1]):
        later.pop()()
        assert reports == expected
    go_on.set()
    subject.join()
    assert later.pop()() is None
    assert not later
