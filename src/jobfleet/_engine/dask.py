"""Chunks as tasks of a Dask cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from uuid import uuid4

import distributed
from distributed.comm.addressing import get_address_host
from distributed.comm.core import CommClosedError

from .._data.buffers import Blob, Keeper
from .._data.packing import PackedChunk
from .._ship import NEED_CODE, bootstrap, package_code
from .._wire import NEED_DATA, Missing
from ..errors import NoWorkersError
from ..options import Options
from .ahead import place_ahead
from .base import AheadProgress, Callers, HandedBack, Lost, LostKind, Outcome, Overran, Session, Slots
from .callers_slot import CallersSlot, callers_slot
from .connect import usable_client
from .courier import courier_of
from .deaths import deaths_of
from .embedded import embedded_slots
from .overruns import overruns
from .placement import Placement, Placing, forget_lost, placement_of, while_there
from .silence import Copies, interval_s, silent_keys

#: A chunk larger than this does not travel inside the task graph, which the scheduler keeps.
_MAX_GRAPH_NBYTES = 2**20

#: How often a running call asks the scheduler for its workers.
_WATCH_INTERVAL_S = 1.0

#: How often a chunk looks whether its client has found the scheduler again.
_RECONNECT_LOOK_S = 0.1

#: How long a worker that is about to end its process is waited for, and how often it is looked for. It takes some
#: 50 ms, and stays if the task has ended by itself after all.
_LEAVE_DEADLINE_S = 2.0
_LEAVE_LOOK_S = 0.05

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
    helped
        Makes a session run short calls in the thread of the task that makes them.
    callers
        Gives the tasks that make a call.
    """

    def __init__(
        self,
        find_client: Callable[[Options], distributed.Client],
        depth: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
        helped: Callable[[Session], Session] | None = None,
        callers: Callable[[], Callers] = Callers,
    ) -> None:
        self._find_client = find_client
        self.depth = depth
        self._cancelled = cancelled
        self._helped = helped
        self._callers = callers

    def slots(self, options: Options) -> Slots:
        """Give the slots, waiting for a first one."""
        client = usable_client(self._find_client(options))
        embedded = None if options.resources or options.workers else embedded_slots(client)
        if embedded is not None and embedded.total:
            return embedded
        if not self.depth:
            return cast("Slots", client.sync(_wait_for_slots, client, options))
        # Tasks make many small calls.
        now_s, question = time.monotonic(), (options.workers, options.allow_other_workers, options.resources)
        known = _known_slots.get(client)
        if known is None or known[0] != question or now_s - known[1] > _WATCH_INTERVAL_S:
            known = _known_slots[client] = question, now_s, client.sync(_wait_for_slots, client, options)
        return known[2]

    def open(self, options: Options, slots: Slots, *, lends_thread: bool) -> Session:
        """Begin a call."""
        session = self._open(options, slots)
        return session if self._helped is None or not lends_thread else self._helped(session)

    def _open(self, options: Options, slots: Slots) -> DaskSession:
        client = usable_client(self._find_client(options))
        clients_in_use.add(client)
        keywords = options.submit_keywords()
        keywords["priority"] = keywords.get("priority", 0) + self.depth
        # In the order in which they are sent: the smallest chunks, cut last, must not go before larger ones.
        keywords.setdefault("fifo_timeout", 0)
        watched = partial(_slots, client, options)
        room = Room(slots.total, callers_slot())
        placement, addresses = placement_of(client), partial(_addresses, client, options)
        session = DaskSession(
            client, keywords, watched, addresses, room, placement, self._cancelled, options.worker_ttl
        )
        session.limited = options.task_timeout is not None
        session.callers = self._callers()
        return session

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Leave the worker's thread pool while a task waits for its inner tasks."""
        slot = callers_slot()
        if slot is None:
            yield
        else:
            with slot.given_up():
                yield


async def _slots(client: distributed.Client, options: Options) -> Slots:
    """Count the tasks that may run at once, where `workers` and `resources` allow them."""
    if options.resources or (options.workers and not options.allow_other_workers):
        identity = await client.scheduler.identity()
        capacity = {
            address: _capacity(worker, options.resources or {})
            for address, worker in identity["workers"].items()
            if _works(worker) and _eligible(address, worker, options)
        }
    else:
        capacity = await client.scheduler.ncores_running()
        if not capacity:
            identity = await client.scheduler.identity()
            capacity = {a: worker["nthreads"] for a, worker in identity["workers"].items() if _works(worker)}
    per_host: dict[str, int] = {}
    for address, n in capacity.items():
        host = get_address_host(address)
        per_host[host] = per_host.get(host, 0) + n
    return Slots(sum(per_host.values()), max(per_host.values(), default=0))


def _works(worker: dict[str, Any]) -> bool:
    """Whether a worker takes tasks, or runs one: those that are paused may never take one again."""
    return worker.get("status") != "paused" or bool(worker["metrics"].get("executing"))


async def _addresses(client: distributed.Client, options: Options) -> list[str]:
    identity = await client.scheduler.identity()
    return [address for address, worker in identity["workers"].items() if _eligible(address, worker, options)]


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
            f"{_restrictions(options)}. Make sure that workers are started, can connect to the scheduler and are not "
            "paused because their memory is nearly used up (dashboard and workers' logs tell), or wait longer:\n\n"
            f'    parallel_config("dask", wait_for_workers_timeout={max(10, 2 * timeout_s):g})'
        ) from None
    finally:
        probe.release()
    return await _slots(client, options)


def _restrictions(options: Options) -> str:
    keywords = {k: v for k, v in options.submit_keywords().items() if k in ("workers", "resources")}
    return f" with {', '.join(f'{k}={v}' for k, v in keywords.items())}" if keywords else ""


_Submission = tuple[PackedChunk, str, Callable[[Outcome | HandedBack], None]]


@dataclass(slots=True)
class Room:
    """Say how many chunks may be sent, as long as the task that makes the call holds a slot itself.

    Dask takes that worker to be busy then, and would have a chunk too many wait behind another one, also when the slot
    is free a moment later: it moves nothing that seems short.
    """

    n_slots: int
    slot: CallersSlot | None
    """Until it is known to be free."""

    def has_room(self, n_sent: int) -> bool:
        """Whether another chunk may be sent when there are so many."""
        return self.slot is None or n_sent < max(1, self.n_slots - 1)


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
    _held_back: deque[_Submission]
    """For lack of room."""
    _making_room: asyncio.Task[None] | None
    _running: set[asyncio.Task[None]]
    """Held, since the loop does not."""
    _chunks: dict[int, asyncio.Task[None]]
    """Who brings a chunk to its outcome, by the chunk's `id`; not those that were given up."""
    _futures: set[distributed.Future]
    _placing: Placing
    """Buffers that could not be stored."""
    _placement: Placement
    _watcher: asyncio.Task[None] | None
    _waiting: dict[str, asyncio.Task[Any]]
    """Who waits for the task with a key, and knows of no other that could answer for it."""
    _silent: set[str]
    """Tasks on workers that are silent, or whose results are there only."""
    callers: Callers
    _id: str
    _noting: asyncio.Task[None] | None
    """Has the scheduler told of deaths; the last one."""
    _noted: bool
    """Whether anything but 0 was to be told."""
    limited: bool
    """Whether tasks of the call have a time limit."""
    _sent: dict[str, asyncio.Task[Any]]
    """Who waits for the task with a key, or for another that runs the same chunk."""
    _overran: dict[str, Overran]

    def __init__(
        self,
        client: distributed.Client,
        keywords: dict[str, Any],
        slots: Callable[[], Awaitable[Slots]],
        addresses: Callable[[], Awaitable[list[str]]],
        room: Room,
        placement: Placement,
        cancelled: Callable[[], bool],
        worker_ttl: float | None,
    ) -> None:
        self._client = client
        self._keywords = keywords
        self._slots = slots
        self._addresses = addresses
        self._placement = placement
        self.keeper: Keeper = placement.store
        self.help_s = 0.0
        self._cancelled = cancelled
        self._closed = False
        self._outbox = []
        self._held_back = deque()
        self._room = room
        self._making_room = None
        if room.slot is not None:
            room.slot.when_given_up(lambda: self._on_loop(self._run_held_back))
        self._running = set()
        self._chunks = {}
        self._futures = set()
        self._placing = {}
        self._watcher = None
        self._deaths = deaths_of(client)
        self._worker_ttl = worker_ttl
        self._next_look_s = 0.0
        self._waiting = {}
        self._silent = set()
        self.limited = False
        self.callers = Callers()
        self._id = uuid4().hex
        self._noting = None
        self._noted = False
        self._sent = {}
        self._overran = {}

    def place_ahead(self, blobs: Sequence[Blob], report: Callable[[AheadProgress], None]) -> None:
        """Return when every host has these buffers, or will get them with its tasks."""
        place_ahead(self._client, self._placement, self._addresses, blobs, report)

    def submit(
        self, chunk: PackedChunk, label: str, done: Callable[[Outcome | HandedBack], None], here: bool = False
    ) -> None:
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

    def give_up(self, chunk: PackedChunk) -> None:
        """End a chunk that was submitted."""
        self._on_loop(self._give_up, chunk)

    def drop(self, digest: bytes) -> None:
        """Say that no task of the call needs a buffer any more."""
        self._on_loop(self._drop, digest)

    def note_deaths(self, deaths: int) -> None:
        """Have the scheduler know how many workers died of one unfinished task, if a task makes the call."""
        if self.callers.tasks:
            self._on_loop(self._start_noting, deaths)

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
        self._held_back.extend(submissions)
        self._run_held_back()

    def _run_held_back(self) -> None:
        """Run as many chunks as there is room for."""
        while self._held_back and self._room.has_room(len(self._running)):
            submission = self._held_back.popleft()
            running = asyncio.ensure_future(self._run(*submission))
            self._chunks[id(submission[0])] = running
            self._running.add(running)
            running.add_done_callback(self._ended)
        slot = self._room.slot
        if self._held_back and slot is not None and slot.is_given_up and self._making_room is None:
            self._making_room = asyncio.ensure_future(self._make_room(slot))

    def _start_noting(self, deaths: int) -> None:
        self._noted = deaths > 0
        self._noting = asyncio.ensure_future(self._note(self._noting, deaths))

    async def _note(self, earlier: asyncio.Task[None] | None, deaths: int) -> None:
        if earlier is not None:
            await earlier
        await self._deaths.note(self._id, self.callers.tasks, deaths)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._run_held_back()

    async def _make_room(self, slot: CallersSlot) -> None:
        await slot.heard_of(self._client)
        self._room.slot = None
        self._run_held_back()

    async def _run(self, chunk: PackedChunk, label: str, done: Callable[[Outcome | HandedBack], None]) -> None:
        """Bring one chunk to its outcome: `done` is called whatever happens, unless closed."""
        if self._closed:
            return
        outcome: Outcome | None = None
        while outcome is None:
            try:
                outcome = await self._reply(chunk, label, lambda n_kept: done(HandedBack(n_kept)))
            except (Exception, asyncio.CancelledError) as error:  # becomes an outcome: the policy decides
                if id(chunk) not in self._chunks:
                    return  # it was given up
                lost = await self._lost(error, chunk)
                if lost.kind is LostKind.SCHEDULER and await self._reconnected():
                    self._forget_lost(chunk)
                else:
                    outcome = lost
        if self._chunks.pop(id(chunk), None) is not None and not self._closed:
            done(outcome)

    def _give_up(self, chunk: PackedChunk) -> None:
        running = self._chunks.pop(id(chunk), None)
        if running is not None:
            running.cancel()
        self._held_back = deque(submission for submission in self._held_back if submission[0] is not chunk)

    async def _reply(self, chunk: PackedChunk, label: str, handed_back: Callable[[int], None]) -> list[Any]:
        await self._deaths.watched()
        if self._noting is not None:
            await asyncio.shield(self._noting)
        request, inline = chunk.request, chunk.inline
        if chunk.nbytes > _MAX_GRAPH_NBYTES:
            request, *inline = await self._client.scatter([request, *inline], hash=False, asynchronous=True)
        with_code = self._client not in _equipped
        plain = {blob.digest for blob in chunk.placed if not blob.is_on_hosts}
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
                values = (request, placed, *travelling, *inline)
                reply: Any = await self._run_task(self._key(label, number), handed_back, code, *values)
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

    def _key(self, label: str, number: str) -> str:
        """Name a task; one of an inner call such that it is a group of its own.

        Dask has tasks of a large group wait at the scheduler, and gives them to the worker with the fewest tasks, that
        of a caller who waits among these: so they do not get the caller's slot.
        """
        return f"('{label}-{number}', 0)" if self.callers.tasks else f"{label}-{number}"

    async def _run_task(self, key: str, handed_back: Callable[[int], None], code: bytes | None, *values: Any) -> Any:
        if self._closed:
            # It was closed while buffers were placed: nothing would cancel this future any more.
            raise asyncio.CancelledError
        waiting = asyncio.current_task()
        assert waiting is not None
        courier = courier_of(self._client)
        sent: list[distributed.Future] = []
        holds_data = any(isinstance(value, distributed.Future) for value in values)

        async def send(key: str, code: bytes | None) -> distributed.Future:
            keywords = self._keywords if code is None else {**self._keywords, "code": code}
            future = await courier.submit(bootstrap(), key, (package_code()[0], *values), keywords)
            sent.append(future)
            self._sent[key] = waiting
            self._futures.add(future)
            await self._cancel_if_closed()
            return future

        async def result_of(key: str, future: distributed.Future) -> Any:
            return await self._placement.fetched(await courier.result_apart(future), key)

        async def result_of_copy(copy: str) -> Any:
            return await result_of(copy, await send(copy, package_code()[1]))

        def send_copy() -> tuple[str, Awaitable[Any]]:
            copy = re.sub("[0-9a-f]{32}", uuid4().hex, key)
            return copy, result_of_copy(copy)

        try:
            first = await send(key, code)
            self._waiting[key] = waiting
            try:
                reply = await courier.result(first, handed_back)
            except asyncio.CancelledError:
                if key not in self._silent:
                    raise
                waiting.uncancel()
                reply = await Copies(send_copy, self._silent.__contains__).first(key, result_of(key, first))
            else:
                reply = await self._placement.fetched(reply, key)
            return reply
        except asyncio.CancelledError:
            overran = [self._overran[future.key] for future in sent if future.key in self._overran]
            if not overran:
                raise
            waiting.uncancel()
            raise overran[0] from None
        finally:
            self._waiting.pop(key, None)
            for future in sent:
                self._sent.pop(future.key, None)
                self._overran.pop(future.key, None)
                self._futures.discard(future)
                courier.let_go(future, at_once=holds_data)

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
        if isinstance(error, Overran):
            if error.ends:
                await self._has_left(error.worker)
            return Lost(LostKind.OVERRUN, error, error.position)
        kind = self._kind(error, chunk)
        if not isinstance(error, distributed.scheduler.KilledWorker):
            return Lost(kind, error)
        deaths = 1 if await self._deaths.watched() else error.allowed_failures + 1
        started, before = await self._deaths.seen(error.task)
        cause = "" if started is None else await self._deaths.cause(error.last_worker)
        return Lost(kind, error, started, deaths, cause, before)

    async def _has_left(self, worker: str) -> None:
        """Wait for a worker that is about to end: the rest of the chunk, sent again, might begin there."""
        with contextlib.suppress(Exception):  # it has gone, or the scheduler has, which the chunks in flight report
            await while_there(self._client, worker, asyncio.sleep(_LEAVE_DEADLINE_S), _LEAVE_LOOK_S)

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
                if self.limited and self._sent:
                    self._give_up_overdue(await overruns(self._client, self._sent))
            except Exception:  # the chunks in flight report a lost scheduler; whatever it is, the watch goes on
                logger.debug("the scheduler does not answer", exc_info=True)
                continue
            if not self._closed:
                self._room.n_slots = slots.total
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

    def _give_up_overdue(self, overdue: dict[str, Overran]) -> None:
        for key, overran in overdue.items():
            waiting = self._sent.pop(key, None)
            if waiting is not None:
                self._overran[key] = overran
                waiting.cancel()

    async def _close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        if self._making_room is not None:
            self._making_room.cancel()
        self._held_back.clear()
        await self._cancel_if_closed()
        if self._noted and not self._cancelled():
            # Else it was given up, maybe since a caller of its caller has died, of which these deaths are known then.
            self._start_noting(0)
        self._futures.clear()
        self._placing.clear()

    async def _cancel_if_closed(self) -> None:
        futures = list(self._futures)
        if self._closed and futures and self._client.status == "running":
            await self._client.cancel(futures, asynchronous=True, force=True)


#: What calls made by tasks were last told of the slots: the question, when it was answered, and the answer.
_known_slots: weakref.WeakKeyDictionary[distributed.Client, tuple[Any, float, Slots]] = weakref.WeakKeyDictionary()

#: Clients that calls of this process use.
clients_in_use: weakref.WeakSet[distributed.Client] = weakref.WeakSet()

#: Clients of whose cluster at least one worker has this package.
_equipped: weakref.WeakSet[distributed.Client] = weakref.WeakSet()
