"""Chunks in the calling process, on the way they would take to a cluster."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context

import numpy as np

from .._data.buffers import Blob, InProcess, Keeper
from .._data.packing import PackedChunk
from .._wire import Request
from .._worker.interrupt import Interruptible, insist
from .._worker.run import run_chunk
from ..options import Options
from .base import AheadProgress, Callers, Lost, LostKind, Outcome, Slots
from .place import NestedBackend, TaskPlace, call_later


def run_here(chunk: PackedChunk, place: TaskPlace) -> Outcome:
    """Run a chunk in this thread."""
    values = [*(np.frombuffer(blob.data, dtype=np.uint8) for blob in chunk.placed), *chunk.inline]
    try:
        for file in [blob.file for blob in chunk.placed if blob.file is not None]:
            file.require_current()
        return run_chunk(Request.from_bytes(chunk.request), values, place)
    except Exception as error:  # a fault of ours: the policy decides
        return Lost(LostKind.ENGINE, error)


class LocalEngine:
    """Run chunks one after the other in the thread that waits for them.

    For debugging: a breakpoint in a task stops in this process, mostly in its main thread, and the task has
    gone the way it would go to a cluster, pickling included. And for calls made by a task that holds
    resources of its worker: on the cluster they would wait for ever for what it holds.

    Parameters
    ----------
    nested_backend
        Makes the backend of calls that the tasks make.
    depth
        Nesting depth of the tasks.
    cancelled
        Whether the task that makes the calls has been given up.
    """

    def __init__(
        self, nested_backend: NestedBackend, depth: int = 0, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._nested_backend = nested_backend
        self.depth = depth
        self._cancelled = cancelled

    def slots(self, options: Options) -> Slots:
        """Give the one slot there is."""
        return Slots(1, 1)

    def open(self, options: Options, slots: Slots, *, lends_thread: bool) -> LocalSession:
        """Begin a call."""
        return LocalSession(self._place, n_threads=0 if lends_thread else 1)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Do nothing: the slot is used for what is waited for."""
        yield

    def _place(self, closed: Callable[[], bool], region: Interruptible) -> TaskPlace:
        def cancelled() -> bool:
            return closed() or self._cancelled()

        def make_engine(depth: int, callers: Callable[[], Callers]) -> LocalEngine:
            return LocalEngine(self._nested_backend, depth, cancelled)

        return TaskPlace(self._nested_backend, make_engine, "this process", cancelled, region)


_Job = tuple[PackedChunk, Callable[[Outcome], None]]


class LocalSession:
    """One call's use of the local engine.

    Parameters
    ----------
    make_place
        Makes the place where a chunk runs, given what tells whether the session is closed, and what the chunk's
        tasks run in.
    n_threads
        How many threads of its own run chunks; 0: the thread that calls `lend_thread` does.
    """

    def __init__(self, make_place: Callable[[Callable[[], bool], Interruptible], TaskPlace], n_threads: int) -> None:
        self.keeper: Keeper = InProcess()
        self.callers = Callers()
        self.help_s = 0.0
        self._closed = False
        self._make_place = make_place
        self._regions: dict[int, Interruptible] = {}
        """By the `id` of the chunk."""
        self._n_threads = n_threads
        self._threads: list[threading.Thread] = []
        # What tasks print goes where the caller's output would.
        self._context = copy_context()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    def place_ahead(self, blobs: Sequence[Blob], report: Callable[[AheadProgress], None]) -> None:
        """Do nothing: they are here."""

    def submit(self, chunk: PackedChunk, label: str, done: Callable[[Outcome], None], here: bool = False) -> None:
        """Run a chunk; returns at once."""
        self._jobs.put((chunk, done))
        if len(self._threads) < self._n_threads:
            thread = threading.Thread(
                target=self._context.copy().run, args=(self._work,), name="jobfleet-local", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def lend_thread(self) -> None:
        """Run chunks in this thread until all results are there, or the session is closed."""
        if not self._n_threads:
            self._work()

    def flush(self) -> None:
        """Do nothing: what was submitted is on its way."""

    def _work(self) -> None:
        while not self._closed and (job := self._jobs.get()) is not None:
            chunk, done = job
            region = Interruptible()
            self._regions[id(chunk)] = region
            outcome = run_here(chunk, self._make_place(lambda: self._closed, region))
            del self._regions[id(chunk)]
            done(outcome)

    def settle(self) -> None:
        """Say that all results are there: a thread that was lent goes back."""
        if not self._n_threads:
            self._jobs.put(None)

    def give_up(self, chunk: PackedChunk) -> None:
        """Interrupt the chunk if it runs."""
        region = self._regions.get(id(chunk))
        if region is not None:
            insist(region, call_later, lambda: None)

    def drop(self, digest: bytes) -> None:
        """Do nothing: buffers stay where they are."""

    def note_deaths(self, deaths: int) -> None:
        """Do nothing: nobody else is left where this process dies."""

    def watch_slots(self, changed: Callable[[Slots], None]) -> None:
        """Do nothing: the slots never change."""

    def lost(self) -> Lost | None:
        """Give None: this process lives."""
        return None

    def close(self) -> None:
        """End the use."""
        self._closed = True
        for region in list(self._regions.values()):
            insist(region, call_later, lambda: None)
        for _ in range(max(1, len(self._threads))):
            self._jobs.put(None)
