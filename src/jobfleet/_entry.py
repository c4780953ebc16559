"""What the bootstrap calls on a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._backend import nested_backend
from ._engine.buffer_service import current_service, service_of
from ._engine.replies import enclose
from ._engine.task import current_key, dask_place
from ._store import MIN_MAPPED_NBYTES
from ._wire import Missing, Placed, Request
from ._worker.run import copied, run_chunk


def run(request: Any, values: Sequence[Any]) -> Any:
    """Run a chunk in this Dask task.

    Parameters
    ----------
    request
        A `Request`, as bytes; None: only the buffers are to be brought here, and `values` are where they are and the
        worker.
    values
        A `Placed`, as bytes, or None; then the buffers that travel with the chunk.

    Returns
    -------
    list, tuple or None
        A `Reply` as bytes, then the buffers of its results; or a `Missing`.
    """
    placed, *travelling = values
    if request is None:
        attached = service_of(travelling[0]).attach(Placed.from_bytes(placed), ())
        return attached.as_tuple() if isinstance(attached, Missing) else None
    where = None if placed is None else Placed.from_bytes(placed)
    if where is not None:
        attached = current_service().attach(where, travelling)
        if isinstance(attached, Missing):
            return attached.as_tuple()
        travelling = attached
    key = current_key()

    def export(view: memoryview) -> Any:
        # The service is started for those that need it.
        return copied(view) if view.nbytes < MIN_MAPPED_NBYTES else current_service().export(view, where, key)

    chunk = Request.from_bytes(request)
    with dask_place(nested_backend, chunk.others_wait) as place:
        reply = run_chunk(chunk, travelling, place, export)
    enclose(reply)
    return reply


def keep_buffers(token: str, key: str) -> None:
    """Keep a client's buffers on this host for as long as Dask keeps `key`."""
    current_service().lease(token, key)
