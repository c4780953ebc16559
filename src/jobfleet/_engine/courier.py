"""Few, full messages between a client and its scheduler.

What chunks cost is messages, not bytes: each submission, each collection of a result and each release that is sent
for itself takes a turn of four event loops.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Set
from types import NoneType
from typing import Any

import distributed
from dask.base import annotate
from distributed.comm.core import CommClosedError

from .deaths import ANNOTATION
from .handing_back import HandBacks
from .replies import Replies

logger = logging.getLogger(__name__)

#: Results of which a copy came are let go together, so long after the first of them came. Not with the next
#: submission: the scheduler would tell the workers at once, and then wait 5 ms before it sends them what was submitted.
#: Others are let go at once: they may be large, and would be computed again if their worker died meanwhile. So are
#: those whose chunks are large.
_LINGER_S = 1.0

#: So many collections run at once; the results that come meanwhile are collected together by the next.
_MAX_COLLECTIONS = 3


class Courier:
    """Submit tasks of one client, collect their results and let them go.

    Notes
    -----
    All of it runs on the client's event loop.
    """

    _submissions: list[tuple[str, tuple[Any, ...], dict[str, Any], asyncio.Future[distributed.Future]]]
    _arrivals: dict[str, asyncio.Future[Any]]
    """Results to be collected, by key."""
    _brought: set[str]
    """The keys of those whose replies have come with the word that they are done."""
    _done: list[distributed.Future]
    """Of these, whose are let go when the timer ends."""
    _collections: dict[asyncio.Task[None], dict[str, asyncio.Future[Any]]]
    """Each with what it is collecting."""
    _apart: set[asyncio.Task[None]]
    """Collections of one result each that may never come; held, since the loop does not."""
    _release_timer: asyncio.TimerHandle | None

    def __init__(self, client: distributed.Client) -> None:
        # It is found by its client, which it must not keep alive.
        self._client_ref = weakref.ref(client)
        self._submissions = []
        self._arrivals = {}
        self._brought = set()
        self._done = []
        self._collections = {}
        self._apart = set()
        self._release_timer = None
        self._replies = Replies(client)
        self._hand_backs = HandBacks(client)

    @property
    def _client(self) -> distributed.Client:
        client = self._client_ref()
        assert client is not None  # whoever calls holds it
        return client

    async def submit(self, function: Any, key: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Submit one task, as `distributed.Client.submit`; those of one turn of the loop go together.

        `function` must be the same for all tasks.
        """
        loop = asyncio.get_running_loop()
        submitted: asyncio.Future[distributed.Future] = loop.create_future()
        if not self._submissions:
            loop.call_soon(self._submit_all, function)
        self._submissions.append((key, args, keywords, submitted))
        return await submitted

    async def result(self, future: distributed.Future, handed_back: Callable[[int], None]) -> Any:
        """Wait for the result of a task; `handed_back` hears meanwhile how many of the chunk's tasks that one keeps."""
        self._replies.expect(future.key)
        try:
            with self._hand_backs.listen(future.key, handed_back):
                # There is no public way to wait in the loop without collecting.
                await future._state.wait()
        finally:
            reply = self._replies.take(future.key)
        if reply is not None:
            self._brought.add(future.key)
            return reply
        if future.status != "finished" or self._is_direct():
            return await future._result()
        arrival = asyncio.get_running_loop().create_future()
        self._arrivals[future.key] = arrival
        self._collect()
        is_there, value = await arrival
        # If it is not, its worker has died: Dask computes it again, or says why not.
        return value if is_there else await future._result()

    async def result_apart(self, future: distributed.Future) -> Any:
        """Wait for a task's result and collect it alone: its worker may be silent, and no other result is to wait."""
        await future._state.wait()
        if future.status == "finished":
            data = await self._gather([future.key])
            if future.key in data:
                return data[future.key]
        return await future._result()

    def set_apart(self, silent: Set[str]) -> None:
        """Have no result wait for those with these keys, which may never come: their workers are silent."""
        for collection, arrivals in list(self._collections.items()):
            if silent.isdisjoint(arrivals):
                continue
            again = {key: arrival for key, arrival in arrivals.items() if not arrival.done()}
            arrivals.clear()
            del self._collections[collection]
            collection.cancel()
            for key in silent & again.keys():
                apart = asyncio.ensure_future(self._collect_these({key: again.pop(key)}))
                self._apart.add(apart)
                apart.add_done_callback(self._apart.discard)
            self._arrivals.update(again)
            self._collect()

    def let_go(self, future: distributed.Future, at_once: bool) -> None:
        """Say that a task is not needed any more; one whose reply was brought is let go with others."""
        was_brought = future.key in self._brought
        self._brought.discard(future.key)
        if at_once or not was_brought:
            future.release()
            return
        self._done.append(future)
        if self._release_timer is None:
            loop = asyncio.get_running_loop()
            self._release_timer = loop.call_later(_LINGER_S, self._release_all)

    def _submit_all(self, function: Any) -> None:
        submissions, self._submissions = self._submissions, []
        alike: dict[Any, list[int]] = defaultdict(list)
        for position, (_, args, keywords, _) in enumerate(submissions):
            # What refers to data on the cluster goes by itself: `map` looks for that deep inside.
            plain = all(type(arg) in (bytes, str, NoneType) for arg in args)
            alike[(len(args), id(keywords)) if plain else position].append(position)
        for group in alike.values():
            self._submit_group(function, [submissions[position] for position in group])

    def _submit_group(self, function: Any, submissions: list[Any]) -> None:
        keywords = submissions[0][2]
        try:
            with annotate(**{ANNOTATION: True}):
                if len(submissions) == 1:
                    ((key, args, _, _),) = submissions
                    futures = [self._client.submit(function, *args, key=key, pure=False, **keywords)]
                else:
                    keys = [key for key, *_ in submissions]
                    columns = zip(*(args for _, args, *_ in submissions), strict=True)
                    futures = self._client.map(function, *map(list, columns), key=keys, pure=False, **keywords)
        except Exception as error:
            for *_, submitted in submissions:
                if not submitted.done():
                    submitted.set_exception(error)
            return
        for (*_, submitted), future in zip(submissions, futures, strict=True):
            if submitted.done():  # who wanted it has gone
                future.release()
            else:
                submitted.set_result(future)

    def _collect(self) -> None:
        if self._arrivals and len(self._collections) < _MAX_COLLECTIONS:
            collection = asyncio.ensure_future(self._collect_all())
            self._collections[collection] = {}
            collection.add_done_callback(lambda collection: self._collections.pop(collection, None))

    async def _collect_all(self) -> None:
        """Collect until nothing is left."""
        collection = asyncio.current_task()
        assert collection is not None
        while self._arrivals:
            arrivals, self._arrivals = self._arrivals, {}
            self._collections[collection] = arrivals
            await self._collect_these(arrivals)

    async def _collect_these(self, arrivals: dict[str, asyncio.Future[Any]]) -> None:
        """Collect results together; what cannot be collected is left to those who wait for it."""
        data: dict[str, Any] = {}
        try:
            data = await self._gather(list(arrivals))
        except (OSError, CommClosedError):
            logger.debug("results could not be collected together", exc_info=True)
        finally:
            for key, arrival in arrivals.items():
                if not arrival.done():
                    arrival.set_result((key in data, data.get(key)))

    async def _gather(self, keys: list[str]) -> dict[str, Any]:
        response = await self._client.scheduler.gather(keys=keys)
        data: dict[str, Any] = response.get("data", {})
        return data

    def _is_direct(self) -> bool:
        """Whether Dask would fetch results from the workers themselves: the user's wish, or we are on one."""
        if self._client.direct_to_workers is not None:
            return bool(self._client.direct_to_workers)
        try:
            distributed.get_worker()
        except ValueError:
            return False
        return True

    def _release_all(self) -> None:
        self._release_timer = None
        done, self._done = self._done, []
        for future in done:
            future.release()


_couriers: weakref.WeakKeyDictionary[distributed.Client, Courier] = weakref.WeakKeyDictionary()


def courier_of(client: distributed.Client) -> Courier:
    """Give the one that all calls of a client use."""
    courier = _couriers.get(client)
    if courier is None:
        courier = _couriers[client] = Courier(client)
    return courier
