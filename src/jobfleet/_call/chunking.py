"""How many tasks make a chunk: a pure policy over measured durations."""

from __future__ import annotations

from math import ceil, sqrt

#: A chunk of this duration hides what it costs to send one (about 7 ms, over the whole system).
TARGET_S = 0.5

#: It may be longer where what waits gets the first slot that is free. Else it may wait behind the wrong chunk.
QUEUED_TARGET_S = 1.0

#: Towards the end of the queue chunks get smaller, so that all slots end together, but no shorter than this.
LEAST_S = 0.02

#: No chunk towards the end is more than this part of what is left for each slot, so that those that are slower, or have
#: the longer tasks, get less of the rest. Where each slot has two chunks, that is both together.
PART = 0.5

#: It may be so much where what waits gets the first slot that is free, and less the more tasks differ: each chunk costs
#: the processors 4 to 7 ms, so few are better.
QUEUED_PART = 0.75

#: So many tasks show how they differ.
LEAST_TIMED = 10

#: With many slots chunks last longer: each takes the client and the scheduler some 3 ms, one core for all slots.
TARGET_PER_SLOT_S = 0.005
LEAST_PER_SLOT_S = 0.0005

#: While more tasks are to come they last longer at least, since the client must also make those. No number of slots
#: makes that longer than the second of these: what has come may be nearly all.
LEAST_BEFORE_END_PER_SLOT_S = 0.001
MOST_LEAST_BEFORE_END_S = 5.0


def target_s(n_slots: int, queued: bool = False) -> float:
    """Give the duration a chunk should have."""
    return max(QUEUED_TARGET_S if queued else TARGET_S, TARGET_PER_SLOT_S * n_slots)


def least_s(n_slots: int, is_all: bool) -> float:
    """Give the duration a chunk should have at least, knowing whether no more tasks will come."""
    if is_all:
        return max(LEAST_S, LEAST_PER_SLOT_S * n_slots)
    return min(max(LEAST_S, LEAST_BEFORE_END_PER_SLOT_S * n_slots), MOST_LEAST_BEFORE_END_S)


#: With a `timeout` chunks last no longer than this part of it, if slots are not too many for that. joblib waits so long
#: for a batch's results after those of the one before, which may have come long before the next chunk began.
PART_OF_TIMEOUT = 0.25

#: A chunk returns what it has when it has run twice as long as it should have, but not before this time.
LEAST_BUDGET_S = 0.1

#: A chunk waits on a worker behind another one only if chunks last this long at least and at most. If one of
#: shorter ones turns out long, Dask never moves what waits behind it (it steals nothing whose duration is below
#: a hundredth of its latency); behind longer ones the wait itself would be long, and a round trip matters little.
#: Where it waits on the scheduler it does so for the first free slot, and any chunk may.
MIN_WAITING_S = 0.02
MAX_WAITING_S = 1.0

#: While a task is known to take long, a chunk waits only if it lasts this long at least: Dask then moves it if it has
#: come behind that task.
MIN_MOVED_S = 0.1

#: Where slots share the client's processors, and do tasks faster than it makes them, a chunk waits while it has less
#: than is made in this time, or done in that of the shortest chunk: it would cost the client more than what is in it.
GATHERED_S = 0.04

#: There a slot may have so many chunks: they are done long before the client, which makes others, comes to read it.
UNREAD_CHUNKS = 4

#: A chunk carries no more than this, however short its tasks: it passes through the client and the scheduler whole.
MAX_CHUNK_NBYTES = 8 * 2**20

#: The first chunks of a call are cut by what its function's tasks took in an earlier call, and are to last no longer,
#: nor shorter than the last ones with many slots: what is behind a task that takes long after all waits for it. So do
#: those behind them, but where what waits gets the first slot that is free.
GUESSED_S = 0.02

#: joblib makes a batch for each job before it hands over the first. They are no larger than can be made in this time,
#: which is longer with many slots, as chunks are...
MAKING_S = 0.02
MAKING_PER_SLOT_S = 0.0002

#: ...and have no more tasks together, which the garbage collector must look at...
MAX_DISPATCHED = 1024

#: ...unless they would have less than this each. A batch costs joblib and the driver so much beside its tasks, which
#: cost them some 3 us each; where slots wait for these it matters more.
MIN_BATCH = 32
MIN_BATCH_FED_SLOWLY = 64
BATCH_S = 0.000035

#: It takes less than this to make a task if neither the user's iterable nor its pickle has much to do.
TINY_MAKING_S = 0.0001

#: A chunk for each slot takes no more than this in the client, with what a task takes there beside its bytes, and four
#: are made at a time: see `state.CallLimits.ahead_per_slot`. With thousands of slots it is more.
MAX_READY_NBYTES = 16 * 2**20
READY_PER_SLOT_NBYTES = 8192
TASK_NBYTES = 200

#: joblib looks for results to yield every 10 ms: what slots do in that time may lie ready for it, and as much again.
YIELDED_S = 0.02

_MAX_GROWTH = 256
_MAX_SIZE = 10_000
_MIN_TASK_S = 1e-6


class ChunkSizer:
    """Choose the size of chunks, and of joblib's batches, from the time tasks take on the worker.

    Parameters
    ----------
    n_slots
        How many chunks run at once.
    queued
        Chunks beyond these wait for the first slot that is free.

    Notes
    -----
    The size starts at 1 and grows by a bounded factor, so that a few short tasks at the
    beginning do not commit many long ones to one chunk.
    """

    n_slots: int
    queued: bool
    """See `Slots.queued`."""
    timeout_s: float | None
    """The call fails if no result comes for so long."""
    n_batches: int
    """How many batches joblib makes at a time: as many as it has jobs, whatever slots there now are."""
    first_batch_size: int
    """How many tasks joblib's very first batches should have."""
    size: int
    mean_s: float | None
    """Duration of a task, recent chunks counting more; None before any has run, unless there is a guess."""
    guessed: bool
    """`mean_s` comes from an earlier call."""
    _may_wait: bool
    """A chunk may wait for the first ones to come back, though there is only a guess."""
    mean_nbytes: float
    """What a task makes travel, likewise."""
    _n_made: int
    _making_s: float
    _n_ran: int
    _ran_s: float
    _n_timed: int
    _timed_s: float
    _squares_s2: float
    _known_dispersion_s: float

    def __init__(self, n_slots: int, queued: bool = False) -> None:
        self.n_slots = self.n_batches = n_slots
        self.queued = queued
        self.timeout_s = None
        self.first_batch_size = 1
        self.size = 1
        self.mean_s = None
        self.guessed = False
        self._may_wait = False
        self.mean_nbytes = 0.0
        self._n_made = 0
        self._making_s = 0.0
        self._n_ran = 0
        self._ran_s = 0.0
        self._n_timed = 0
        self._timed_s = self._squares_s2 = self._known_dispersion_s = 0.0

    @property
    def batch_size(self) -> int:
        """How many tasks joblib's next batch should have."""
        if not self._n_made and self.mean_s is None:
            return self.first_batch_size
        least = MIN_BATCH_FED_SLOWLY if self.is_fed_slowly else MIN_BATCH
        size = min(self.ready_size, max(least, MAX_DISPATCHED // self.n_batches))
        if self._n_made <= self.n_one_round:
            size = min(size, self.size)  # the first chunks do not wait for others' tasks to be made
        if self._making_s:
            making_s = max(MAKING_S, MAKING_PER_SLOT_S * self.n_slots)
            size = min(size, int(making_s * self._n_made / self._making_s) // self.n_batches)
        return max(1, size)

    @property
    def n_first(self) -> int:
        """How many tasks the first chunks have together that are cut by a guess; 0 without one."""
        return self.n_slots * self.size if self.guessed else 0

    @property
    def n_one_round(self) -> int:
        """So many tasks are one chunk for each slot, cut by a guess, if no more come; 0 without one."""
        return 2 * self.n_first

    @property
    def _target_s(self) -> float:
        seconds = target_s(self.n_slots, self.queued)
        if self.timeout_s is None:
            return seconds
        return min(seconds, max(PART_OF_TIMEOUT * self.timeout_s, least_s(self.n_slots, is_all=False)))

    @property
    def ready_size(self) -> int:
        """How many tasks should lie ready for each chunk.

        The first chunks are smaller than that, if they are cut by a guess: more must lie ready when they come back.
        """
        size = self._full_size if self.guessed else self.size
        most_nbytes = max(MAX_READY_NBYTES, READY_PER_SLOT_NBYTES * self.n_slots)
        return max(1, min(size, int(most_nbytes / (self.mean_nbytes + TASK_NBYTES)) // self.n_slots))

    def observe_making(self, n_tasks: int, seconds: float) -> None:
        """Take note of a batch that the client made.

        Parameters
        ----------
        n_tasks
            Its tasks.
        seconds
            How long it took to get these from the user's iterable and to pickle them.
        """
        self._n_made += n_tasks
        self._making_s += max(0.0, seconds - BATCH_S)

    @property
    def yielded_size(self) -> int:
        """How many tasks' results may lie ready to be yielded, if tasks are that short."""
        if self.mean_s is None:
            return 0
        return int(min(YIELDED_S * self.n_slots / self.mean_s, MAX_READY_NBYTES / (self.mean_nbytes + TASK_NBYTES)))

    @property
    def is_fed_slowly(self) -> bool:
        """Whether the slots do tasks faster than the client makes them."""
        return self.mean_s is not None and self._making_s * self.n_slots > self.mean_s * self._n_made

    @property
    def tasks_are_tiny(self) -> bool:
        """Whether tasks take next to no time, to do and to make."""
        return self.is_fed_slowly and self._making_s < TINY_MAKING_S * self._n_made

    @property
    def is_held_up(self) -> bool:
        """Whether slots that share the client's processors wait for it: then it is the slower for each chunk."""
        return self.queued and self.is_fed_slowly

    @property
    def gathered_size(self) -> int:
        """How many tasks a chunk waits for while more are about to be made."""
        if self.mean_s is None or not self.is_held_up:
            return 1
        return int(min(GATHERED_S * self._n_made / self._making_s, LEAST_S / self.mean_s))

    @property
    def _full_size(self) -> int:
        """How many tasks take as long as a chunk should."""
        return max(1, int(self._target_s / (self.mean_s or self._target_s)))

    def guess(self, mean_s: float, nested: bool = False, dispersion_s: float = 0.0) -> None:
        """Take what an earlier call has shown of such tasks, before any has run, see `Known`."""
        if self.mean_s is None:
            self._known_dispersion_s = dispersion_s
            self.mean_s, self.guessed = max(mean_s, _MIN_TASK_S), True
            self._may_wait = self.queued and not nested
            first_s = max(GUESSED_S, least_s(self.n_slots, is_all=True))
            self.size = max(1, min(int(first_s / self.mean_s), _MAX_SIZE))

    def observe(self, n_tasks: int, seconds: float, nbytes: int = 0) -> None:
        """Take note of a chunk that ran."""
        if not n_tasks:
            return
        self._n_ran += n_tasks
        self._ran_s += seconds
        mean_s = max(seconds / n_tasks, _MIN_TASK_S)
        if self.mean_s is None or self.guessed:
            self.mean_s, self.guessed = mean_s, False
        elif mean_s > self.mean_s:
            self.mean_s = (self.mean_s + mean_s) / 2
        else:
            # The geometric mean follows a fall by a factor of a thousand in a few chunks.
            self.mean_s = sqrt(self.mean_s * mean_s)
        self.mean_nbytes = max(nbytes / n_tasks, self.mean_nbytes / 2)
        ideal = int(self._target_s / self.mean_s)
        if self.mean_nbytes:
            ideal = min(ideal, int(MAX_CHUNK_NBYTES / self.mean_nbytes))
        self.size = max(1, min(ideal, self.size * _MAX_GROWTH, _MAX_SIZE))

    def observe_spread(self, n_timed: int, seconds: float, squares_s2: float) -> None:
        """Take note of how a chunk's tasks differ, see `Reply`."""
        self._n_timed += n_timed
        self._timed_s += seconds
        self._squares_s2 += squares_s2

    @property
    def overall_mean_s(self) -> float | None:
        """Mean duration of all tasks that have run; None if none has."""
        return self._ran_s / self._n_ran if self._n_ran else None

    @property
    def dispersion_s(self) -> float:
        """Variance of the times of tasks, over their mean; of those that are shorter than 1 ms taken together."""
        if self._n_timed < LEAST_TIMED or not self._timed_s:
            return self._known_dispersion_s
        return max(0.0, self._squares_s2 / self._timed_s - self._timed_s / self._n_timed)

    def share(self, n_queued: int, n_sent: int, is_all: bool, span_s: float | None = None) -> int:
        """Give how many tasks the next chunk has, when so many wait and so many are on their way or run.

        Up to the size that hides the cost of a chunk: each slot's share for all its chunks, or a part of it at a time
        if no more tasks will come (factoring: Flynn Hummel, Schonberg and Flynn, 1992, who halve it).

        Parameters
        ----------
        n_queued, n_sent
            Tasks. Without those sent that may be taken to be done.
        is_all
            Whether no more will come.
        span_s
            How long after the beginning of this chunk all are done, if all slots end together. None: it begins at once,
            and so do others on all slots.
        """
        if self.mean_s is None:
            return self.size
        most = self.size if not self.guessed or n_sent < self.n_first else min(self._full_size, _MAX_SIZE)
        least = max(1, round(least_s(self.n_slots, is_all) / self.mean_s))
        if not is_all:
            n_chunks = self.n_slots if self.queued else self.chunks_per_slot() * self.n_slots
            return min(most, max(least, ceil(n_queued / n_chunks)))
        # No slot gets more than its part of all that is left.
        part = ceil((n_queued + n_sent) / self.n_slots)
        if not self.guessed:
            part = max(part, self.gathered_size // 2)
        if n_queued + n_sent <= self.n_one_round:
            return part
        least = min(least, part)
        if not self.queued:
            return min(most, max(least, ceil(n_queued * PART / self.n_slots)))
        n_until_end = n_queued / self.n_slots if span_s is None else span_s / self.mean_s
        return min(most, max(least, ceil(n_until_end * self._queued_part(n_queued * self.mean_s))))

    def _queued_part(self, left_s: float) -> float:
        """Give which part of its time until the end a slot's next chunk is to take, when there is so much left for all.

        It is factoring's, which goes by how uneven chunks may turn out, but for what is left over if they are even.
        """
        uneven = self.n_slots / 2 * sqrt(max(self.dispersion_s, self._known_dispersion_s) / left_s)
        return 1 / (1 / QUEUED_PART + uneven**2 + uneven * sqrt(uneven**2 + 2))

    def budget_s(self, n_tasks: int) -> float:
        """Give how long a chunk of so many tasks may run: however wrong the estimate, it holds up little."""
        return max(LEAST_BUDGET_S, 2 * n_tasks * (self.mean_s or 0.0))

    def chunks_per_slot(self) -> int:
        """Give how many chunks a slot has: one runs, and one waits if it is known that it may; or their replies do."""
        if self.mean_s is None:
            return 1
        if self.is_held_up and (self._may_wait or not self.guessed):
            return UNREAD_CHUNKS
        if self.guessed:
            return 2 if self._may_wait else 1
        return 2 if self.queued or MIN_WAITING_S <= self.mean_s * self.size <= MAX_WAITING_S else 1
