"""The calls of a `Parallel` call that are not done: what they are, and what is sent of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from .._data.encode import AtomCalls, Call, EncodedCalls, Encoder


@dataclass(slots=True)
class _Held:
    calls: list[Call]
    encoded: EncodedCalls
    n_left: int


class TaskTable:
    """Keep calls by their index in the call, batch by batch.

    Parameters
    ----------
    encoder
        Told when calls are done.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._n_tasks = 0
        self._starts: list[int] = []
        self._held: dict[int, _Held] = {}

    def add(self, calls: list[Call], encoded: EncodedCalls | None) -> None:
        """Take the next batch; without its encoded form only its indices are used up."""
        if encoded is not None:
            self._held[len(self._starts)] = _Held(calls, encoded, len(calls))
        self._starts.append(self._n_tasks)
        self._n_tasks += len(calls)

    def call(self, task: int) -> Call:
        """Give the call with this index."""
        (calls, _), *_ = self.pieces(range(task, task + 1))
        return calls[0]

    def pieces(self, tasks: range) -> Iterator[tuple[list[Call], EncodedCalls]]:
        """Give the calls and their encoded form, a piece for each batch they were in."""
        for number, part in self._parts(tasks):
            held = self._held[number]
            yield held.calls[part], held.encoded[part]

    def forget(self, tasks: range) -> None:
        """Say that these are done."""
        for number, part in self._parts(tasks):
            held = self._held[number]
            held.n_left -= part.stop - part.start
            # What a single task needs goes with it; what all share, with the last of them.
            if not isinstance(held.encoded, AtomCalls):
                self._encoder.release(held.encoded[part])
            elif not held.n_left:
                self._encoder.release(held.encoded)
            if not held.n_left:
                del self._held[number]

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()

    def _parts(self, tasks: range) -> Iterator[tuple[int, slice]]:
        """Give the batches that tasks belong to, each with their place in it."""
        number = bisect_right(self._starts, tasks.start) - 1
        start = tasks.start
        while start < tasks.stop:
            first = self._starts[number]
            stop = min(tasks.stop, self._starts[number + 1]) if number + 1 < len(self._starts) else tasks.stop
            yield number, slice(start - first, stop - first)
            start, number = stop, number + 1
