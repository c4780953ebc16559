"""Large buffers of a client's calls, brought to the hosts that need them."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Awaitable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
from distributed.comm.addressing import get_address_host
from distributed.comm.core import CommClosedError

from .. import _bootstrap
from .._data.buffers import MIN_STORED_NBYTES, Blob, Kept, content_digest
from .._ship import by_value, package_code
from .._store import FileRegion
from .._wire import Missing, StoredResult
from .buffer_service import LEASE_PREFIX, PIECE_NBYTES, operation
from .client_store import ClientStore

if TYPE_CHECKING:
    import distributed

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a worker may take to answer for the first time, until it counts as one this client does not reach.
_REACH_S = 5.0

#: How long a piece may take.
_PIECE_S = 60.0

#: How often it is looked whether the worker that one waits for is still there.
_LOOK_S = 1.0

#: Pieces of results that pass through the scheduler, which holds several copies of each.
_RELAYED_NBYTES = 2**22

#: How often a buffer is brought to one host for a chunk, before it travels with the chunk.
_MAX_SUPPLIES = 3

#: At most so many workers are named to another as those to get a buffer from.
_MAX_SOURCES = 8

#: How often it is looked whether the client is closed.
_WATCH_S = 0.5

#: Buffers on the cluster as Dask's own data, or on their way to it, by content.
Placing = dict[bytes, "asyncio.Task[distributed.Future]"]

#: As in `Placed`.
Reference = tuple[str, int, tuple[str, ...], tuple[Any, ...] | None]

_lock = threading.Lock()
_placements: weakref.WeakKeyDictionary[distributed.Client, Placement] = weakref.WeakKeyDictionary()


def placement_of(client: distributed.Client) -> Placement:
    """Give what is known of the buffers of a client's calls."""
    with _lock:
        placement = _placements.get(client)
        if placement is None:
            placement = _placements[client] = Placement(client)
            client.loop.add_callback(placement.watch_client)
        return placement


async def while_there(client: distributed.Client, worker: str, answer: Awaitable[T], look_s: float = _LOOK_S) -> T:
    """Wait for what a worker answers: Dask tries for half a minute to reach one that has died.

    Whether it has is looked every `look_s` seconds.

    Raises
    ------
    CommClosedError
        The scheduler does not have the worker any more.
    """
    answering = asyncio.ensure_future(answer)
    try:
        while not (await asyncio.wait([answering], timeout=look_s))[0]:
            if worker not in (await client.scheduler.identity())["workers"]:
                raise CommClosedError(f"{worker} has gone")
        return answering.result()
    finally:
        answering.cancel()


class Placement:
    """Bring buffers to the hosts that need them, over the network once per host.

    Workers of the client's host find them in shared memory. Others ask: the first of them gets a
    buffer from the client, through the scheduler where the client does not reach it; those after it from each other.

    Notes
    -----
    Runs on the client's event loop, but for `store`.
    """

    store: ClientStore
    pinned: Placing
    """Buffers of scattered objects that could not be stored: they outlive the call."""
    ahead: set[bytes]
    """What every host has been given."""
    sent_nbytes: int
    """What this client has sent of buffers."""
    _holders: dict[str, dict[str, str]]
    """Of each buffer, the hosts that have it, and a worker of each."""
    _leases: dict[str, distributed.Future]
    """Of each host, the key that keeps what was sent there."""
    _locks: weakref.WeakValueDictionary[str, asyncio.Lock]
    _supplies: dict[tuple[str, str], int]
    """How often each buffer was brought to each host."""
    _reached: dict[str, bool]
    """Whether this client reaches a worker without the scheduler."""
    _silent_hosts: set[str]
    """Where a worker did not even refuse to answer."""
    _dropping: set[asyncio.Task[None]]

    def __init__(self, client: distributed.Client) -> None:
        self._client = weakref.ref(client)
        self.store = ClientStore()
        self.pinned = {}
        self.ahead = set()
        self.sent_nbytes = 0
        self._holders = {}
        self._leases = {}
        self._locks = weakref.WeakValueDictionary()
        self._supplies = {}
        self._reached = {}
        self._silent_hosts = set()
        self._dropping = set()

    async def watch_client(self) -> None:
        """Close the store when the client is closed, or its loop ends."""
        try:
            while (client := self._client()) is not None and client.status not in ("closed", "closing"):
                del client
                await asyncio.sleep(_WATCH_S)
        finally:
            self._leases.clear()
            self.store.close()

    def references(self, blobs: Sequence[Blob], plain: Collection[bytes]) -> list[Reference | None]:
        """Tell where the buffers of a chunk are; None for those of `plain`, which are sent along."""
        return [None if blob.digest in plain else self._reference(blob) for blob in blobs]

    def _reference(self, blob: Blob) -> Reference:
        name = (blob.copy or blob).digest.hex()
        holders = tuple(self._holders.get(name, {}).values())[-_MAX_SOURCES:]
        return name, len(blob.data), holders, None if blob.file is None else blob.file.as_tuple()

    async def supply(
        self, missing: Missing, blobs: Sequence[Blob], references: Sequence[Reference | None]
    ) -> set[bytes]:
        """Bring buffers to a host where they were not found.

        Parameters
        ----------
        missing
            What the worker said.
        blobs
            The buffers of the chunk.
        references
            What the worker was told of them.

        Returns
        -------
        set
            Those that must travel with the chunk instead.

        Raises
        ------
        RuntimeError
            What one shows, a file of the user's, is not what it was.
        """
        plain: set[bytes] = set()
        for blob, reference in zip(blobs, references, strict=True):
            if reference is None or reference[0] not in missing.names:
                continue
            try:
                if blob.file is not None and reference[0] == blob.digest.hex():
                    # That worker does not see the file; the next try names the copy.
                    is_there = await self._copied(blob, blob.file)
                else:
                    is_there = await self._supply(blob.copy or blob, missing, reference[2])
                if not is_there:
                    plain.add(blob.digest)
            except (OSError, TimeoutError, CommClosedError, ValueError) as error:
                # The worker is gone, or the scheduler, or the disk is full: the next try tells.
                logger.info("buffer %s was not brought to %s: %r", reference[0], missing.worker, error)
        return plain

    async def _copied(self, blob: Blob, file: FileRegion) -> bool:
        """Take what a file holds into the store, for workers that do not see it; False: there is no room."""
        async with self._locks.setdefault(blob.digest.hex(), asyncio.Lock()):
            if blob.copy is not None:
                return True
            kept = await asyncio.to_thread(self._keep, memoryview(blob.data))
            try:
                file.require_current()
            except RuntimeError:
                self.store.drop(kept.digest, False)
                raise
            if not kept.stored:
                return False
            if not blob.users:  # the call has ended meanwhile
                self.store.drop(kept.digest, True)
                return True
            blob.copy = Blob(kept)
            return True

    def _keep(self, view: memoryview) -> Kept:
        return self.store.keep(view, content_digest(view))

    async def _supply(self, blob: Blob, missing: Missing, told: tuple[str, ...]) -> bool:
        name = blob.digest.hex()
        async with self._locks.setdefault(name, asyncio.Lock()):
            if not set(self._holders.get(name, {}).values()).issubset(told):
                # It was brought to a host meanwhile, this one or another: the worker gets it from there.
                return True
            times = self._supplies[name, missing.host] = self._supplies.get((name, missing.host), 0) + 1
            if times > _MAX_SUPPLIES or not (missing.host or missing.at_home):
                del self._supplies[name, missing.host]
                return False
            if missing.at_home:
                await asyncio.to_thread(self.store.restore, blob)
                return True
            # Nobody that the worker was told of has it any more.
            self._holders.pop(name, None)
            if not await self._upload(blob, missing.worker):
                return False
            self._holders[name] = {missing.host: missing.worker}
        self._lease(missing.host, missing.worker)
        return True

    async def _upload(self, blob: Blob, worker: str) -> bool:
        """Send a buffer to a worker's host piece by piece; False: it has no room."""
        name, view = blob.digest.hex(), memoryview(blob.data)
        for offset in range(0, view.nbytes, PIECE_NBYTES):
            taken = await self._call(
                worker,
                "put",
                token=self.store.token,
                name=name,
                nbytes=view.nbytes,
                share=self.store.share,
                offset=offset,
                data=bytes(view[offset : offset + PIECE_NBYTES]),
            )
            if taken is not True:
                return False
            self.sent_nbytes += min(PIECE_NBYTES, view.nbytes - offset)
        return True

    async def _call(self, worker: str, op: str, **message: Any) -> Any:
        """Ask a worker's buffer service, directly or else through the scheduler."""
        is_reached = await self._reaches(worker)
        client = self._client()
        if client is None:
            raise CommClosedError("the client is gone")
        if is_reached:
            direct = getattr(client.rpc(worker), operation(op))(**message)
            return await asyncio.wait_for(while_there(client, worker, direct), _PIECE_S)
        call = client.scheduler.broadcast(msg={"op": operation(op), **message}, workers=[worker])
        return (await asyncio.wait_for(while_there(client, worker, call), _PIECE_S))[worker]

    async def _reaches(self, worker: str) -> bool:
        """Whether the client can speak to a worker itself.

        Where nothing answers, not even a refusal, the host's other workers are not asked.
        """
        host, client = get_address_host(worker), self._client()
        if client is None:
            raise CommClosedError("the client is gone")
        if worker not in self._reached and host not in self._silent_hosts:
            try:
                echo = client.rpc(worker).echo(data=b"")
                await asyncio.wait_for(while_there(client, worker, echo), _REACH_S)
                self._reached[worker] = True
            except (OSError, TimeoutError) as error:
                logger.info("worker %s is reached through the scheduler only: %r", worker, error)
                self._reached[worker] = False
                if isinstance(error, TimeoutError):
                    self._silent_hosts.add(host)
        return self._reached.get(worker, False)

    def _lease(self, host: str, worker: str) -> None:
        """Have a host keep what it was sent as long as this client lives."""
        client, lease = self._client(), self._leases.get(host)
        if client is None or (lease is not None and lease.status in ("pending", "finished")):
            return
        key = f"{LEASE_PREFIX}{uuid4().hex}"
        self._leases[host] = client.submit(
            by_value(_bootstrap.keep_buffers),
            package_code()[0],
            self.store.token,
            key,
            key=key,
            pure=False,
            workers=[worker],
            # If the worker is gone the task does nothing elsewhere; waiting for it would look like work to do.
            allow_other_workers=True,
        )

    def drop(self, digest: bytes) -> None:
        """Have other hosts remove a buffer that the store does not keep for later."""
        if self.store.has(digest):
            return
        name = digest.hex()
        for worker in self._holders.pop(name, {}).values():
            dropping = asyncio.ensure_future(self._drop_at(worker, name))
            self._dropping.add(dropping)
            dropping.add_done_callback(self._dropping.discard)

    async def _drop_at(self, worker: str, name: str) -> None:
        try:
            await self._call(worker, "drop", token=self.store.token, name=name)
        except (OSError, TimeoutError, CommClosedError, ValueError) as error:
            logger.info("worker %s did not remove buffer %s: %r", worker, name, error)

    async def fetched(self, reply: Any, key: str) -> Any:
        """Give a task's reply with the buffers that its worker holds for this client.

        Raises
        ------
        TimeoutError
            The worker is gone: the task must run again.
        """
        if not isinstance(reply, (list, tuple)) or not reply or isinstance(reply[0], str):
            return reply
        reply = list(reply)
        for i, buffer in enumerate(reply):
            if isinstance(buffer, tuple) and (result := StoredResult(*buffer)).worker:
                reply[i] = await self._fetch(result, key)
        return reply

    async def _fetch(self, result: StoredResult, key: str) -> np.ndarray[Any, Any]:
        data = np.empty(result.nbytes, dtype=np.uint8)
        offset = 0
        while offset < result.nbytes:
            message = {"key": key, "name": result.name, "offset": offset}
            try:
                direct = await self._reaches(result.worker)
                n = PIECE_NBYTES if direct else _RELAYED_NBYTES
                piece = await self._call(result.worker, "result", nbytes=n, **message)
            except (OSError, TimeoutError, CommClosedError) as error:
                raise TimeoutError(f"worker {result.worker}, which has a result, does not answer: {error!r}") from error
            if not isinstance(piece, bytes) or not piece:
                raise TimeoutError(f"worker {result.worker} has lost a result")
            data[offset : offset + len(piece)] = np.frombuffer(piece, np.uint8)
            offset += len(piece)
        return data

    async def results(self, reply: list[Any], name: str) -> list[Any]:
        """Give a reply with the buffers that a worker of this host has left in files."""
        stored = [i for i, buffer in enumerate(reply) if isinstance(buffer, tuple)]
        for i in stored:
            reply[i] = await asyncio.to_thread(self.store.take, StoredResult(*reply[i]))
        if stored:
            # Dask may have run the chunk twice.
            self.store.remove_results(name)
        elif any(len(buffer) >= MIN_STORED_NBYTES for buffer in reply[1:]):
            # The next ones need not pass through the scheduler if their worker is on this host.
            await asyncio.to_thread(self.store.open)
        return reply

    # Where there is no store for it: as Dask's own data, in the memory of each worker process

    async def as_dask_data(self, blob: Blob, placing: Placing) -> distributed.Future:
        """Give the Dask key of a buffer, placed once however many chunks ask for it."""
        client = self._client()
        if client is None:
            raise CommClosedError("the client is gone")
        task = placing.get(blob.digest)
        if task is None:
            array = np.frombuffer(blob.data, dtype=np.uint8)
            task = asyncio.ensure_future(client.scatter(array, hash=False, asynchronous=True))
            placing[blob.digest] = task
        return await asyncio.shield(task)


def forget_lost(blob: Blob, placing: Placing) -> None:
    """Have a buffer placed again if it is not on the cluster any more."""
    task = placing.get(blob.digest)
    if task is not None and task.done():
        failed = task.cancelled() or task.exception() is not None
        if failed or task.result().status != "finished":
            del placing[blob.digest]
