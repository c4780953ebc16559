"""One `Parallel` call as a state machine: events in, commands out, no I/O.

Tasks are known by their index in the call. What the machine is told and what it asks for are
the dataclasses below; the driver does the asking and the telling.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heapreplace
from itertools import islice
from typing import Any

from .._engine.base import LostKind
from .chunking import GATHERED_S, MIN_BATCH, MIN_MOVED_S, ChunkSizer
from .durations import Known
from .recovery import (
    MAX_UNSTARTED_LOSSES,
    after_death,
    after_loss,
    no_workers_left,
    report_every,
    runs_by_itself,
)
from .stragglers import is_straggler

#: While a call's first tasks come in, they wait so long for those that go along with them in the first chunks, if they
#: are known to be short. What they gain is a round trip, of some 10 ms.
HOLD_S = 0.003
#: And so long for the caller, if it may do all by itself: that saves two round trips.
HELP_HOLD_S = 0.01

#: What waits behind the first chunks, cut by a guess, is cut so long after these, when more tasks are there.
HOLD_NEXT_S = 0.015

#: A chunk is overdue so long after it should have come back by what is known of its tasks, give or take a half.
_OVERDUE_S = 0.01

#: While nothing is known of the tasks, so many chunks are sent before it is looked whether others have come back: what
#: is sent later goes by what they show.
SENT_UNKNOWN = 16

#: With so many jobs the first batches have two tasks where nobody takes results as they come: joblib dispatches two
#: tasks for each job before it waits, and each batch costs it as much as ten tasks.
MANY_JOBS = 64

#: When chunks take longer than this, some more are shown to the cluster than it has slots.
_STALL_S = 1.0
_SHOWN_PER_SLOT = 4


@dataclass(frozen=True, slots=True)
class BatchArrived:
    """joblib has submitted a batch."""

    size: int
    """Number of its tasks; their indices follow those of the batch before."""
    error: BaseException | None = None
    """Why it cannot be sent at all."""
    failed: Mapping[int, BaseException] = field(default_factory=dict)
    """Why some of its tasks, by position, cannot be sent."""
    known: Known | None = None
    """What an earlier call of its tasks' function has shown."""


@dataclass(frozen=True, slots=True)
class DispatchPaused:
    """The caller has handed over what joblib dispatches at first, and waits for results."""


@dataclass(frozen=True, slots=True)
class ChunkReplied:
    """A worker has answered."""

    chunk: int
    results: Sequence[Any]
    """Of the chunk's first tasks."""
    error: BaseException | None
    """What the task after those raised; the rest did not run."""
    seconds: float
    nested: bool
    nbytes: int = 0
    """What went to the worker and came back, without what several chunks share."""
    raised: bool = True
    """`error` is what the user's function raised, and of a kind that `retries` are for."""
    squares_s2: float = 0.0
    n_timed: int = 0
    """See `Reply`."""


@dataclass(frozen=True, slots=True)
class ChunkLost:
    """A chunk came to no reply."""

    chunk: int
    kind: LostKind
    error: BaseException
    started: int | None = None
    """See `after_death`."""
    deaths: int = 1
    """How many workers have died with it."""
    raised: bool = False
    """`error` is of a kind that `retries` are for."""
    before: int = 0
    """See `Lost.before`."""


@dataclass(frozen=True, slots=True)
class ChunkCut:
    """A chunk has come to a task that takes long, and begins none after it."""

    chunk: int
    n_kept: int
    """How many of its tasks, from the first on, have run or run."""


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """The engine has another number of slots."""

    total: int


@dataclass(frozen=True, slots=True)
class BatchConsumed:
    """The user's code has taken all results of a batch."""

    batch: int


Event = BatchArrived | DispatchPaused | ChunkReplied | ChunkLost | ChunkCut | SlotsChanged | BatchConsumed


@dataclass(frozen=True, slots=True)
class Send:
    """Send these tasks as one chunk."""

    chunk: int
    tasks: range
    report_every: int = 0
    """See `recovery.report_every`."""
    deaths: int = 0
    """How many workers have died with these tasks."""
    budget_s: float | None = None
    """See `Request.budget_s`."""
    here: bool = False
    """In the thread that waits for the results."""
    others_wait: bool = False
    """See `Request.others_wait`."""
    copy_of: int | None = None
    """The chunk that these tasks are in already, and that takes long."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End a chunk, whose tasks another one has the outcome of; it is not heard of any more."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Forget:
    """These tasks will not be sent again."""

    tasks: range
    ended: bool = True
    """Whether a worker has said what became of them."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give a batch's outcome to joblib."""

    batch: int
    results: list[Any]
    """Empty with an error."""
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class AskForMore:
    """Have joblib dispatch this many more batches."""

    batches: int


@dataclass(frozen=True, slots=True)
class NoteDeaths:
    """Have it known how many workers have died of one task that is not finished, those of its callers included.

    0 if none has but of its callers.
    """

    deaths: int


Command = Send | NoteDeaths | GiveUp | Forget | Deliver | AskForMore


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What the user has set for the call."""

    n_jobs: int
    """As joblib means it: -1 all slots, -2 all but one, k at most k tasks at once."""
    fixed_batches: bool
    """`batch_size` is the user's: a chunk is one of joblib's batches, neither more nor less."""
    streamed: bool
    """Results are taken while the call runs; look-ahead past what was taken is bounded."""
    ordered: bool
    retries: int
    ahead_per_slot: float | None
    """Batches to be dispatched ahead for each slot; None: as many as the user's `pre_dispatch` says."""
    no_workers_timeout_s: float
    """How long the call goes on when no worker is left."""
    most_slots: int | None = None
    """See `Slots.most`."""
    queued: bool = False
    """See `Slots.queued`."""
    return_exceptions: bool = False
    """What a task has failed with is its result."""
    help_s: float = 0.0
    """See `Session.help_s`."""
    speculation: bool = False
    """The last tasks may run a second time where they take long."""
    deaths: int = 0
    """How many workers have died with the task that makes the call, which count for each of its tasks."""
    timeout_s: float | None = None
    """joblib fails the call if no batch's results come for so long."""


@dataclass(slots=True)
class _Batch:
    start: int
    size: int
    missing: int
    results: list[Any] = field(default_factory=list)
    error: BaseException | None = None


@dataclass(slots=True)
class _Chunk:
    tasks: range
    losses: int
    deaths: int
    report_every: int
    sent_s: float
    began_s: float | None = None
    """When it has come to a slot, as far as is known; None: it waits for one."""
    twin: int | None = None
    """The chunk with the same tasks, if there is one."""
    had_twin: bool = False
    """Whether there is or was one: there is no third."""
    deaths_of_twin: int = 0
    """How many workers have died with one that there was."""


@dataclass(slots=True, eq=False)
class _Queued:
    """A stretch of tasks that wait to be sent."""

    tasks: range
    alone: bool = False
    """Each of them is a chunk."""
    losses: int = 0
    """How often the chunk they were in was lost."""
    deaths: int = 0
    """How many workers have died with them. If more than with their callers, they stay one chunk."""

    def mixes(self) -> bool:
        """Whether further tasks may join them."""
        return not (self.alone or self.losses or self.deaths)


@dataclass(slots=True)
class CallState:
    """Decide what happens to the tasks of one call.

    Parameters
    ----------
    limits
        What the user has set.
    slots
        The engine's slots at the start.

    Notes
    -----
    Not thread-safe: the driver's thread owns it. Tasks are handled by the stretch, never one by one: a call may
    have a million.
    """

    limits: CallLimits
    slots: int
    input_ended: bool = False
    """joblib has no more to dispatch, as far as is known."""
    sizer: ChunkSizer = field(default_factory=lambda: ChunkSizer(1))
    nests: bool = False
    """Its tasks make calls themselves."""
    _queue: deque[_Queued] = field(default_factory=deque)
    _n_queued: int = 0
    _n_sent: int = 0
    """Tasks in chunks that have not come back."""
    _batches: list[_Batch | None] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    """First task of each batch."""
    _n_tasks: int = 0
    _chunks: dict[int, _Chunk] = field(default_factory=dict)
    _next_chunk: int = 0
    _shortened: set[int] = field(default_factory=set)
    """Chunks that were cut, since a task takes long."""
    _suspects: bool = False
    """Some tasks have seen so many workers die that they run by themselves."""
    _has_seen_deaths: bool = False
    _deaths_noted: int = 0
    _tries: dict[int, int] = field(default_factory=dict)
    _complete: dict[int, None] = field(default_factory=dict)
    """Batches whose outcome is known and not delivered, in order of completion."""
    _first_undelivered: int = 0
    _empty_since_s: float | None = None
    _last_reply_s: float | None = None
    _stalled: bool = False
    """No chunk has come back for a while, though tasks wait."""
    hold_until_s: float | None = None
    """Until then the first tasks, those after the first chunks, or few, wait for others, unless enough come before.

    Or, while nothing is known of the tasks, until it is looked what has come back. See `SENT_UNKNOWN`.
    """
    _paused: bool = False
    """joblib dispatches only what it is asked for, or what it owes for batches that were delivered."""
    _first_concurrency: int = 0
    _n_undelivered: int = 0
    """Tasks of batches that were not delivered; batches if their size is the user's."""
    _n_awaited: int = 0
    """Batches that joblib should dispatch: one for each delivered, and those it was asked for."""
    _unconsumed: dict[int, int] = field(default_factory=dict)
    """Batches that were delivered and whose results were not all taken, with their sizes."""
    _n_unconsumed: int = 0
    """Tasks of these."""

    def __post_init__(self) -> None:
        self._suspects = runs_by_itself(self.limits.deaths)
        self._first_concurrency = self.sizer.n_slots = self._concurrency(self.slots)
        self.sizer.queued = self.limits.queued
        self.sizer.timeout_s = self.limits.timeout_s
        self.sizer.n_batches = max(2, self.limits.n_jobs, self._first_concurrency)
        if self.sizer.n_batches >= MANY_JOBS and not self.limits.streamed and self.limits.timeout_s is None:
            self.sizer.first_batch_size = 2

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take an event, give what must be done, see `handle_all`."""
        return self.handle_all((event,), now_s)

    def handle_all(self, events: Iterable[Event], now_s: float) -> list[Command]:
        """Take events that are there together, give what must be done.

        Parameters
        ----------
        events
            What has happened. Of failures among them the earliest in the call's order is delivered first.
        now_s
            Monotonic time.
        """
        commands: list[Command] = []
        for event in events:
            match event:
                case BatchArrived():
                    self._arrived(event, now_s)
                case DispatchPaused():
                    self._paused = True
                case ChunkReplied():
                    self._replied(event, commands, now_s)
                    self._last_reply_s, self._stalled = now_s, False
                case ChunkLost():
                    self._lost(event, commands)
                case ChunkCut():
                    self._cut_short(event, commands)
                case SlotsChanged():
                    self._slots_changed(event, now_s)
                case BatchConsumed():
                    self._n_unconsumed -= self._unconsumed.pop(event.batch, 0)
        self._note_deaths(commands)
        if not self._holds(now_s):
            self._send(commands, now_s)
        self._send_copies(commands, now_s)
        self._deliver(commands)
        self._ask_for_more(commands)
        return commands

    @property
    def unfinished(self) -> bool:
        """Whether tasks wait or run."""
        return bool(self._queue or self._chunks)

    def awaits_replies(self, now_s: float) -> bool:
        """Whether chunks should have come back by now, and as much as there is in all chunks lies ready."""
        mean_s = self.sizer.mean_s
        if mean_s is None or self._n_queued < self._n_sent:
            return False
        first = islice(self._chunks.values(), self._concurrency(self.slots))
        return any(now_s > chunk.sent_s + _OVERDUE_S + 1.5 * mean_s * len(chunk.tasks) for chunk in first)

    # Events

    def _arrived(self, event: BatchArrived, now_s: float) -> None:
        if event.known is not None and self._may_guess():
            self.sizer.guess(*event.known)
        if not self._batches and self.sizer.guessed and (self.sizer.size > 1 or self.limits.help_s):
            self.hold_until_s = now_s + (HELP_HOLD_S if self.limits.help_s else HOLD_S)
        start, number = self._n_tasks, len(self._batches)
        self._n_tasks += event.size
        self._n_undelivered += self._weight(event.size)
        self._n_awaited = max(0, self._n_awaited - 1)
        self._starts.append(start)
        batch = _Batch(start, event.size, event.size)
        self._batches.append(batch)
        if event.error is not None:
            batch.error = event.error
            self._complete[number] = None
            return
        tasks = range(start, start + event.size)
        if event.failed:
            self._queue_the_others(tasks, event.failed)
            return
        self._n_queued += event.size
        last = self._queue[-1] if self._queue else None
        if last is None or self.limits.fixed_batches or not last.mixes() or last.tasks.stop != start:
            self._queue.append(_Queued(tasks))
        else:
            last.tasks = range(last.tasks.start, tasks.stop)

    def _may_guess(self) -> bool:
        """Whether an earlier call says how the first tasks are cut.

        Not where results are taken as they come: those of a batch, and of a chunk, come together, and one task that
        takes long after all would hold back the others'.
        """
        return self.sizer.mean_s is None and not self.limits.fixed_batches and not self.limits.streamed

    def _queue_the_others(self, tasks: range, failed: Mapping[int, BaseException]) -> None:
        start = tasks.start
        for position, error in sorted(failed.items()):
            task = tasks[position]
            self._finish(range(task, task + 1), [error])
            if start < task:
                self._queue.append(_Queued(range(start, task)))
            start = task + 1
        if start < tasks.stop:
            self._queue.append(_Queued(range(start, tasks.stop)))
        self._n_queued += len(tasks) - len(failed)

    def _replied(self, event: ChunkReplied, commands: list[Command], now_s: float) -> None:
        chunk = self._take(event.chunk, commands)
        if chunk is None:
            return  # a second reply: the first one counted
        if self.limits.queued:  # elsewhere there may be thousands, and nothing goes by it
            waiting = next((chunk for chunk in self._chunks.values() if chunk.began_s is None), None)
            if waiting is not None:
                waiting.began_s = now_s
        self._n_sent -= len(chunk.tasks)
        self.nests |= event.nested
        n_done = len(event.results)
        self.sizer.observe(n_done, event.seconds, event.nbytes)
        self.sizer.observe_spread(event.n_timed, event.seconds, event.squares_s2)
        done, left = chunk.tasks[:n_done], chunk.tasks[n_done:]
        self._finish(done, event.results)
        if done:
            commands.append(Forget(done))
        if event.error is not None:
            failed, left = left[:1], left[1:]
            self._failed(failed, event.error, event.raised, commands)
        self._requeue(left, commands, deaths=chunk.deaths)

    def _failed(self, task: range, error: BaseException, raised: bool, commands: list[Command]) -> None:
        tries = self._tries[task.start] = self._tries.get(task.start, 0) + 1
        if raised and tries <= self.limits.retries:
            self._requeue(task, commands, alone=True)
            return
        commands.append(Forget(task))
        self._end_badly(task, error, commands)

    def _end_badly(self, tasks: range, error: BaseException, commands: list[Command]) -> None:
        if self.limits.return_exceptions:
            self._finish(tasks, [error] * len(tasks))
            return
        for number, _ in self._parts(tasks):
            self._fail_batch(number, error, commands)

    def _cut_short(self, event: ChunkCut, commands: list[Command]) -> None:
        chunk = self._chunks.get(event.chunk)
        if chunk is None or event.n_kept >= len(chunk.tasks):
            return
        if chunk.twin is not None:  # it would run more than this one
            del self._chunks[chunk.twin]
            commands.append(GiveUp(chunk.twin))
            chunk.twin = None
        self._shortened.add(event.chunk)
        chunk.tasks, behind = chunk.tasks[: event.n_kept], chunk.tasks[event.n_kept :]
        self._n_sent -= len(behind)
        self._requeue(behind, commands, losses=chunk.losses)

    def _lost(self, event: ChunkLost, commands: list[Command]) -> None:
        self._has_seen_deaths |= event.kind is LostKind.WORKER
        if self._is_left_to_twin(event):
            return
        chunk = self._take(event.chunk, commands)
        if chunk is None:
            return
        self._n_sent -= len(chunk.tasks)
        losses = chunk.losses + 1
        if event.kind is LostKind.WORKER and losses <= MAX_UNSTARTED_LOSSES:
            self._worker_died(chunk, event, losses, commands)
        elif event.kind is LostKind.OVERRUN and event.started is not None:
            self._overran(chunk, event, event.started, commands)
        elif after_loss(event.kind, losses):
            self._requeue(chunk.tasks, commands, losses=losses, deaths=chunk.deaths)
        elif event.kind in (LostKind.WORKER, LostKind.DATA):
            self._give_up(chunk.tasks, event.error, commands)
        else:  # no task's fault
            commands.append(Forget(chunk.tasks, ended=False))
            for number, _ in self._parts(chunk.tasks):
                self._fail_batch(number, event.error, commands)

    def _worker_died(self, chunk: _Chunk, event: ChunkLost, losses: int, commands: list[Command]) -> None:
        tasks, deaths = chunk.tasks, event.deaths + chunk.deaths_of_twin
        every, before = (1, max(chunk.deaths, event.before)) if event.before else (chunk.report_every, chunk.deaths)
        verdict = after_death(len(tasks), every, event.started, before, deaths)
        first, stop = verdict.suspects.start, verdict.suspects.stop
        # What comes first in the call goes first again: each of these is put before the others.
        self._requeue(tasks[stop:], commands)
        if verdict.guilty is not None:
            self._give_up(tasks[first:stop], event.error, commands)
        else:
            # Workers that die before it has started cannot go on doing so for ever.
            unstarted = losses if verdict.deaths == chunk.deaths else 0
            self._requeue(tasks[first:stop], commands, losses=unstarted, deaths=verdict.deaths)
        self._requeue(tasks[:first], commands)

    def _overran(self, chunk: _Chunk, event: ChunkLost, position: int, commands: list[Command]) -> None:
        before, task, after = chunk.tasks[:position], chunk.tasks[position : position + 1], chunk.tasks[position + 1 :]
        self._requeue(after, commands, losses=chunk.losses, deaths=chunk.deaths)
        if task:  # it may be one that the chunk has given back
            self._failed(task, event.error, event.raised, commands)
        self._requeue(before, commands, losses=chunk.losses, deaths=chunk.deaths)

    def _give_up(self, tasks: range, error: BaseException, commands: list[Command]) -> None:
        commands.append(Forget(tasks, ended=False))
        self._end_badly(tasks, error, commands)

    def _slots_changed(self, event: SlotsChanged, now_s: float) -> None:
        self.slots = event.total
        self.sizer.n_slots = self._concurrency(self.slots)
        if event.total or not self.unfinished:
            self._empty_since_s = None
        elif self._empty_since_s is None:
            self._empty_since_s = now_s
        elif now_s - self._empty_since_s >= self.limits.no_workers_timeout_s:
            self._fail_all(no_workers_left(self.limits.no_workers_timeout_s))
            return
        if self._last_reply_s is None:
            self._last_reply_s = now_s
        self._stalled = now_s - self._last_reply_s >= _STALL_S

    def _note_deaths(self, commands: list[Command]) -> None:
        if not self._has_seen_deaths:
            return
        waiting = [queued.deaths for queued in self._queue]
        running = [chunk.deaths + chunk.deaths_of_twin for chunk in self._chunks.values()]
        most = max(waiting + running, default=0)
        deaths = most if most > self.limits.deaths else 0
        if deaths != self._deaths_noted:
            self._deaths_noted = deaths
            commands.append(NoteDeaths(deaths))

    # Batches

    def _batch_number(self, task: int) -> int:
        return bisect_right(self._starts, task) - 1

    def _parts(self, tasks: range) -> Iterator[tuple[int, range]]:
        """Give the batches that tasks belong to, each with its part of them."""
        number = self._batch_number(tasks.start)
        start = tasks.start
        while start < tasks.stop:
            is_last = number + 1 == len(self._starts)
            stop = tasks.stop if is_last else min(tasks.stop, self._starts[number + 1])
            yield number, range(start, stop)
            start, number = stop, number + 1

    def _finish(self, tasks: range, results: Sequence[Any]) -> None:
        for number, part in self._parts(tasks):
            batch = self._batches[number]
            if batch is None or batch.error is not None:
                continue
            first = part.start - tasks.start
            if len(part) == batch.size:
                batch.results = list(results[first : first + len(part)])
            else:
                batch.results = batch.results or [None] * batch.size
                at = part.start - batch.start
                batch.results[at : at + len(part)] = results[first : first + len(part)]
            batch.missing -= len(part)
            if not batch.missing:
                self._complete[number] = None

    def _fail_batch(self, number: int, error: BaseException, commands: list[Command]) -> None:
        """Note a batch's first error; none of its tasks that wait will run."""
        batch = self._batches[number]
        if batch is None or batch.error is not None:
            return
        batch.error = error
        self._complete[number] = None
        kept: deque[_Queued] = deque()
        for queued in self._queue:
            before = queued.tasks[: max(0, batch.start - queued.tasks.start)]
            dropped = queued.tasks[len(before) : max(0, batch.start + batch.size - queued.tasks.start)]
            after = queued.tasks[len(before) + len(dropped) :]
            if dropped:
                self._n_queued -= len(dropped)
                commands.append(Forget(dropped))
            kept.extend(replace(queued, tasks=part) for part in (before, after) if part)
        self._queue = kept

    def _fail_all(self, error: BaseException) -> None:
        """End all that is unfinished with an error that belongs to no task."""
        self._queue.clear()
        self._n_queued = 0
        self._chunks.clear()
        self._n_sent = 0
        for number in range(self._first_undelivered, len(self._batches)):
            batch = self._batches[number]
            if batch is not None and number not in self._complete:
                batch.error = error
                self._complete[number] = None

    def _deliver(self, commands: list[Command]) -> None:
        """Deliver what is complete, failures first, the earliest first; hold back results nobody takes."""
        if not self._complete:
            return
        failed = [n for n in sorted(self._complete) if self._error(n) is not None]
        for number in failed:
            commands.append(self._pop(number))
        for number in list(self._complete) if not self.limits.ordered else sorted(self._complete):
            if self._may_deliver(number):
                commands.append(self._pop(number))

    def _error(self, number: int) -> BaseException | None:
        batch = self._batches[number]
        return None if batch is None else batch.error

    def _may_deliver(self, number: int) -> bool:
        if not self.limits.streamed or self._looks_ahead(number):
            return True
        # The consumer has taken everything before this batch and waits for it, whatever lies ready after it.
        waited_for = number == self._first_undelivered and min(self._unconsumed) > number
        return self.limits.ordered and waited_for

    def _looks_ahead(self, number: int) -> bool:
        """Whether a batch's results may wait for the consumer."""
        n_waiting = len(self._unconsumed)
        if n_waiting < 2 * self._concurrency(self.slots):
            return True
        if self.limits.fixed_batches:
            return False
        batch, most = self._batches[number], self.sizer.yielded_size
        assert batch is not None  # complete, and not delivered
        # Each has a tracker of joblib's, so they must not be too small.
        return self._n_unconsumed + batch.size <= most and n_waiting < most // MIN_BATCH

    def _pop(self, number: int) -> Deliver:
        batch = self._batches[number]
        assert batch is not None  # only complete batches get here, once
        if self.limits.streamed:
            self._unconsumed[number] = batch.size
            self._n_unconsumed += batch.size
        del self._complete[number]
        self._batches[number] = None
        self._n_undelivered -= self._weight(batch.size)
        self._n_awaited += 1
        while self._first_undelivered < len(self._batches) and self._batches[self._first_undelivered] is None:
            self._first_undelivered += 1
        return Deliver(number, batch.results if batch.error is None else [], batch.error)

    def _ask_for_more(self, commands: list[Command]) -> None:
        """Keep as many tasks dispatched as `pre_dispatch` means, whatever the slots and the size of batches now are.

        joblib works out `pre_dispatch` at the start, when batches have one task and before workers join, and then
        dispatches one batch, which may be a small one, for each that is delivered.
        """
        ahead, concurrency = self.limits.ahead_per_slot, self._concurrency(self.slots)
        knows_more = self.sizer.mean_s is not None or concurrency > self._first_concurrency
        if ahead is None or not knows_more or self.input_ended:
            return
        if self.sizer.guessed and not self._paused and not self._chunks:
            return  # the caller is still pulling the user's iterable, as slow as that may be
        ready = int(ahead * concurrency) * self._weight(self.sizer.ready_size)
        missing = (ready - self._n_undelivered) // self._weight(self.sizer.batch_size) - self._n_awaited
        if missing > 0:
            self._n_awaited += missing
            commands.append(AskForMore(missing))

    def _weight(self, size: int) -> int:
        """Give what a batch of this size counts of what is dispatched ahead."""
        return 1 if self.limits.fixed_batches else size

    # Chunks

    def _requeue(
        self, tasks: range, commands: list[Command], alone: bool = False, losses: int = 0, deaths: int = 0
    ) -> None:
        """Queue tasks again, before all others, but for those whose batch has failed."""
        live: list[range] = []
        for number, part in self._parts(tasks):
            batch = self._batches[number]
            if batch is None or batch.error is not None:
                commands.append(Forget(part))
            elif live and live[-1].stop == part.start:
                live[-1] = range(live[-1].start, part.stop)
            else:
                live.append(part)
        self._n_queued += sum(map(len, live))
        self._suspects |= runs_by_itself(deaths)
        self._queue.extendleft(_Queued(part, alone, losses, deaths) for part in reversed(live))

    def _take(self, number: int, commands: list[Command]) -> _Chunk | None:
        """Take a chunk that has come to its end, and give up another with the same tasks."""
        chunk = self._chunks.pop(number, None)
        if chunk is not None and chunk.twin is not None:
            del self._chunks[chunk.twin]
            commands.append(GiveUp(chunk.twin))
        return chunk

    def _is_left_to_twin(self, event: ChunkLost) -> bool:
        """Whether another chunk with the same tasks still runs, which is then waited for alone."""
        chunk = self._chunks.get(event.chunk)
        if chunk is None or chunk.twin is None or event.kind not in (LostKind.WORKER, LostKind.DATA):
            return False
        twin = self._chunks[chunk.twin]
        twin.twin = None
        if event.kind is LostKind.WORKER:
            twin.deaths_of_twin = chunk.deaths_of_twin + event.deaths
        del self._chunks[event.chunk]
        return True

    def _concurrency(self, slots: int) -> int:
        """Give how many tasks may run at once."""
        n_jobs = self.limits.n_jobs
        # At least one: what waits on the scheduler makes an adaptive cluster grow.
        return max(1, min(n_jobs, slots) if n_jobs > 0 else slots + 1 + n_jobs)

    def _max_chunks(self) -> int:
        concurrency = self._concurrency(self.slots)
        most = self._most_chunks(concurrency)
        if self.nests or most == concurrency:
            # While a task waits for its inner ones, a waiting chunk would start more outer tasks than there are slots.
            return concurrency
        if not self.limits.queued:
            self._shortened &= self._chunks.keys()
            if self._shortened and self._next_expected_s() < MIN_MOVED_S:
                return concurrency  # it might wait behind what takes long, and Dask moves no short one
            if self._stalled and self.limits.n_jobs >= -1:
                # An adaptive cluster grows only for tasks that its scheduler knows of, by what they take together.
                return _SHOWN_PER_SLOT * concurrency if self.limits.n_jobs == -1 else self.limits.n_jobs
        return min(most, concurrency * self.sizer.chunks_per_slot())

    def _most_chunks(self, concurrency: int) -> int:
        """Give how many chunks the cluster may know of: as soon as slots join they all run."""
        n_jobs, most_slots = self.limits.n_jobs, self.limits.most_slots
        if n_jobs > 0:
            return sys.maxsize if most_slots is not None and most_slots <= n_jobs else n_jobs
        # A waiting chunk would run on a slot that is not ours to use.
        return sys.maxsize if n_jobs == -1 or concurrency == self.slots else concurrency

    def _next_expected_s(self) -> float:
        """Give how long the next chunk will last, by what is known."""
        share = self.sizer.share(self._n_queued, self._n_sent, self.input_ended)
        return min(share, self._n_queued) * (self.sizer.mean_s or 0.0)

    def _holds(self, now_s: float) -> bool:
        """Whether tasks wait for those that are about to come."""
        if self.hold_until_s is None:
            if self._gathers():
                self.hold_until_s = now_s + GATHERED_S
        elif now_s >= self.hold_until_s or self._is_complete():
            self.hold_until_s = None
        return self.hold_until_s is not None

    def _is_complete(self) -> bool:
        """Whether the next chunks would not be other ones if more tasks came, or a slot has nothing to do."""
        if not self.sizer.guessed or self.sizer.mean_s is None or (self._next_chunk and self.sizer.is_held_up):
            return not self._gathers()
        if self._next_chunk:
            is_idle = len(self._chunks) < self._concurrency(self.slots)
            return is_idle or self.input_ended or self._n_queued >= self.sizer.n_slots * self.sizer.ready_size
        if self.limits.help_s:
            return self._paused and (self.input_ended or self._n_queued * self.sizer.mean_s > self.limits.help_s)
        return self.input_ended or self._n_queued > self.sizer.n_one_round

    def _gathers(self) -> bool:
        """Whether too few tasks wait for another chunk, and joblib is about to dispatch more."""
        if self.limits.fixed_batches or self.input_ended or not self._n_awaited:
            return False
        return 0 < self._n_queued < self.sizer.gathered_size

    def _send(self, commands: list[Command], now_s: float) -> None:
        here = bool(self._queue) and not self._next_chunk and self._runs_here()
        n_done = self._n_sent if self.sizer.is_held_up else 0  # as far as is known
        may_learn = self.sizer.mean_s is None and not self.limits.fixed_batches
        most_chunks = self._next_chunk + (SENT_UNKNOWN if may_learn else sys.maxsize)
        while self._queue and len(self._chunks) < self._max_chunks():
            head = self._next_to_send()
            if head is None:
                return
            if self._next_chunk >= most_chunks:
                self.hold_until_s = now_s
                return
            chunk = self._cut(head, here, now_s, self._n_sent - n_done)
            if len(self._chunks) < self._concurrency(self.slots):
                chunk.began_s = now_s
            number = self._add(chunk)
            self._n_sent += len(chunk.tasks)
            bounded = len(chunk.tasks) > 1 and not self.limits.fixed_batches
            budget_s = self.sizer.budget_s(len(chunk.tasks)) if bounded else None
            commands.append(
                Send(number, chunk.tasks, chunk.report_every, chunk.deaths, budget_s, here, self._n_queued > 0)
            )
            if self._next_chunk == len(self._chunks) == self._concurrency(self.slots):  # the first are on their way
                self.hold_until_s = now_s + HOLD_NEXT_S
            if self._holds(now_s):  # what is left may be too few
                return

    def _runs_here(self) -> bool:
        """Whether the call, of which nothing has been sent yet, is so short that it goes no further than its caller."""
        if not (self.limits.help_s and self._paused and self.input_ended and self.sizer.mean_s is not None):
            return False
        return len(self._queue) == 1 and self._n_queued * self.sizer.mean_s <= self.limits.help_s

    def _span_s(self, now_s: float) -> float:
        """Give how long after the beginning of the next chunk all tasks are done, if all slots end together."""
        mean_s = self.sizer.mean_s or 0.0
        running = [chunk for chunk in self._chunks.values() if chunk.began_s is not None]
        free_s = [max(now_s, (chunk.began_s or now_s) + mean_s * len(chunk.tasks)) for chunk in running]
        free_s += [now_s] * (self._concurrency(self.slots) - len(free_s))
        heapify(free_s)
        for chunk in self._chunks.values():
            if chunk.began_s is None:  # it gets the first slot that is free
                heapreplace(free_s, free_s[0] + mean_s * len(chunk.tasks))
        # Slots that are busy for longer than that take none of the rest.
        begin_s, left_s, end_s = free_s[0], self._n_queued * mean_s, 0.0
        for n_slots, slot_free_s in enumerate(sorted(free_s), 1):
            if n_slots > 1 and slot_free_s >= end_s:
                break
            left_s += slot_free_s
            end_s = left_s / n_slots
        return end_s - begin_s

    def _add(self, chunk: _Chunk) -> int:
        number, self._next_chunk = self._next_chunk, self._next_chunk + 1
        self._chunks[number] = chunk
        return number

    def _send_copies(self, commands: list[Command], now_s: float) -> None:
        """Have the last tasks run once more where there is nothing else to do; the first answer counts."""
        if not self.limits.speculation or self._queue or not self.input_ended or self.nests:
            return
        for number, chunk in list(self._chunks.items()):
            if len(self._chunks) >= self._concurrency(self.slots):
                return
            expected_s = None if self.sizer.mean_s is None else self.sizer.mean_s * len(chunk.tasks)
            if not chunk.had_twin and not chunk.deaths and is_straggler(now_s - chunk.sent_s, expected_s):
                chunk.twin = self._add(_Chunk(chunk.tasks, chunk.losses, 0, 0, now_s, twin=number, had_twin=True))
                chunk.had_twin = True
                commands.append(Send(chunk.twin, chunk.tasks, copy_of=number))

    def _next_to_send(self) -> _Queued | None:
        if not self._suspects:
            return self._queue[0]
        if any(runs_by_itself(chunk.deaths) for chunk in self._chunks.values()):
            return None
        suspect = next((queued for queued in self._queue if runs_by_itself(self._deaths(queued))), None)
        if suspect is None:
            return self._queue[0]
        return None if self._chunks else suspect  # once all that runs has come back

    def _deaths(self, queued: _Queued) -> int:
        return max(queued.deaths, self.limits.deaths)

    def _cut(self, head: _Queued, here: bool, now_s: float, n_sent: int) -> _Chunk:
        if head.alone:
            size = 1
        elif self.limits.fixed_batches or head.deaths > self.limits.deaths or here:
            size = len(head.tasks)
        else:
            span_s = self._span_s(now_s) if self.limits.queued and self.input_ended else None
            size = self.sizer.share(self._n_queued, n_sent, self.input_ended, span_s)
        tasks, head.tasks = head.tasks[:size], head.tasks[size:]
        self._n_queued -= len(tasks)
        if not head.tasks:
            self._queue.remove(head)
        deaths = self._deaths(head)
        return _Chunk(tasks, head.losses, deaths, report_every(len(tasks), deaths), now_s)
