"""What the bootstrap calls on a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._backend import nested_backend
from ._engine.task import dask_place
from ._wire import Request
from ._worker.run import run_chunk


def run(request: Any, values: Sequence[Any]) -> list[Any]:
    """Run a chunk in this Dask task.

    Parameters
    ----------
    request
        A `Request`, as bytes.
    values
        The buffers it refers to by position.

    Returns
    -------
    list
        A `Reply` as bytes, then the buffers of its results.
    """
    with dask_place(nested_backend) as place:
        return run_chunk(Request.from_bytes(request), values, place)
