"""One call in virtual time: joblib, the real state machine of a call, and a cluster."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobfleet._call.durations import Known
from jobfleet._call.state import (
    AskForMore,
    BatchArrived,
    CallLimits,
    CallState,
    ChunkCut,
    ChunkReplied,
    Deliver,
    DispatchPaused,
    Event,
    Send,
    SlotsChanged,
)

from ..schedule import greedy
from .cluster import Clock, Cluster, Costs
from .joblib_side import Dispatcher

#: How many messages the driver takes together, and how often it hears of the slots.
MAX_TOGETHER = 64
WATCH_INTERVAL_S = 1.0
#: How long it has joblib dispatch before it sends what has come.
ASK_S = 0.002

LIMITS = CallLimits(
    n_jobs=-1,
    fixed_batches=False,
    streamed=False,
    ordered=True,
    retries=0,
    ahead_per_slot=4.0,
    no_workers_timeout_s=60.0,
)


@dataclass(frozen=True)
class Simulated:
    """Say how a call went."""

    wall_s: float
    work_s: float
    slots: int
    best_s: float
    """What it would take the best schedule that does not know the durations, with the same costs."""
    longest_wait_s: float
    """How long joblib waited at most for a batch's results, in order: what a `timeout` bounds."""
    chunks: int
    stolen: int
    course: list[float]
    """The part used in each tenth of the time."""

    @property
    def used(self) -> float:
        """Give the part of the slots' time in which tasks ran."""
        return self.work_s / (self.slots * self.wall_s)

    @property
    def possible(self) -> float:
        """Give the same for the best schedule."""
        return self.work_s / (self.slots * self.best_s)


def simulate(
    durations: Sequence[float],
    slots: int,
    costs: Costs,
    timeout_s: float | None = None,
    known: Known | None = None,
) -> Simulated:
    """Run a call of tasks with these durations on a cluster with so many slots; no timeout ends it.

    `known` is what an earlier call has shown of them.
    """
    call = _Call(durations, slots, costs, timeout_s, known)
    wall_s = call.run()
    cluster = call.cluster
    return Simulated(
        wall_s=wall_s,
        work_s=sum(durations),
        slots=slots,
        best_s=best(durations, slots, costs),
        longest_wait_s=call.longest_wait_s(),
        chunks=len(cluster.ran),
        stolen=cluster.stolen,
        course=_course(cluster.ran, wall_s, slots),
    )


def _course(ran: Sequence[tuple[float, float]], wall_s: float, slots: int, parts: int = 10) -> list[float]:
    part_s = wall_s / parts
    busy_s = [0.0] * parts
    for start_s, took_s in ran:
        end_s = start_s + took_s
        for part in range(int(start_s / part_s), parts):
            begins_s = part * part_s
            if begins_s >= end_s:
                break
            busy_s[part] += min(end_s, begins_s + part_s) - max(start_s, begins_s)
    return [round(one / (part_s * slots), 2) for one in busy_s]


def best(durations: Sequence[float], slots: int, costs: Costs) -> float:
    """Give the time of the best schedule that does not know the durations.

    Each slot gets all it does as one chunk, of tasks that go to the first free slot in the order in which joblib can
    make them; scheduler and client start the slots one after the other.
    """
    each_s = max(costs.scheduler_s, costs.client_chunk_s)
    started = [costs.round_trip_s / 2 + costs.chunk_s + (i + 1) * each_s for i in range(min(slots, len(durations)))]
    return greedy(durations, slots, started, costs.client_task_s) + costs.round_trip_s / 2


class _Call:
    def __init__(
        self, durations: Sequence[float], slots: int, costs: Costs, timeout_s: float | None, known: Known | None
    ) -> None:
        self._durations = durations
        self._slots = slots
        self._costs = costs
        self._known = known
        self._clock = Clock()
        self._state = CallState(replace(LIMITS, queued=costs.queued, timeout_s=timeout_s), slots)
        self._joblib = Dispatcher(len(durations), max(2, slots), lambda: self._state.sizer.batch_size)
        self.cluster = Cluster(self._clock, slots, costs, self._reply, self._cut)
        self._inbox: deque[Event] = deque()
        self._deliveries: deque[Deliver] = deque()
        self._delivered_s: dict[int, float] = {}
        self._to_ask_for = 0
        self._left = len(durations)
        self._made = 0
        self._free_s = 0.0
        """When the client has time again."""
        self._awake = False

    def run(self) -> float:
        for size in self._joblib.first():
            self._arrive(size)
        self._tell(DispatchPaused())
        self._watch()
        self._clock.run(until=lambda: not self._left)
        return max(self._clock.now_s, self._free_s)

    def longest_wait_s(self) -> float:
        """Give how long the results of a batch came after those of all before it."""
        taken_s = itertools.accumulate((at_s for _, at_s in sorted(self._delivered_s.items())), max, initial=0.0)
        return max(later_s - earlier_s for earlier_s, later_s in itertools.pairwise(taken_s))

    def _arrive(self, size: int) -> None:
        """Take a batch; joblib makes a batch for each slot before it hands over the first."""
        made_s = (self._joblib.made - self._made) * self._costs.client_task_s + self._costs.client_batch_s
        self._spend(made_s)
        if self._made:
            self._state.sizer.observe_making(size, made_s)
        self._made = self._joblib.made
        self._tell(BatchArrived(size, known=self._known))

    def _reply(self, number: int, n_done: int, seconds: float) -> None:
        self._tell(ChunkReplied(number, [None] * n_done, None, seconds, False))

    def _cut(self, number: int, n_kept: int) -> None:
        self._tell(ChunkCut(number, n_kept))

    def _watch(self) -> None:
        self._tell(SlotsChanged(self._slots))
        self._clock.at(self._clock.now_s + WATCH_INTERVAL_S, self._watch)

    def _tell(self, event: Event) -> None:
        self._inbox.append(event)
        self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._clock.at(self._free_s, self._turn)

    def _spend(self, seconds: float) -> None:
        self._free_s = max(self._free_s, self._clock.now_s) + seconds

    def _turn(self) -> None:
        """Do what a turn of the driver does."""
        self._awake = False
        events = [self._inbox.popleft() for _ in range(min(MAX_TOGETHER, len(self._inbox)))]
        self._state.input_ended = self._joblib.ended
        for command in self._state.handle_all(events, self._clock.now_s):
            self._act(command)
        if self._to_ask_for:
            until_s = max(self._free_s, self._clock.now_s) + ASK_S
            while self._to_ask_for and self._free_s < until_s:
                self._to_ask_for = self._to_ask_for - 1 if self._dispatch(smaller_at_end=False) else 0
        elif self._deliveries:
            delivery = self._deliveries.popleft()
            self._delivered_s[delivery.batch] = self._clock.now_s
            self._left -= len(delivery.results)
            self._dispatch()
        if self._inbox or self._deliveries or self._to_ask_for or self._joblib.ended != self._state.input_ended:
            self._wake()
        elif self._state.hold_until_s is not None:
            self._clock.at(max(self._free_s, self._state.hold_until_s), self._turn)

    def _dispatch(self, smaller_at_end: bool = True) -> bool:
        """Have joblib dispatch a batch, if it has one."""
        size = self._joblib.next(smaller_at_end)
        if size is not None:
            self._arrive(size)
        return size is not None

    def _act(self, command: Any) -> None:
        match command:
            case Send():
                self._spend(self._costs.client_chunk_s)
                durations = [self._durations[task] for task in command.tasks]
                self._clock.at(self._free_s, self.cluster.send, command.chunk, durations, command.budget_s)
            case Deliver():
                self._deliveries.append(command)
            case AskForMore():
                self._to_ask_for += command.batches
