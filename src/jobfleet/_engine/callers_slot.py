"""The slot of a Dask task that makes calls: it gives it up while it waits for their results."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import distributed
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.utils import thread_state

from .._worker.interrupt import current, uninterrupted
from .deaths import by_value

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

#: The scheduler hears of a slot that was given up within milliseconds; after this time it is not waited for any more.
_DEADLINE_S = 5.0

_of_thread = threading.local()


def callers_slot() -> CallersSlot | None:
    """Give the slot of the Dask task that this thread runs; None if it runs none, or in an executor of the user's."""
    if not hasattr(thread_state, "execution_state") or not hasattr(pool_state, "executor"):
        return None
    run = thread_state.key, thread_state.start_time
    slot: CallersSlot | None = getattr(_of_thread, "slot", None)
    if slot is None or slot.run != run:
        slot = _of_thread.slot = CallersSlot(run)
    return slot


class CallersSlot:
    """Give a task's slot up while it waits, and take it back.

    Parameters
    ----------
    run
        Key of the task, and when it was started.

    Notes
    -----
    Belongs to the task's thread, but for `is_given_up` and `heard_of`, which the client's loop may use.
    """

    is_given_up: bool
    _n_waits: int
    """Calls that are waited for: a suspended generator's is, while its consumer makes another one."""
    _told: list[Callable[[], None]]

    def __init__(self, run: tuple[Any, float]) -> None:
        self.run = run
        self.is_given_up = False
        self._n_waits = 0
        self._told = []

    def when_given_up(self, tell: Callable[[], None]) -> None:
        """Have `tell` called when it is, unless it is already."""
        if not self.is_given_up:
            self._told.append(tell)

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Have other tasks run in it."""
        thread, region = threading.current_thread(), current()
        with uninterrupted():
            self._leave(thread)
        try:
            yield
        finally:
            # A generator may be finalized by another thread, which has no slot to take back. And a task that was
            # given up gets none.
            if threading.current_thread() is thread and (region is None or not region.requested):
                with uninterrupted():
                    self._come_back()

    def _leave(self, thread: threading.Thread) -> None:
        self._n_waits += 1
        if self._n_waits == 1 and thread not in pool_state.executor._threads:
            self._n_waits += 1  # the user's code has given it up by itself, and may want to stay without
        if not self.is_given_up:
            self.is_given_up = True
            if self._n_waits == 1:
                distributed.secede()
            told, self._told = self._told, []
            for tell in told:
                tell()

    def _come_back(self) -> None:
        self._n_waits -= 1
        if not self._n_waits:
            distributed.rejoin()
            self.is_given_up = False

    async def heard_of(self, client: Client) -> None:
        """Wait until the scheduler knows that it was given up."""
        key, _ = self.run
        try:
            await client._run_on_scheduler(by_value(_wait_until_given_up), key, _DEADLINE_S)
        except Exception:  # whatever a scheduler has against it: what follows is only placed less well
            logger.debug("the scheduler does not say whether %s has given up its slot", key, exc_info=True)


async def _wait_until_given_up(key: Any, deadline_s: Any, dask_scheduler: Any) -> Any:
    """Run on the scheduler, which has nothing of ours: uses nothing but its arguments."""
    import asyncio
    import time

    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        task = dask_scheduler.tasks.get(key)
        worker = None if task is None else task.processing_on
        if worker is None or task in worker.long_running:
            return
        await asyncio.sleep(0.002)
