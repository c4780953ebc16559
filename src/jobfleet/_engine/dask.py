"""Chunks as tasks of a Dask cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import distributed
from distributed.comm.addressing import get_address_host
from distributed.comm.core import CommClosedError
from distributed.utils import thread_state

from .._data.buffers import Blob, Keeper
from .._data.packing import PackedChunk
from .._ship import NEED_CODE, bootstrap, package_code
from .._wire import NEED_DATA, Missing
from .._worker.interrupt import current, uninterrupted
from ..errors import NoWorkersError
from ..options import Options
from .base import Lost, LostKind, Outcome, Slots
from .connect import usable_client
from .courier import LINGERING_NBYTES, courier_of
from .deaths import deaths_of
from .placement import Placement, Placing, forget_lost, placement_of
from .silence import Copies, interval_s, silent_keys

#: A chunk larger than this does not travel inside the task graph, which the scheduler keeps.
_MAX_GRAPH_NBYTES = 2**20

#: How often a running call asks the scheduler for its workers.
_WATCH_INTERVAL_S = 1.0

#: How often a chunk looks whether its client has found the scheduler again.
_RECONNECT_LOOK_S = 0.1

#: How often a chunk is sent again because a worker lacks its buffers or this package.
_MAX_SENDINGS = 20

logger = logging.getLogger(__name__)


class DaskEngine:
    """Run chunks on a Dask cluster.

    Parameters
    ----------
    find_client
        Gives the client to use; called when a call begins, never before.
    depth
        Nesting depth of the tasks it will be given. Inner work of a task that has started goes before
        outer work that has not: tasks of depth d have Dask's priority raised by d.
    cancelled
        Whether the task that makes the calls has been given up, and they with it.
    """

    def __init__(
        self,
        find_client: Callable[[Options], distributed.Client],
        depth: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._find_client = find_client
        self.depth = depth
        self._cancelled = cancelled

    def slots(self, options: Options) -> Slots:
        """Give the slots, waiting for a first one."""
        client = usable_client(self._find_client(options))
        slots: Slots = client.sync(_wait_for_slots, client, options)
        return slots

    def open(self, options: Options, *, lends_thread: bool) -> DaskSession:
        """Begin a call."""
        client = usable_client(self._find_client(options))
        clients_in_use.add(client)
        keywords = options.submit_keywords()
        keywords["priority"] = keywords.get("priority", 0) + self.depth
        watched = partial(_slots, client, options)
        return DaskSession(client, keywords, watched, placement_of(client), self._cancelled, options.worker_ttl)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Leave the worker's thread pool while a task waits for its inner tasks."""
        if not hasattr(thread_state, "execution_state"):
            yield
            return
        thread, region = threading.current_thread(), current()
        with uninterrupted():
            distributed.secede()
        try:
            yield
        finally:
            # A generator may be finalized by another thread, which has no slot to take back. And a task that was
            # given up gets none.
            if threading.current_thread() is thread and (region is None or not region.requested):
                with uninterrupted():
                    distributed.rejoin()


async def _slots(client: distributed.Client, options: Options) -> Slots:
    """Count the tasks that may run at once, where `workers` and `resources` allow them."""
    if options.resources or (options.workers and not options.allow_other_workers):
        identity = await client.scheduler.identity()
        capacity = {
            address: _capacity(worker, options.resources or {})
            for address, worker in identity["workers"].items()
            if _eligible(address, worker, options)
        }
    else:
        capacity = await client.scheduler.ncores()
    per_host: dict[str, int] = {}
    for address, n in capacity.items():
        host = get_address_host(address)
        per_host[host] = per_host.get(host, 0) + n
    return Slots(sum(per_host.values()), max(per_host.values(), default=0))


def _eligible(address: str, worker: dict[str, Any], options: Options) -> bool:
    if not options.workers or options.allow_other_workers:
        return True
    names = {address, worker.get("name"), str(worker.get("name")), get_address_host(address)}
    return not names.isdisjoint(options.workers)


def _capacity(worker: dict[str, Any], required: Any) -> int:
    slots: int = worker["nthreads"]
    for name, amount in required.items():
        if amount > 0:
            slots = min(slots, int(worker["resources"].get(name, 0) // amount))
    return slots


async def _wait_for_slots(client: distributed.Client, options: Options) -> Slots:
    slots = await _slots(client, options)
    timeout_s = options.wait_for_workers_timeout
    if slots.total or not timeout_s:
        return slots
    # A task that nobody can run makes an adaptive cluster start workers.
    probe = client.submit(bool, key=f"jobfleet-wait-for-workers-{uuid4().hex}", pure=False, **options.submit_keywords())
    try:
        await asyncio.wait_for(probe._result(), timeout_s)
    except TimeoutError:
        raise NoWorkersError(
            f"JobfleetBackend has no worker after {timeout_s:g} seconds.\n\n"
            f"The scheduler at {client.scheduler.address} has no worker that may run the tasks"
            f"{_restrictions(options)}. Make sure that workers are started and can connect to the "
            "scheduler (its dashboard and the workers' logs tell), or wait longer:\n\n"
            f'    parallel_config("dask", wait_for_workers_timeout={max(10, 2 * timeout_s):g})'
        ) from None
    finally:
        probe.release()
    return await _slots(client, options)


def _restrictions(options: Options) -> str:
    keywords = {k: v for k, v in options.submit_keywords().items() if k in ("workers", "resources")}
    return f" with {', '.join(f'{k}={v}' for k, v in keywords.items())}" if keywords else ""


_Submission = tuple[PackedChunk, str, Callable[[Outcome], None]]


class DaskSession:
    """One call's tasks on a Dask cluster.

    Notes
    -----
    Any thread may call the public methods. The rest runs on the client's event loop, which only moves
    bytes: user objects are neither pickled nor unpickled there.
    """

    _closed: bool
    _outbox: list[_Submission]
    """Belongs to the driver's thread."""
    _running: set[asyncio.Task[None]]
    """Held, since the loop does not."""
    _futures: set[distributed.Future]
    _placing: Placing
    """Buffers that could not be stored."""
    _placement: Placement
    _watcher: asyncio.Task[None] | None
    _waiting: dict[str, asyncio.Task[Any]]
    """Who waits for the task with a key, and knows of no other that could answer for it."""
    _silent: set[str]
    """Tasks on workers that are silent, or whose results are there only."""

    def __init__(
        self,
        client: distributed.Client,
        keywords: dict[str, Any],
        slots: Callable[[], Awaitable[Slots]],
        placement: Placement,
        cancelled: Callable[[], bool],
        worker_ttl: float | None,
    ) -> None:
        self._client = client
        self._keywords = keywords
        self._slots = slots
        self._placement = placement
        self.keeper: Keeper = placement.store
        self._cancelled = cancelled
        self._closed = False
        self._outbox = []
        self._running = set()
        self._futures = set()
        self._placing = {}
        self._watcher = None
        self._deaths = deaths_of(client)
        self._worker_ttl = worker_ttl
        self._next_look_s = 0.0
        self._waiting = {}
        self._silent = set()

    def submit(self, chunk: PackedChunk, label: str, done: Callable[[Outcome], None]) -> None:
        """Run a chunk, after the next `flush`; returns at once."""
        if self._cancelled():
            done(Lost(LostKind.ABANDONED, RuntimeError("its task was cancelled")))
        else:
            self._outbox.append((chunk, label, done))

    def flush(self) -> None:
        """Send what was submitted, together: the loop would be off with the first before it hears of the second."""
        if self._outbox:
            self._on_loop(self._run_all, self._outbox)
            self._outbox = []

    def drop(self, digest: bytes) -> None:
        """Say that no task of the call needs a buffer any more."""
        self._on_loop(self._drop, digest)

    def watch_slots(self, changed: Callable[[Slots], None]) -> None:
        """Have `changed` called with the slots every `_WATCH_INTERVAL_S` seconds."""
        self._on_loop(self._start_watching, changed)

    def lend_thread(self) -> None:
        """Return at once: the cluster has threads of its own."""

    def settle(self) -> None:
        """Do nothing: no thread was lent."""

    def lost(self) -> Lost | None:
        """Say whether the client has been closed."""
        if self._client.status in ("closed", "closing"):
            error = RuntimeError(f"the client is {self._client.status}")
            return Lost(LostKind.SCHEDULER, error)
        return None

    def close(self) -> None:
        """End the use: nothing that is queued starts any more."""
        self._closed = True
        self._on_loop(self._close)

    def _on_loop(self, function: Callable[..., Any], *args: Any) -> None:
        self._client.loop.add_callback(function, *args)

    def _run_all(self, submissions: list[_Submission]) -> None:
        for submission in submissions:
            running = asyncio.ensure_future(self._run(*submission))
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    async def _run(self, chunk: PackedChunk, label: str, done: Callable[[Outcome], None]) -> None:
        """Bring one chunk to its outcome: `done` is called whatever happens, unless closed."""
        if self._closed:
            return
        outcome: Outcome | None = None
        while outcome is None:
            try:
                outcome = await self._reply(chunk, label)
            except (Exception, asyncio.CancelledError) as error:  # becomes an outcome: the policy decides
                lost = await self._lost(error, chunk)
                if lost.kind is LostKind.SCHEDULER and await self._reconnected():
                    self._forget_lost(chunk)
                else:
                    outcome = lost
        if not self._closed:
            done(outcome)

    async def _reply(self, chunk: PackedChunk, label: str) -> list[Any]:
        await self._deaths.watched()
        request, inline = chunk.request, chunk.inline
        if chunk.nbytes > _MAX_GRAPH_NBYTES:
            request, *inline = await self._client.scatter([request, *inline], hash=False, asynchronous=True)
        with_code = self._client not in _equipped
        plain = {blob.digest for blob in chunk.placed if not blob.stored}
        for _ in range(_MAX_SENDINGS):
            travelling = await asyncio.gather(
                *(
                    self._placement.as_dask_data(blob, self._placing_of(blob))
                    for blob in chunk.placed
                    if blob.digest in plain
                )
            )
            references = self._placement.references(chunk.placed, plain)
            number = uuid4().hex
            placed = self._placement.store.placed(references, number)
            code = package_code()[1] if with_code else None
            try:
                reply: Any = await self._run_task(f"{label}-{number}", code, request, placed, *travelling, *inline)
            except BaseException:
                self._placement.store.remove_results(number)
                raise
            if isinstance(reply, str) and reply == NEED_CODE:
                with_code = True
                continue
            _equipped.add(self._client)
            if not isinstance(reply[0], str) or reply[0] != NEED_DATA:
                return await self._placement.results(list(reply), number)
            plain |= await self._placement.supply(Missing(*reply[1:]), chunk.placed, references)
        raise RuntimeError("the workers do not take the code or the buffers that they ask for")

    async def _run_task(self, key: str, code: bytes | None, *values: Any) -> Any:
        if self._closed:
            # It was closed while buffers were placed: nothing would cancel this future any more.
            raise asyncio.CancelledError
        courier = courier_of(self._client)
        sent: list[distributed.Future] = []

        async def send(key: str, code: bytes | None) -> distributed.Future:
            keywords = self._keywords if code is None else {**self._keywords, "code": code}
            future = await courier.submit(bootstrap(), key, (package_code()[0], *values), keywords)
            sent.append(future)
            self._futures.add(future)
            await self._cancel_if_closed()
            return future

        async def result_of_copy(copy: str) -> Any:
            return await courier.result_apart(await send(copy, package_code()[1]))

        def send_copy() -> tuple[str, Awaitable[Any]]:
            copy = f"{key.rpartition('-')[0]}-{uuid4().hex}"
            return copy, result_of_copy(copy)

        waiting = asyncio.current_task()
        assert waiting is not None
        may_linger = False
        try:
            first = await send(key, code)
            self._waiting[key] = waiting
            try:
                reply = await courier.result(first)
            except asyncio.CancelledError:
                if key not in self._silent:
                    raise
                waiting.uncancel()
                reply = await Copies(send_copy, self._silent.__contains__).first(key, courier.result_apart(first))
            else:
                may_linger = _nbytes(reply) <= LINGERING_NBYTES
            return reply
        finally:
            self._waiting.pop(key, None)
            for future in sent:
                self._futures.discard(future)
                courier.let_go(future, may_linger)

    def _placing_of(self, blob: Blob) -> Placing:
        return self._placement.pinned if blob.pinned else self._placing

    def _drop(self, digest: bytes) -> None:
        self._placing.pop(digest, None)
        self._placement.drop(digest)

    def _forget_lost(self, chunk: PackedChunk) -> None:
        """Have those of a chunk's buffers placed again that are not on the cluster any more."""
        for blob in chunk.placed:
            forget_lost(blob, self._placing_of(blob))

    async def _reconnected(self) -> bool:
        """Wait while the client looks for the scheduler, as long as it does; gives whether it has found it.

        It does so for ``distributed.comm.timeouts.connect``.
        """
        while self._client.status == "connecting" and not self._closed:
            await asyncio.sleep(_RECONNECT_LOOK_S)
        return bool(self._client.status == "running") and not self._closed

    async def _lost(self, error: BaseException, chunk: PackedChunk) -> Lost:
        kind = self._kind(error, chunk)
        if not isinstance(error, distributed.scheduler.KilledWorker):
            return Lost(kind, error)
        deaths = 1 if await self._deaths.watched() else error.allowed_failures + 1
        if not chunk.report_every:
            return Lost(kind, error, deaths=deaths)
        started = await self._deaths.started(error.task)
        cause = "" if started is None else await self._deaths.cause(error.last_worker)
        return Lost(kind, error, started, deaths, cause)

    def _kind(self, error: BaseException, chunk: PackedChunk) -> LostKind:
        """Translate what Dask raised: the only place that does."""
        if self._cancelled():
            return LostKind.ABANDONED
        if isinstance(error, distributed.scheduler.KilledWorker):
            return LostKind.WORKER
        if self._client.status != "running" or isinstance(error, CommClosedError):
            return LostKind.SCHEDULER
        # `scatter` gives up after 30 s without a worker.
        if isinstance(error, (asyncio.CancelledError, TimeoutError)):
            # A key went that the chunk depends on: its holder died. Place all again that are not there.
            self._forget_lost(chunk)
            return LostKind.DATA
        return LostKind.ENGINE

    def _start_watching(self, changed: Callable[[Slots], None]) -> None:
        self._watcher = asyncio.ensure_future(self._watch(changed))

    async def _watch(self, changed: Callable[[Slots], None]) -> None:
        while not self._closed:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            if self._cancelled():
                # The coroutines that wait for them report it.
                await self._client.cancel(list(self._futures), asynchronous=True, force=True)
                return
            try:
                slots = await self._slots()
                await self._look_for_silence()
            except Exception:  # the chunks in flight report a lost scheduler; whatever it is, the watch goes on
                logger.debug("the scheduler does not answer", exc_info=True)
                continue
            if not self._closed:
                changed(slots)

    async def _look_for_silence(self) -> None:
        """Have chunks that are on silent workers run on others too."""
        now = time.monotonic()
        if self._worker_ttl is None or not self._futures or now < self._next_look_s:
            return
        self._next_look_s = now + interval_s(self._worker_ttl)
        self._silent = set(await silent_keys(self._client, self._worker_ttl))
        courier_of(self._client).set_apart(self._silent)
        for key in self._silent:
            waiting = self._waiting.pop(key, None)
            if waiting is not None:
                logger.warning("%s runs again: its worker has been silent for %g s", key, self._worker_ttl)
                waiting.cancel()

    async def _close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        await self._cancel_if_closed()
        self._futures.clear()
        self._placing.clear()

    async def _cancel_if_closed(self) -> None:
        futures = list(self._futures)
        if self._closed and futures and self._client.status == "running":
            await self._client.cancel(futures, asynchronous=True, force=True)


#: Clients that calls of this process use.
clients_in_use: weakref.WeakSet[distributed.Client] = weakref.WeakSet()

#: Clients of whose cluster at least one worker has this package.
_equipped: weakref.WeakSet[distributed.Client] = weakref.WeakSet()


def _nbytes(reply: Any) -> int:
    """Give the size of a reply; what is not in it but in a file, or says what is missing, counts for nothing."""
    parts = reply if isinstance(reply, (list, tuple)) else [reply]
    return sum(len(part) for part in parts if hasattr(part, "__len__"))
