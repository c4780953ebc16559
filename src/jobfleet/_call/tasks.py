"""The calls of a `Parallel` call that are not done: what they are, and what is sent of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .._data.encode import AtomCalls, Call, EncodedCalls, Encoder, function_of


@dataclass(slots=True)
class _Held:
    start: int
    calls: list[Call]
    """Empty if `encoded` holds them."""
    encoded: EncodedCalls
    n_left: int
    first: int = 0
    """The first that is not done."""
    done: dict[int, int] = field(default_factory=dict)
    """Stretches after that which are: first task, and the one after the last."""

    def call(self, position: int) -> Call:
        return self.encoded.call(position) if isinstance(self.encoded, AtomCalls) else self.calls[position]

    def forget(self, part: slice) -> None:
        self.n_left -= part.stop - part.start
        self.done[part.start] = part.stop
        while self.first in self.done:
            self.first = self.done.pop(self.first)


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

    def add(self, calls: list[Call], encoded: EncodedCalls | None) -> int:
        """Take the next batch, give the index of its first task; without its encoded form only indices are used up."""
        if encoded is not None:
            kept = [] if isinstance(encoded, AtomCalls) else calls
            self._held[len(self._starts)] = _Held(self._n_tasks, kept, encoded, len(calls))
        self._starts.append(self._n_tasks)
        self._n_tasks += len(calls)
        return self._starts[-1]

    def call(self, task: int) -> Call:
        """Give the call with this index."""
        ((number, part),) = self._parts(range(task, task + 1))
        return self._held[number].call(part.start)

    def pieces(self, tasks: range) -> Iterator[EncodedCalls]:
        """Give the calls in their encoded form, a piece for each batch they were in."""
        for number, part in self._parts(tasks):
            yield self._held[number].encoded[part]

    def functions(self, tasks: range) -> Iterator[Any]:
        """Give the functions that are called: of alike calls once, else of each."""
        for number, part in self._parts(tasks):
            held = self._held[number]
            if isinstance(held.encoded, AtomCalls):
                yield held.encoded.called
            else:
                yield from map(function_of, held.calls[part])

    def forget(self, tasks: range) -> None:
        """Say that these are done."""
        for number, part in self._parts(tasks):
            held = self._held[number]
            held.forget(part)
            # What a single task needs goes with it; what all share, with the last of them.
            if not isinstance(held.encoded, AtomCalls):
                self._encoder.release(held.encoded[part])
            elif not held.n_left:
                self._encoder.release(held.encoded)
            if not held.n_left:
                del self._held[number]

    def progress(self) -> tuple[int, tuple[int, Call] | None]:
        """Give how many are done, and the first that is not; any thread may ask."""
        held = list(self._held.values())
        n_done = self._n_tasks - sum(each.n_left for each in held)
        if not held:
            return n_done, None
        first = held[0]
        return n_done, (first.start + first.first, first.call(min(first.first, len(first.encoded) - 1)))

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
