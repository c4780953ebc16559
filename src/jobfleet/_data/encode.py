"""Calls as bytes and references to large buffers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import cloudpickle

from .._pickling import MIN_SHARED_NBYTES, all_atomic, dump
from .buffers import Blob, BlobTable
from .functions import StatelessFunction, stateless
from .parts import MIN_PART_NBYTES, LargeParts, Part
from .scatter import ScatteredObject

#: One call as joblib hands it over: function, positional and keyword arguments.
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]

function_of, _ARGS, _KWARGS = map(itemgetter, range(3))

#: What a pickle refers to by its persistent id.
Ahead = ScatteredObject | Part

#: How many functions are remembered; a generator of tasks may make a new one for each.
_MAX_FUNCTIONS = 128


class EncodedFunction:
    """Hold the function of several calls, pickled once.

    Tasks share it on the worker if it has no state, else each loads its own from the pickle.
    """

    __slots__ = ("buffers", "data", "scattered", "shared")

    data: bytes
    buffers: tuple[tuple[Blob, bool], ...]
    """Its large buffers, each with whether it was writable."""
    scattered: tuple[Ahead, ...]
    shared: bool

    def __init__(
        self,
        data: bytes,
        buffers: tuple[tuple[Blob, bool], ...] = (),
        scattered: tuple[Ahead, ...] = (),
        shared: bool = True,
    ) -> None:
        self.data = data
        self.buffers = buffers
        self.scattered = scattered
        self.shared = shared


class EncodedTask:
    """Hold one call: a pickle; beside it large buffers, and objects that have pickles of their own."""

    __slots__ = ("buffers", "data", "function", "scattered")

    function: EncodedFunction | None
    """None: `data` holds the function too."""
    data: bytes
    buffers: tuple[tuple[Blob, bool], ...]
    """Each with whether it was writable."""
    scattered: tuple[Ahead, ...]

    def __init__(
        self,
        function: EncodedFunction | None,
        data: bytes,
        buffers: tuple[tuple[Blob, bool], ...] = (),
        scattered: tuple[Ahead, ...] = (),
    ) -> None:
        self.function = function
        self.data = data
        self.buffers = buffers
        self.scattered = scattered


class AtomCalls:
    """Hold calls of one function whose arguments cannot change; they are pickled together when a chunk is cut.

    It takes the place of joblib's own tuples, one for each call. The interpreter's garbage collector need not look at
    arguments without containers, but at those tuples; and should enough of them stay, at everything in the process.
    """

    __slots__ = ("args", "called", "function", "kwargs")

    called: Any
    """The function itself."""
    function: EncodedFunction
    args: list[tuple[Any, ...]]
    kwargs: list[dict[str, Any]] | None
    """None: no call has any."""

    def __init__(
        self,
        called: Any,
        function: EncodedFunction,
        args: list[tuple[Any, ...]],
        kwargs: list[dict[str, Any]] | None,
    ) -> None:
        self.called = called
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def __len__(self) -> int:
        return len(self.args)

    def __getitem__(self, part: slice) -> AtomCalls:
        kwargs = None if self.kwargs is None else self.kwargs[part]
        return AtomCalls(self.called, self.function, self.args[part], kwargs)

    def call(self, position: int) -> Call:
        """Give one of the calls."""
        return self.called, self.args[position], {} if self.kwargs is None else self.kwargs[position]


#: The calls of a batch, or a stretch of them.
EncodedCalls = AtomCalls | list[EncodedTask]


class EncodingError(Exception):
    """Say which call of a batch could not be encoded; the cause says why."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class Encoder:
    """Encode the calls of one `Parallel` call.

    Each call is pickled on its own, so that no two tasks share an object on the
    worker, however they are grouped into chunks.

    Parameters
    ----------
    blobs
        Where the large buffers go.
    scattered
        Objects that were sent ahead.
    max_nbytes
        Buffers of at least this size are shared between tasks; None shares none.
    """

    _blobs: BlobTable
    _parts: LargeParts
    _functions: dict[int, tuple[StatelessFunction, EncodedFunction | None]]
    """None for what is too large to be sent with each chunk."""

    def __init__(
        self, blobs: BlobTable, scattered: Iterable[ScatteredObject] = (), max_nbytes: int | None = None
    ) -> None:
        self._blobs = blobs
        min_nbytes = MIN_SHARED_NBYTES if max_nbytes is None else min(MIN_SHARED_NBYTES, max_nbytes)
        self._parts = LargeParts(blobs, {id(s.obj): s for s in scattered}, min_nbytes)
        self._functions = {}

    def encode(self, calls: Sequence[Call], errors: dict[int, Exception] | None = None) -> EncodedCalls:
        """Encode the calls of a batch.

        joblib has read them all from the user's iterable before it hands them over: nothing of the user's runs
        between one call and the next, so their function is looked at once.

        Parameters
        ----------
        calls
            The calls.
        errors
            Takes the errors of calls that do not pickle, by position: what is given for these must not be sent.

        Raises
        ------
        EncodingError
            A call does not pickle, and there is no `errors`.
        """
        with self._parts.batch():
            return self._encode_all(calls, errors)

    def _encode_all(self, calls: Sequence[Call], errors: dict[int, Exception] | None) -> EncodedCalls:
        alike = self._alike(calls)
        if alike is not None:
            return alike
        tasks: list[EncodedTask] = []
        for position, call in enumerate(calls):
            try:
                tasks.append(self._encode(*call))
            except Exception as reason:  # user code ran
                if errors is not None:
                    errors[position] = reason
                    tasks.append(EncodedTask(None, b""))
                    continue
                self.release(tasks)
                raise EncodingError(position) from reason
        return tasks

    def release(self, calls: EncodedCalls) -> None:
        """Say that these calls, a whole batch or one by one, are done."""
        if isinstance(calls, AtomCalls):
            self._release(calls.function)
        else:
            for task in calls:
                self._release(task)

    def _release(self, holder: EncodedFunction | EncodedTask) -> None:
        for blob, _ in holder.buffers:
            self._blobs.release(blob)
        for one in holder.scattered:
            one.release()

    def _alike(self, calls: Sequence[Call]) -> AtomCalls | None:
        """Encode calls of one function with nothing but atoms for arguments; None if they are others.

        Nothing here is done call by call in Python: there may be thousands.
        """
        function = calls[0][0]
        args = list(map(_ARGS, calls))
        kwargs = list(map(_KWARGS, calls))
        if set(map(id, map(function_of, calls))) != {id(function)} or set(map(type, args)) != {tuple}:
            return None
        has_kwargs = any(kwargs)
        if not all_atomic(chain.from_iterable(args)):
            return None
        if has_kwargs and not all_atomic(chain.from_iterable(each.values() for each in kwargs)):
            return None
        try:
            encoded = self._stateless(function) or self._stateful(function, len(calls))
        except Exception as reason:  # user code ran
            raise EncodingError(0) from reason
        # The dicts are the caller's, who may use them again.
        return AtomCalls(function, encoded, args, list(map(dict, kwargs)) if has_kwargs else None)

    def _encode(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> EncodedTask:
        shared = self._stateless(function)
        value = (function, args, kwargs) if shared is None else (args, kwargs)
        return EncodedTask(shared, *self._dump(value))

    def _dump(self, value: Any, n_tasks: int = 1) -> tuple[bytes, tuple[tuple[Blob, bool], ...], tuple[Ahead, ...]]:
        data, views, used = self._parts.dump(value)
        buffers = tuple((self._blobs.acquire(view, n_tasks), not view.readonly) for view in views)
        for one in used:
            one.acquire(n_tasks)
        return data, buffers, tuple(used)

    def _stateless(self, function: Any) -> EncodedFunction | None:
        """Give the function that tasks may share, or None if it has state, or holds much text."""
        known = self._functions.get(id(function))
        if known is not None and known[0].function is function and known[0].unchanged():
            return known[1]
        proof = stateless(function)
        if proof is None:
            return None
        data = cloudpickle.dumps(function, protocol=5)
        encoded = EncodedFunction(data) if len(data) < MIN_PART_NBYTES else None
        if len(self._functions) >= _MAX_FUNCTIONS:
            self._functions.clear()
        self._functions[id(function)] = (proof, encoded)
        return encoded

    def _stateful(self, function: Any, n_tasks: int) -> EncodedFunction:
        return EncodedFunction(*self._dump(function, n_tasks), shared=False)


def unpicklable_part(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Say which part of a call does not pickle, for the message."""
    parts = [("function", function)]
    parts += [(f"argument {i}", value) for i, value in enumerate(args)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for name, value in parts:
        try:
            dump(value)
        except Exception:  # the caller reports the same fault, raised for the whole call
            return f"{name}, a {type(value).__name__},"
    return "argument"
