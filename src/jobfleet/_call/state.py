"""One `Parallel` call as a state machine: events in, commands out, no I/O.

Tasks are known by their index in the call. What the machine is told and what it asks for are
the dataclasses below; the driver does the asking and the telling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._engine.base import LostKind
from .chunking import ChunkSizer
from .recovery import (
    MAX_UNSTARTED_LOSSES,
    after_death,
    after_loss,
    no_workers_left,
    report_every,
    runs_by_itself,
)

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
    raised: bool = True
    """`error` is what the user's function raised: `retries` are for that alone."""


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


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """The engine has another number of slots."""

    total: int


@dataclass(frozen=True, slots=True)
class BatchConsumed:
    """The user's code has taken all results of a batch."""

    batch: int


Event = BatchArrived | ChunkReplied | ChunkLost | SlotsChanged | BatchConsumed


@dataclass(frozen=True, slots=True)
class Send:
    """Send these tasks as one chunk."""

    chunk: int
    tasks: tuple[int, ...]
    report_every: int = 0
    """See `recovery.report_every`."""
    deaths: int = 0
    """How many workers have died with these tasks."""


@dataclass(frozen=True, slots=True)
class Forget:
    """These tasks will not be sent again."""

    tasks: Sequence[int]
    ended: bool = True
    """Whether a worker has said what became of them."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give a batch's outcome to joblib."""

    batch: int
    results: list[Any]
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class AskForMore:
    """Have joblib dispatch this many more batches."""

    batches: int


Command = Send | Forget | Deliver | AskForMore


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
    follows_slots: bool
    """`pre_dispatch` depends on the number of slots."""
    no_workers_timeout_s: float
    """How long the call goes on when no worker is left."""
    return_exceptions: bool = False
    """What a task has failed with is its result."""


@dataclass(slots=True)
class _Batch:
    start: int
    size: int
    missing: int
    results: list[Any]
    error: BaseException | None = None


@dataclass(slots=True)
class _Chunk:
    tasks: tuple[int, ...]
    losses: int
    deaths: int
    report_every: int


@dataclass(slots=True, eq=False)
class _Queued:
    """A stretch of tasks that wait to be sent."""

    tasks: deque[int]
    alone: bool = False
    """Each of them is a chunk."""
    losses: int = 0
    """How often the chunk they were in was lost."""
    deaths: int = 0
    """How many workers have died with them. If any, they stay one chunk."""

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
    Not thread-safe: the driver's thread owns it.
    """

    limits: CallLimits
    slots: int
    sizer: ChunkSizer = field(default_factory=ChunkSizer)
    _nested: bool = False
    _queue: deque[_Queued] = field(default_factory=deque)
    _batches: list[_Batch | None] = field(default_factory=list)
    _batch_of: dict[int, int] = field(default_factory=dict)
    _n_tasks: int = 0
    _chunks: dict[int, _Chunk] = field(default_factory=dict)
    _next_chunk: int = 0
    _tries: dict[int, int] = field(default_factory=dict)
    _complete: dict[int, None] = field(default_factory=dict)
    """Batches whose outcome is known and not delivered, in order of completion."""
    _first_undelivered: int = 0
    _empty_since_s: float | None = None
    _last_reply_s: float | None = None
    _stalled: bool = False
    """No chunk has come back for a while, though tasks wait."""
    _most_concurrent: int = 0
    """Tasks that joblib was made to dispatch for, so far."""

    def __post_init__(self) -> None:
        self._most_concurrent = self._concurrency(self.slots)

    _unconsumed: set[int] = field(default_factory=set)
    """Batches that were delivered and whose results were not all taken."""

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
                    self._arrived(event)
                case ChunkReplied():
                    self._replied(event, commands)
                    self._last_reply_s, self._stalled = now_s, False
                case ChunkLost():
                    self._lost(event, commands)
                case SlotsChanged():
                    self._slots_changed(event, now_s, commands)
                case BatchConsumed():
                    self._unconsumed.discard(event.batch)
        self._send(commands)
        self._deliver(commands)
        return commands

    @property
    def unfinished(self) -> bool:
        """Whether tasks wait or run."""
        return bool(self._queue or self._chunks)

    # Events

    def _arrived(self, event: BatchArrived) -> None:
        start, number = self._n_tasks, len(self._batches)
        self._n_tasks += event.size
        batch = _Batch(start, event.size, event.size, [None] * event.size)
        self._batches.append(batch)
        if event.error is not None:
            batch.error = event.error
            self._complete[number] = None
            return
        tasks: Sequence[int] = range(start, start + event.size)
        self._batch_of.update(dict.fromkeys(tasks, number))
        for position, error in event.failed.items():
            self._finish(start + position, error)
        if event.failed:
            tasks = [task for task in tasks if task in self._batch_of]
            if not tasks:
                return
        if self.limits.fixed_batches or not self._queue or not self._queue[-1].mixes():
            self._queue.append(_Queued(deque(tasks)))
        else:
            self._queue[-1].tasks.extend(tasks)

    def _replied(self, event: ChunkReplied, commands: list[Command]) -> None:
        chunk = self._chunks.pop(event.chunk, None)
        if chunk is None:
            return  # a second reply: the first one counted
        self._nested |= event.nested
        n_done = len(event.results)
        self.sizer.observe(n_done, event.seconds)
        for task, result in zip(chunk.tasks, event.results, strict=False):
            self._finish(task, result)
        commands.append(Forget(chunk.tasks[:n_done]))
        left = chunk.tasks[n_done:]
        if event.error is not None:
            failed, left = left[0], left[1:]
            self._failed(failed, event, event.error, commands)
        self._requeue(left, commands, deaths=chunk.deaths)

    def _failed(self, task: int, event: ChunkReplied, error: BaseException, commands: list[Command]) -> None:
        tries = self._tries[task] = self._tries.get(task, 0) + 1
        if event.raised and tries <= self.limits.retries:
            self._requeue((task,), commands, alone=True)
            return
        commands.append(Forget((task,)))
        self._end_badly(task, error, commands)

    def _end_badly(self, task: int, error: BaseException, commands: list[Command]) -> None:
        if self.limits.return_exceptions:
            self._finish(task, error)
        else:
            self._fail_batch(self._batch_of.pop(task), error, commands)

    def _lost(self, event: ChunkLost, commands: list[Command]) -> None:
        chunk = self._chunks.pop(event.chunk, None)
        if chunk is None:
            return
        losses = chunk.losses + 1
        if event.kind is LostKind.WORKER and losses <= MAX_UNSTARTED_LOSSES:
            self._worker_died(chunk, event, losses, commands)
        elif after_loss(event.kind, losses):
            self._requeue(chunk.tasks, commands, losses=losses, deaths=chunk.deaths)
        elif event.kind in (LostKind.WORKER, LostKind.DATA):
            self._give_up(chunk.tasks, event.error, commands)
        else:  # no task's fault
            commands.append(Forget(chunk.tasks, ended=False))
            for number in dict.fromkeys(self._batch_of.pop(task) for task in chunk.tasks):
                self._fail_batch(number, event.error, commands)

    def _worker_died(self, chunk: _Chunk, event: ChunkLost, losses: int, commands: list[Command]) -> None:
        tasks = chunk.tasks
        verdict = after_death(len(tasks), chunk.report_every, event.started, chunk.deaths, event.deaths)
        suspects = [tasks[position] for position in verdict.suspects]
        cleared = [task for task in tasks if task not in set(suspects)]
        if verdict.guilty is not None:
            self._give_up(suspects, event.error, commands)
        else:
            # One that has not started cannot go on like that for ever.
            unstarted = losses if verdict.deaths == chunk.deaths else 0
            self._requeue(suspects, commands, losses=unstarted, deaths=verdict.deaths)
        self._requeue(cleared, commands)

    def _give_up(self, tasks: Sequence[int], error: BaseException, commands: list[Command]) -> None:
        commands.append(Forget(tuple(tasks), ended=False))
        for task in tasks:
            self._end_badly(task, error, commands)

    def _slots_changed(self, event: SlotsChanged, now_s: float, commands: list[Command]) -> None:
        self.slots = event.total
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
        joined = self._concurrency(self.slots) - self._most_concurrent
        if joined > 0:
            self._most_concurrent += joined
            if self.limits.follows_slots:
                # joblib has worked out pre_dispatch for the slots at the start: 2 batches a slot.
                commands.append(AskForMore(2 * joined))

    # Batches

    def _finish(self, task: int, result: Any) -> None:
        number = self._batch_of.pop(task)
        batch = self._batches[number]
        if batch is None or batch.error is not None:
            return
        batch.results[task - batch.start] = result
        batch.missing -= 1
        if not batch.missing:
            self._complete[number] = None

    def _fail_batch(self, number: int, error: BaseException, commands: list[Command]) -> None:
        """Note a batch's first error; none of its tasks that wait will run."""
        batch = self._batches[number]
        if batch is None or batch.error is not None:
            return
        batch.error = error
        self._complete[number] = None
        dropped = [task for queued in self._queue for task in queued.tasks if self._batch_of[task] == number]
        if dropped:
            for queued in self._queue:
                queued.tasks = deque(task for task in queued.tasks if self._batch_of[task] != number)
            self._queue = deque(queued for queued in self._queue if queued.tasks)
            self._forget(dropped, commands)

    def _fail_all(self, error: BaseException) -> None:
        """End all that is unfinished with an error that belongs to no task."""
        self._queue.clear()
        self._chunks.clear()
        for number in range(self._first_undelivered, len(self._batches)):
            batch = self._batches[number]
            if batch is not None and number not in self._complete:
                batch.error = error
                self._complete[number] = None

    def _forget(self, tasks: Sequence[int], commands: list[Command]) -> None:
        for task in tasks:
            del self._batch_of[task]
        commands.append(Forget(tuple(tasks)))

    def _deliver(self, commands: list[Command]) -> None:
        """Deliver what is complete, failures first, the earliest first; hold back results nobody takes."""
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
        if not self.limits.streamed or len(self._unconsumed) < self._lookahead():
            return True
        # The consumer has taken everything before this batch and waits for it, whatever lies ready after it.
        waited_for = number == self._first_undelivered and min(self._unconsumed) > number
        return self.limits.ordered and waited_for

    def _lookahead(self) -> int:
        """Give how many batches of results may wait for the consumer."""
        return 2 * self._concurrency(self.slots)

    def _pop(self, number: int) -> Deliver:
        batch = self._batches[number]
        assert batch is not None  # only complete batches get here, once
        if self.limits.streamed:
            self._unconsumed.add(number)
        return self._delivery(number, batch, batch.error)

    def _delivery(self, number: int, batch: _Batch, error: BaseException | None) -> Deliver:
        self._complete.pop(number, None)
        self._batches[number] = None
        while self._first_undelivered < len(self._batches) and self._batches[self._first_undelivered] is None:
            self._first_undelivered += 1
        return Deliver(number, batch.results, error)

    # Chunks

    def _requeue(
        self, tasks: Sequence[int], commands: list[Command], alone: bool = False, losses: int = 0, deaths: int = 0
    ) -> None:
        """Queue tasks again, before all others, but for those whose batch has failed."""
        live = deque(task for task in tasks if self._is_live(task))
        dead = [task for task in tasks if not self._is_live(task)]
        if live:
            self._queue.appendleft(_Queued(live, alone, losses, deaths))
        if dead:
            self._forget(dead, commands)

    def _is_live(self, task: int) -> bool:
        batch = self._batches[self._batch_of[task]]
        return batch is not None and batch.error is None

    def _concurrency(self, slots: int) -> int:
        """Give how many tasks may run at once."""
        n_jobs = self.limits.n_jobs
        # At least one: what waits on the scheduler makes an adaptive cluster grow.
        return max(1, min(n_jobs, slots) if n_jobs > 0 else slots + 1 + n_jobs)

    def _max_chunks(self) -> int:
        n_jobs = self.limits.n_jobs
        concurrency = self._concurrency(self.slots)
        if n_jobs > 0:
            # Also with workers that join, which may take what waits, no more than that run at once. Those
            # beyond the slots there are show an adaptive cluster what it could grow to.
            return n_jobs if self._stalled and not self._nested else concurrency
        if concurrency < self.slots or self._nested:
            # A waiting chunk would run on a slot that is not ours to use, or, while a task
            # waits for its inner ones, start more outer tasks than there are slots.
            return concurrency
        if self._stalled and n_jobs == -1:
            # An adaptive cluster grows only for tasks that its scheduler knows of, by what they take together.
            return _SHOWN_PER_SLOT * concurrency
        return concurrency * self.sizer.chunks_per_slot()

    def _send(self, commands: list[Command]) -> None:
        while self._queue and len(self._chunks) < self._max_chunks():
            head = self._next_to_send()
            if head is None:
                return
            tasks = self._cut(head)
            number, self._next_chunk = self._next_chunk, self._next_chunk + 1
            chunk = _Chunk(tasks, head.losses, head.deaths, report_every(len(tasks), head.deaths))
            self._chunks[number] = chunk
            commands.append(Send(number, tasks, chunk.report_every, chunk.deaths))

    def _next_to_send(self) -> _Queued | None:
        head = self._queue[0]
        if not runs_by_itself(head.deaths) or not any(runs_by_itself(c.deaths) for c in self._chunks.values()):
            return head
        return next((queued for queued in self._queue if not runs_by_itself(queued.deaths)), None)

    def _cut(self, head: _Queued) -> tuple[int, ...]:
        if head.alone:
            size = 1
        elif self.limits.fixed_batches or head.deaths:
            size = len(head.tasks)
        else:
            size = min(self.sizer.size, len(head.tasks))
        tasks = tuple(head.tasks.popleft() for _ in range(size))
        if not head.tasks:
            self._queue.remove(head)
        return tasks
