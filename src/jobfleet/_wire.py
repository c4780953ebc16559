"""What crosses a process: frozen, slotted, versioned.

Nothing here is pickled by reference to its class, since a worker may know this
package under another name (see `_ship`): `to_bytes` writes plain tuples.
User objects appear only as bytes, so that nothing on the way unpickles them.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import astuple, dataclass, fields
from typing import Any, Self
from uuid import uuid4

from .errors import WireVersionError

WIRE_VERSION = 1

_TOKEN = uuid4().hex

#: Kinds of `TaskFailure`.
RAISED, EXITED, UNSENDABLE, UNREADABLE, NOT_INITIALIZED, OVERRAN = range(6)

#: Kinds of `Request.items` and `Reply.results`.
MANY, ONE = range(2)

#: How a task gets a buffer: a copy of its own, the memory that all share, read-only, or that memory with a private copy
#: of each page it writes to.
OWN_COPY, SHARED, COPY_ON_WRITE = range(3)

#: First of what a worker answers that cannot get at buffers of a chunk; the fields of `Missing` follow.
NEED_DATA = "jobfleet:need-data"


def process_token() -> str:
    """Give what tells this process from any other; a forked child has its own."""
    return f"{_TOKEN}-{os.getpid()}"


class _Message:
    __slots__ = ()

    def to_bytes(self) -> bytes:
        """Serialize as a tuple of plain values, the wire version first."""
        values = tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return pickle.dumps((WIRE_VERSION, values), protocol=5)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises
        ------
        WireVersionError
            The other end speaks another version.
        """
        version, values = pickle.loads(data)
        if version != WIRE_VERSION:
            raise WireVersionError(
                f"a {cls.__name__} of wire version {version} reached a jobfleet that speaks "
                f"version {WIRE_VERSION}. Client and workers run different releases of "
                "jobfleet: restart the workers, or install the same release at both ends."
            )
        return cls(*values)


@dataclass(frozen=True, slots=True)
class CallSpec(_Message):
    """Say what is common to all chunks of one `Parallel` call."""

    call_id: str
    """Identifies the call on its cluster."""
    depth: int
    """0 for the tasks of an outermost call, 1 for the tasks they make..."""
    origin: str
    """Token of the process the call was made in; a worker living there is recognised by it."""
    capture: bool
    """Send back what tasks print and warn even when they run in the process of `origin`."""
    filters: tuple[Any, ...]
    """The caller's `warnings.filters`, encoded."""
    inner_max_num_threads: int | None
    """The user's limit on BLAS and OpenMP threads; None: do not oversubscribe the host."""
    host_slots: int
    """The most tasks that run at once on one host; its processors are shared out among them."""
    initializer: bytes | None
    """Pickled ``(initializer, initargs)``, run once per worker process."""
    task_timeout: float | None
    """Seconds that each task may take."""
    nested: tuple[tuple[str, Any], ...]
    """Options that calls made by the tasks inherit; plain values."""
    callers: tuple[tuple[str, int], ...]
    """The tasks that the call was made by, outermost first: name of the chunk, and position in it."""


@dataclass(frozen=True, slots=True)
class Request(_Message):
    """Ask a worker to run one chunk."""

    spec: bytes
    """A `CallSpec`."""
    functions: tuple[tuple[Any, ...], ...]
    """Functions that items refer to: ``(pickle, buffers, shared)``, `shared` saying whether tasks may share what
    the pickle gives, or each must load its own. `buffers` are tuples ``(position, sharing, writable)``: where it is
    among the values of the chunk, `OWN_COPY`, `SHARED` or `COPY_ON_WRITE`, and whether an own copy is writable,
    as the original was."""
    items: tuple[tuple[Any, ...], ...]
    """In order: ``(MANY, function, pickled (list of args, list of kwargs or None))`` for calls whose arguments are
    immutable atoms, or ``(ONE, function or None, pickle, buffers)``. Without function the pickle holds that too."""
    scattered: tuple[tuple[str, tuple[tuple[Any, ...], ...]], ...]
    """Objects sent ahead: their persistent id, and where their pickle and its buffers are."""
    budget_s: float | None = None
    """After this time no further task is begun, and what there is is returned; None: all are run."""
    report_every: int = 0
    """Before the first task, and each one that is a multiple of this further, the scheduler is told; 0: never.
    So it is known who ran when the worker dies."""
    deaths: int = 0
    """How many workers have died with these tasks."""
    others_wait: bool = False
    """More tasks of the call wait for a slot: whatever these tasks hand to the cluster waits, too."""


@dataclass(frozen=True, slots=True)
class Placed(_Message):
    """Say where the buffers of a chunk are that are stored once per host; they are its first values."""

    token: str
    """Names the client's directory on every host."""
    label: str
    """Of the client's host, where several hosts are pretended on one machine."""
    home: tuple[str, ...]
    """The client's own directories, in the order in which to look."""
    share: float
    """Bound on what is kept on a host, as a share of its shared memory."""
    result: str
    """What the names of files begin with that a worker of the client's host leaves results in."""
    buffers: tuple[tuple[str, int, tuple[str, ...], tuple[Any, ...] | None] | None, ...]
    """Name, size, addresses of workers that have it, and the file of the user's that it shows, if it does, as the
    fields of a `FileRegion`; None: it travels with the chunk."""


@dataclass(frozen=True, slots=True)
class StoredResult:
    """Stand for a buffer of a result that is left for the client to take."""

    name: str
    nbytes: int
    worker: str = ""
    """Address of the worker that holds it, as long as Dask holds the chunk's reply; empty: it is a file in the client's
    own directory."""

    def as_tuple(self) -> tuple[Any, ...]:
        """Give the plain tuple that travels."""
        return astuple(self)


@dataclass(frozen=True, slots=True)
class Missing:
    """Say which buffers of a chunk a worker cannot get at."""

    worker: str
    """Its address."""
    host: str
    """Identifies the directory that it shares with the other workers of its host; empty: it has room nowhere."""
    at_home: bool
    """Whether it sees the client's own directory."""
    names: tuple[str, ...]

    def as_tuple(self) -> tuple[Any, ...]:
        """Give the plain tuple that travels."""
        return (NEED_DATA, *astuple(self))


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """Say why a task has no result."""

    kind: int
    """One of the kinds above."""
    exception: bytes | None
    """The exception pickled, where that was possible."""
    type_name: str
    message: str
    traceback: str
    part: str
    """What does not travel, for the message; empty if that is not the fault."""

    def as_tuple(self) -> tuple[Any, ...]:
        """Give the plain tuple that travels."""
        return astuple(self)


@dataclass(frozen=True, slots=True)
class Reply(_Message):
    """Answer a `Request`.

    The buffers that `results` refer to travel beside it, in order.
    """

    worker: str
    """Address of the worker, for messages."""
    seconds: float
    """Time the tasks took, measured on the worker."""
    squares_s2: float
    """Sum of the squares of each task's time, those that are shorter than 1 ms measured several together..."""
    n_timed: int
    """...and how many such times there are."""
    results: tuple[tuple[Any, ...], ...]
    """In order: ``(MANY, count, pickled list)`` or ``(ONE, pickle, number of buffers)``."""
    failure: tuple[Any, ...] | None
    """`TaskFailure` of the call after the last result; the calls after that one did not run."""
    events: tuple[tuple[int, tuple[Any, ...]], ...]
    """What tasks printed and warned: position in the chunk, and the events in order, see `_sink`."""
    nested: bool
    """Whether a task of the chunk made `Parallel` calls of its own."""
