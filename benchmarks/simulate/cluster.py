"""A Dask cluster in virtual time: what it does with chunks, and how long all takes."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

#: `distributed.scheduler.work-stealing-interval`, and what its work stealing takes moving a task to cost.
STEAL_INTERVAL_S = 0.1
STEAL_LATENCY_S = 0.1
MIN_STOLEN_S = 0.005


class Clock:
    """Run things at their time."""

    now_s: float = 0.0

    def __init__(self) -> None:
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, when_s: float, do: Callable[..., None], *args: Any) -> None:
        """Have something done at a time that is not yet over."""
        heapq.heappush(self._agenda, (max(when_s, self.now_s), next(self._order), do, args))

    def run(self, until: Callable[[], bool]) -> None:
        """Go on until a condition holds."""
        while not until():
            if not self._agenda:
                raise RuntimeError("nothing is left to happen, and the call has not ended")
            self.now_s, _, do, args = heapq.heappop(self._agenda)
            do(*args)


@dataclass(frozen=True)
class Costs:
    """Say what everything but the tasks takes."""

    round_trip_s: float = 0.01
    """From the client through the scheduler to a worker and back."""
    chunk_s: float = 0.001
    """A worker's slot is busy with a chunk that much longer than its tasks take."""
    scheduler_s: float = 0.0004
    """The scheduler can do one chunk in that time, and no two at once."""
    client_chunk_s: float = 0.0003
    """The same for the client."""
    client_batch_s: float = 0.000035
    """And for each of joblib's batches..."""
    client_task_s: float = 0.000003
    """...and each task: joblib, pickling, the result."""
    queued: bool = False
    """What is beyond the slots waits on the scheduler; else on the workers, where Dask may steal it."""


#: Where client, scheduler and workers share the processors, what the former two do is time the tasks do not have.
ONE_MACHINE = Costs(round_trip_s=0.01, chunk_s=0.005, queued=True)


#: A chunk whose time is over is noticed so long after that, when the worker looks: see `_engine/handing_back.py`.
NOTICED_AFTER_S = 0.02


@dataclass
class Chunk:
    """Hold a chunk on its way."""

    number: int
    durations: Sequence[float]
    budget_s: float | None
    started_s: float | None = None


@dataclass
class Slot:
    """Hold a worker's thread and what lies on the worker."""

    waiting: deque[Chunk] = field(default_factory=deque)
    running: Chunk | None = None
    assigned: int = 0
    """Chunks that the scheduler takes to be there."""


class Cluster:
    """Place chunks on slots as Dask's scheduler does: where the fewest are; and steal from where one waits.

    Parameters
    ----------
    clock
        Virtual time.
    slots
        How many chunks run at once.
    costs
        What things take.
    done
        Called, when the client hears of it, with the chunk's number, the number of its tasks that ran, and their time.
    cut
        Called likewise with the chunk's number, and how many of its tasks it keeps, if it gives the others back.
    """

    def __init__(
        self,
        clock: Clock,
        slots: int,
        costs: Costs,
        done: Callable[[int, int, float], None],
        cut: Callable[[int, int], None],
    ) -> None:
        self._clock = clock
        self._costs = costs
        self._done = done
        self._cut = cut
        self._slots = [Slot() for _ in range(slots)]
        # Entries are outdated when the number of chunks has changed.
        self._emptiest = [(0, index) for index in range(slots)]
        self._scheduler_free_s = 0.0
        self._queue: deque[Chunk] = deque()
        self._mean_s: float | None = None
        self.ran: list[tuple[float, float]] = []
        """When tasks of a chunk began, and how long they ran."""
        self.stolen = 0
        clock.at(STEAL_INTERVAL_S, self._steal)

    def send(self, number: int, durations: Sequence[float], budget_s: float | None) -> None:
        """Take a chunk from the client; one that has run for `budget_s` answers with what it has."""
        arrived_s = max(self._clock.now_s + self._costs.round_trip_s / 4, self._scheduler_free_s)
        self._scheduler_free_s = arrived_s + self._costs.scheduler_s
        self._clock.at(self._scheduler_free_s, self._place, Chunk(number, durations, budget_s))

    def _place(self, chunk: Chunk) -> None:
        while True:
            assigned, index = self._emptiest[0]
            if assigned == self._slots[index].assigned:
                break
            heapq.heappop(self._emptiest)
        if assigned and self._costs.queued:
            self._queue.append(chunk)
            return
        slot = self._slots[index]
        self._count(slot, index, 1)
        self._clock.at(self._clock.now_s + self._costs.round_trip_s / 4, self._arrive, index, chunk)

    def _count(self, slot: Slot, index: int, change: int) -> None:
        slot.assigned += change
        heapq.heappush(self._emptiest, (slot.assigned, index))

    def _arrive(self, index: int, chunk: Chunk) -> None:
        self._slots[index].waiting.append(chunk)
        self._start(index)

    def _start(self, index: int) -> None:
        slot = self._slots[index]
        if slot.running is not None or not slot.waiting:
            return
        chunk = slot.running = slot.waiting.popleft()
        chunk.started_s = self._clock.now_s
        took_s = 0.0
        n_done = 0
        for duration_s in chunk.durations:
            took_s += duration_s
            n_done += 1
            if chunk.budget_s is not None and took_s > chunk.budget_s:
                noticed_s = chunk.budget_s + NOTICED_AFTER_S
                if took_s > noticed_s and n_done < len(chunk.durations):
                    told_s = self._clock.now_s + self._costs.chunk_s + noticed_s + self._costs.round_trip_s / 2
                    self._clock.at(told_s, self._cut, chunk.number, n_done)
                break
        self.ran.append((self._clock.now_s, took_s))
        self._clock.at(self._clock.now_s + self._costs.chunk_s + took_s, self._end, index, n_done, took_s)

    def _end(self, index: int, n_done: int, took_s: float) -> None:
        slot = self._slots[index]
        chunk, slot.running = slot.running, None
        assert chunk is not None
        self._start(index)
        self._clock.at(self._clock.now_s + self._costs.round_trip_s / 4, self._ended, index, chunk, n_done, took_s)

    def _ended(self, index: int, chunk: Chunk, n_done: int, took_s: float) -> None:
        """Hear of it in the scheduler."""
        self._count(self._slots[index], index, -1)
        self._mean_s = took_s if self._mean_s is None else (self._mean_s + took_s) / 2
        if self._queue:
            self._place(self._queue.popleft())
        self._clock.at(self._clock.now_s + self._costs.round_trip_s / 4, self._done, chunk.number, n_done, took_s)

    def _steal(self) -> None:
        """Move waiting chunks to slots that have none, where Dask's rule says that it pays."""
        self._clock.at(self._clock.now_s + STEAL_INTERVAL_S, self._steal)
        estimate_s = self._mean_s
        if estimate_s is None or estimate_s < MIN_STOLEN_S:
            return
        idle = [index for index, slot in enumerate(self._slots) if not slot.assigned]
        if not idle:
            return
        for slot_index, slot in enumerate(self._slots):
            if not idle:
                return
            if not slot.waiting or slot.running is None or slot.running.started_s is None:
                continue
            ran_s = self._clock.now_s - slot.running.started_s
            running_s = 2 * ran_s if ran_s > 2 * estimate_s else estimate_s
            occupancy_s = running_s + len(slot.waiting) * estimate_s
            if (STEAL_LATENCY_S + estimate_s) <= occupancy_s - estimate_s / 2:
                chunk, thief = slot.waiting.pop(), idle.pop()
                self.stolen += 1
                self._count(slot, slot_index, -1)
                self._count(self._slots[thief], thief, 1)
                self._clock.at(self._clock.now_s + self._costs.round_trip_s, self._arrive, thief, chunk)
