"""What runs chunks: the few things a `Parallel` call needs from a cluster."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from .._data.buffers import Blob, Keeper
from .._data.packing import PackedChunk
from ..options import Options


class LostKind(enum.Enum):
    """Why a chunk came to no reply; the one vocabulary for faults of the engine."""

    WORKER = "the worker died"
    DATA = "data of the chunk were lost"
    OVERRUN = "a task took longer than it may, and could not be interrupted"
    SCHEDULER = "the connection to the scheduler was lost"
    ABANDONED = "the task that made the call was given up"
    ENGINE = "the engine failed"


class Overran(Exception):
    """Say that a task took too long.

    Parameters
    ----------
    position
        Of the task in its chunk.
    limit_s
        How long it may take.
    worker
        Address of the worker.
    ends
        Whether the worker's process is ended for it.
    """

    def __init__(self, position: int, limit_s: float, worker: str, ends: bool) -> None:
        super().__init__(position, limit_s, worker, ends)
        self.position = position
        self.limit_s = limit_s
        self.worker = worker
        self.ends = ends


@dataclass(frozen=True, slots=True)
class Lost:
    """Say that a chunk came to no reply."""

    kind: LostKind
    error: BaseException
    started: int | None = None
    """Position in the chunk of the last task that said it starts; see `PackedChunk.report_every`."""
    deaths: int = 1
    """How many workers have died with the chunk."""
    cause: str = ""
    """What the last of them died of, if that is known."""
    before: int = 0
    """How many workers had died of a call that the last task made and that was not at its end, and of the task before
    that. If any, `started` is that task for certain."""


@dataclass(frozen=True, slots=True)
class AheadProgress:
    """Say how far buffers are on their way to all hosts."""

    sent_nbytes: int
    """What the client has sent."""
    n_ready: int
    """Workers that have all."""
    n_workers: int
    nbytes: int
    """Of all buffers together."""
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Slots:
    """Say how many tasks the engine runs at once."""

    total: int
    per_host: int
    """On the host that has most."""
    most: int | None = None
    """How many there can be, whatever workers join; None if that is not known."""
    queued: bool = False
    """Chunks beyond them wait for the first that is free, and on no worker."""


@dataclass(frozen=True, slots=True)
class Callers:
    """Say which tasks made a call: of them and of the call, three workers may die in all."""

    tasks: tuple[tuple[str, int], ...] = ()
    """See `CallSpec.callers`."""
    deaths: int = 0
    """How many workers have died with the innermost."""


@dataclass(frozen=True, slots=True)
class HandedBack:
    """Say that a chunk begins no further task; its outcome is still to come."""

    n_kept: int
    """How many of its tasks, from the first on, have run or run."""


#: A `Reply` as bytes followed by its buffers, or `Lost`.
Outcome = list[Any] | Lost


class Session(Protocol):
    """One call's use of an engine. Any thread may call any method."""

    keeper: Keeper
    """Makes the copies of large buffers; outlives the session."""
    callers: Callers
    help_s: float
    """A call with no more work than this, in seconds, is best run in the thread that is lent; 0: none is."""

    def place_ahead(self, blobs: Sequence[Blob], report: Callable[[AheadProgress], None]) -> None:
        """Return when every host has these buffers, or will get them with its tasks.

        Calls `report` in this thread from time to time.
        """

    def submit(
        self, chunk: PackedChunk, label: str, done: Callable[[Outcome | HandedBack], None], here: bool = False
    ) -> None:
        """Run a chunk, at the latest after the next `flush`; returns at once.

        Parameters
        ----------
        chunk
            What to run.
        label
            Name of it for people, on the dashboard.
        done
            Called once with the outcome, on a thread of the engine, unless the session is closed before. Maybe with
            `HandedBack` before that.
        here
            Run it in the thread that is lent; only the first chunk, and only if `help_s` says so.
        """

    def flush(self) -> None:
        """Send what was submitted, together."""

    def give_up(self, chunk: PackedChunk) -> None:
        """End a chunk that was submitted: its `done` need not be called any more."""

    def drop(self, digest: bytes) -> None:
        """Say that no task of the call needs a buffer any more."""

    def note_deaths(self, deaths: int) -> None:
        """Have it known, before any chunk is submitted after this, how many workers died of one unfinished task.

        So that it counts for the task that makes the call, should that die next; 0: none, as far as is known.
        """

    def watch_slots(self, changed: Callable[[Slots], None]) -> None:
        """Have `changed` called, on a thread of the engine, with the slots from time to time."""

    def lend_thread(self) -> None:
        """Let the engine run chunks in this thread, which waits for the call's results.

        Returns at once if the engine does not want it, else when `settle` or `close` is called, or when the thread
        has run what it can help with.
        """

    def settle(self) -> None:
        """Say that all results are there: a thread that was lent goes back."""

    def lost(self) -> Lost | None:
        """Say whether the engine has come to an end by itself."""

    def close(self) -> None:
        """End the use: nothing that is queued starts any more. Returns at once."""


class Engine(Protocol):
    """Something that runs chunks."""

    depth: int
    """Nesting depth of the tasks it is given: 0 outside of any task."""

    def slots(self, options: Options) -> Slots:
        """Give the slots, waiting for a first one.

        Raises
        ------
        NoWorkersError
            None came within ``options.wait_for_workers_timeout``.
        ClientStateError
            The client is closed or asynchronous.
        """

    def open(self, options: Options, slots: Slots, *, lends_thread: bool) -> Session:
        """Begin a call on these slots; with `lends_thread` its caller will call `Session.lend_thread`."""

    def waiting(self) -> AbstractContextManager[None]:
        """Let other tasks have this thread's slot, if it has one, while it waits for results."""
