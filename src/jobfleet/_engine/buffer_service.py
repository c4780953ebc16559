"""A worker's part in keeping one copy of each large buffer per host.

A chunk names its buffers. A worker that finds one in its host's store maps it. One that does not gets it from a
worker of another host that has it, while those beside it wait for the same file; or else says so to the client,
which sends it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import distributed
from distributed.comm.core import CommClosedError
from distributed.core import Status
from tornado.ioloop import PeriodicCallback

from .._ship import package_code
from .._store import StoreDirectory, require_room, sweep
from .._wire import Missing, Placed, StoredResult
from .._worker.buffers import AttachedBuffers, Buffer, HostDirectories, attach_all
from .._worker.run import copied
from ..options import configured
from .shared_memory_limits import count_private_memory

logger = logging.getLogger(__name__)

#: Buffers travel in pieces of this size, so that no process holds a large one in its own memory.
PIECE_NBYTES = 2**24

#: How long a worker may take to say that it is there.
_REACH_S = 3.0

#: How long one piece may take.
_PIECE_S = 60.0

#: How long a buffer may take altogether.
_TRANSFER_S = 1800.0

#: How many workers one worker feeds at once; it refers others to those that it has fed.
_FED_AT_ONCE = 2

#: How often what is not used is let go.
_TIDY_S = 2.0

#: How often it is tried again what another process or worker is busy with.
_POLL_S = 0.05

#: How often a task that waits for a buffer looks whether its worker ends.
_CLOSED_S = 0.5

#: How long a task waits for the service to be there.
_START_S = 10.0

#: How long a host keeps what a client sent before the client holds a key for it.
_ORPHAN_S = 30.0

LEASE_PREFIX = "jobfleet-lease-"

_lock = threading.Lock()
_of_worker: weakref.WeakKeyDictionary[distributed.Worker, BufferService] = weakref.WeakKeyDictionary()


def operation(name: str) -> str:
    """Name an operation of this very release: a worker may serve several."""
    return f"jobfleet_{package_code()[0]}_{name}"


def current_service() -> BufferService:
    """Give the service of the worker that runs this task."""
    return service_of(distributed.get_worker())


def service_of(worker: distributed.Worker) -> BufferService:
    """Give the service of a worker, started at the first call, which is not made on the worker's event loop."""
    with _lock:
        service = _of_worker.get(worker)
        if service is None:
            service = _of_worker[worker] = BufferService(worker)
            fresh = True
        else:
            fresh = False
    if fresh:
        service.start()
    return service


def store_roots(second: str) -> tuple[str, str]:
    """Give where this process's stores lie: shared memory, then a disk."""
    return configured("shared-memory"), second


class BufferService(distributed.WorkerPlugin):
    """Attach buffers for the tasks of one worker, and pass them on to other hosts.

    Notes
    -----
    `attach` and `lease` are called by task threads, all else by the worker's event loop.
    """

    _attached: AttachedBuffers
    _directories: HostDirectories
    _used_at: dict[str, float]
    """When a client's buffers on this host were last used, for clients that are elsewhere."""
    _leases: dict[str, str]
    """Keys that keep a client's buffers, and the client."""
    _feeding: dict[tuple[str, str], dict[str, float]]
    """Who is being given a buffer, and when it asked last."""
    _fed: dict[tuple[str, str], list[str]]
    _parts: dict[tuple[str, str], tuple[contextlib.ExitStack, int]]
    """Buffers that the client is sending."""
    _results: dict[str, dict[str, Any]]
    """Large results of each key that its client has still to fetch."""

    def __init__(self, worker: distributed.Worker) -> None:
        # The worker holds its plugins, so this must not hold the worker.
        self._worker = weakref.ref(worker)
        self._loop = worker.loop
        self._address = worker.address
        self._attached = AttachedBuffers()
        self._directories = HostDirectories(
            store_roots(os.path.dirname(worker.local_directory)), configured("host") or ""
        )
        self._used_at = {}
        self._leases = {}
        self._feeding = {}
        self._fed = {}
        self._parts = {}
        self._results = {}
        self._ready = threading.Event()

    def start(self) -> None:
        """Make it known to the worker; returns when the worker counts memory as it must."""
        worker = self._worker()
        if worker is not None:
            self._loop.add_callback(worker.plugin_add, self, name=operation("buffers"))
        self._ready.wait(_START_S)

    async def setup(self, worker: distributed.Worker) -> None:
        """Begin, in the worker's own thread."""
        try:
            for name in ("put", "get", "drop", "result"):
                worker.handlers[operation(name)] = getattr(self, name)
            tidying = PeriodicCallback(self._tidy, _TIDY_S * 1000)
            worker.periodic_callbacks[operation("tidy")] = tidying
            tidying.start()
            await count_private_memory(worker)
            for root in self._directories.roots:
                sweep(root)
        finally:
            self._ready.set()

    def teardown(self, worker: distributed.Worker) -> None:
        """End with the worker."""
        for token in list(self._used_at):
            self._forget(token)
        self._attached.clear()

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Let go what goes with a key that is released: Dask does that too for a client that died."""
        if finish not in ("released", "forgotten"):
            return
        self._results.pop(key, None)
        if key in self._leases:
            token = self._leases.pop(key)
            if token not in self._leases.values():
                self._loop.add_callback(self._forget, token)

    # In task threads

    def attach(self, placed: Placed, travelling: Sequence[Buffer]) -> list[Buffer] | Missing:
        """Give the values of a chunk, in order, or say which cannot be had here."""
        directories = self._directories.all(placed)
        values = attach_all(self._attached, placed, directories, travelling)
        lacking = [i for i, value in enumerate(values) if value is None]
        if lacking:
            self._pull_all(placed, [placed.buffers[i] for i in lacking])
            for i in lacking:
                name, nbytes, *_ = placed.buffers[i] or ("", 0)
                values[i] = self._attached.attach(placed.token, name, nbytes, directories)
        if any(directory.is_home() for directory in self._directories.home(placed)):
            at_home = True
        else:
            at_home = False
            self._used_at[placed.token] = time.monotonic()
        found = [value for value in values if value is not None]
        if len(found) == len(values):
            return found
        names = tuple(ref[0] for ref, value in zip(placed.buffers, values, strict=False) if ref and value is None)
        return Missing(self._address, "" if at_home else self._identity(placed.token), at_home, names)

    def export(self, view: memoryview, placed: Placed | None, key: str) -> Any:
        """Copy a large buffer of the result of the task `key`.

        It goes into the client's own directory, if that is here; else it stays here until the client has fetched it:
        as Dask's own data it would pass through the scheduler.
        """
        if self._address.startswith("inproc://"):
            return copied(view)
        name = f"{'' if placed is None else placed.result}-{uuid4().hex}"
        for directory in [] if placed is None else self._directories.home(placed):
            if directory.is_home():
                with contextlib.suppress(OSError):
                    directory.write(name, [view], view.nbytes, own=False)
                    return StoredResult(name, view.nbytes).as_tuple()
        self._results.setdefault(key, {})[name] = copied(view)
        return StoredResult(name, view.nbytes, self._address).as_tuple()

    def lease(self, token: str, key: str) -> None:
        """Keep a client's buffers as long as Dask keeps `key`."""
        self._leases[key] = token

    def _identity(self, token: str) -> str:
        for directory in self._directories.own(token):
            with contextlib.suppress(OSError):
                directory.own()
                return directory.identity()
        return ""

    def _pull_all(self, placed: Placed, references: Sequence[tuple[Any, ...] | None]) -> None:
        """Get from other workers what they have; what fails is missing still, and the client is told."""
        for reference in references:
            if reference is None or not reference[2]:
                continue
            pulling = self._pull(placed, *reference[:3])
            future = asyncio.run_coroutine_threadsafe(pulling, self._loop.asyncio_loop)
            while not future.done():
                concurrent.futures.wait([future], _CLOSED_S)
                worker = self._worker()
                if worker is None or worker.status in (Status.closing, Status.closed):
                    # Nobody would end the coroutine.
                    return
            error = future.exception()
            if error is not None:
                logger.info("buffer %s was not to be had from %s: %r", reference[0], reference[2], error)

    # On the worker's event loop

    async def _pull(self, placed: Placed, name: str, nbytes: int, sources: Sequence[str]) -> None:
        """Get a buffer from a worker of another host, unless another process of this one does or has."""
        directories = self._directories.own(placed.token)
        self._used_at[placed.token] = time.monotonic()
        deadline = time.monotonic() + _TRANSFER_S
        while time.monotonic() < deadline:
            with directories[0].trying_lock(name) as locked:
                if any(directory.holds(name) for directory in directories):
                    return
                if locked:
                    with self._room(directories, name, nbytes, placed.share) as fd:
                        await self._copy(placed.token, name, nbytes, sources, fd)
                    return
            await asyncio.sleep(_POLL_S)

    @contextlib.contextmanager
    def _room(self, directories: Sequence[StoreDirectory], name: str, nbytes: int, share: float) -> Iterator[int]:
        """Give a descriptor to write a buffer to, in the first directory that has room."""
        for directory in directories:
            try:
                directory.make_room(nbytes, share)
                require_room(directory.path, nbytes)
            except OSError as error:
                last = error
                continue
            with directory.writing(name, nbytes) as fd:
                yield fd
            return
        raise last

    async def _copy(self, token: str, name: str, nbytes: int, sources: Sequence[str], fd: int) -> None:
        waiting = deque(await self._living(sources))
        tried: set[str] = set()
        refused = 0
        while waiting:
            address = waiting.popleft()
            try:
                others = await self._copy_from(address, token, name, nbytes, fd)
            except (OSError, TimeoutError, CommClosedError, ValueError) as error:
                logger.info("worker %s does not give buffer %s: %r", address, name, error)
                tried.add(address)
                continue
            if others is None:
                return
            # It feeds others just now: ask those that it has fed, then it again.
            new = [other for other in others if other not in tried and other != self._address]
            waiting = deque(dict.fromkeys([*new, *waiting, address]))
            refused += 1
            if refused * _POLL_S > _TRANSFER_S:
                break
            await asyncio.sleep(_POLL_S)
        raise OSError(errno.ENODATA, "no worker has it")

    async def _living(self, addresses: Sequence[str]) -> list[str]:
        """Give those of the workers that answer: to connect to one that is gone is tried for half a minute."""
        worker = self._worker()
        if worker is None:
            return []
        asked = [asyncio.wait_for(worker.rpc(address).echo(data=b""), _REACH_S) for address in addresses]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        living = [a for a, answer in zip(addresses, answers, strict=True) if not isinstance(answer, BaseException)]
        return random.sample(living, len(living))

    async def _copy_from(self, address: str, token: str, name: str, nbytes: int, fd: int) -> list[str] | None:
        """Copy a buffer; a list says which other workers to ask."""
        worker = self._worker()
        if worker is None:
            raise OSError(errno.ESHUTDOWN, "the worker ends")
        get = getattr(worker.rpc(address), operation("get"))
        offset = 0
        while offset < nbytes:
            answer = await asyncio.wait_for(
                get(token=token, name=name, nbytes=nbytes, offset=offset, asker=self._address), _PIECE_S
            )
            if isinstance(answer, (list, tuple)):
                return list(answer)
            if not isinstance(answer, bytes) or not answer:
                raise ValueError("it has it no more")
            await asyncio.to_thread(_pwrite_all, fd, answer, offset)
            offset += len(answer)
        return None

    async def get(self, token: str, name: str, nbytes: int, offset: int, asker: str) -> Any:
        """Give a piece of a buffer; or a list of other workers to ask; or None, if it is not here."""
        feeding = self._feeding.setdefault((token, name), {})
        now = time.monotonic()
        for other, since in list(feeding.items()):
            if now - since > _PIECE_S:
                del feeding[other]
        if asker not in feeding and len(feeding) >= _FED_AT_ONCE:
            return self._fed.get((token, name), [])
        feeding[asker] = now
        path = next((d for d in self._directories.own(token) if d.holds(name)), None)
        piece = None if path is None else await asyncio.to_thread(path.read, name, offset, PIECE_NBYTES)
        if not piece or offset + len(piece) >= nbytes:
            feeding.pop(asker, None)
            if piece:
                self._fed.setdefault((token, name), []).append(asker)
        self._used_at[token] = now
        return piece

    async def put(self, token: str, name: str, nbytes: int, share: float, offset: int, data: bytes) -> bool:
        """Take a piece of a buffer from the client; False: there is no room for it."""
        key = (token, name)
        self._used_at[token] = time.monotonic()
        if offset == 0:
            self._end_part(key, None)
            directories = self._directories.own(token)
            if any(directory.holds(name) for directory in directories):
                return True
            stack = contextlib.ExitStack()
            try:
                fd = stack.enter_context(self._room(directories, name, nbytes, share))
            except OSError as error:
                logger.warning("no room for %d bytes: %s", nbytes, error)
                return False
            self._parts[key] = (stack, fd)
        if key not in self._parts:
            # It was there already when the first piece came.
            return any(directory.holds(name) for directory in self._directories.own(token))
        try:
            await asyncio.to_thread(_pwrite_all, self._parts[key][1], data, offset)
            if offset + len(data) >= nbytes:
                self._end_part(key, None, complete=True)
        except OSError as error:
            self._end_part(key, error)
            return False
        return True

    def _end_part(self, key: tuple[str, str], error: OSError | None, *, complete: bool = False) -> None:
        stack, _ = self._parts.pop(key, (None, -1))
        if stack is None:
            return
        if complete:
            stack.close()
        else:
            with contextlib.suppress(OSError):
                error = error or OSError(errno.ECANCELED, "it is sent anew")
                stack.__exit__(OSError, error, None)

    def result(self, key: str, name: str, offset: int, nbytes: int) -> bytes | None:
        """Give a piece of a result, None if it is not here any more."""
        array = self._results.get(key, {}).get(name)
        return None if array is None else array[offset : offset + nbytes].tobytes()

    def drop(self, token: str, name: str) -> None:
        """Remove a buffer that no task needs any more."""
        for directory in self._directories.own(token):
            directory.remove(name)

    def _tidy(self) -> None:
        """Let go of what has not been used for a while, and of clients that went before they had a key here."""
        now = time.monotonic()
        self._attached.forget_idle(now)
        for token, used_at in list(self._used_at.items()):
            if now - used_at > _ORPHAN_S and token not in self._leases.values():
                self._forget(token)

    def _forget(self, token: str) -> None:
        self._used_at.pop(token, None)
        self._attached.forget(token)
        for table in (self._parts, self._feeding, self._fed):
            for key in [key for key in table if key[0] == token]:
                if table is self._parts:
                    self._end_part(key, None)
                else:
                    del table[key]
        for directory in self._directories.forget(token):
            directory.leave()


def _pwrite_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view.nbytes:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
