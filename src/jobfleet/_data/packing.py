"""Encoded calls laid out as one chunk."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._wire import MANY, ONE, Request
from .buffers import Blob
from .encode import EncodedTask
from .scatter import ScatteredObject


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """Hold what an engine sends: a request, and the values it refers to by position."""

    request: bytes
    """A `Request`."""
    placed: list[Blob]
    """To be stored on workers; the first values..."""
    inline: list[bytes]
    """...and those that travel with the chunk, which follow them."""
    report_every: int = 0
    """How many tasks there are between two that say that they start; 0: none does."""


class _Packer:
    """Give each buffer its position among the values of one chunk."""

    def __init__(self, tasks: Sequence[EncodedTask], max_nbytes: int | None) -> None:
        self._max_nbytes = max_nbytes
        wanted = [blob for task in tasks for blob, _ in task.buffers]
        wanted += [blob for task in tasks for one in task.scattered for blob in one.blobs]
        unique = {blob.digest: blob for blob in wanted}
        self.placed = [b for b in unique.values() if self._is_placed(b)]
        self.inline = [b for b in unique.values() if not self._is_placed(b)]
        self._position = {b.digest: i for i, b in enumerate([*self.placed, *self.inline])}

    def reference(self, blob: Blob, writable: bool) -> tuple[int, bool, bool]:
        mapped = self._max_nbytes is not None and len(blob.data) >= self._max_nbytes
        return self._position[blob.digest], mapped, writable

    def _is_placed(self, blob: Blob) -> bool:
        """Decide whether a buffer is stored on workers: it is large, or several tasks want it."""
        large = self._max_nbytes is not None and len(blob.data) >= self._max_nbytes
        return large or blob.pinned or blob.sightings > 1


def pack(tasks: Sequence[EncodedTask], spec: bytes, max_nbytes: int | None, report_every: int = 0) -> PackedChunk:
    """Lay out a chunk.

    Parameters
    ----------
    tasks
        In order.
    spec
        The `CallSpec` of their call.
    max_nbytes
        Buffers of at least this size are shared between tasks; None shares none.
    report_every
        See `PackedChunk`.
    """
    packer = _Packer(tasks, max_nbytes)
    functions: dict[bytes, int] = {}
    scattered: dict[str, ScatteredObject] = {}
    items: list[tuple[Any, ...]] = []
    run: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    run_function = -1

    def close_run() -> None:
        if run:
            items.append((MANY, run_function, pickle.dumps(run, protocol=5)))
            run.clear()

    for task in tasks:
        function = None if task.function is None else functions.setdefault(task.function, len(functions))
        if task.atoms is not None and function is not None:
            if function != run_function:
                close_run()
                run_function = function
            run.append(task.atoms)
        else:
            close_run()
            buffers = tuple(packer.reference(*buffer) for buffer in task.buffers)
            items.append((ONE, function, task.data, buffers))
            scattered.update((one.persistent_id, one) for one in task.scattered)
    close_run()

    request = Request(
        spec=spec,
        functions=tuple(functions),
        items=tuple(items),
        scattered=tuple(
            (name, (packer.reference(one.head, False), *(packer.reference(*b) for b in one.buffers)))
            for name, one in scattered.items()
        ),
        report_every=report_every,
    )
    return PackedChunk(request.to_bytes(), packer.placed, [blob.data for blob in packer.inline], report_every)
