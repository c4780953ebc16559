"""Bound the time that each task of a chunk may take."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .interrupt import Interruptible, insist

T = TypeVar("T")

#: A task that has not ended this long after it was first interrupted is in native code, or catches everything.
GRACE_S = 2.0


class Overrun(BaseException):
    """End a task that has taken too long, though it has come to a result."""


class TimeLimit:
    """Know which task of a chunk has taken too long.

    Parameters
    ----------
    limit_s
        How long each may take.
    now
        Monotonic time.

    Attributes
    ----------
    overrun
        Position of the task that took too long; None: there was none.
    seconds
        How long each may take.

    Notes
    -----
    `each`, `keep` and `end` are for the thread that runs the tasks, the rest for any other one. Whether a task has its
    result in time or has taken too long is decided once, by whoever sets its fate first: an interruption that comes
    when the task is over would hit the next one.
    """

    seconds: float
    overrun: int | None
    _running: tuple[int, float, dict[str, str]] | None
    """Position, when it began, and its fate."""
    _ended: bool

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = limit_s
        self.overrun = None
        self._running = None
        self._ended = False
        self._now = now

    def each(self, calls: Iterable[T]) -> Iterator[T]:
        """Give the calls, and count the time from when their arguments are rebuilt."""
        remaining = iter(calls)
        for position in itertools.count():
            self._running = position, self._now(), {}
            try:
                yield next(remaining)
            except StopIteration:
                return

    def keep(self) -> None:
        """Say that the running task has its result; raises `Overrun` if it took too long."""
        assert self._running is not None
        if self._running[2].setdefault("is", "kept") != "kept":
            raise Overrun

    def end(self) -> None:
        """Say that no task runs any more."""
        self._ended = True

    def left_s(self) -> float | None:
        """Give the seconds that the running task has left, 0 if it has taken too long; None: no more tasks run."""
        running = self._running
        if self._ended:
            return None
        if running is None:
            return self.seconds
        position, since, fate = running
        left_s = since + self.seconds - self._now()
        if left_s > 0:
            return left_s
        if fate.setdefault("is", "overrun") != "overrun":
            return self.seconds  # it has ended just now
        self.overrun = position
        return 0.0


def watch(
    limit: TimeLimit,
    region: Interruptible,
    call_later: Callable[[float, Callable[[], object]], object],
    overdue: Callable[[], None],
) -> None:
    """Interrupt a task that takes too long.

    Parameters
    ----------
    limit
        Of the tasks.
    region
        What they run in.
    call_later
        Calls a function after some seconds, on the thread that calls this.
    overdue
        Called once if the task does not end within `GRACE_S`.
    """

    def look() -> None:
        left_s = limit.left_s()
        if left_s is None:
            return
        if left_s > 0:
            call_later(left_s, look)
        else:
            insist(region, call_later, overdue, report_after_s=GRACE_S)

    call_later(limit.seconds, look)
