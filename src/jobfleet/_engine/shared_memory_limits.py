"""Memory limits of Dask that leave shared pages out.

Dask pauses, spills and kills workers by their resident memory, in which each page of shared memory counts once for
every process that maps it. A worker could be killed for an array that takes no memory of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import cloudpickle

from .._ship import by_value

if TYPE_CHECKING:
    import distributed

logger = logging.getLogger(__name__)

#: How long the nanny may take to answer.
_NANNY_S = 5.0


async def count_private_memory(worker: distributed.Worker) -> None:
    """Have a worker and its nanny leave shared memory out when they look at the worker's limit.

    Does nothing where no limit is, where the kernel does not say what is shared, or where this
    release of Dask is not as expected; then the limits count as Dask counts.
    """
    memory_limit = getattr(getattr(worker, "memory_manager", None), "memory_limit", None)
    if not memory_limit or shared_memory() is None:
        return
    monitor: Any = worker.monitor
    original = getattr(monitor, "get_process_memory", None)
    if original is None or getattr(original, "leaves_out_shared", False):
        return

    def get_process_memory() -> int:
        return max(0, int(original()) - (shared_memory() or 0))

    get_process_memory.leaves_out_shared = True  # type: ignore[attr-defined]
    monitor.get_process_memory = get_process_memory
    if worker.nanny is not None:
        try:
            call = worker.rpc(worker.nanny).run(function=cloudpickle.dumps(by_value(_in_the_nanny)), wait=True)
            await asyncio.wait_for(call, _NANNY_S)
        except (OSError, TimeoutError) as error:
            logger.info("the nanny goes on counting shared memory: %r", error)


def shared_memory() -> int | None:
    """Give the bytes of shared memory, and of files, resident in this process; None if the kernel does not say."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii") as lines:
        parts = [int(line.split()[1]) for line in lines if line.startswith(("RssShmem:", "RssFile:"))]
        return sum(parts) * 1024 if parts else None
    return None


def _in_the_nanny(dask_worker: Any) -> None:
    """Have a nanny look at its worker's own memory first; sent by value to a process that has nothing of ours."""
    nanny = dask_worker
    callback = nanny.periodic_callbacks.get("memory_monitor")
    if callback is None or getattr(callback.callback, "leaves_out_shared", False):
        return
    original = callback.callback

    def memory_monitor() -> Any:
        try:
            with open(f"/proc/{nanny.process.process.pid}/status", encoding="ascii") as lines:
                words = dict(line.split(":", 1) for line in lines if ":" in line)
            own = int(words["RssAnon"].split()[0]) * 1024
            manager = nanny.memory_manager
            if own <= manager.memory_limit * manager.memory_terminate_fraction:
                return None
        except (OSError, KeyError, ValueError, AttributeError):
            pass  # the worker is just ending or starting, or this is not Linux: Dask decides
        return original()

    memory_monitor.leaves_out_shared = True  # type: ignore[attr-defined]
    callback.callback = memory_monitor
