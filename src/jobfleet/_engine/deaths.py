"""Hear of a worker's death at once, and find out what it died of.

By itself Dask runs a task that was on a dead worker again, on three more workers if need be, and then gives up every
task that was there each time, also those that only waited. Here the scheduler hands our tasks back at the first death,
by a plugin that the client registers; `_call/recovery.py` finds the one that is at fault.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import weakref
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes
from distributed.diagnostics.plugin import SchedulerPlugin

from .._ship import package_code
from . import replies, waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed import Client

logger = logging.getLogger(__name__)

#: Marks our tasks for the plugin; other clients' tasks are none of its business.
ANNOTATION = "jobfleet"

#: Topics of scheduler events: tasks that are watched say that they start; calls that tasks make, that workers died of
#: them; ends of worker processes.
STARTS = "jobfleet-starts"
DEATHS = "jobfleet-deaths"
ENDS = "jobfleet-worker-ends"

#: How long what a worker died of may take to become known.
_CAUSE_DEADLINE_S = 3.0
_CAUSE_WITHOUT_NANNY_S = 1.0
_POLL_S = 0.1


def _update_graph(self: Any, scheduler: Any, *, annotations: Any, **kwargs: Any) -> None:
    for key in annotations.get("jobfleet", ()):
        task = scheduler.tasks.get(key)
        if task is not None:
            # As if it had survived all the deaths that are allowed: at the next one it comes back to the client.
            task.suspicious = scheduler.allowed_failures
            self.keep(scheduler, task)


def _plugin() -> SchedulerPlugin:
    """Make the plugin; of a class that no module holds, so that it travels by value.

    It hands tasks back when their worker dies, keeps those that wait (`waiting`), and sends replies on (`replies`).
    """
    namespace = {
        "__module__": "_jobfleet_scheduler",
        "name": f"jobfleet_{package_code()[0]}_deaths",
        "idempotent": True,
        "update_graph": by_value(_update_graph),
        "keep": by_value(waiting.keep),
        "start": by_value(replies.start),
        "transition": by_value(replies.transition),
    }
    plugin: SchedulerPlugin = type("HandBack", (SchedulerPlugin,), namespace)()
    return plugin


def by_value(function: Any) -> Any:
    """Have a function travel by value: no module holds it. It can use nothing but its arguments."""
    copy = type(function)(function.__code__, {"__name__": "_jobfleet_scheduler"}, function.__name__, None, None)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class Deaths:
    """What is known of the deaths of one cluster's workers.

    Notes
    -----
    Its methods run on the client's event loop.
    """

    def __init__(self, client: Client) -> None:
        # The client is the key under which this is found: it must not be held.
        self._client = weakref.ref(client)
        self._scheduler: str | None = None
        self._registering: asyncio.Task[bool] | None = None

    async def watched(self) -> bool:
        """Whether the scheduler hands our tasks back at the first death; sees to it the first time."""
        client = self._client()
        if client is None:
            return False
        scheduler = client._scheduler_identity.get("id")
        if self._registering is None or self._scheduler != scheduler:
            # The first call, or another scheduler has taken the place of the one that was registered with.
            self._scheduler = scheduler
            self._registering = asyncio.ensure_future(self._register(client))
        if self._registering.done():
            return self._registering.result()
        return await asyncio.shield(self._registering)

    async def _register(self, client: Client) -> bool:
        plugin = _plugin()
        try:
            await client._register_plugin(plugin, plugin.name, True)
        except OSError:
            self._registering = None  # the connection is lost: again, when there is another one
            return False
        except Exception:  # a scheduler may refuse code; its own way of dealing with deaths remains
            logger.debug("the scheduler takes no plugin", exc_info=True)
            return False
        return True

    async def note(self, call: str, callers: Sequence[tuple[str, int]], deaths: int) -> None:
        """Tell the scheduler how many workers died of one unfinished task of a call, which these tasks have made."""
        client = self._client()
        if client is None:
            return
        message = {"call": call, "callers": dict(callers), "deaths": deaths}
        try:
            await client.scheduler.log_event(topic=DEATHS, msg=message)
        except Exception:  # whatever it has against it: too few are counted
            logger.debug("the scheduler does not hear of deaths", exc_info=True)

    async def seen(self, key: str) -> tuple[int | None, int]:
        """Give what is known of a chunk whose worker has died.

        Returns
        -------
        position
            Of the task that ran last; None if none had started, as far as tasks were to say so.
        deaths
            How many workers have died of calls that it made and that were not at their end.
        """
        starts = await self._events(STARTS)
        position = max((event["position"] for event in starts if event["key"] == key), default=None)
        calls: dict[str, tuple[int, int]] = {}
        for event in await self._events(DEATHS):
            if event["callers"].get(key, -1) >= (position or 0):
                calls[event["call"]] = event["callers"][key], event["deaths"]
        caller, deaths = max((call for call in calls.values() if call[1]), default=(position, 0))
        return caller, deaths

    async def cause(self, worker: Any) -> str:
        """Say how a worker died, as far as anybody knows."""
        deadline = time.monotonic() + (_CAUSE_DEADLINE_S if worker.nanny else _CAUSE_WITHOUT_NANNY_S)
        while time.monotonic() < deadline:
            known = await self._memory(worker) or await self._end(worker) or await self._nanny(worker)
            if known:
                return known
            await asyncio.sleep(_POLL_S)
        return ""

    async def _memory(self, worker: Any) -> str:
        for event in await self._events("worker-restart-memory"):
            if event.get("pid") == worker.pid and event.get("worker") == worker.address:
                return (
                    f"its nanny ended it because it used {format_bytes(event['rss'])} of its "
                    f"memory limit of {format_bytes(worker.memory_limit)}"
                )
        return ""

    async def _end(self, worker: Any) -> str:
        for event in await self._events(ENDS):
            if event.get("worker") == worker.name:
                return str(event["how"])
        return ""

    async def _nanny(self, worker: Any) -> str:
        client = self._client()
        if client is None or not worker.nanny:
            return ""
        try:
            logs = await client.scheduler.broadcast(
                msg={"op": "get_logs", "n": 100}, workers=[worker.nanny], on_error="ignore"
            )
        except Exception:  # whatever happened to the nanny: only words for a message are missing
            return ""
        for lines in logs.values():
            for _, line in lines:
                found = re.search(rf"Worker process {worker.pid} ((was killed|exited) [\w ]*)", line)
                if found:
                    return f"its process {found[1]}"
        return ""

    async def _events(self, topic: str) -> list[dict[str, Any]]:
        client = self._client()
        if client is None:
            return []
        try:
            return [event for _, event in await client.scheduler.events(topic=topic) or ()]
        except Exception:  # as above
            return []


_deaths: weakref.WeakKeyDictionary[Client, Deaths] = weakref.WeakKeyDictionary()


def deaths_of(client: Client) -> Deaths:
    """Give what is known of a client's cluster."""
    return _deaths.setdefault(client, Deaths(client))
