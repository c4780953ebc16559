"""Calls as bytes and references to large buffers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cloudpickle

from .._pickling import MIN_SHARED_NBYTES, atomic, dump
from .buffers import Blob, BlobTable
from .functions import StatelessFunction, stateless
from .scatter import ScatteredObject

#: How many functions are remembered; a generator of tasks may make a new one for each.
_MAX_FUNCTIONS = 128


class EncodedTask:
    """Hold one call, ready to be put in a chunk.

    Either `atoms` (arguments that cannot change, pickled when the chunk is cut) or
    `data` (a pickle, with its large buffers and the scattered objects it refers to beside it).
    """

    __slots__ = ("atoms", "buffers", "data", "function", "scattered")

    function: bytes | None
    """Pickle of a function that tasks may share; None: `data` holds the function too."""
    atoms: tuple[tuple[Any, ...], dict[str, Any]] | None
    data: bytes | None
    buffers: tuple[tuple[Blob, bool], ...]
    """Each with whether it was writable."""
    scattered: tuple[ScatteredObject, ...]

    def __init__(
        self,
        function: bytes | None,
        atoms: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
        data: bytes | None = None,
        buffers: tuple[tuple[Blob, bool], ...] = (),
        scattered: tuple[ScatteredObject, ...] = (),
    ) -> None:
        self.function = function
        self.atoms = atoms
        self.data = data
        self.buffers = buffers
        self.scattered = scattered


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
    _min_nbytes: int
    _scattered: dict[int, ScatteredObject]
    _functions: dict[int, tuple[StatelessFunction, bytes]]

    def __init__(
        self, blobs: BlobTable, scattered: Iterable[ScatteredObject] = (), max_nbytes: int | None = None
    ) -> None:
        self._blobs = blobs
        self._min_nbytes = MIN_SHARED_NBYTES if max_nbytes is None else min(MIN_SHARED_NBYTES, max_nbytes)
        self._scattered = {id(s.obj): s for s in scattered}
        self._functions = {}

    def encode(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> EncodedTask:
        """Encode one call; raises whatever pickling it raises."""
        shared = self._shared_function(function)
        if shared is not None and atomic(args) and (not kwargs or atomic(kwargs.values())):
            # The dict is the caller's, who may use it again.
            return EncodedTask(shared, atoms=(args, kwargs and dict(kwargs)))
        value = (function, args, kwargs) if shared is None else (args, kwargs)
        data, views, used = dump(value, self._scattered, self._min_nbytes)
        buffers = tuple((self._blobs.acquire(view), not view.readonly) for view in views)
        return EncodedTask(shared, data=data, buffers=buffers, scattered=tuple(used))

    def release(self, task: EncodedTask) -> None:
        """Say that `task` is done."""
        for blob, _ in task.buffers:
            self._blobs.release(blob)

    def _shared_function(self, function: Any) -> bytes | None:
        """Give the pickle that all tasks with this function share, or None if it has state."""
        known = self._functions.get(id(function))
        if known is not None and known[0].function is function and known[0].unchanged():
            return known[1]
        proof = stateless(function)
        if proof is None:
            return None
        data: bytes = cloudpickle.dumps(function, protocol=5)
        if len(self._functions) >= _MAX_FUNCTIONS:
            self._functions.clear()
        self._functions[id(function)] = (proof, data)
        return data


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
