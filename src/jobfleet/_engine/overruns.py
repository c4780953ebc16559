"""Replace the process of a task that takes too long and does not let itself be interrupted.

The client is told first, by an event on the scheduler that it looks for, and gives the task up. Then the worker takes
leave of its scheduler, which sends what else was there to other workers, without blame, and ends its process: its
nanny, or the embedded cluster, starts another. A worker with neither of them stays, and the task's thread in it, which
has no slot any more (see `leaving`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._worker.limit import TimeLimit
from .base import Overran
from .leaving import given_up

if TYPE_CHECKING:
    import distributed

logger = logging.getLogger("distributed.worker.jobfleet")

#: Topic of scheduler events: tasks that have taken too long and still run.
OVERRUNS = "jobfleet-overruns"

#: How long the client may take to give the task up; it looks once a second.
_HEARD_DEADLINE_S = 5.0
_LOOK_S = 0.05

_MESSAGE_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class Overdue:
    """Know a task that may have to be ended with its process."""

    worker: distributed.Worker
    key: str
    limit: TimeLimit

    async def end(self) -> None:
        """End the process, unless the task has ended by itself or there would not be another process."""
        worker, key, limit = self.worker, self.key, self.limit
        ends = is_replaced(worker)
        message = {
            "key": key,
            "position": limit.overrun,
            "limit_s": limit.seconds,
            "worker": worker.address,
            "ends": ends,
        }
        try:
            report = worker.scheduler.log_event(topic=OVERRUNS, msg=message)
            await asyncio.wait_for(report, _MESSAGE_DEADLINE_S)
        except (OSError, TimeoutError):
            logger.debug("the scheduler does not hear of %s", message, exc_info=True)
        if not ends:
            return
        deadline = time.monotonic() + _HEARD_DEADLINE_S
        while not given_up(worker, key) and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_S)
        if limit.left_s() is None:
            return
        logger.warning("a task of %s took longer than %g s and did not react: its process ends", key, limit.seconds)
        try:
            leave = worker.scheduler.unregister(
                address=worker.contact_address,
                expected=True,
                close=False,
                stimulus_id=f"jobfleet-overrun-{time.time()}",
            )
            await asyncio.wait_for(leave, _MESSAGE_DEADLINE_S)
        finally:
            os._exit(1)


def is_replaced(worker: distributed.Worker) -> bool:
    """Whether another process takes the place of the worker's when that ends."""
    return bool(worker.nanny) or getattr(worker, "is_replaced", False)


async def overruns(client: distributed.Client, keys: Any) -> dict[str, Overran]:
    """Give those of the tasks that have taken too long and still run."""
    events = await client.scheduler.events(topic=OVERRUNS) or ()
    return {
        event["key"]: Overran(event["position"], event["limit_s"], event["worker"], event["ends"])
        for _, event in events
        if event["key"] in keys
    }
