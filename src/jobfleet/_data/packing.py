"""Encoded calls laid out as one chunk."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .._pickling import MIN_SHARED_NBYTES
from .._wire import COPY_ON_WRITE, MANY, ONE, OWN_COPY, SHARED, Request
from .buffers import Blob
from .encode import Ahead, AtomCalls, EncodedCalls, EncodedFunction, EncodedTask


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """Hold what an engine sends: a request, and the values it refers to by position."""

    request: bytes
    """A `Request`."""
    placed: list[Blob]
    """To be stored on workers; the first values..."""
    carried: list[Blob]
    """...and those that travel with the chunk, which follow them."""
    report_every: int = 0
    """How many tasks there are between two that say that they start; 0: none does."""

    @property
    def inline(self) -> list[memoryview | bytes]:
        """The data of those that travel with the chunk."""
        return [blob.data for blob in self.carried]

    @property
    def nbytes(self) -> int:
        """Size of what travels with the chunk."""
        return len(self.request) + sum(len(blob.data) for blob in self.carried)

    @property
    def own_nbytes(self) -> int:
        """The same without what other tasks were found to want, too, since the chunk was packed."""
        return len(self.request) + sum(len(blob.data) for blob in self.carried if blob.sightings == 1)


class _Packer:
    """Give each buffer its position among the values of one chunk."""

    def __init__(
        self, holders: Iterable[EncodedTask | EncodedFunction], max_nbytes: int | None, copy_on_write: bool
    ) -> None:
        self._max_nbytes = max_nbytes
        self._sharing = COPY_ON_WRITE if copy_on_write else SHARED
        unique: dict[bytes, Blob] = {}
        for holder in holders:
            unique.update((blob.digest, blob) for blob, _ in holder.buffers)
            unique.update((blob.digest, blob) for one in holder.scattered for blob in one.blobs)
        self.placed = [b for b in unique.values() if self._is_placed(b)]
        self.carried = [b for b in unique.values() if not self._is_placed(b)]
        self._position = {b.digest: i for i, b in enumerate([*self.placed, *self.carried])}

    def references(self, buffers: Iterable[tuple[Blob, bool]]) -> tuple[tuple[int, int, bool], ...]:
        return tuple(
            (self._position[b.digest], self._sharing if self._is_large(b) else OWN_COPY, writable)
            for b, writable in buffers
        )

    def scattered(self, one: Ahead) -> tuple[str, tuple[tuple[int, int, bool], ...]]:
        return one.persistent_id, self.references([(one.head, False), *one.buffers])

    def _is_large(self, blob: Blob) -> bool:
        return self._max_nbytes is not None and len(blob.data) >= self._max_nbytes

    def _is_placed(self, blob: Blob) -> bool:
        """Decide whether a buffer is stored on workers: it is large, or several tasks want it."""
        pinned = blob.pinned and len(blob.data) >= MIN_SHARED_NBYTES
        return self._is_large(blob) or blob.is_on_hosts or pinned or blob.sightings > 1


def pack(
    pieces: Sequence[EncodedCalls],
    spec: bytes,
    max_nbytes: int | None,
    *,
    copy_on_write: bool = False,
    report_every: int = 0,
    deaths: int = 0,
    budget_s: float | None = None,
    others_wait: bool = False,
) -> PackedChunk:
    """Lay out a chunk.

    Parameters
    ----------
    pieces
        Its calls, in order.
    spec
        The `CallSpec` of their call.
    max_nbytes
        Buffers of at least this size are shared between tasks; None shares none.
    copy_on_write
        Tasks may write to what is shared, each for itself.
    report_every
        See `PackedChunk`.
    deaths, budget_s, others_wait
        See `Request`.
    """
    functions: dict[int, EncodedFunction] = {}
    tasks: list[EncodedTask] = []
    for piece in pieces:
        if isinstance(piece, AtomCalls):
            functions.setdefault(id(piece.function), piece.function)
        else:
            functions.update((id(task.function), task.function) for task in piece if task.function is not None)
            tasks += piece
    positions = {function: position for position, function in enumerate(functions)}
    holders: list[EncodedFunction | EncodedTask] = [*functions.values(), *tasks]
    packer = _Packer(holders, max_nbytes, copy_on_write)

    items: list[tuple[Any, ...]] = []
    for piece in _joined(pieces):
        if isinstance(piece, AtomCalls):
            data = pickle.dumps((piece.args, piece.kwargs), protocol=5)
            items.append((MANY, positions[id(piece.function)], data))
        else:
            for task in piece:
                function = None if task.function is None else positions[id(task.function)]
                items.append((ONE, function, task.data, packer.references(task.buffers)))

    scattered = {one.persistent_id: one for holder in holders for one in holder.scattered}
    request = Request(
        spec=spec,
        functions=tuple((f.data, packer.references(f.buffers), f.shared) for f in functions.values()),
        items=tuple(items),
        scattered=tuple(map(packer.scattered, scattered.values())),
        report_every=report_every,
        deaths=deaths,
        budget_s=budget_s,
        others_wait=others_wait,
    )
    return PackedChunk(request.to_bytes(), packer.placed, packer.carried, report_every)


def _joined(pieces: Iterable[EncodedCalls]) -> Iterator[EncodedCalls]:
    """Join neighbours that call the same function: the first batches of a call are small."""
    last: EncodedCalls | None = None
    for piece in pieces:
        if (
            isinstance(last, AtomCalls)
            and isinstance(piece, AtomCalls)
            and last.function is piece.function
            and (last.kwargs is None) == (piece.kwargs is None)
        ):
            kwargs = None if last.kwargs is None else last.kwargs + (piece.kwargs or [])
            last = AtomCalls(last.called, last.function, last.args + piece.args, kwargs)
        else:
            if last is not None:
                yield last
            last = piece
    if last is not None:
        yield last
