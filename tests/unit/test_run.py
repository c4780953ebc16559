"""A chunk on a worker: runs in order, stops where it has to, and answers with what it has."""

import contextlib
import pickle
import sys
import threading
import time
import types

import cloudpickle
import joblib
import pytest
from joblib import parallel_config
from tests.unit.chunks import Client, Failed, here, read

from jobfleet import _wire as wire
from jobfleet._wire import Reply, Request
from jobfleet._worker import run
from jobfleet._worker.run import run_chunk

pytestmark = pytest.mark.timeout(20)

RAN = []
WATCHED = []


@pytest.fixture(autouse=True)
def _nothing_ran():
    RAN.clear()
    WATCHED.clear()


def note(x):
    RAN.append(x)
    return x


def note_late(i):
    """Take as long as the chunk may, if it is the third one."""
    while i == 2 and WATCHED[0]() is None:
        pass
    assert i != 2 or WATCHED[0]() == 3
    return note(i)


def failure(calls, **spec_changes):
    """Run calls that end in a failure; give it with the results before."""
    client = Client()
    with pytest.raises(Failed) as error:
        client.run([client.encode(function, *args) for function, *args in calls], **spec_changes)
    return error.value.failure, error.value.results


def answer(calls, place=None, **spec_changes):
    client = Client()
    packed = client.pack([client.encode(function, *args) for function, *args in calls], **spec_changes)
    values = [blob.data for blob in packed.placed] + packed.inline
    return run_chunk(Request.from_bytes(packed.request), values, place or here())


# Where a chunk stops


def test_calls_run_in_order_until_one_fails():
    error, results = failure([(note, 1), (note, [2]), (divmod, 1, 0), (note, 3)])
    assert results == [1, [2]]
    assert RAN == [1, [2]]
    assert (error.kind, error.type_name) == (wire.RAISED, "ZeroDivisionError")


def test_a_chunk_whose_time_is_over_answers_with_what_it_has(monkeypatch):
    monkeypatch.setattr(run, "_LOOK_S", 0.0)
    assert read(answer([(note, 1), (note, 2), (note, 3)], budget_s=0.0)) == [1]
    assert RAN == [1]
    assert read(answer([(note, 1), (note, 2)], budget_s=60.0)) == [1, 2]
    assert read(answer([(note, 1), (note, 2)], budget_s=None)) == [1, 2]


def test_a_chunk_whose_time_is_over_says_what_it_keeps():
    place = here()

    @contextlib.contextmanager
    def give_back(kept, over_after_s):
        assert over_after_s > 0.01
        WATCHED.append(kept)
        yield

    place.give_back = give_back
    assert read(answer([(note_late, i) for i in range(5)], place, budget_s=0.01)) == [0, 1, 2]
    assert WATCHED[0]() == 4, "three have ended; a fourth would be the one that runs"
    assert read(answer([(note, i) for i in range(5)], place)) == [0, 1, 2, 3, 4]
    assert len(WATCHED) == 1, "the other one's time is not bounded"


def test_a_chunk_that_is_given_up_stops_after_the_call_that_runs(monkeypatch):
    monkeypatch.setattr(run, "_LOOK_S", 0.0)
    place = here()
    place.cancelled = lambda: len(RAN) == 2
    assert read(answer([(note, i) for i in range(5)], place)) == [0, 1]
    assert RAN == [0, 1]


def test_an_answer_says_who_ran_it_and_how_long():
    reply = Reply.from_bytes(answer([(note, 1)])[0])
    assert reply.worker == "this process"
    assert 0 <= reply.seconds < 10
    assert (reply.failure, reply.events, reply.nested) == (None, (), False)


def test_an_answer_says_how_much_the_tasks_differ():
    reply = Reply.from_bytes(answer([(time.sleep, seconds) for seconds in (0.002, 0.1, 0.002)])[0])
    assert reply.n_timed == 3
    assert 0.1**2 < reply.squares_s2 < reply.seconds**2
    reply = Reply.from_bytes(answer([(time.sleep, 0.1)])[0])
    assert (reply.n_timed, reply.squares_s2) == (1, pytest.approx(reply.seconds**2, rel=0.5))
    reply = Reply.from_bytes(answer([(time.sleep, 0.1)] * 3, budget_s=0.05)[0])
    assert reply.n_timed == 1, "and after it the chunk's time is over"
    reply = Reply.from_bytes(answer([(abs, i) for i in range(5000)])[0])
    assert 1 <= reply.n_timed <= 1 + reply.seconds / 0.001, "such short ones are measured together"
    assert Reply.from_bytes(answer([(abs, None)])[0]).n_timed == 1, "of one that fails"


def test_short_results_are_answered_together_and_others_one_by_one():
    reply = Reply.from_bytes(answer([(note, v) for v in (1, "a", [2], 3, 4)])[0])
    assert [(kind, len(pickle.loads(fields[1]))) for kind, *fields in reply.results if kind == wire.MANY] == [
        (wire.MANY, 2),
        (wire.MANY, 2),
    ]
    assert [kind for kind, *_ in reply.results] == [wire.MANY, wire.ONE, wire.MANY]


# Results


KEPT = []


def keep(x):
    KEPT.append(x)
    return KEPT


def test_a_result_is_what_it_was_when_the_call_returned():
    KEPT.clear()
    assert read(answer([(keep, 1), (keep, 2), (keep, 3)])) == [[1], [1, 2], [1, 2, 3]]


@pytest.mark.parametrize("result", ["generator", "lock"])
def test_a_result_that_does_not_pickle_is_a_failure_that_names_its_type(result):
    make = {"generator": lambda: (i for i in range(3)), "lock": threading.Lock}[result]
    error, results = failure([(note, 1), (make,), (note, 2)])
    assert results == [1]
    assert error.kind == wire.UNSENDABLE
    assert error.part == f"result, a {result},"
    assert RAN == [1]


# What does not unpickle


class Unreadable:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return raise_it, (self.error,)


def raise_it(error):
    raise error


@pytest.mark.parametrize("error", [ValueError("a"), SystemExit(1), KeyboardInterrupt()])
def test_an_argument_that_does_not_unpickle_is_a_failure_of_its_call(error):
    found, results = failure([(note, 1), (note, Unreadable(error)), (note, 3)])
    assert results == [1]
    assert RAN == [1]
    assert (found.kind, found.type_name, found.part) == (wire.UNREADABLE, type(error).__name__, "argument")


@pytest.fixture
def lost_function(monkeypatch):
    """A function of a module that the client has and the worker has not."""
    module = types.ModuleType("only_in_the_client")
    module.__spec__ = types.SimpleNamespace(name=module.__name__)
    exec("def f(x): return x", module.__dict__)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        client = Client()
        task = client.encode(module.f, 1)
    return client, task


def test_a_function_whose_module_is_missing_is_a_failure_that_says_so(lost_function):
    client, task = lost_function
    with pytest.raises(Failed) as error:
        client.run([task])
    assert error.value.failure.kind == wire.UNREADABLE
    assert error.value.failure.part == "function"
    assert "only_in_the_client" in error.value.failure.message


def test_a_function_that_is_missing_fails_its_own_call(lost_function):
    client, task = lost_function
    with pytest.raises(Failed) as error:
        client.run([client.encode(note, 1), task])
    assert error.value.results == [1]


# Exceptions


def test_the_workers_own_frames_are_not_in_the_traceback():
    error, _ = failure([(divmod, 1, 0)])
    assert error.traceback.startswith("ZeroDivisionError: ")
    error, _ = failure([(raise_it, ValueError("a"))])
    assert "raise_it" in error.traceback
    assert "_worker" not in error.traceback


@pytest.mark.parametrize("exception", [SystemExit(2), GeneratorExit()])
def test_a_call_does_not_end_its_worker(exception):
    error, _ = failure([(raise_it, exception)])
    assert (error.kind, error.exception) == (wire.EXITED, None)


# Before and between the calls


def initialize(name, value):
    RAN.append((name, value))
    setattr(sys, name, value)


def initialized(name):
    return getattr(sys, name)


def initializer(*args):
    return cloudpickle.dumps((initialize, args))


def test_an_initializer_runs_once_per_process_before_the_first_call(monkeypatch):
    name = "_jobfleet_test_once"
    monkeypatch.setattr(sys, name, None, raising=False)
    once = initializer(name, 1)
    for _ in range(3):
        assert read(answer([(initialized, name), (initialized, name)], initializer=once)) == [1, 1]
    assert [(name, 1)] == RAN
    assert read(answer([(initialized, name)], initializer=initializer(name, 2))) == [2]


def test_other_threads_wait_for_the_initializer(monkeypatch):
    name = "_jobfleet_test_waits"
    monkeypatch.setattr(sys, name, None, raising=False)
    start = threading.Barrier(4)
    results = []

    def work():
        start.wait(10)
        results.append(read(answer([(initialized, name)], initializer=initializer(name, 1))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [[1]] * 4
    assert [(name, 1)] == RAN


@pytest.mark.parametrize("error", [ValueError("a"), SystemExit(3)])
def test_an_initializer_that_fails_is_a_failure_and_is_tried_again(error):
    fails = cloudpickle.dumps((raise_it, (error,)))
    for _ in range(2):
        found, results = failure([(note, 1)], initializer=fails)
        assert (found.kind, found.type_name, results) == (wire.NOT_INITIALIZED, type(error).__name__, [])
    assert RAN == []


def leave_joblib_changed():
    parallel_config("threading", n_jobs=7)  # and does not take it back
    return type(joblib.parallel.get_active_backend()[0]).__name__


def active():
    return type(joblib.parallel.get_active_backend()[0]).__name__


def test_what_a_call_does_to_joblibs_settings_is_undone_for_the_next():
    before = active()
    assert read(answer([(leave_joblib_changed,), (active,)])) == ["ThreadingBackend", "JobfleetBackend"]
    assert active() == before


def active_in_a_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(active()))
    thread.start()
    thread.join(10)
    return seen[0], active()


def test_other_threads_of_the_worker_keep_their_settings():
    ((other, own),) = read(answer([(active_in_a_thread,)]))
    assert own == "JobfleetBackend"
    assert other != "JobfleetBackend"


class Counted:
    """Tells how many of its kind were alive at once, from when they were rebuilt."""

    alive = 0
    most = 0

    def __getstate__(self):
        return {"rebuilt": True}

    def __setstate__(self, state):
        self.__dict__.update(state)
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self):
        Counted.alive -= hasattr(self, "rebuilt")


def test_objects_of_a_call_are_let_go_before_the_next_is_rebuilt():
    client = Client()
    Counted.most = 0
    assert client.run([client.encode(type, Counted()) for _ in range(4)]) == [Counted] * 4
    assert (Counted.most, Counted.alive) == (1, 0)
