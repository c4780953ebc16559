"""Exceptions of tasks arrive as they are; what cannot travel is a clear error, within seconds; nothing hangs."""

import os
import pickle
import re
import sys
import threading
import traceback
import types

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed

from tests.witness import count, mark, names, open_gate, pass_gate, wait_until

pytestmark = pytest.mark.timeout(30)  # a clear error comes within seconds


def square(x):
    return x * x


def assert_usable(backend):
    assert Parallel()(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]


@pytest.fixture
def workers_stay(backend, process_client):
    """Fail when a worker process did not live through the test."""
    before = set(process_client.run(os.getpid).values()) if backend.remote else set()
    yield
    if backend.remote:
        assert set(process_client.run(os.getpid).values()) == before


@pytest.fixture
def own_error(against):
    """Give the root of the error tree."""
    if against != "jobfleet":
        pytest.skip("the others have no such errors")
    from jobfleet.errors import JobfleetError

    return JobfleetError


class OwnError(Exception):
    """Has an attribute beside its arguments."""

    def __init__(self, message, code=0):
        super().__init__(message, code)
        self.code = code

    def __str__(self):
        return f"{self.args[0]} ({self.code})"


def raise_at(index, bad, make):
    if index == bad:
        raise make()
    return index


def deep_in_the_worker(make):
    raise make()


def raise_deep(make):
    deep_in_the_worker(make)


MAKERS = {
    "builtin": lambda: ValueError("wrong value"),
    "with several arguments": lambda: OSError(2, "no such thing", "/some/file"),
    "own class": lambda: OwnError("own trouble", 7),
    "without arguments": KeyError,
    "group": lambda: ExceptionGroup("several", [ValueError("a"), TypeError("b")]),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_an_exception_keeps_type_and_content(backend, kind):
    make = MAKERS[kind]
    expected = make()
    with backend():
        with pytest.raises(type(expected)) as caught:
            Parallel(n_jobs=2)(delayed(raise_at)(i, 2, make) for i in range(6))
        assert type(caught.value) is type(expected)
        assert str(caught.value) == str(expected)
        if not isinstance(expected, ExceptionGroup):
            assert caught.value.args == expected.args
        assert getattr(caught.value, "code", None) == getattr(expected, "code", None)
        assert_usable(backend)


def test_the_workers_traceback_is_shown(backend):
    with backend(), pytest.raises(ValueError, match=r"^down here$") as caught:
        Parallel(n_jobs=2)(delayed(raise_deep)(lambda: ValueError("down here")) for _ in range(2))
    shown = "".join(traceback.format_exception(caught.value))
    assert "raise_deep" in shown
    assert "in deep_in_the_worker" in shown
    assert os.path.basename(__file__) in shown
    assert caught.value.__cause__ is not None


def test_causes_raised_in_the_task_are_shown(backend):
    def chain():
        try:
            raise KeyError("first trouble")
        except KeyError as error:
            raise RuntimeError("second trouble") from error

    with backend(), pytest.raises(RuntimeError, match="second trouble") as caught:
        Parallel(n_jobs=2)(delayed(chain)() for _ in range(2))
    assert "first trouble" in "".join(traceback.format_exception(caught.value))


def test_an_error_in_the_middle_of_a_batch(backend, tmp_path):
    def task(index):
        mark(tmp_path, index)
        if index == 3:
            raise LookupError("in the middle")
        return index

    with backend():
        with pytest.raises(LookupError, match="in the middle"):
            Parallel(n_jobs=2, batch_size=8, pre_dispatch="all")(delayed(task)(i) for i in range(16))
        assert_usable(backend)
    ran = set(names(tmp_path))
    assert {"0", "1", "2", "3"} <= ran
    assert "4" not in ran


def test_the_earliest_of_those_that_failed_is_raised(backend):
    def fail(index):
        if index in (1, 3):
            raise ValueError(f"call {index}.")
        return index

    with backend():
        with pytest.raises(ValueError, match=r"call 1\."):
            Parallel(n_jobs=2, batch_size=4, pre_dispatch="all")(delayed(fail)(i) for i in range(8))
        assert_usable(backend)


def test_the_first_of_a_batch_when_all_fail(backend):
    def fail(index):
        raise ValueError(f"call {index}.")

    with backend():
        # Of two batches that run at once either may be heard of first.
        with pytest.raises(ValueError, match=r"call [04]\."):
            Parallel(n_jobs=2, batch_size=4, pre_dispatch="all")(delayed(fail)(i) for i in range(8))
        assert_usable(backend)


@pytest.mark.parametrize("form", ["generator", "generator_unordered"])
def test_an_error_comes_out_of_a_generator(backend, form):
    with backend():
        results = Parallel(n_jobs=2, return_as=form)(delayed(raise_at)(i, 3, MAKERS["builtin"]) for i in range(10))
        with pytest.raises(ValueError, match="wrong value"):
            list(results)
        assert_usable(backend)


def test_a_task_runs_once_when_it_fails(backend, tmp_path):
    def fail():
        mark(tmp_path)
        raise ValueError("once")

    with backend():
        with pytest.raises(ValueError, match="once"):
            Parallel(n_jobs=2)(delayed(fail)() for _ in range(1))
        assert_usable(backend)
    assert count(tmp_path) == 1


def test_after_an_error_nothing_of_the_call_starts(backend, tmp_path):
    gate, started = tmp_path / "gate", tmp_path / "started"

    def task(index):
        mark(started, index)
        if index == 0:
            raise ValueError("stop here")
        pass_gate(gate, timeout_s=10)

    with backend(), Parallel(n_jobs=2, batch_size=1, pre_dispatch="all") as parallel:
        with pytest.raises(ValueError, match="stop here"):
            parallel(delayed(task)(i) for i in range(50))
        open_gate(gate)
        assert parallel(delayed(square)(i) for i in range(8)) == [i * i for i in range(8)]
    assert count(started) <= 10


# What cannot travel. Each part is asked of every engine: the way through them is the same.


def explode(part):
    raise RuntimeError(f"this {part} does not unpickle")


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("this does not pickle")

    def __repr__(self):
        return "Unpicklable()"


class Explosive:
    """Pickles, and does not unpickle."""

    def __init__(self, part="thing"):
        self.part = part

    def __reduce__(self):
        return explode, (self.part,)

    def __repr__(self):
        return f"Explosive({self.part})"


class UnpicklableError(Exception):
    def __reduce__(self):
        raise RuntimeError("this does not pickle")


class FussyError(Exception):
    """Loses an argument of its constructor on the way, as many libraries' exceptions do."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")


class LadenError(Exception):
    """Carries something that does not pickle."""

    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


def take(index, thing=None, **more):
    return index


def give(index, bad, make):
    return make() if index == bad else index


def give_lock():
    return threading.Lock()


def give_generator():
    return (i for i in range(3))


def assert_names_the_call(error, index, function, part, cause=None):
    text = str(error)
    assert re.search(rf"\b{index}\b", text), text
    assert function in text, text
    assert re.search(rf"(?i)\b{part}", text), text
    if cause is not None:
        assert cause in text, text
    assert len(text) < 3000, f"{len(text)} characters"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == text


@pytest.mark.parametrize("route", ["argument", "keyword", "in a list", "by a method", "by a closure", "by a partial"])
def test_an_argument_that_does_not_pickle(backend, own_error, workers_stay, route):
    import functools

    lock = threading.Lock()

    class Owner:
        def __init__(self, thing):
            self.thing = thing

        def take(self, index):
            return index

    def call(index):
        thing = lock if index == 3 else None
        return {
            "argument": lambda: delayed(take)(index, thing),
            "keyword": lambda: delayed(take)(index, more=thing),
            "in a list": lambda: delayed(take)(index, [{"k": thing}]),
            "by a method": lambda: delayed(Owner(thing).take)(index),
            "by a closure": lambda: delayed(lambda i, thing=thing: i)(index),
            "by a partial": lambda: delayed(functools.partial(take, thing=thing))(index),
        }[route]()

    with backend():
        with pytest.raises(own_error) as caught:
            Parallel(n_jobs=2)(call(i) for i in range(6))
        function = "lambda" if route == "by a closure" else "take"
        assert_names_the_call(caught.value, 3, function, "argument|function|call", cause="lock")
        assert_usable(backend)


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_an_argument_whose_pickling_fails_with_any_error(backend, own_error, workers_stay, batch_size):
    with backend():
        with pytest.raises(own_error) as caught:
            Parallel(n_jobs=2, batch_size=batch_size)(
                delayed(take)(i, Unpicklable() if i == 3 else None) for i in range(8)
            )
        assert_names_the_call(caught.value, 3, "take", "argument", cause="this does not pickle")
        assert "Unpicklable()" in str(caught.value)
        assert_usable(backend)


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_an_argument_that_does_not_unpickle(backend, own_error, workers_stay, batch_size):
    with backend():
        with pytest.raises(own_error) as caught:
            Parallel(n_jobs=2, batch_size=batch_size)(
                delayed(take)(i, Explosive("argument") if i == 3 else None) for i in range(8)
            )
        assert_names_the_call(caught.value, 3, "take", "argument", cause="this argument does not unpickle")
        assert_usable(backend)


@pytest.mark.parametrize("make", [Unpicklable, give_lock, give_generator], ids=["any error", "lock", "generator"])
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_a_result_that_does_not_pickle(backend, own_error, workers_stay, batch_size, make):
    with backend():
        with pytest.raises(own_error) as caught:
            Parallel(n_jobs=2, batch_size=batch_size)(delayed(give)(i, 3, make) for i in range(8))
        assert_names_the_call(caught.value, 3, "give", "result")
        assert_usable(backend)


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_a_result_that_does_not_unpickle(backend, own_error, workers_stay, batch_size):
    def make():
        return Explosive("result")

    with backend():
        with pytest.raises(own_error) as caught:
            Parallel(n_jobs=2, batch_size=batch_size)(delayed(give)(i, 3, make) for i in range(8))
        assert_names_the_call(caught.value, 3, "give", "result", cause="this result does not unpickle")
        assert_usable(backend)


EXCEPTIONS = {
    "does not pickle": (lambda: UnpicklableError("original words"), "UnpicklableError"),
    "carries what does not pickle": (lambda: LadenError("original words"), "LadenError"),
    "does not unpickle": (lambda: FussyError(5, "original words"), "FussyError"),
}


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_an_exception_that_does_not_travel(backend, own_error, workers_stay, kind, batch_size):
    make, name = EXCEPTIONS[kind]
    with backend():
        with pytest.raises(own_error) as caught:
            Parallel(n_jobs=2, batch_size=batch_size)(delayed(raise_at)(i, 3, make) for i in range(8))
        assert_names_the_call(caught.value, 3, "raise_at", "exception", cause="original words")
        assert name in str(caught.value)
        assert "in raise_at" in "".join(traceback.format_exception(caught.value)), "where it was raised"
        assert_usable(backend)


def raise_foreign(index):
    """Raise an exception whose module exists in this process only."""
    module = sys.modules.get("only_on_this_worker")
    if module is None:
        module = types.ModuleType("only_on_this_worker")
        exec("class ForeignError(Exception): pass", module.__dict__)
        sys.modules["only_on_this_worker"] = module
    if index == 3:
        raise module.ForeignError("original words")
    return index


def give_foreign(index):
    try:
        raise_foreign(3)
    except Exception as error:
        return type(error)("made there") if index == 3 else index


@pytest.mark.engines("dask-processes")  # needs a worker with modules of its own
def test_an_exception_class_only_the_worker_has(backend, own_error, workers_stay):
    with backend():
        with pytest.raises(own_error) as caught:
            Parallel(n_jobs=2)(delayed(raise_foreign)(i) for i in range(8))
        assert_names_the_call(caught.value, 3, "raise_foreign", "exception", cause="original words")
        assert "ForeignError" in str(caught.value)
        assert_usable(backend)


@pytest.mark.engines("dask-processes")
def test_a_result_class_only_the_worker_has(backend, own_error, workers_stay):
    with backend():
        with pytest.raises(own_error) as caught:
            Parallel(n_jobs=2)(delayed(give_foreign)(i) for i in range(8))
        assert_names_the_call(caught.value, 3, "give_foreign", "result", cause="only_on_this_worker")
        assert_usable(backend)


@pytest.mark.engines("dask-processes")
@pytest.mark.parametrize("route", ["function", "argument"])
def test_a_module_the_workers_lack(backend, own_error, workers_stay, tmp_path, monkeypatch, route):
    (tmp_path / "only_in_the_client.py").write_text("def task(x):\n    return x\n\nclass Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_in_the_client

    calls = {
        "function": lambda i: delayed(only_in_the_client.task)(i),
        "argument": lambda i: delayed(take)(i, only_in_the_client.Thing()),
    }
    try:
        with backend():
            with pytest.raises(own_error, match="only_in_the_client") as caught:
                Parallel(n_jobs=2)(calls[route](i) for i in range(4))
            assert_names_the_call(caught.value, "[0-3]", "task" if route == "function" else "take", "argument|function")
            assert_usable(backend)
    finally:
        del sys.modules["only_in_the_client"]


@pytest.mark.parametrize("kind", ["sys.exit", "SystemExit", "exit with text"])
def test_system_exit_in_a_task_is_an_error(backend, own_error, workers_stay, kind):
    def leave(index):
        if index == 3:
            if kind == "sys.exit":
                sys.exit(0)
            raise SystemExit(3 if kind == "SystemExit" else "goodbye")
        return index

    with backend():
        with pytest.raises(own_error, match=r"(?i)exit") as caught:
            Parallel(n_jobs=2)(delayed(leave)(i) for i in range(6))
        assert isinstance(caught.value, Exception)
        assert_names_the_call(caught.value, 3, "leave", "exit|task")
        assert_usable(backend)


def test_keyboard_interrupt_of_a_task(backend, own_error, workers_stay):
    def interrupt(index):
        if index == 3:
            raise KeyboardInterrupt("from a task")
        return index

    with backend():
        with pytest.raises((own_error, KeyboardInterrupt)) as caught:
            Parallel(n_jobs=2)(delayed(interrupt)(i) for i in range(6))
        assert "interrupt" in f"{type(caught.value).__name__} {caught.value}".lower()
        assert_usable(backend)


def test_other_exceptions_beyond_exception(backend, workers_stay):
    class Beyond(BaseException):
        pass

    def raise_beyond(index):
        if index == 3:
            raise Beyond("from a task")
        return index

    with backend():
        with pytest.raises(BaseException, match="from a task"):
            Parallel(n_jobs=2)(delayed(raise_beyond)(i) for i in range(6))
        assert_usable(backend)


def test_long_arguments_are_shortened(backend, own_error):
    with backend(), pytest.raises(own_error) as caught:
        Parallel(n_jobs=2)(
            delayed(take)(i, "x" * 100_000, other=list(range(50_000)), array=np.zeros(10_000), bad=Unpicklable())
            for i in range(2)
        )
    assert len(str(caught.value)) < 3000
    assert "take" in str(caught.value)


def test_an_argument_whose_repr_fails_is_no_obstacle(backend, own_error):
    class Shy(Unpicklable):
        def __repr__(self):
            raise RuntimeError("no repr either")

    with backend():
        with pytest.raises(own_error) as caught:
            Parallel(n_jobs=2)(delayed(take)(i, Shy()) for i in range(2))
        assert "take" in str(caught.value)
        assert "this does not pickle" in str(caught.value)
        assert_usable(backend)


def test_the_input_is_not_awaited_after_an_error(backend, tmp_path):
    """An endless input ends with the first error."""

    def endless():
        index = 0
        while True:
            yield delayed(raise_at)(index, 5, MAKERS["builtin"])
            index += 1

    with backend():
        with pytest.raises(ValueError, match="wrong value"):
            Parallel(n_jobs=2)(endless())
        assert_usable(backend)


def test_an_interrupted_caller_leaves_nothing_running(backend, tmp_path):
    """Ctrl-C while the caller waits: the call ends at once, its queue with it."""
    import signal

    gate, started = tmp_path / "gate", tmp_path / "started"

    def task(index):
        mark(started, index)
        pass_gate(gate, timeout_s=15)

    def interrupt():
        wait_until(lambda: count(started) >= 1, "a task started")
        os.kill(os.getpid(), signal.SIGINT)

    with backend():
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            Parallel(n_jobs=2, batch_size=1, pre_dispatch="all")(delayed(task)(i) for i in range(50))
        thread.join()
        open_gate(gate)
        assert_usable(backend)
    assert count(started) <= 10


# What is wrong before anything runs.


def test_an_unknown_option_is_named_with_those_that_exist(backend, own_error):
    with (
        pytest.raises((own_error, TypeError, ValueError), match="definitely_not_an_option") as caught,
        backend(definitely_not_an_option=1),
    ):
        Parallel()(delayed(square)(i) for i in range(3))
    assert "scatter" in str(caught.value)
    with backend():
        assert_usable(backend)


def test_an_unknown_option_of_parallel_is_named(backend, own_error):
    with backend():
        with pytest.raises((own_error, TypeError, ValueError), match="definitely_not_an_option"):
            Parallel(definitely_not_an_option=1)(delayed(square)(i) for i in range(3))
        assert_usable(backend)


WRONG = {
    "wait_for_workers_timeout": "soon",
    "retries": "many",
    "resources": 5,
    "priority": "high",
    "initializer": 3,
    "scatter": 7,
}


@pytest.mark.parametrize("option", WRONG)
def test_an_option_of_the_wrong_type_is_named(backend, own_error, option):
    with pytest.raises((TypeError, ValueError), match=option) as caught, backend(**{option: WRONG[option]}):
        Parallel()(delayed(square)(i) for i in range(3))
    assert isinstance(caught.value, own_error)
    assert repr(WRONG[option]) in str(caught.value) or type(WRONG[option]).__name__ in str(caught.value)


@pytest.mark.parametrize("wrong", [42, "tcp://127.0.0.1:1", object()], ids=["number", "address", "object"])
def test_what_is_not_a_client_is_refused(own_error, wrong):
    with pytest.raises((TypeError, ValueError), match="client") as caught, joblib.parallel_config("dask", client=wrong):
        Parallel()(delayed(square)(i) for i in range(3))
    assert isinstance(caught.value, own_error)


def test_an_engine_that_does_not_exist_is_named(own_error):
    with (
        pytest.raises((TypeError, ValueError), match="warp") as caught,
        joblib.parallel_config("jobfleet", engine="warp"),
    ):
        Parallel()(delayed(square)(i) for i in range(3))
    assert isinstance(caught.value, own_error)
    assert "local" in str(caught.value)
