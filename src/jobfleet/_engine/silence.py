"""Notice workers that give no sign of life though their connection stands: frozen, or cut off.

The scheduler's own `worker-ttl` is five minutes, and kills. Here nothing is taken from a silent worker: its chunks run
on another one too, and whichever answers first counts. So one that was only busy in native code loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from .deaths import by_value

if TYPE_CHECKING:
    from distributed import Client

#: On how many workers a chunk runs at most, all but the last of them silent.
MAX_COPIES = 3

#: How often a chunk that runs on several workers looks whether the last of them is silent, too.
_LOOK_S = 0.5


def interval_s(worker_ttl: float) -> float:
    """Give how often to look for silent workers."""
    return min(5.0, max(0.5, worker_ttl / 10))


async def silent_keys(client: Client, worker_ttl: float) -> list[str]:
    """Give those of the client's tasks that are on workers which have been silent for so many seconds, or only were.

    A worker is not silent before it has left out two signs of life.
    """
    keys: list[str] = await client._run_on_scheduler(by_value(_silent_keys), client.id, worker_ttl)
    return keys


def _silent_keys(client: Any, worker_ttl: Any, dask_scheduler: Any) -> Any:
    """Run on the scheduler, which has nothing of ours: uses nothing but its arguments."""
    import time

    from distributed.scheduler import heartbeat_interval

    # The more workers, the less often each gives a sign of life: of ten thousand, once in 51 s.
    often_s = max(getattr(dask_scheduler, "heartbeat_s", 0.0), heartbeat_interval(len(dask_scheduler.workers)))
    silent_s = max(worker_ttl, 2.5 * often_s)

    def revived(address: Any) -> None:
        worker = dask_scheduler.workers.get(address)
        if worker is None or worker.status.name != "paused":
            return
        if time.time() - worker.last_seen > silent_s:
            dask_scheduler.loop.call_later(0.5, revived, address)
        else:
            dask_scheduler.handle_worker_status_change("running", address, f"jobfleet-revived-{time.time()}")

    def is_silent(worker: Any) -> bool:
        return bool(time.time() - worker.last_seen > silent_s)

    keys = []
    for address, worker in list(dask_scheduler.workers.items()):
        if is_silent(worker):
            tasks = [*worker.processing, *(t for t in worker.has_what if all(map(is_silent, t.who_has)))]
            keys += [t.key for t in tasks if any(c.client_key == client for c in t.who_wants or ())]
            if worker.status.name == "running":
                # It gets no more tasks, of anybody, until it has come back.
                dask_scheduler.handle_worker_status_change("paused", address, f"jobfleet-silent-{time.time()}")
                dask_scheduler.loop.call_later(0.5, revived, address)
    return keys


class Copies:
    """Run a chunk on further workers while those that have it are silent.

    Parameters
    ----------
    submit
        Sends one more copy; gives its key and what waits for its result.
    is_silent
        Whether the worker that has the task with this key is silent.
    """

    def __init__(self, submit: Callable[[], tuple[str, Awaitable[Any]]], is_silent: Callable[[str], bool]) -> None:
        self._submit = submit
        self._is_silent = is_silent

    async def first(self, key: str, result: Awaitable[Any]) -> Any:
        """Give what comes first; raises if all are lost."""
        waiting = {asyncio.ensure_future(result): key}
        n_copies = 1
        try:
            while True:
                if n_copies < MAX_COPIES and all(map(self._is_silent, waiting.values())):
                    copy, its_result = self._submit()
                    waiting[asyncio.ensure_future(its_result)] = copy
                    n_copies += 1
                done, _ = await asyncio.wait(waiting, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    del waiting[one]
                    if not waiting or not (one.cancelled() or one.exception()):
                        return one.result()
        finally:
            for one in waiting:
                one.cancel()
