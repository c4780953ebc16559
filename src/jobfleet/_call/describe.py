"""What messages say of a call, and the errors they go into."""

from __future__ import annotations

import functools
import pickle
import reprlib
from collections.abc import Iterable
from typing import Any

from .. import _wire as wire
from .._data.encode import Call
from .._engine.base import Lost, LostKind, Overran
from .._wire import TaskFailure
from ..errors import (
    CallError,
    ClusterError,
    ClusterLostError,
    InitializerError,
    JobfleetError,
    RemoteTraceback,
    SerializationError,
    TaskExitError,
    TaskTimeoutError,
    WorkerLostError,
)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 40
_short.maxlevel = 2


def describe(call: Call) -> str:
    """Shorten a call for a message: ``"fit(SVC(), array([[0., 1....], k=3)"``."""
    function: Any
    function, args, kwargs = call
    while isinstance(function, functools.partial):
        function, args, kwargs = function.func, (*function.args, *args), {**function.keywords, **kwargs}
    name = getattr(function, "__qualname__", None) or type(function).__name__
    shown = [_repr(value) for value in args] + [f"{key}={_repr(value)}" for key, value in kwargs.items()]
    return f"{name}({', '.join(shown)})"


def _repr(value: Any) -> str:
    try:
        # Arrays and estimators print over several lines.
        return " ".join(_short.repr(value).split())
    except Exception:  # the user's __repr__ may do anything; the message is what matters
        return f"<{type(value).__name__}>"


def label(functions: Iterable[Any], n_calls: int) -> str:
    """Name a chunk that calls these functions for Dask's dashboard, as joblib's own backend does."""
    functions = iter(functions)
    first = next(functions)
    name = getattr(first, "__name__", None) or type(getattr(first, "func", first)).__name__
    # Nothing is done call by call in Python: there may be thousands.
    mixed = bool(set(map(id, functions)) - {id(first)})
    return f"{'mixed_' if mixed else ''}batch_of_{name.strip('<>')}_{n_calls}_calls"


def not_sendable(error: BaseException, part: str, index: int, call: Call) -> SerializationError:
    """Report a call that does not pickle in the client."""
    text = describe(call)
    return SerializationError(
        f"Could not pickle the task to send to the workers: the {part} of call {index}, {text}, does not "
        f"pickle: {type(error).__name__}: {error}. Locks, open files, connections and generators belong to "
        "one process: make them inside the function, or pass what they are made from.",
        index,
        text,
    )


def not_readable(error: BaseException, index: int, call: Call, worker: str) -> SerializationError:
    """Report a result that does not unpickle in the client."""
    text = describe(call)
    return SerializationError(
        f"the result of call {index}, {text}, computed by {worker}, does not unpickle in the client: "
        f"{type(error).__name__}: {error}. Does its class exist here, and can it be rebuilt from its pickle?",
        index,
        text,
    )


def task_error(failure: TaskFailure, index: int, call: Call, worker: str) -> BaseException:
    """Give the exception that the caller of `Parallel` gets for a failed task."""
    text = describe(call)
    error = _as_exception(failure, index, text, worker)
    if failure.kind == wire.OVERRAN and not failure.traceback:
        return error
    where = f"call {index}, {text}, on {worker}"
    error.__cause__ = RemoteTraceback(f"{where}\n{failure.traceback}")
    return error


def _as_exception(failure: TaskFailure, index: int, text: str, worker: str) -> BaseException:
    what = f"{failure.type_name}: {failure.message}"
    match failure.kind:
        case wire.RAISED if failure.exception is not None:
            try:
                error: BaseException = pickle.loads(failure.exception)
            except Exception as reason:  # the exception's class is missing or odd here
                return _odd_exception(what, f"{type(reason).__name__}: {reason}", index, text, worker)
            return error
        case wire.EXITED:
            return TaskExitError(
                f"call {index}, {text}, tried to end its process on {worker}: {what}. A task must return or "
                "raise an ordinary exception; is it a script's main function that calls sys.exit()?",
                index,
                text,
            )
        case wire.UNREADABLE:
            return SerializationError(
                f"the {failure.part} of call {index}, {text}, does not unpickle on {worker}: {what}. If a module is "
                "missing there, install it on all workers, or send a file of your own with "
                "client.upload_file(...); if it is another version, use the client's.",
                index,
                text,
            )
        case wire.OVERRAN:
            return overrun_error(failure.message, index, text, f"It was interrupted on {worker}.")
        case wire.NOT_INITIALIZED:
            return InitializerError(f"initializer= failed on {worker}: {what}", index, text)
    if failure.part.startswith("exception"):
        return _odd_exception(what, failure.part.partition(": ")[2], index, text, worker)
    return SerializationError(
        f"the {failure.part} of call {index}, {text}, does not pickle on {worker}: {what}. Return plain data "
        "instead of locks, open files, connections or generators.",
        index,
        text,
    )


def _odd_exception(what: str, reason: str, index: int, text: str, worker: str) -> SerializationError:
    return SerializationError(
        f"call {index}, {text}, raised {what} on {worker}, and that exception does not travel ({reason}). The "
        "worker's traceback is above. Exceptions that tasks raise must pickle, and their class must exist in the "
        "client: give Exception.__init__ all the arguments of your own __init__.",
        index,
        text,
    )


def overrun_error(limit_s: str, index: int, text: str, became: str) -> TaskTimeoutError:
    """Report a task that took too long; `became` says what was done about it."""
    return TaskTimeoutError(
        f"call {index}, {text}, took longer than {limit_s} s, the task_timeout of its Parallel call. {became} Is it "
        "stuck, or does it take longer than its neighbours? Then raise task_timeout. To have the other results with "
        "this error among them: parallel_config(..., return_exceptions=True)",
        index,
        text,
    )


def _became(overran: Overran) -> str:
    """Say what has become of a task that could not be interrupted."""
    why = (
        f"It could not be interrupted on {overran.worker}: it is in a call of native code, or catches every exception. "
    )
    if overran.ends:
        return f"{why}So its worker process was replaced."
    return (
        f"{why}That worker has no nanny to replace its process, so it runs on there, without a slot, until it returns."
    )


def loss_error(lost: Lost, index: int, call: Call, deaths: int = 1) -> JobfleetError:
    """Report a chunk that is given up because of a fault of the cluster; `deaths` workers have died with it."""
    text = describe(call)
    error: JobfleetError
    match lost.kind:
        case LostKind.WORKER:
            last = f"Of the last one is known: {lost.cause}. " if lost.cause else ""
            if "memory limit" in lost.cause:
                causes = (
                    "What it holds at a time, its arguments and its result too, is more than a worker may have: give "
                    "workers more memory, or fewer threads each, or have it return less, say the name of a file. "
                )
            else:
                causes = (
                    "A crash in native code, os._exit, or more memory than the worker has are the likely causes; the "
                    "workers' logs say more. "
                )
            error = WorkerLostError(
                f"call {index}, {text}, was tried until {deaths} workers had died of it. {last}{causes}"
                "To have the other results with this error among them: parallel_config(..., return_exceptions=True)",
                index,
                text,
            )
        case LostKind.DATA:
            error = CallError(
                f"the data of call {index}, {text}, were lost again and again, with the workers that held "
                f"them: {lost.error}. Do the workers have enough memory? Their logs say why they ended.",
                index,
                text,
            )
        case LostKind.OVERRUN if isinstance(lost.error, Overran):
            return overrun_error(f"{lost.error.limit_s:g}", index, text, _became(lost.error))
        case LostKind.SCHEDULER:
            error = ClusterLostError(
                f"the connection to the scheduler was lost during call {index}, {text}: "
                f"{type(lost.error).__name__}: {lost.error}. Is it still running, and was the client closed?"
            )
        case LostKind.ABANDONED:
            error = ClusterError(f"call {index}, {text}, was given up with the task that made it: {lost.error}")
        case _:
            error = ClusterError(
                f"the cluster could not run call {index}, {text}: {type(lost.error).__name__}: {lost.error}"
            )
    error.__cause__ = lost.error
    return error


def timeout_message(timeout_s: float, pending: tuple[int, Call] | None, n_ended: int) -> str:
    """Say what a call was waiting for when `timeout` was over; joblib's own error has no words."""
    waited = f"no result came for {timeout_s:g} s, the timeout= of this Parallel call"
    if pending is None:
        return waited
    index, call = pending
    return (
        f"{waited}. It was waiting for call {index}, {describe(call)}; {n_ended} calls had ended. What still ran was "
        "interrupted. Is that call stuck, or does it take longer than its neighbours? Then raise timeout="
    )
