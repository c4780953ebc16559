"""The best that a scheduler can do which does not know how long tasks take."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


def greedy(
    durations: Iterable[float], slots: int, started: Sequence[float] | None = None, made_each_s: float = 0.0
) -> float:
    """Give the time at which all are done, if each task goes to the first free slot in the order of arrival.

    Parameters
    ----------
    durations
        Of the tasks.
    slots
        How many run at once.
    started
        When each slot becomes ready; at once, if not given.
    made_each_s
        A task arrives so long after the one before.
    """
    free = list(started) if started is not None else [0.0] * slots
    heapq.heapify(free)
    last = 0.0
    for number, duration in enumerate(durations, 1):
        end = max(free[0], number * made_each_s) + duration
        heapq.heapreplace(free, end)
        last = max(last, end)
    return last
