"""What the bootstrap calls on a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ._backend import nested_backend
from ._engine.buffer_service import current_service
from ._engine.replies import enclose
from ._engine.task import dask_place
from ._wire import Missing, Placed, Request
from ._worker.run import copied, run_chunk


def run(request: Any, values: Sequence[Any]) -> Any:
    """Run a chunk in this Dask task.

    Parameters
    ----------
    request
        A `Request`, as bytes.
    values
        A `Placed`, as bytes, or None; then the buffers that travel with the chunk.

    Returns
    -------
    list or tuple
        A `Reply` as bytes, then the buffers of its results; or a `Missing`.
    """
    placed, *travelling = values
    export: Callable[[memoryview], Any] = copied
    if placed is not None:
        service, where = current_service(), Placed.from_bytes(placed)
        attached = service.attach(where, travelling)
        if isinstance(attached, Missing):
            return attached.as_tuple()
        travelling, export = attached, service.exporter(where)
    request = Request.from_bytes(request)
    with dask_place(nested_backend, request.others_wait) as place:
        reply = run_chunk(request, travelling, place, export)
    enclose(reply)
    return reply


def keep_buffers(token: str, key: str) -> None:
    """Keep a client's buffers on this host for as long as Dask keeps `key`."""
    current_service().lease(token, key)
