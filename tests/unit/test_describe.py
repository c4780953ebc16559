"""Messages name the call, its part, the likely causes and what to do."""

import copyreg
import functools
import pickle

import numpy as np
import pytest
import tblib.pickling_support
from sklearn.svm import SVC
from tests.unit.chunks import Client, Failed

from jobfleet import _wire as wire
from jobfleet._call.describe import describe, label, loss_error, not_readable, not_sendable, task_error
from jobfleet._engine.base import Lost, LostKind
from jobfleet._wire import TaskFailure
from jobfleet.errors import (
    CallError,
    ClusterError,
    ClusterLostError,
    InitializerError,
    RemoteTraceback,
    SerializationError,
    TaskExitError,
    WorkerLostError,
)

pytestmark = pytest.mark.timeout(20)


def fit(*args, **kwargs):
    return args


class Model:
    def fit(self, x):
        return x

    def __call__(self, x):
        return x


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


class Long:
    def __repr__(self):
        return "x\n" * 10_000


class StrangeName:
    __name__ = None

    def __call__(self):
        return 1


CALL = (fit, (1,), {})


# The call


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ((fit, (), {}), "fit()"),
        ((fit, (1, "a"), {"k": 2.5}), "fit(1, 'a', k=2.5)"),
        ((Model().fit, (1,), {}), "Model.fit(1)"),
        ((Model(), (1,), {}), "Model(1)"),
        ((functools.partial(fit, 1), (2,), {}), "fit(1, 2)"),
        ((len, ([1, 2],), {}), "len([1, 2])"),
        ((fit, (SVC(C=1),), {}), "fit(SVC(C=1))"),
    ],
)
def test_a_call_is_written_as_in_a_program(call, text):
    assert describe(call) == text


def test_an_argument_that_cannot_be_shown_is_named_by_its_type():
    assert describe((fit, (Unprintable(), 1), {})).startswith("fit(<Unprintable")


def test_a_call_is_short_and_on_one_line_whatever_its_arguments():
    arguments = (np.zeros((1000, 1000)), "x" * 10_000, list(range(10_000)), {i: i for i in range(10_000)}, Long())
    text = describe((fit, arguments, {"k": Long()}))
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("functions", "text"),
    [
        ([fit], "batch_of_fit_1_calls"),
        ([fit, fit], "batch_of_fit_2_calls"),
        ([fit, len], "mixed_batch_of_fit_2_calls"),
        ([lambda: 1], "batch_of_lambda_1_calls"),
        ([Model().fit], "batch_of_fit_1_calls"),
        ([functools.partial(fit, 1)], "batch_of_function_1_calls"),
        ([Model()], "batch_of_Model_1_calls"),
        ([StrangeName()], "batch_of_StrangeName_1_calls"),
    ],
)
def test_a_chunk_has_the_name_that_the_dashboard_shows(functions, text):
    assert label(functions, len(functions)) == text


def test_a_chunks_name_counts_its_calls_and_not_its_functions():
    assert label([fit], 3) == "batch_of_fit_3_calls"


# Failures of a task


def failure_of(function, *args):
    client = Client()
    with pytest.raises(Failed) as error:
        client.call(function, args)
    return error.value.failure


def error_of(failure, call=CALL):
    return task_error(failure, 7, call, "tcp://worker")


def raise_it(error):
    raise error


class NeedsTwo(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, one, two):
        super().__init__(one)


class DoesNotPickle(Exception):
    def __reduce__(self):
        raise TypeError("cannot pickle this")


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class NotEvenAnError(Exception):
    def __reduce__(self):
        return (str, ("not an exception",))


def test_a_tasks_exception_is_that_very_exception_with_the_workers_traceback():
    error = error_of(failure_of(raise_it, ZeroDivisionError("by zero")))
    assert type(error) is ZeroDivisionError
    assert error.args == ("by zero",)
    assert type(error.__cause__) is RemoteTraceback
    text = str(error.__cause__)
    assert "call 7, fit(1), on tcp://worker" in text
    assert "in raise_it" in text
    assert "_worker/run.py" not in text, "our own frames say nothing to the user"


@pytest.mark.parametrize("error", [KeyError("k"), StopIteration(1), OSError(2, "no file"), KeyboardInterrupt()])
def test_any_exception_keeps_its_type_and_arguments(error):
    again = error_of(failure_of(raise_it, error))
    assert type(again) is type(error)
    assert again.args == error.args


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()])
def test_a_task_that_ends_its_process_is_an_error_of_the_call(error):
    again = error_of(failure_of(raise_it, error))
    assert type(again) is TaskExitError
    assert (again.index, again.call) == (7, "fit(1)")
    assert f"call 7, fit(1), tried to end its process on tcp://worker: {type(error).__name__}" in str(again)


@pytest.mark.parametrize("error", [NeedsTwo("a", "b"), DoesNotPickle("a")])
def test_an_exception_that_does_not_travel_is_told_of(error):
    call = Client()
    with pytest.raises(Failed) as failed:
        call.call(
            lambda name: raise_it({"NeedsTwo": NeedsTwo("a", "b"), "DoesNotPickle": DoesNotPickle("a")}[name]),
            (type(error).__name__,),
        )
    again = error_of(failed.value.failure)
    assert type(again) is SerializationError
    assert (again.index, again.call) == (7, "fit(1)")
    assert f"call 7, fit(1), raised {type(error).__name__}: a on tcp://worker" in str(again)
    assert "does not travel" in str(again)
    assert "in raise_it" in str(again.__cause__)


def raise_while_handling():
    try:
        raise DoesNotPickle("a")
    except DoesNotPickle:
        raise ValueError("b")  # noqa: B904  # as users write it


def raise_from():
    raise ValueError("b") from DoesNotPickle("a")


@pytest.fixture
def _as_on_a_worker():
    """Importing distributed has tblib pickle exceptions: with their traceback, cause and context."""
    before = copyreg.dispatch_table.copy()
    tblib.pickling_support.install()
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.mark.parametrize("function", [raise_while_handling, raise_from])
@pytest.mark.usefixtures("_as_on_a_worker")
def test_an_exception_travels_though_its_cause_does_not(function):
    again = error_of(failure_of(function))
    assert type(again) is ValueError
    assert again.args == ("b",)
    assert "DoesNotPickle: a" in str(again.__cause__)


def test_an_exception_whose_class_exists_on_the_worker_only_is_told_of():
    data = pickle.dumps(ZeroDivisionError("by zero")).replace(b"ZeroDivisionError", b"ZeroDivisionErrox")
    again = error_of(TaskFailure(wire.RAISED, data, "ZeroDivisionErrox", "by zero", "Traceback", ""))
    assert type(again) is SerializationError
    assert "raised ZeroDivisionErrox: by zero" in str(again)
    assert "AttributeError" in str(again)
    assert "class must exist in the client" in str(again)


def test_an_exception_without_words_is_told_of():
    again = error_of(failure_of(lambda: raise_it(Wordless())))
    assert type(again) is Wordless


def test_an_exception_that_arrives_as_something_else_is_told_of():
    again = error_of(failure_of(lambda: raise_it(NotEvenAnError())))
    assert type(again) is SerializationError


class Unreadable:
    def __reduce__(self):
        return (raise_it, (ModuleNotFoundError("No module named 'only_here'"),))


def test_an_argument_that_does_not_unpickle_is_told_of():
    again = error_of(failure_of(fit, Unreadable()))
    assert type(again) is SerializationError
    assert "the argument of call 7, fit(1), does not unpickle on tcp://worker: ModuleNotFoundError" in str(again)
    assert "No module named 'only_here'" in str(again)
    assert "install it on all workers" in str(again)


def test_a_result_that_does_not_pickle_is_told_of():
    again = error_of(failure_of(lambda: (i for i in range(3))))
    assert type(again) is SerializationError
    assert "the result, a generator, of call 7, fit(1), does not pickle on tcp://worker: TypeError" in str(again)


def test_an_initializer_that_fails_is_told_of():
    again = error_of(TaskFailure(wire.NOT_INITIALIZED, None, "ValueError", "bad", "Traceback", ""))
    assert type(again) is InitializerError
    assert "initializer= failed on tcp://worker: ValueError: bad" in str(again)


# Failures in the client


def test_a_call_that_does_not_pickle_is_told_of():
    error = not_sendable(TypeError("cannot pickle 'lock'"), "argument 1, a lock,", 7, CALL)
    assert type(error) is SerializationError
    assert (error.index, error.call) == (7, "fit(1)")
    assert "Could not pickle the task to send to the workers" in str(error)
    assert "argument 1, a lock, of call 7, fit(1)," in str(error)
    assert "TypeError: cannot pickle 'lock'" in str(error)


def test_a_result_that_does_not_unpickle_is_told_of():
    error = not_readable(TypeError("bad"), 7, CALL, "tcp://worker")
    assert type(error) is SerializationError
    assert (error.index, error.call) == (7, "fit(1)")
    assert "the result of call 7, fit(1), computed by tcp://worker, does not unpickle" in str(error)
    assert "TypeError: bad" in str(error)


# Failures of the cluster


@pytest.mark.parametrize(
    ("kind", "cls", "words"),
    [
        (LostKind.WORKER, WorkerLostError, "call 7, fit(1), was tried until 1 workers had died of it"),
        (LostKind.DATA, CallError, "the data of call 7, fit(1), were lost again and again"),
        (LostKind.SCHEDULER, ClusterLostError, "the connection to the scheduler was lost during call 7, fit(1)"),
        (LostKind.ENGINE, ClusterError, "the cluster could not run call 7, fit(1)"),
    ],
)
def test_a_lost_chunk_is_told_of(kind, cls, words):
    cause = RuntimeError("what Dask said")
    error = loss_error(Lost(kind, cause), 7, CALL)
    assert type(error) is cls
    assert error.__cause__ is cause
    assert words in str(error)
    assert "what Dask said" in str(error) or kind is LostKind.WORKER  # which speaks of four workers


@pytest.mark.parametrize("kind", LostKind)
def test_every_kind_of_loss_has_words(kind):
    assert "call 7, fit(1)" in str(loss_error(Lost(kind, RuntimeError()), 7, CALL))
