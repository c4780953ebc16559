"""The driver of a call: results as they are taken, and an end whatever goes wrong on the way."""

import contextlib
import dataclasses
import gc
import pickle
import queue
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
from joblib import Parallel, delayed
from tests.unit.chunks import drivers, here

from jobfleet import _wire as wire
from jobfleet._backend import JobfleetBackend
from jobfleet._call import call as call_module
from jobfleet._call.call import Outputs
from jobfleet._data.buffers import InProcess
from jobfleet._engine.base import Callers, HandedBack, Lost, LostKind, Slots
from jobfleet._engine.local import run_here
from jobfleet._wire import CallSpec, Request, WireVersionError
from jobfleet.errors import ClusterLostError, NoWorkersError, SerializationError
from jobfleet.testing import ScriptedEngine

pytestmark = pytest.mark.timeout(30)


def parallel(engine, **keywords):
    return Parallel(backend=JobfleetBackend(engine=engine), **keywords)


def double(x):
    return 2 * x


class Engine:
    """Run chunks in the driver's thread, after `answer` has had a look at them."""

    depth = 0
    keeper = InProcess()
    callers = Callers()
    help_s = 0.0

    def __init__(self, answer, slots=1):
        self.answer = answer
        self.n_slots = slots
        self.dropped = []
        self.closed = 0
        self.changed = None
        self.end = None

    def slots(self, options):
        return Slots(self.n_slots, self.n_slots)

    def open(self, options, slots, *, lends_thread):
        return self

    @contextlib.contextmanager
    def waiting(self):
        yield

    # It is its own session.

    def flush(self):
        pass

    def submit(self, chunk, label, done, here=False):
        outcome = self.answer(chunk)
        if outcome is not None:
            done(outcome)

    def drop(self, digest):
        self.dropped.append(digest)

    def watch_slots(self, changed):
        self.changed = changed

    def lend_thread(self):
        pass

    def settle(self):
        pass

    def lost(self):
        return self.end

    def close(self):
        self.closed += 1


def far_away(chunk):
    """Run a chunk as in another process: what its tasks print is sent."""
    request = Request.from_bytes(chunk.request)
    spec = dataclasses.replace(CallSpec.from_bytes(request.spec), origin="another process")
    request = dataclasses.replace(request, spec=spec.to_bytes())
    return run_here(dataclasses.replace(chunk, request=request.to_bytes()), here())


# Results, as joblib takes them


def test_results_of_a_list_are_given_at_once():
    results = [1, 2, 3]
    assert Outputs(results, None, None).get() is results


def test_an_error_is_raised():
    error = ValueError("of the task")
    with pytest.raises(ValueError, match="of the task") as raised:
        Outputs([1], error, lambda: None).get()
    assert raised.value is error


def test_results_are_consumed_when_the_next_is_asked_for():
    consumed = []
    outputs = iter(Outputs([1, 2], None, lambda: consumed.append(True)).get())
    assert [next(outputs), next(outputs)] == [1, 2]
    assert not consumed
    assert next(outputs, "end") == "end"
    assert consumed == [True]


def test_a_result_is_let_go_as_soon_as_it_is_taken():
    class Large:
        pass

    results = [Large(), Large(), Large()]
    alive = [weakref.ref(result) for result in results]
    outputs = Outputs(results, None, lambda: None)
    del results
    n_taken = 0
    for result in outputs.get():
        del result
        n_taken += 1  # noqa: SIM113  # enumerate would keep the result
        gc.collect()
        assert [ref() is not None for ref in alive] == [i >= n_taken for i in range(3)]


# What comes back


def test_an_answer_of_another_version_ends_the_call():
    reply = pickle.dumps((wire.WIRE_VERSION + 1, ()))
    with pytest.raises(WireVersionError, match=f"version {wire.WIRE_VERSION + 1} "):
        parallel(Engine(lambda chunk: [reply]))([delayed(double)(1)])


def test_an_answer_that_is_none_ends_the_call():
    with pytest.raises(pickle.UnpicklingError):
        parallel(Engine(lambda chunk: [b"nonsense"]))([delayed(double)(1)])


def test_large_results_come_back_in_their_places_and_writable():
    def answer(chunk):
        # What a network gives may be read-only.
        return [bytes(part) for part in run_here(chunk, here())]

    arrays = parallel(Engine(answer), batch_size=3, pre_dispatch="all")(delayed(np.full)(5000, i) for i in range(6))
    for i, a in enumerate(arrays):
        np.testing.assert_array_equal(a, np.full(5000, i))
        a += 1


class Unreadable:
    def __init__(self, error=ValueError):
        self.error = error

    def __reduce__(self):
        return fail, (self.error,)


def fail(error):
    raise error("made here")


def unreadable_result(x, error=ValueError):
    print("task", x)
    return Unreadable(error) if x < 0 else [x]


def test_a_result_that_does_not_unpickle_is_an_error_that_names_the_call():
    with pytest.raises(SerializationError, match=r"the result of call 1, unreadable_result\(-1\)"):
        parallel(ScriptedEngine(1), batch_size=2, pre_dispatch="all")(delayed(unreadable_result)(x) for x in (1, -1))


def test_a_result_does_not_end_the_client():
    with pytest.raises(SerializationError, match="the result of call 0"):
        parallel(ScriptedEngine(1))([delayed(unreadable_result)(-1, SystemExit)])


# What tasks print and warn


def test_what_tasks_print_is_there_when_the_results_are(capsys):
    engine = Engine(far_away)
    assert parallel(engine, batch_size=2, pre_dispatch="all")(delayed(unreadable_result)(x) for x in range(4)) == [
        [0],
        [1],
        [2],
        [3],
    ]
    assert capsys.readouterr().out == "task 0\ntask 1\ntask 2\ntask 3\n"


@pytest.mark.parametrize(("return_as", "order"), [("list", "01"), ("generator", "01"), ("generator_unordered", "10")])
def test_output_has_the_order_of_the_results_whichever_task_ends_first(capsys, return_as, order):
    class Backwards(Engine):
        first = None

        def submit(self, chunk, label, done, here=False):
            outcome = far_away(chunk)
            if self.first is None:
                self.first = lambda: done(outcome)
            else:
                done(outcome)
                self.first()

    calls = parallel(Backwards(None, slots=2), batch_size=1, return_as=return_as)
    list(calls(delayed(unreadable_result)(x) for x in range(2)))
    assert capsys.readouterr().out == "".join(f"task {x}\n" for x in order)


def test_what_a_failed_task_printed_is_there(capsys):
    def work(x):
        print("task", x)
        return 1 // x

    with pytest.raises(ZeroDivisionError):
        parallel(Engine(far_away), batch_size=3, pre_dispatch="all")(delayed(work)(x) for x in (1, 2, 0))
    assert capsys.readouterr().out == "task 1\ntask 2\ntask 0\n"


def test_what_a_task_printed_is_there_though_its_result_does_not_unpickle(capsys):
    with pytest.raises(SerializationError):
        parallel(Engine(far_away), batch_size=2, pre_dispatch="all")(delayed(unreadable_result)(x) for x in (1, -1))
    assert capsys.readouterr().out == "task 1\ntask -1\n"


def warn(x):
    if x == 1:
        warnings.warn("from a task", UserWarning, stacklevel=1)
    return x


def test_a_warning_that_the_caller_makes_an_error_is_the_calls_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="from a task"):
            parallel(Engine(far_away), batch_size=3, pre_dispatch="all")(delayed(warn)(x) for x in range(3))


# The engine


def test_a_call_that_has_lost_its_engine_ends(monkeypatch):
    """A closed client neither answers nor says why; the driver looks after it when it hears nothing."""
    monkeypatch.setattr(call_module, "_IDLE_S", 0.01)
    engine = Engine(lambda chunk: None)
    engine.end = Lost(LostKind.SCHEDULER, RuntimeError("the client is closed"))
    with pytest.raises(ClusterLostError, match=r"call 0, double\(1\): RuntimeError: the client is closed"):
        parallel(engine)([delayed(double)(1), delayed(double)(2)])


def test_a_call_that_has_lost_its_workers_ends():
    def answer(chunk):
        engine.changed(Slots(0, 0))
        engine.changed(Slots(0, 0))

    engine = Engine(answer)
    with pytest.raises(NoWorkersError, match="none has come back for 0 seconds"):
        parallel(engine, wait_for_workers_timeout=0)([delayed(double)(1)])


def test_an_engine_that_raises_ends_the_call():
    def answer(chunk):
        raise LookupError("in the engine")

    with pytest.raises(LookupError, match="in the engine"):
        parallel(Engine(answer))([delayed(double)(1)])


class Chatty(Engine):
    """Answer the first chunk; then say without end how many slots there are, until all is made."""

    def __init__(self, made):
        super().__init__(lambda chunk: run_here(chunk, here()))
        self.made = made
        self.held = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.talk, daemon=True)

    def submit(self, chunk, label, done, here=False):
        if self.thread.ident is None:
            super().submit(chunk, label, done)
            self.thread.start()
        else:
            self.held.put((chunk, done))

    def talk(self):
        while not self.made.wait(2e-4):
            self.changed(Slots(1, 1))
        while (held := self.held.get()) is not None:
            chunk, done = held
            done(self.answer(chunk))


def test_tasks_are_made_however_much_news_there_is():
    made = threading.Event()

    def calls():
        for i in range(500):
            yield delayed(double)(i)
        made.set()

    engine = Chatty(made)
    assert parallel(engine)(calls()) == [2 * i for i in range(500)]
    engine.held.put(None)
    engine.thread.join()


class Watchful(Engine):
    """Answer from another thread; the second chunk once it has been seen whether more tasks are made meanwhile."""

    def __init__(self, pulled, patience_s):
        super().__init__(lambda chunk: run_here(chunk, here()))
        self.pulled = pulled
        self.patience_s = patience_s
        self.n_sent = 0
        self.made_meanwhile = None
        self.caller_waits = threading.Event()
        self.chunks = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def submit(self, chunk, label, done, here=False):
        self.n_sent += 1
        if self.n_sent == 2:
            self.pulled.clear()
        self.chunks.put((chunk, done))

    def lend_thread(self):
        self.caller_waits.set()

    def work(self):
        first, done = self.chunks.get()
        self.caller_waits.wait()
        done(self.answer(first))
        while (sent := self.chunks.get()) is not None:
            if self.made_meanwhile is None:
                self.made_meanwhile = self.pulled.wait(self.patience_s)
            chunk, done = sent
            done(self.answer(chunk))


def triple(x, in_s=0.0):
    until_s = time.perf_counter() + in_s
    while time.perf_counter() < until_s:
        pass
    return 3 * x


def test_a_reply_is_waited_for_before_more_tasks_are_made(monkeypatch):
    monkeypatch.setattr(call_module, "_GIVE_WAY_S", 5.0)
    pulled = threading.Event()

    def calls():
        for i in range(100):
            pulled.set()
            yield delayed(triple)(i, in_s=0.005)

    engine = Watchful(pulled, patience_s=0.2)
    assert parallel(engine)(calls()) == [3 * i for i in range(100)]
    assert engine.made_meanwhile is False
    engine.chunks.put(None)
    engine.thread.join()


def test_no_reply_is_waited_for_where_tasks_take_longer_to_make_than_to_do(monkeypatch):
    monkeypatch.setattr(call_module, "_GIVE_WAY_S", 5.0)
    all_pulled = threading.Event()

    def calls():
        for i in range(100):
            triple(i, in_s=0.002)
            if i == 99:
                all_pulled.set()
            yield delayed(triple)(i)

    engine = Watchful(all_pulled, patience_s=3.0)
    assert parallel(engine)(calls()) == [3 * i for i in range(100)]
    assert engine.made_meanwhile is True
    engine.chunks.put(None)
    engine.thread.join()


def test_an_outcome_that_comes_twice_counts_once():
    class Twice(Engine):
        def submit(self, chunk, label, done, here=False):
            super().submit(chunk, label, done)
            super().submit(chunk, label, done)

    engine = Twice(lambda chunk: run_here(chunk, here()))
    assert parallel(engine)(delayed(double)(i) for i in range(20)) == [2 * i for i in range(20)]


def say_and_square(x):
    print(f"<{x}>")
    return x * x if x != 17 else x // 0


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_what_a_chunk_says_of_tasks_it_gave_back_does_not_count(return_as, capsys):
    """All of it may be sent again, see `ParallelCall._cut`: it runs whole here, each time."""

    class GivesBack(Engine):
        def submit(self, chunk, label, done, here=False):
            done(HandedBack(1))
            super().submit(chunk, label, done)

    engine = GivesBack(far_away)
    calls = parallel(engine, return_as=return_as)
    assert list(calls(delayed(say_and_square)(i) for i in range(17))) == [i * i for i in range(17)]
    assert capsys.readouterr().out == "".join(f"<{i}>\n" for i in range(17))
    with pytest.raises(ZeroDivisionError):
        list(calls(delayed(say_and_square)(i) for i in range(30)))


def test_each_call_closes_its_session():
    engine = Engine(lambda chunk: run_here(chunk, here()))
    with parallel(engine) as calls:
        calls([delayed(double)(1)])
        assert engine.closed == 1
        with pytest.raises(ZeroDivisionError):
            calls([delayed(divmod)(1, 0)])
        assert engine.closed >= 2


def test_the_engine_is_told_what_is_not_needed_any_more():
    engine = Engine(lambda chunk: run_here(chunk, here()))
    arrays = [np.full(2**20, i, np.uint8) for i in range(5)]
    assert parallel(engine)(delayed(len)(a) for a in arrays) == [2**20] * 5
    assert len(set(engine.dropped)) == 5


# The end


def test_results_and_arguments_are_not_kept_after_the_call():
    class Thing:
        pass

    with parallel(ScriptedEngine(2)) as calls:
        argument = Thing()
        (result,) = calls([delayed(lambda x: [x])(argument)])
        alive = [weakref.ref(argument), weakref.ref(result[0])]
        del argument, result
        for thread in drivers():
            thread.join(10)
        gc.collect()
        assert [ref() for ref in alive] == [None, None]


def test_the_thread_of_a_call_has_ended_when_its_results_are_there():
    for _ in range(20):
        parallel(ScriptedEngine(2))(delayed(double)(i) for i in range(5))
        assert not drivers()


@pytest.mark.parametrize(("iterable", "keywords"), [(5, {}), ([], {"pre_dispatch": "2 * nonsense"})])
def test_a_call_of_which_joblib_makes_nothing_leaves_nothing(iterable, keywords):
    """joblib does not say that it ends: nor would it if this thread were interrupted there."""
    engine = Engine(None)
    with pytest.raises((TypeError, ValueError)):
        parallel(engine, **keywords)(iterable)
    assert engine.changed is None
    assert not drivers()


class Unended(Parallel):
    def _terminate_and_reset(self):
        raise KeyboardInterrupt


def test_a_call_that_is_interrupted_at_its_very_end_leaves_nothing(monkeypatch):
    monkeypatch.setattr(call_module, "_IDLE_S", 0.01)
    engine = Engine(lambda chunk: run_here(chunk, here()))
    with pytest.raises(KeyboardInterrupt):
        Unended(backend=JobfleetBackend(engine=engine))(delayed(double)(i) for i in range(5))
    for thread in drivers():
        thread.join(10)
    assert not drivers()
    assert engine.closed
