"""Have what no worker has room for wait on the scheduler, for the first worker that has.

Dask does so by itself with tasks of large groups only. Others it puts on workers at once, where they may lie behind
one that takes long.
"""

from __future__ import annotations

from typing import Any


def keep(self: Any, scheduler: Any, task: Any) -> None:
    """Keep a task as long as it has to wait; method of the scheduler's plugin, so it can use nothing but its arguments.

    Not one of an inner call, see `DaskSession._key`, nor one with dependencies, which goes where these are. Without a
    bound for what is on a worker, Dask would put several on one.
    """
    unbounded = float("inf")
    is_bounded = getattr(scheduler, "WORKER_SATURATION", unbounded) != unbounded
    if not is_bounded or task.dependencies or str(task.key).startswith("("):
        return
    if hasattr(task.run_spec, "_data_producer"):  # Dask's word for what it treats like that
        task.run_spec._data_producer = True
