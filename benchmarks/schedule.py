"""The best that a scheduler can do which does not know how long tasks take."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


def greedy(durations: Iterable[float], slots: int) -> float:
    """Give the time at which all are done, if each task goes to the first free slot in the order of arrival."""
    free = [0.0] * slots
    last = 0.0
    for duration in durations:
        end = heapq.heappop(free) + duration
        last = max(last, end)
        heapq.heappush(free, end)
    return last
