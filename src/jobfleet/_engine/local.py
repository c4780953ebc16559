"""Chunks in the calling process, one after the other, on the way they would take to a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from .._data.packing import PackedChunk
from .._wire import Request
from .._worker.run import run_chunk
from ..options import Options
from .base import Lost, LostKind, Outcome, Slots
from .place import NestedBackend, TaskPlace


def run_here(chunk: PackedChunk, place: TaskPlace) -> Outcome:
    """Run a chunk in this thread."""
    values = [*(np.frombuffer(blob.data, dtype=np.uint8) for blob in chunk.placed), *chunk.inline]
    try:
        return run_chunk(Request.from_bytes(chunk.request), values, place)
    except Exception as error:  # a fault of ours: the policy decides
        return Lost(LostKind.ENGINE, error)


class LocalEngine:
    """Run chunks in the driver's thread of each call.

    For debugging: a breakpoint in a task stops in this process, and the task has gone the way it would
    go to a cluster, pickling included.
    """

    def __init__(self, nested_backend: NestedBackend, depth: int = 0) -> None:
        self._nested_backend = nested_backend
        self.depth = depth

    def slots(self, options: Options) -> Slots:
        """Give the one slot there is."""
        return Slots(1, 1)

    def open(self, options: Options) -> LocalSession:
        """Begin a call."""
        return LocalSession(
            TaskPlace(self._nested_backend, lambda depth: LocalEngine(self._nested_backend, depth), "this process")
        )

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Do nothing: no slot is held."""
        yield


class LocalSession:
    """One call's use of the local engine."""

    def __init__(self, place: TaskPlace) -> None:
        self._place = place
        self._closed = False

    def submit(self, chunk: PackedChunk, label: str, done: Callable[[Outcome], None]) -> None:
        """Run a chunk; unlike on a cluster, returns when it is over."""
        if not self._closed:
            done(run_here(chunk, self._place))

    def drop(self, digest: bytes) -> None:
        """Do nothing: buffers stay where they are."""

    def watch_slots(self, changed: Callable[[Slots], None]) -> None:
        """Do nothing: the slots never change."""

    def lost(self) -> Lost | None:
        """Give None: this process lives."""
        return None

    def close(self) -> None:
        """End the use."""
        self._closed = True
