"""Run one chunk of tasks; the only code of jobfleet that calls the user's functions."""

from __future__ import annotations

import functools
import io
import itertools
import math
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import cloudpickle
import numpy as np

from .. import _wire as wire
from .._pickling import atomic, dump
from .._wire import CallSpec, Reply, Request, TaskFailure
from .capture import Capture
from .threads import limited

T = TypeVar("T")


class Place(Protocol):
    """What a chunk needs to know of where it runs."""

    address: str
    """Names the worker in messages."""

    def cancelled(self) -> bool:
        """Whether the client has given the chunk up."""

    def run(self, function: Callable[[], None]) -> bool:
        """Call what runs the chunk's tasks; gives whether it was not interrupted."""

    def report_start(self, position: int) -> None:
        """Tell the scheduler that a task of the chunk starts; returns when it knows."""

    def nested(self, spec: CallSpec) -> AbstractContextManager[tuple[Callable[[], None], Callable[[], bool]]]:
        """Let `Parallel` calls of the tasks use the cluster.

        Gives what undoes a task's changes to joblib's settings, and what tells whether a task made a call.
        """

    def captures(self, spec: CallSpec) -> bool:
        """Whether what tasks print must be sent to the client."""

    def default_threads(self, spec: CallSpec) -> int | None:
        """Give the BLAS and OpenMP threads a task may have when the user has not said."""


class _Failed(Exception):
    """End a chunk with a failure."""

    def __init__(self, failure: TaskFailure) -> None:
        super().__init__(failure)
        self.failure = failure


def run_chunk(request: Request, values: Sequence[Any], place: Place) -> list[Any]:
    """Run the calls of a chunk in order, until one fails or the chunk's time is over.

    Parameters
    ----------
    request
        What to run.
    values
        The buffers it refers to by position.
    place
        Where it runs.

    Returns
    -------
    list
        A `Reply` as bytes, then the buffers of its results.
    """
    spec = _spec(request.spec)
    results = _Results()
    failure = None
    capture = Capture(spec.filters, cloudpickle.dumps) if place.captures(spec) else None
    # Modules are imported here, whose warnings are none of the task's.
    calls: Iterable[tuple[Any, tuple[Any, ...], dict[str, Any]]] = _Calls(request, values)
    if request.report_every:
        calls = _reported(calls, request.report_every, place)
    started = time.perf_counter()
    with (
        capture or nullcontext(),
        limited(spec.inner_max_num_threads, place.default_threads(spec)),
        place.nested(spec) as (renew, was_used),
    ):

        def run_tasks() -> None:
            nonlocal failure
            try:
                if spec.initializer is not None:
                    _initialize(spec.initializer)
                for function, args, kwargs in calls:
                    if place.cancelled():
                        break
                    renew()
                    result = _call(function, args, kwargs)
                    # Large objects of a task must not live on while the next one is rebuilt.
                    del function, args, kwargs
                    if capture is not None:
                        results.add_events(capture.take())
                    results.add(result)
                    del result
                    if _over(started, spec.budget_s):
                        break
            except _Failed as error:
                failure = error.failure

        if not place.run(run_tasks):
            failure = None  # nobody waits for it: what it says is of no use
        if capture is not None:
            results.add_events(capture.take())
    return results.reply(place.address, time.perf_counter() - started, failure, was_used())


def _reported(calls: Iterable[T], every: int, place: Place) -> Iterator[T]:
    """Say which task starts before anything of it is touched: rebuilding its arguments may kill the process too."""
    remaining = iter(calls)
    for position in itertools.count():
        if position % every == 0:
            place.report_start(position)
        try:
            yield next(remaining)
        except StopIteration:
            return


def _over(started: float, budget_s: float | None) -> bool:
    return budget_s is not None and time.perf_counter() - started > budget_s


@functools.lru_cache(maxsize=64)
def _spec(data: bytes) -> CallSpec:
    return CallSpec.from_bytes(data)


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except (SystemExit, GeneratorExit) as error:
        # Must end neither the worker nor, raised there again, the client.
        raise _Failed(_failure(wire.EXITED, error)) from None
    except BaseException as error:  # the task's own fault: it belongs to the client
        raise _Failed(_failure(wire.RAISED, error)) from None


def _failure(kind: int, error: BaseException, part: str = "") -> TaskFailure:
    """Describe `error`, without this module's frames."""
    shown = error.__traceback__
    while shown is not None and shown.tb_frame.f_globals is globals():
        shown = shown.tb_next
    text = "".join(traceback.format_exception(type(error), error, shown))
    try:
        message = str(error)
    except Exception as reason:  # the user's class; the failure matters more than its words
        message = f"<no text: {type(reason).__name__}>"
    exception = None
    if kind == wire.RAISED:
        try:
            exception, _, _ = dump(error, min_nbytes=math.inf)
            if not isinstance(pickle.loads(exception), BaseException):
                raise TypeError("its pickle gives something else")
        except Exception as reason:  # an exception that does not travel is reported as text
            kind, exception = wire.UNSENDABLE, None
            part = f"exception: {type(reason).__name__}: {reason}"
    return TaskFailure(kind, exception, type(error).__name__, message, text, part)


class _Calls:
    """Rebuild the calls of a chunk one after the other, each with objects of its own."""

    def __init__(self, request: Request, values: Sequence[Any]) -> None:
        self._request = request
        self._values = values
        self._functions = [self._function(data) for data in request.functions]

    def __iter__(self) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        functions = self._functions
        for item in self._request.items:
            if item[0] == wire.MANY:
                for args, kwargs in pickle.loads(item[2]):
                    yield self._loaded(functions[item[1]]), args, kwargs
                continue
            _, function, data, buffers = item
            part = "function or an argument" if function is None else "argument"
            shared = None if function is None else self._loaded(functions[function])
            value = self._load(data, buffers, part)
            yield value if function is None else (shared, *value)
            del value

    def _function(self, data: bytes) -> Any:
        """Load a function, or keep what went wrong for the first call that needs it."""
        try:
            return self._load(data, (), "function")
        except _Failed as error:
            return error

    @staticmethod
    def _loaded(function: Any) -> Any:
        if isinstance(function, _Failed):
            raise function
        return function

    def _load(self, data: bytes, buffers: Sequence[tuple[int, bool, bool]], part: str) -> Any:
        try:
            return self._unpickle(data, buffers)
        except BaseException as error:  # user code ran: any fault of it is the task's
            raise _Failed(_failure(wire.UNREADABLE, error, part)) from None

    def _unpickle(self, data: bytes, buffers: Sequence[tuple[int, bool, bool]]) -> Any:
        views = [self._buffer(*reference) for reference in buffers]
        if not self._request.scattered:
            return pickle.loads(data, buffers=views)
        return _Unpickler(data, views, self._scattered).load()

    def _scattered(self, persistent_id: str) -> Any:
        for name, (head, *buffers) in self._request.scattered:
            if name == persistent_id:
                views = [self._buffer(*reference) for reference in buffers]
                return pickle.loads(self._values[head[0]], buffers=views)
        raise pickle.UnpicklingError(f"nothing was sent ahead under the name {persistent_id!r}")

    def _buffer(self, position: int, mapped: bool, writable: bool) -> Any:
        value = self._values[position]
        if mapped or not writable:
            return memoryview(value).toreadonly()
        return bytearray(value)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, views: list[Any], scattered: Callable[[str], Any]) -> None:
        super().__init__(io.BytesIO(data), buffers=views)
        self._objects: dict[str, Any] = {}
        self._scattered = scattered

    def persistent_load(self, pid: str) -> Any:
        # Within one task the object keeps its identity; the next task gets another.
        if pid not in self._objects:
            self._objects[pid] = self._scattered(pid)
        return self._objects[pid]


class _Results:
    """Collect results as bytes as soon as they are there: the task may go on changing them."""

    def __init__(self) -> None:
        self._groups: list[tuple[Any, ...]] = []
        self._atoms: list[Any] = []
        self._buffers: list[Any] = []
        self._events: list[tuple[int, tuple[Any, ...]]] = []
        self._count = 0

    def add(self, result: Any) -> None:
        if atomic((result,)):
            self._atoms.append(result)
        else:
            self._close_atoms()
            try:
                data, views, _ = dump(result)
                copies = [np.array(view, dtype=np.uint8) for view in views]
            except Exception as error:  # user code ran: the result does not pickle
                raise _Failed(_failure(wire.UNSENDABLE, error, f"result, a {type(result).__name__},")) from None
            self._groups.append((wire.ONE, data, len(copies)))
            self._buffers.extend(copies)
        self._count += 1

    def add_events(self, events: tuple[Any, ...]) -> None:
        """Add what a task printed and warned; called before its result is added."""
        if events:
            self._events.append((self._count, events))

    def reply(self, worker: str, seconds: float, failure: TaskFailure | None, nested: bool) -> list[Any]:
        self._close_atoms()
        reply = Reply(
            worker=worker,
            seconds=seconds,
            results=tuple(self._groups),
            failure=None if failure is None else failure.as_tuple(),
            events=tuple(self._events),
            nested=nested,
        )
        return [reply.to_bytes(), *self._buffers]

    def _close_atoms(self) -> None:
        if self._atoms:
            self._groups.append((wire.MANY, len(self._atoms), pickle.dumps(self._atoms, protocol=5)))
            self._atoms = []


_initialized: set[bytes] = set()
_initializing = threading.RLock()


def _initialize(data: bytes) -> None:
    """Run ``initializer(*initargs)`` unless this process has done so."""
    with _initializing:  # other task threads wait until it has run
        if data in _initialized:
            return
        try:
            initializer, initargs = pickle.loads(data)
            initializer(*initargs)
        except BaseException as error:  # user code: the client is told, the worker lives on
            raise _Failed(_failure(wire.NOT_INITIALIZED, error)) from None
        _initialized.add(data)
