"""Whatever happens to a call, in whatever order: random walks beside a model that only keeps the books."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobfleet._call.chunking import LEAST_BUDGET_S, MAX_WAITING_S
from jobfleet._call.recovery import MAX_DATA_LOSSES, MAX_DEATHS, MAX_UNSTARTED_LOSSES
from jobfleet._call.state import (
    AskForMore,
    BatchArrived,
    BatchConsumed,
    CallLimits,
    CallState,
    ChunkCut,
    ChunkLost,
    ChunkReplied,
    Deliver,
    Forget,
    GiveUp,
    NoteDeaths,
    Send,
    SlotsChanged,
)
from jobfleet._engine.base import LostKind

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

WAITING, DONE, GIVEN_UP = "waiting", "done", "given up"

#: Slots come and go, and there are never more.
MOST_SLOTS = 5


class Books:
    """Keep count of one call, and check each thing the machine asks for against it.

    The result of task t is ``("result", t)``, or with `return_exceptions` the error it has come to.
    """

    def __init__(self, limits, slots):
        self.limits = limits
        self.state = CallState(limits, slots)
        self.now_s = 0.0
        self.slots = slots
        self.nested = False
        self.batches = []  # each the range of its tasks
        self.batch_of = {}
        self.tasks = {}  # task: WAITING, the number of its chunk, DONE or GIVEN_UP
        self.attempts = {}
        self.chunks = {}
        self.settled = []
        self.delivered = set()
        self.errors = {}  # batch: those it may be given
        self.unconsumed = []  # in order of delivery
        self.troubled = set()  # tasks whose chunk did not simply succeed
        self.suspects = set()  # tasks that have to run alone
        self.forgotten = []
        self.widows = set()  # chunks whose twin was lost, or given up since they were cut
        self.n_data_losses = 0
        self.n_unstarted = 0
        self.sent = {}
        self.died = {}  # task: how many workers it has seen die
        self.twins = {}  # of two chunks with the same tasks each has the other
        self.had_twin = set()
        self.deaths_of_twin = {}
        self.noted = 0
        self.ended_badly = {}  # task: its error, which is its result

    @property
    def concurrency(self):
        n_jobs = self.limits.n_jobs
        return max(1, min(n_jobs, self.slots) if n_jobs > 0 else self.slots + 1 + n_jobs)

    # What the machine asks for

    def tell(self, event):
        self.now_s += 1.0
        for command in self.state.handle(event, self.now_s):
            match command:
                case Send():
                    self.on_send(command)
                case Deliver():
                    self.on_deliver(command)
                case Forget():
                    for task in command.tasks:
                        assert self.tasks[task] in (DONE, GIVEN_UP), "forgotten though it has to run again"
                    self.forgotten += command.tasks
                case GiveUp():
                    self.on_give_up(command)
                case NoteDeaths():
                    assert command.deaths != self.noted
                    self.noted = command.deaths
                case AskForMore():
                    assert command.batches > 0
        self.check()

    def on_copy(self, command):
        """Say what must hold when tasks that run are sent a second time."""
        assert self.limits.speculation
        assert self.state.input_ended
        assert not self.nested
        assert list(command.tasks) == self.chunks[command.copy_of]
        assert command.copy_of not in self.had_twin, "more than twice"
        assert not any(s is WAITING and self.batch_of[t] not in self.delivered for t, s in self.tasks.items())
        assert not command.deaths
        assert len(self.chunks) < self.concurrency, "on a slot that is not idle"
        self.chunks[command.chunk] = list(command.tasks)
        self.sent[command.chunk] = command
        self.twins.update({command.chunk: command.copy_of, command.copy_of: command.chunk})
        self.had_twin |= {command.chunk, command.copy_of}

    def on_give_up(self, command):
        assert self.chunks[command.chunk], "it runs"
        other = self.twins[command.chunk]
        assert other not in self.chunks or other in self.widows, "the other one has come to its end"
        del self.chunks[command.chunk]
        self.settled.append(command.chunk)

    def on_send(self, command):
        if command.copy_of is not None:
            self.on_copy(command)
            return
        chunk, tasks = command.chunk, list(command.tasks)
        assert command.deaths <= max(self.noted, self.limits.deaths), "sent before its deaths were noted"
        assert tasks == sorted(tasks) != []
        assert chunk not in self.chunks
        assert chunk not in self.settled
        assert {self.tasks[task] for task in tasks} == {WAITING}, "sent though finished, given up or on the way"
        if self.limits.fixed_batches:
            (batch,) = {self.batch_of[task] for task in tasks}
            assert tasks == list(self.batches[batch]) or self.troubled.issuperset(tasks)
        else:
            assert len(tasks) <= self.state.sizer.size or command.deaths > self.limits.deaths
        assert len(tasks) == 1 or self.suspects.isdisjoint(tasks)
        assert {self.died.get(task, self.limits.deaths) for task in tasks} == {command.deaths}
        assert bool(command.report_every) == bool(command.deaths)
        assert not self.one_runs_by_itself(), "it might be blamed for what runs beside it"
        assert command.deaths < 2 or not self.chunks, "it might be blamed for what runs beside it"
        self.chunks[chunk] = tasks
        self.sent[chunk] = command
        self.tasks.update(dict.fromkeys(tasks, chunk))
        # Where slots remain that are not ours to use, and where tasks make calls, nothing may wait on a slot.
        per_slot = 1 if self.nested or self.concurrency < self.slots else 2
        most = per_slot * self.concurrency
        if self.limits.n_jobs == -1:
            # Chunks that take long: what waits must be seen by an adaptive cluster.
            most = max(most, 4 * self.concurrency)
        elif self.limits.n_jobs >= MOST_SLOTS == self.limits.most_slots:
            most = max(most, self.limits.n_jobs)
        elif self.limits.n_jobs > 0:
            most = self.limits.n_jobs
        assert len(self.chunks) <= most

    def one_runs_by_itself(self):
        return any(self.sent[chunk].deaths > 1 for chunk in self.chunks)

    def on_deliver(self, command):
        batch = self.batches[command.batch]
        assert command.batch not in self.delivered, "delivered twice"
        if command.error is None:
            assert command.results == [self.ended_badly.get(task, ("result", task)) for task in batch]
            assert {self.tasks[task] for task in batch} == {DONE}
            if self.limits.streamed and len(self.unconsumed) >= 2 * self.concurrency:
                n_ready = sum(len(self.batches[number]) for number in (*self.unconsumed, command.batch))
                if n_ready > self.state.sizer.yielded_size:
                    assert self.limits.ordered
                    assert command.batch == self.waited_for(), "more than anybody waits for"
        else:
            assert command.error in self.errors[command.batch]
        self.delivered.add(command.batch)
        if self.limits.streamed:
            self.unconsumed.append(command.batch)

    def first_not_taken(self):
        taken = self.delivered - set(self.unconsumed)
        return min(set(range(len(self.batches))) - taken, default=None)

    def waited_for(self):
        """Give the batch that an ordered consumer waits for, None while it has one to take from."""
        first = self.first_not_taken()
        return None if first in self.delivered else first

    def check(self):
        """Check what must hold at any time."""
        finished = {n for n, tasks in enumerate(self.batches) if {self.tasks[task] for task in tasks} == {DONE}}
        held_back = finished - self.delivered
        if not self.limits.streamed:
            assert not held_back
        elif self.limits.ordered:
            assert self.waited_for() not in held_back, "the consumer waits for what is there"
        else:
            assert self.unconsumed or not held_back, "the consumer waits though something is there"
        for batch in self.errors:
            if any(self.tasks[task] is GIVEN_UP for task in self.batches[batch]):
                assert batch in self.delivered, "its fate is known, joblib is not told"
        live = [t for t, state in self.tasks.items() if state not in (DONE, GIVEN_UP)]
        waiting = [t for t in live if self.tasks[t] is WAITING and self.batch_of[t] not in self.delivered]
        one_is_suspect = self.one_runs_by_itself() or any(self.died.get(t, self.limits.deaths) > 1 for t in waiting)
        most = min(self.concurrency, self.slots)
        assert not waiting or len(self.chunks) >= (min(1, most) if one_is_suspect else most), "a slot is idle"
        assert live or not self.state.unfinished
        in_chunks = [task for tasks in self.chunks.values() for task in tasks]
        died = [self.died.get(task, self.limits.deaths) for task in waiting + in_chunks]
        died += [self.sent[n].deaths + more for n, more in self.deaths_of_twin.items() if n in self.chunks]
        most = max(died, default=0)
        assert self.noted == (most if most > self.limits.deaths else 0)
        both = [n for n in self.chunks if n in self.twins and self.twins[n] not in self.chunks]
        assert all(n in self.widows for n in both), "its tasks have their outcome, and it goes on"

    # What may happen; each takes two numbers to choose with, and does nothing where it cannot happen

    def a_batch_arrives(self, size, _):
        self.note_batch(1 + size % 6, WAITING)
        self.tell(BatchArrived(len(self.batches[-1])))

    def a_batch_arrives_that_does_not_pickle(self, size, _):
        error = ValueError("in the client")
        self.errors[len(self.batches)] = [error]
        self.note_batch(1 + size % 3, GIVEN_UP)
        self.tell(BatchArrived(len(self.batches[-1]), error))

    def a_batch_arrives_with_one_that_does_not_pickle(self, size, pick):
        if not self.limits.return_exceptions:
            return
        self.note_batch(1 + size % 6, WAITING)
        batch = self.batches[-1]
        position, error = pick % len(batch), ValueError("in the client")
        self.tasks[batch[position]] = DONE
        self.ended_badly[batch[position]] = error
        self.forgotten.append(batch[position])  # it was never kept
        self.troubled.update(batch)
        self.tell(BatchArrived(len(batch), None, {position: error}))

    def a_worker_replies(self, pick, each_s):
        self.reply(pick, None, each_s)

    def a_worker_replies_with_a_part(self, pick, n_done):
        self.reply(pick, n_done, n_done)

    def a_worker_tells_of_inner_calls(self, pick, each_s):
        self.nested |= bool(self.chunks)
        self.reply(pick, None, each_s, nested=True)

    def a_task_raises(self, pick, n_done):
        self.reply(pick, n_done, n_done, error=ValueError("in the task"))

    def a_worker_dies(self, pick, where):
        if not self.chunks:
            return
        if self.lose_one_of_two(pick, LostKind.WORKER):
            return
        number, tasks = self.settle(pick)
        sent, error, started, before = self.sent[number], RuntimeError("the worker died"), None, 0
        if where % 3 == 1:  # of calls that one of them made workers had died before
            started, before = where % len(tasks), 1 + where % 2
            deaths = max(sent.deaths, before) + 1 + self.deaths_of_twin.get(number, 0)
            self.died.update(dict.fromkeys(tasks, self.limits.deaths))
            self.died[tasks[started]] = deaths
            if deaths >= MAX_DEATHS:
                self.give_up([tasks[started]], error)
        elif sent.report_every:
            ran_last = where % (len(tasks) + 2)  # the last: it had not begun; the last but one: all had ended
            if ran_last <= len(tasks):
                started = ran_last if ran_last == len(tasks) else ran_last - ran_last % sent.report_every
            elif self.n_unstarted == MAX_UNSTARTED_LOSSES - 1:
                started = 0
            else:
                self.n_unstarted += 1
            blamed = [] if started is None else tasks[started : started + sent.report_every]
            if started is not None:
                deaths = sent.deaths + 1 + self.deaths_of_twin.get(number, 0)
                self.died.update(dict.fromkeys(tasks, self.limits.deaths))
                self.died.update(dict.fromkeys(blamed, deaths))
                if len(blamed) == 1 and deaths >= MAX_DEATHS:
                    self.give_up(blamed, error)
        else:
            self.died.update(dict.fromkeys(tasks, 1 + self.deaths_of_twin.get(number, 0)))
        assert max(self.died.values(), default=0) <= MAX_DEATHS + 1  # one more if a copy of it ran
        self.tell(ChunkLost(number, LostKind.WORKER, error, started, before=before))

    def a_task_takes_too_long(self, pick, where):
        if not self.chunks:
            return
        number, tasks = self.settle(pick)
        slow, error = tasks[where % len(tasks)], RuntimeError("too slow")
        self.suspects.add(slow)
        self.died[slow] = self.limits.deaths
        self.attempts[slow] = self.attempts.get(slow, 0) + 1
        if self.attempts[slow] > self.limits.retries:
            self.give_up([slow], error)
        self.tell(ChunkLost(number, LostKind.OVERRUN, error, where % len(tasks), raised=True))

    def a_chunk_is_cut(self, pick, where):
        numbers = sorted(n for n, tasks in self.chunks.items() if len(tasks) > 1 and self.sent[n].budget_s is not None)
        if not numbers:
            return
        number = numbers[pick % len(numbers)]
        tasks = self.chunks[number]
        n_kept = 1 + where % (len(tasks) - 1)
        if self.sent[number].report_every:
            return  # it is watched, and does not say so
        behind = tasks[n_kept:]
        self.tasks.update({task: GIVEN_UP if self.batch_of[task] in self.errors else WAITING for task in behind})
        self.chunks[number] = tasks[:n_kept]
        if number in self.twins:
            self.widows.add(number)
        self.tell(ChunkCut(number, n_kept))

    def data_are_lost(self, pick, _):
        if not self.chunks or self.n_data_losses == MAX_DATA_LOSSES:
            return
        if self.lose_one_of_two(pick, LostKind.DATA):
            return
        self.n_data_losses += 1
        number, _ = self.settle(pick)
        self.tell(ChunkLost(number, LostKind.DATA, RuntimeError("data are lost")))

    def an_outcome_comes_a_second_time(self, pick, what):
        if not self.settled:
            return
        number = self.settled[pick % len(self.settled)]
        if what % 2:
            self.tell(ChunkReplied(number, ["stale"], None, 0.1, False))
        else:
            self.tell(ChunkLost(number, LostKind.WORKER, RuntimeError("stale")))

    def slots_change(self, total, _):
        self.slots = 1 + total % MOST_SLOTS
        self.tell(SlotsChanged(self.slots))

    def the_user_takes_results(self, _, __):
        # The consumer is done with a batch when it asks for the next one's results.
        batch = self.first_not_taken() if self.limits.ordered else next(iter(self.unconsumed), None)
        if batch in self.unconsumed:
            self.unconsumed.remove(batch)
            self.tell(BatchConsumed(batch))

    # These only in walks with worse faults

    def the_input_ends(self, _, __):
        self.state.input_ended = True
        self.tell(SlotsChanged(self.slots))

    def a_chunk_is_given_up(self, pick, kind):
        if self.chunks:
            number, tasks = self.settle(pick)
            error = RuntimeError("the cluster failed")
            self.give_up_batches(tasks, error)
            self.tell(ChunkLost(number, [LostKind.SCHEDULER, LostKind.ENGINE][kind % 2], error))

    def all_slots_go(self, _, __):
        self.slots = 0
        self.tell(SlotsChanged(0))

    # Together

    def note_batch(self, size, state):
        tasks = range(len(self.tasks), len(self.tasks) + size)
        self.tasks.update(dict.fromkeys(tasks, state))
        self.batch_of.update(dict.fromkeys(tasks, len(self.batches)))
        self.batches.append(tasks)

    def lose_one_of_two(self, pick, kind):
        """Lose a chunk whose tasks another one runs, too; gives whether it is such a one."""
        number = sorted(self.chunks)[pick % len(self.chunks)]
        other = self.twins.get(number)
        if other not in self.chunks:
            return False
        tasks = self.chunks.pop(number)
        self.settled.append(number)
        self.widows.add(other)
        self.tasks.update({task: other for task in tasks if self.tasks[task] == number})
        self.troubled.update(tasks)
        if kind is LostKind.WORKER:
            self.deaths_of_twin[other] = 1
        self.tell(ChunkLost(number, kind, RuntimeError("one of two")))
        return True

    def settle(self, pick):
        number = sorted(self.chunks)[pick % len(self.chunks)]
        tasks = self.chunks.pop(number)
        self.settled.append(number)
        self.tasks.update({task: GIVEN_UP if self.batch_of[task] in self.errors else WAITING for task in tasks})
        self.troubled.update(tasks)
        return number, tasks

    def give_up(self, tasks, error):
        if self.limits.return_exceptions:
            live = [task for task in tasks if self.tasks[task] is not GIVEN_UP]
            self.tasks.update(dict.fromkeys(live, DONE))
            self.ended_badly.update(dict.fromkeys(live, error))
        else:
            self.give_up_batches(tasks, error)

    def give_up_batches(self, tasks, error):
        self.tasks.update(dict.fromkeys(tasks, GIVEN_UP))
        for batch in {self.batch_of[task] for task in tasks}:
            self.errors.setdefault(batch, []).append(error)
            self.tasks.update({task: GIVEN_UP for task in self.batches[batch] if self.tasks[task] is WAITING})

    def reply(self, pick, n_done, each_s, nested=False, error=None):
        if not self.chunks:
            return
        number, tasks = self.settle(pick)
        n_done = len(tasks) if n_done is None else n_done % len(tasks)
        self.tasks.update(dict.fromkeys(tasks[:n_done], DONE))
        if error is not None:
            failed = tasks[n_done]
            self.suspects.add(failed)
            self.died[failed] = self.limits.deaths
            self.attempts[failed] = self.attempts.get(failed, 0) + 1
            if self.attempts[failed] > self.limits.retries:
                self.give_up([failed], error)
        seconds = n_done * [1e-4, 0.01, LEAST_BUDGET_S, 2 * MAX_WAITING_S][each_s % 4]
        results = [("result", task) for task in tasks[:n_done]]
        self.tell(ChunkReplied(number, results, error, seconds, nested))

    def finish(self):
        """If workers go on to reply and results to be taken, every batch comes to its end."""
        self.slots_change(2, 0)
        while self.chunks:
            self.a_worker_replies(0, 0)
            self.the_user_takes_results(0, 0)
        for _ in self.batches:
            self.the_user_takes_results(0, 0)
        assert self.delivered == set(range(len(self.batches)))
        assert len(self.forgotten) == len(set(self.forgotten))
        assert {task for task, batch in self.batch_of.items() if batch not in self.errors} <= set(self.forgotten)
        assert not self.state.unfinished


ANY_LIMITS = st.builds(
    CallLimits,
    n_jobs=st.sampled_from([-3, -2, -1, 1, 2, 3, 4, 5, 6]),
    most_slots=st.sampled_from([None, MOST_SLOTS]),
    fixed_batches=st.booleans(),
    streamed=st.booleans(),
    ordered=st.booleans(),
    retries=st.sampled_from([0, 0, 2]),
    ahead_per_slot=st.sampled_from([None, 1.0, 2.0]),
    no_workers_timeout_s=st.just(1e9),
    speculation=st.booleans(),
    return_exceptions=st.booleans(),
    deaths=st.sampled_from([0, 0, 0, 1, 2]),
)
#: In a walk each is as likely as it stands here.
EVENTS = (
    [Books.a_batch_arrives, Books.a_worker_replies, Books.the_user_takes_results] * 4
    + [Books.a_worker_replies_with_a_part, Books.a_task_raises, Books.slots_change] * 2
    + [Books.a_batch_arrives_that_does_not_pickle, Books.a_batch_arrives_with_one_that_does_not_pickle]
    + [Books.the_input_ends, Books.an_outcome_comes_a_second_time, Books.a_worker_tells_of_inner_calls]
    + [Books.a_worker_dies, Books.a_task_takes_too_long, Books.data_are_lost, Books.a_chunk_is_cut]
)
WORSE_EVENTS = [*EVENTS, Books.a_chunk_is_given_up, Books.all_slots_go]
NUMBERS = st.integers(0, 60)


def walks(events):
    return st.lists(st.tuples(st.sampled_from(events), NUMBERS, NUMBERS), min_size=40, max_size=80)


walk_settings = settings(
    max_examples=250,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def go(limits, slots, walk):
    books = Books(limits, slots)
    for event, one, other in walk:
        event(books, one, other)
    books.finish()


@walk_settings
@given(limits=ANY_LIMITS, slots=st.integers(1, 4), walk=walks(EVENTS))
def test_every_task_comes_to_its_end_once_whatever_happens(limits, slots, walk):
    go(limits, slots, walk)


@walk_settings
@given(limits=ANY_LIMITS, slots=st.integers(1, 4), walk=walks(WORSE_EVENTS))
def test_every_batch_has_its_outcome_though_chunks_are_given_up_and_all_slots_go(limits, slots, walk):
    go(limits, slots, walk)
