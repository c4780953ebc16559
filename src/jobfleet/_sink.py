"""Say where output goes: to the task that runs here, or to the process's own streams.

A neutral module: the worker's capture sets the active task sink, the client's output
replays through it, and neither imports the other.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
T = TypeVar("T")

#: One thing a task printed or warned; plain values only, so that it always unpickles:
#:
#: - ``("out", text)`` and ``("err", text)``;
#: - ``("warn", text, blob, names, filename, lineno, module, fresh)``: the warning's text;
#:   itself pickled, or None; the names of its class and that class's bases, nearest first;
#:   where it came from; whether Python had forgotten, since the one before, what it had
#:   shown.
Event = tuple[Any, ...]

#: The registry in which `warnings` remembers what it has shown.
Registry = dict[Any, Any]


class TaskSink(Protocol):
    """Take what one running task prints and warns."""

    closed: bool

    def write(self, kind: str, text: str) -> None:
        """Take text for the stream of this kind, "out" or "err"."""

    def write_bytes(self, kind: str, data: bytes) -> None:
        """Take bytes for the stream of this kind."""

    def warning(
        self,
        message: Warning,
        filename: str,
        lineno: int,
        module: str,
        registry: Registry | None = None,
    ) -> None:
        """Take a warning that the process's filters let through."""


# A context variable and no thread-local: what a task starts with `asyncio.to_thread`,
# or with any thread where Python is told to inherit contexts, stays the task's.
# It also follows a task's call into an event loop, and a loop's callbacks may outlive
# the task; hence `closed`, which every reader of this variable looks at.
active: ContextVar[TaskSink | None] = ContextVar("jobfleet_sink", default=None)

#: What is being replayed in this context, if anything: its module and registry.
#: The frames above a replayed warning are ours and say nothing of where it came from.
reissued: ContextVar[tuple[str, Registry] | None] = ContextVar("jobfleet_reissued", default=None)


def active_sink() -> TaskSink | None:
    """Return the sink of the task this context belongs to, if one is running."""
    sink = active.get()
    return None if sink is None or sink.closed else sink


class Sink:
    """Hold where the events of one call go: wherever its caller's own would have gone.

    Parameters
    ----------
    context
        The context of the caller when the call began.
    task_sink
        The task the call was made in, None outside of tasks.

    Notes
    -----
    Thread-safe, except that one thread at a time should emit to it: warnings of modules
    that are not loaded here are remembered in `registries`, per call.
    """

    context: Context
    registries: dict[str, Registry]

    def __init__(self, context: Context, task_sink: TaskSink | None) -> None:
        self.context = context
        self.registries = {}
        self._task_sink = task_sink

    @property
    def captured(self) -> bool:
        """Whether the call was made in a task whose output is captured."""
        return self._task_sink is not None

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function as if in the caller's context, in the current thread."""
        # A copy, since a context can be entered only once at a time.
        return self.context.copy().run(function, *args, **kwargs)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Send what this thread prints to where the caller's would go, nothing else.

        For tasks that run in the process of the client that called: no capture is needed
        there, and the rest of the caller's context (Dask's variables) is not theirs.
        """
        token = active.set(self._task_sink)
        try:
            yield
        finally:
            active.reset(token)


def current_sink() -> Sink:
    """Return the sink of the calling thread, to be asked for when a call begins."""
    return Sink(copy_context(), active_sink())


def _leave_parent() -> None:
    """Let a forked child print to the process's own streams: nobody reads its sink."""
    active.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_parent)
