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
from .._store import Attached
from .._wire import CallSpec, Reply, Request, TaskFailure
from .capture import Capture
from .interrupt import uninterrupted
from .limit import Overrun, TimeLimit
from .threads import limited

#: How often a chunk of short tasks looks whether it is to end.
_LOOK_S = 0.001

_NUMBERS = frozenset({float, int, bool, type(None)})


#: For whom the error is one of jobfleet's making, though NumPy raises it.
_READ_ONLY = (
    "jobfleet: tasks share large arguments, which are read-only for that reason, as with joblib's loky. Copy what is "
    "to be changed, or have each task given its own: Parallel(mmap_mode='c') copies only what is written to, "
    "max_nbytes=None everything."
)

T = TypeVar("T")


class Place(Protocol):
    """What a chunk needs to know of where it runs."""

    address: str
    """Names the worker in messages."""

    def cancelled(self) -> bool:
        """Whether the client has given the chunk up."""

    def run(self, function: Callable[[], None]) -> bool:
        """Call what runs the chunk's tasks; gives whether it was not interrupted."""

    def limit(self, limit: TimeLimit) -> None:
        """Interrupt a task that takes longer than it may."""

    def give_back(self, kept: Callable[[], int | None], over_after_s: float) -> AbstractContextManager[None]:
        """Let the client have what is behind a task that takes long.

        `kept` gives how many of the chunk's tasks are not, as soon as no further one is begun: after so many seconds.
        """

    def report_start(self, position: int) -> None:
        """Tell the scheduler that a task of the chunk starts; returns when it knows."""

    def nested(
        self, spec: CallSpec, deaths: int, position: Callable[[], int]
    ) -> AbstractContextManager[tuple[Callable[[], None], Callable[[], bool]]]:
        """Let `Parallel` calls of the tasks use the cluster.

        `deaths` says how many workers have died with the tasks, `position` gives that of the one that runs. Gives what
        undoes a task's changes to joblib's settings, and what tells whether a task made a call.
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


def copied(view: memoryview) -> Any:
    """Copy a buffer of a result."""
    return np.array(view, dtype=np.uint8)


def run_chunk(
    request: Request, values: Sequence[Any], place: Place, export: Callable[[memoryview], Any] = copied
) -> list[Any]:
    """Run the calls of a chunk in order, until one fails or the chunk's time is over.

    Parameters
    ----------
    request
        What to run.
    values
        The buffers it refers to by position.
    place
        Where it runs.
    export
        Makes the copy of a result's buffer that is sent.

    Returns
    -------
    list
        A `Reply` as bytes, then the buffers of its results.
    """
    spec = _spec(request.spec)
    limit = None if spec.task_timeout is None else TimeLimit(spec.task_timeout)
    results = _Results(export, None if limit is None else limit.keep)
    failure = None
    capture = Capture(spec.filters, cloudpickle.dumps) if place.captures(spec) else None
    # Modules are imported here, whose warnings are none of the task's.
    calls: Iterable[tuple[Any, tuple[Any, ...], dict[str, Any]]] = _Calls(request, values)
    if request.report_every:
        calls = _reported(calls, request.report_every, place)
    if limit is not None:
        calls = limit.each(calls)
        place.limit(limit)
    stops = _Stops(place.cancelled, request.budget_s)

    def kept() -> int | None:
        # If the one that runs ends just now, and is counted, none is begun after it all the same.
        return results.count + 1 if stops.is_over() else None

    give_back: AbstractContextManager[None] = nullcontext()
    if request.budget_s is not None and not request.report_every:  # of a watched chunk all is left together
        give_back = place.give_back(kept, stops.over_after_s + 10 * _LOOK_S)  # it begins a little before the tasks
    # There may be many tasks that take less than a call of a function of ours.
    clock, keep = time.perf_counter, results.atoms.append
    kept_as_they_are = _NUMBERS if limit is None else frozenset()
    started = clock()
    with (
        capture or nullcontext(),
        limited(spec.inner_max_num_threads, place.default_threads(spec)),
        place.nested(spec, request.deaths, lambda: results.count) as (renew, was_used),
        give_back,
    ):

        def run_tasks() -> None:
            nonlocal failure
            try:
                if spec.initializer is not None:
                    _initialize(spec.initializer)
                for function, args, kwargs in calls:
                    if clock() >= stops.look_at and stops():
                        if limit is not None:
                            limit.keep()  # the one that was next is not at fault
                        break
                    renew()
                    try:
                        result = function(*args, **kwargs)
                    except BaseException as error:
                        raise _raised(error) from None
                    # Large objects of a task must not live on while the next one is rebuilt.
                    del function, args, kwargs
                    if capture is not None and (events := capture.take()):
                        results.add_events(events)
                    if type(result) in kept_as_they_are:
                        keep(result)
                    else:
                        results.add(result)
                    del result
            except _Failed as error:
                failure = error.failure
            except Overrun:
                pass  # `limit` knows it
            stops.note_end()

        completed = place.run(run_tasks)
        if limit is not None:
            limit.end()
        if limit is not None and limit.overrun is not None:
            failure = _overran(limit, failure)
        elif not completed:
            failure = None  # nobody waits for it: what it says is of no use
        if capture is not None and (events := capture.take()):
            results.add_events(events)
    return results.reply(place.address, time.perf_counter() - started, stops, failure, was_used())


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


class _Stops:
    """Tell between two tasks whether the chunk ends: it has been given up, or its time is over.

    The first task of a chunk is not held up by the time.

    Attributes
    ----------
    look_at
        When it should be asked next, on `time.perf_counter`; not after each task that takes microseconds.
    squares_s2, n_timed
        See `Reply`.
    """

    __slots__ = ("_budget_s", "_cancelled", "_last", "_started", "look_at", "n_timed", "squares_s2")
    look_at: float
    squares_s2: float
    n_timed: int

    def __init__(self, cancelled: Callable[[], bool], budget_s: float | None) -> None:
        self._cancelled = cancelled
        self._budget_s = math.inf if budget_s is None else budget_s
        self._started: float | None = None
        self.look_at = -math.inf
        self._last: float | None = None
        self.squares_s2 = 0.0
        self.n_timed = 0

    def __call__(self) -> bool:
        now = time.perf_counter()
        self.look_at = now + _LOOK_S
        self._note(now)
        if self._started is None:
            self._started = now
        if self._cancelled() or now - self._started > self._budget_s:
            return True
        self._last = now
        return False

    def note_end(self) -> None:
        """Say that no further task is begun."""
        self._note(time.perf_counter())

    def _note(self, now: float) -> None:
        if self._last is not None:
            self.squares_s2 += (now - self._last) ** 2
            self.n_timed += 1
            self._last = None

    @property
    def over_after_s(self) -> float:
        """When `is_over`: the last look may have been somewhat before the time was over, and holds for a while."""
        return self._budget_s + 10 * _LOOK_S

    def is_over(self) -> bool:
        """Whether no task is begun any more because the time is over, seen by another thread."""
        return self._started is not None and time.perf_counter() - self._started > self.over_after_s


@functools.lru_cache(maxsize=64)
def _spec(data: bytes) -> CallSpec:
    return CallSpec.from_bytes(data)


def _raised(error: BaseException) -> _Failed:
    """Give the failure of a task that raised: its own fault, which belongs to the client."""
    if isinstance(error, ValueError) and "read-only" in str(error):
        error.add_note(_READ_ONLY)
    # SystemExit must end neither the worker nor, raised there again, the client.
    return _Failed(_failure(wire.EXITED if isinstance(error, (SystemExit, GeneratorExit)) else wire.RAISED, error))


def _overran(limit: TimeLimit, failure: TaskFailure | None) -> TaskFailure:
    """Give the failure of a task that took too long; what it raised then tells where it was."""
    where = "" if failure is None else failure.traceback
    return TaskFailure(wire.OVERRAN, None, "TaskTimeoutError", f"{limit.seconds:g}", where, "")


def _failure(kind: int, error: BaseException, part: str = "") -> TaskFailure:
    """Describe `error`, without this module's frames."""
    shown = error.__traceback__
    while shown is not None and shown.tb_frame.f_globals is globals():
        shown = shown.tb_next
    with uninterrupted():  # it opens the files of the source, and may not have come to closing them
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
        self._shared = [self._load_shared(*function) for function in request.functions]

    def __iter__(self) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        return itertools.chain.from_iterable(itertools.starmap(self._some, self._request.items))

    def _some(self, kind: int, *item: Any) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        return self._many(*item) if kind == wire.MANY else self._one(*item)

    def _many(self, function: int, data: bytes) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        args, kwargs = pickle.loads(data)
        all_kwargs = itertools.repeat({}) if kwargs is None else kwargs
        if self._request.functions[function][2]:
            return zip(itertools.repeat(self._function(function)), args, all_kwargs, strict=False)
        return ((self._function(function), *call) for call in zip(args, all_kwargs, strict=False))

    def _one(
        self, function: int | None, data: bytes, buffers: Sequence[tuple[int, bool, bool]]
    ) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        if function is None:
            yield self._load(data, buffers, "function or an argument")
        else:
            yield (self._function(function), *self._load(data, buffers, "argument"))

    def _load_shared(self, data: bytes, buffers: Sequence[tuple[int, bool, bool]], shared: bool) -> Any:
        """Load a function, or keep what went wrong for the first call that needs it."""
        try:
            return self._load(data, buffers, "function") if shared else None
        except _Failed as error:
            return error

    def _function(self, position: int) -> Any:
        data, buffers, shared = self._request.functions[position]
        if not shared:
            return self._load(data, buffers, "function")
        function = self._shared[position]
        if isinstance(function, _Failed):
            raise function
        return function

    def _load(self, data: bytes, buffers: Sequence[tuple[int, int, bool]], part: str) -> Any:
        try:
            return self._unpickle(data, buffers)
        except BaseException as error:  # user code ran: any fault of it is the task's
            raise _Failed(_failure(wire.UNREADABLE, error, part)) from None

    def _unpickle(self, data: bytes, buffers: Sequence[tuple[int, int, bool]]) -> Any:
        views = [self._buffer(*reference) for reference in buffers]
        if not self._request.scattered:
            return pickle.loads(data, buffers=views)
        return _Unpickler(data, views, self._scattered).load()

    def _scattered(self, persistent_id: str) -> Any:
        for name, (head, *buffers) in self._request.scattered:
            if name == persistent_id:
                views = [self._buffer(*reference) for reference in buffers]
                return pickle.loads(_view(self._values[head[0]]), buffers=views)
        raise pickle.UnpicklingError(f"nothing was sent ahead under the name {persistent_id!r}")

    def _buffer(self, position: int, sharing: int, writable: bool) -> Any:
        value = self._values[position]
        if sharing == wire.COPY_ON_WRITE and isinstance(value, Attached):
            return value.copy_on_write()
        if sharing == wire.SHARED or not (writable or sharing == wire.COPY_ON_WRITE):
            return _view(value).toreadonly()
        return bytearray(_view(value))


def _view(value: Any) -> memoryview:
    return value.view if isinstance(value, Attached) else memoryview(value)


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
    """Collect results as bytes as soon as they are there: the task may go on changing them.

    Attributes
    ----------
    atoms
        The results that cannot change, in order; numbers may be added without `add` where no task has a time limit.
    """

    atoms: list[Any]

    def __init__(self, export: Callable[[memoryview], Any], keep: Callable[[], None] | None) -> None:
        self._export = export
        self._keep = keep
        self._groups: list[tuple[Any, ...]] = []
        self.atoms = []
        self._n_grouped = 0
        """How many of the atoms are in `_groups`."""
        self._buffers: list[Any] = []
        self._events: list[tuple[int, tuple[Any, ...]]] = []
        self._n_others = 0

    @property
    def count(self) -> int:
        """How many there are; any thread may ask."""
        return self._n_others + len(self.atoms)

    def add(self, result: Any) -> None:
        if type(result) in _NUMBERS or atomic((result,)):
            if self._keep is not None:
                self._keep()
            self.atoms.append(result)
        else:
            try:
                data, views, _ = dump(result)
                copies = list(map(self._export, views))
            except Exception as error:  # user code ran: the result does not pickle
                raise _Failed(_failure(wire.UNSENDABLE, error, f"result, a {type(result).__name__},")) from None
            if self._keep is not None:
                self._keep()
            self._close_atoms()
            self._groups.append((wire.ONE, data, len(copies)))
            self._buffers.extend(copies)
            self._n_others += 1

    def add_events(self, events: tuple[Any, ...]) -> None:
        """Add what a task printed and warned; called before its result is added."""
        self._events.append((self.count, events))

    def reply(self, worker: str, seconds: float, times: _Stops, failure: TaskFailure | None, nested: bool) -> list[Any]:
        self._close_atoms()
        reply = Reply(
            worker=worker,
            seconds=seconds,
            squares_s2=times.squares_s2,
            n_timed=times.n_timed,
            results=tuple(self._groups),
            failure=None if failure is None else failure.as_tuple(),
            events=tuple(self._events),
            nested=nested,
        )
        return [reply.to_bytes(), *self._buffers]

    def _close_atoms(self) -> None:
        atoms = self.atoms[self._n_grouped :]
        if atoms:
            self._groups.append((wire.MANY, len(atoms), pickle.dumps(atoms, protocol=5)))
            self._n_grouped += len(atoms)


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
