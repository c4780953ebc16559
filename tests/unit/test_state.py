"""The state machine of a call: exact scenarios, what is told and what it then asks for."""

import pytest

from jobfleet._call.chunking import (
    BATCH_S,
    GATHERED_S,
    GUESSED_S,
    MAKING_S,
    MAX_WAITING_S,
    MIN_BATCH,
    MIN_MOVED_S,
    TARGET_S,
    UNREAD_CHUNKS,
    YIELDED_S,
    ChunkSizer,
)
from jobfleet._call.durations import Known
from jobfleet._call.recovery import MAX_DATA_LOSSES, MAX_UNSTARTED_LOSSES
from jobfleet._call.state import (
    HELP_HOLD_S,
    HOLD_NEXT_S,
    HOLD_S,
    MANY_JOBS,
    SENT_UNKNOWN,
    AskForMore,
    BatchArrived,
    BatchConsumed,
    CallLimits,
    CallState,
    ChunkCut,
    ChunkLost,
    ChunkReplied,
    Deliver,
    DispatchPaused,
    Forget,
    GiveUp,
    NoteDeaths,
    Send,
    SlotsChanged,
)
from jobfleet._call.stragglers import FACTOR, LEAST_S, is_straggler
from jobfleet._engine.base import LostKind
from jobfleet.errors import NoWorkersError

pytestmark = pytest.mark.timeout(10)

OOPS = ValueError("of the task")
LOST = RuntimeError("of the cluster")


def limits(**changes):
    values = {
        "n_jobs": -1,
        "fixed_batches": False,
        "streamed": False,
        "ordered": True,
        "retries": 0,
        "ahead_per_slot": None,
        "no_workers_timeout_s": 60.0,
    }
    return CallLimits(**{**values, **changes})


class WholeChunks(ChunkSizer):
    """The policy without what it does at the end of a queue, which has tests of its own."""

    def share(self, n_queued, n_sent, is_all, span_s=None):
        return self.size


class Call:
    """A call whose chunks are answered by hand; the result of task t is ``10 * t``."""

    def __init__(self, slots=2, **changes):
        self.state = CallState(limits(**changes), slots, sizer=WholeChunks(slots))
        self.now_s = 1000.0
        self.sent = {}
        self.delivered = []
        self.forgotten = []
        self.asked = 0

    def tell(self, event):
        """Give what the event leads to, in order, without what only `forgotten` shows."""
        commands = self.state.handle(event, self.now_s)
        for command in commands:
            match command:
                case Send():
                    self.sent[command.chunk] = tuple(command.tasks)
                case Deliver():
                    self.delivered.append(command.batch)
                case Forget():
                    self.forgotten.extend(command.tasks)
                case AskForMore():
                    self.asked += command.batches
        return [command for command in commands if not isinstance(command, Forget)]

    def arrive(self, size=1, error=None):
        return self.tell(BatchArrived(size, error))

    def reply(self, tasks, n_done=None, error=None, each_s=MAX_WAITING_S * 2, nested=False):
        """Answer the chunk of these tasks."""
        tasks = tuple(tasks)
        (chunk,) = (number for number, sent in self.sent.items() if sent == tasks)
        del self.sent[chunk]
        n_done = len(tasks) - (error is not None) if n_done is None else n_done
        results = [10 * task for task in tasks[:n_done]]
        return self.tell(ChunkReplied(chunk, results, error, each_s * n_done, nested))

    def lose(self, tasks, kind=LostKind.WORKER, error=LOST, started=None, raised=False, before=0):
        tasks = tuple(tasks)
        (chunk,) = (number for number, sent in self.sent.items() if sent == tasks)
        del self.sent[chunk]
        return self.tell(ChunkLost(chunk, kind, error, started, raised=raised, before=before))

    def slots(self, total):
        return self.tell(SlotsChanged(total))

    def consume(self, batch):
        return self.tell(BatchConsumed(batch))

    def knows_tasks_to_be(self, each_s):
        """Let the sizer settle on tasks that take so long."""
        for _ in range(40):
            self.state.sizer.observe(self.state.sizer.size, self.state.sizer.size * each_s)
        return self


def sent_tasks(commands):
    return [tuple(command.tasks) for command in commands if isinstance(command, Send)]


def outcomes(commands):
    return [(c.batch, c.results, c.error) for c in commands if isinstance(c, Deliver)]


# Batches


def test_a_batch_is_sent_at_once_and_delivered_when_all_of_it_is_there():
    call = Call(slots=2)
    assert sent_tasks(call.arrive(3)) == [(0,), (1,)]
    assert sent_tasks(call.reply([0])) == [(2,)]
    assert call.reply([2]) == []
    assert call.reply([1]) == [Deliver(0, [0, 10, 20], None)]
    assert call.forgotten == [0, 2, 1]
    assert not call.state.unfinished


def test_results_stand_at_the_place_of_their_task_whatever_order_they_come_in():
    call = Call(slots=4, fixed_batches=True)
    for _ in range(4):
        call.arrive(2)
    delivered = []
    for tasks in ([6, 7], [2, 3], [0, 1], [4, 5]):
        delivered += outcomes(call.reply(tasks))
    assert delivered == [(3, [60, 70], None), (1, [20, 30], None), (0, [0, 10], None), (2, [40, 50], None)]


def test_a_batch_that_cannot_be_sent_is_an_outcome_at_once():
    call = Call(slots=1)
    call.arrive(1)
    assert call.arrive(2, OOPS) == [Deliver(1, [], OOPS)]
    assert call.arrive(1) == []
    assert outcomes(call.reply([0])) == [(0, [0], None)]
    # Its tasks have their numbers all the same.
    assert call.sent == {1: (3,)}


def test_a_batch_may_become_several_chunks_and_a_chunk_several_batches():
    call = Call(slots=1).knows_tasks_to_be(TARGET_S / 3)
    assert sent_tasks(call.arrive(4)) == [(0, 1, 2), (3,)]
    for _ in range(3):
        call.arrive(1)
    commands = call.reply([0, 1, 2], each_s=TARGET_S / 3)
    assert sent_tasks(commands) == [(4, 5, 6)]
    assert call.reply([3], each_s=TARGET_S / 3) == [Deliver(0, [0, 10, 20, 30], None)]
    assert outcomes(call.reply([4, 5, 6], each_s=TARGET_S / 3)) == [(1, [40], None), (2, [50], None), (3, [60], None)]


def test_the_users_batches_are_the_chunks():
    call = Call(slots=1, fixed_batches=True).knows_tasks_to_be(TARGET_S / 100)
    assert sent_tasks(call.arrive(2)) == [(0, 1)]
    assert sent_tasks(call.arrive(3)) == [(2, 3, 4)]
    call.arrive(2)
    call.arrive(2)
    assert sent_tasks(call.reply([0, 1])) == []  # the tasks have proved to be long
    assert sent_tasks(call.reply([2, 3, 4])) == [(5, 6)]
    assert sent_tasks(call.reply([5, 6])) == [(7, 8)]


# How many at once


@pytest.mark.parametrize(
    ("n_jobs", "slots", "at_once"),
    [(-1, 4, 4), (-2, 4, 3), (-4, 4, 1), (-9, 4, 1), (1, 4, 1), (3, 4, 3), (4, 4, 4), (9, 4, 4), (-1, 1, 1), (2, 1, 1)],
)
def test_n_jobs_bounds_the_chunks_in_flight(n_jobs, slots, at_once):
    call = Call(slots=slots, n_jobs=n_jobs)
    call.arrive(20)
    assert len(call.sent) == at_once
    call.reply(next(iter(call.sent.values())))
    assert len(call.sent) == at_once


def test_a_chunk_waits_behind_each_that_runs_when_chunks_are_short():
    call = Call(slots=2)
    call.arrive(20)
    assert len(call.sent) == 2, "nothing is known of the tasks yet"
    call.reply([0], each_s=TARGET_S)
    assert len(call.sent) == 4
    call.reply([1], each_s=MAX_WAITING_S * 10)
    assert len(call.sent) == 3, "what waits already goes on waiting"
    for _ in range(3):
        call.reply(next(iter(call.sent.values())), each_s=MAX_WAITING_S * 10)
    assert len(call.sent) == 2


@pytest.mark.parametrize("n_jobs", [-2, 3])
def test_nothing_waits_on_a_slot_that_is_not_ours_to_use(n_jobs):
    call = Call(slots=4, n_jobs=n_jobs).knows_tasks_to_be(TARGET_S)
    call.arrive(20)
    assert len(call.sent) == 3


@pytest.mark.parametrize(
    ("n_jobs", "slots", "most_slots", "n_sent"),
    [(4, 4, None, 4), (5, 4, None, 5), (20, 4, None, 8), (4, 4, 4, 8), (4, 3, 4, 6), (4, 4, 5, 4), (-2, 4, 4, 3)],
)
def test_a_chunk_waits_where_no_more_than_n_jobs_can_ever_run(n_jobs, slots, most_slots, n_sent):
    call = Call(slots=slots, n_jobs=n_jobs, most_slots=most_slots).knows_tasks_to_be(TARGET_S)
    call.arrive(50)
    assert len(call.sent) == n_sent


def test_a_call_whose_tasks_make_calls_has_one_chunk_per_slot():
    call = Call(slots=2).knows_tasks_to_be(TARGET_S)
    call.arrive(20)
    assert len(call.sent) == 4
    for tasks in [(0,), (1,), (2,)]:
        call.reply(tasks, each_s=TARGET_S, nested=tasks == (0,))
    assert len(call.sent) == 2


def test_fewer_slots_send_nothing_more_until_there_is_room():
    call = Call(slots=3)
    call.arrive(20)
    assert call.slots(1) == []
    assert sent_tasks(call.reply([0])) == []
    assert sent_tasks(call.reply([1])) == []
    assert sent_tasks(call.reply([2])) == [(3,)]


# Part of a chunk


def test_what_a_chunk_has_left_goes_before_what_waits():
    call = Call(slots=1).knows_tasks_to_be(TARGET_S / 4)
    call.arrive(4)
    call.arrive(4)
    assert list(call.sent.values()) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    call.arrive(4)
    assert sent_tasks(call.reply([0, 1, 2, 3], n_done=1, each_s=TARGET_S / 4)) == [(1, 2, 3)]
    assert call.forgotten == [0]
    assert outcomes(call.reply([1, 2, 3], each_s=TARGET_S / 4)) == [(0, [0, 10, 20, 30], None)]


def test_a_second_reply_for_a_chunk_is_ignored():
    call = Call(slots=1)
    call.arrive(2)
    call.reply([0])
    assert call.tell(ChunkReplied(0, ["other"], None, 1.0, False)) == []
    assert call.tell(ChunkLost(0, LostKind.WORKER, LOST)) == []
    assert call.reply([1]) == [Deliver(0, [0, 10], None)]


def test_a_call_that_cannot_tell_is_asked_for_the_rest():
    call = Call(slots=1).knows_tasks_to_be(TARGET_S / 4)
    call.arrive(4)
    assert sent_tasks(call.reply([0, 1, 2, 3], n_done=0)) == [(0, 1, 2, 3)]


# Tasks that raise


def test_an_exception_is_delivered_at_once_and_once():
    call = Call(slots=2, fixed_batches=True)
    call.arrive(3)
    call.arrive(1)
    commands = call.reply([0, 1, 2], n_done=1, error=OOPS)
    assert outcomes(commands) == [(0, [], OOPS)]
    assert {0, 1} <= set(call.forgotten)
    assert outcomes(call.reply([3])) == [(1, [30], None)]
    assert call.delivered == [0, 1]


@pytest.mark.parametrize("fixed_batches", [True, False])
def test_a_failed_batch_has_no_more_of_its_tasks_run(fixed_batches):
    call = Call(slots=1, fixed_batches=fixed_batches)
    call.arrive(3)
    assert sent_tasks(call.reply(call.sent[0], n_done=0, error=OOPS)) == []
    assert sorted(call.forgotten) == [0, 1, 2]


def test_results_that_come_for_a_failed_batch_are_dropped():
    call = Call(slots=2)
    call.arrive(2)
    assert outcomes(call.reply([0], error=OOPS)) == [(0, [], OOPS)]
    assert call.reply([1]) == []
    assert not call.state.unfinished


def test_a_second_failure_of_a_batch_is_dropped():
    call = Call(slots=2)
    call.arrive(2)
    call.reply([0], error=OOPS)
    assert call.reply([1], error=ValueError("later")) == []


def test_of_failures_that_are_there_together_the_earliest_is_delivered_first():
    call = Call(slots=3, fixed_batches=True)
    for _ in range(3):
        call.arrive(1)
    errors = [ValueError(n) for n in range(3)]
    events = [ChunkReplied(n, [], errors[n], 1.0, False) for n in (2, 0, 1)]
    commands = call.state.handle_all(events, call.now_s)
    assert outcomes(commands) == [(n, [], errors[n]) for n in range(3)]


def test_failures_are_delivered_before_results():
    call = Call(slots=1).knows_tasks_to_be(TARGET_S / 2)
    call.arrive(2)
    call.arrive(1)
    call.arrive(1)
    call.reply([0, 1], each_s=TARGET_S / 2)
    assert outcomes(call.reply([2], each_s=TARGET_S / 2)) == [(1, [20], None)]
    call = Call(slots=1).knows_tasks_to_be(TARGET_S / 2)
    call.arrive(4)
    call.arrive(1)
    call.arrive(1)
    call.reply([0, 1], each_s=TARGET_S / 2)
    call.reply([2, 3], each_s=TARGET_S / 2)
    assert call.sent == {2: (4, 5)}
    assert outcomes(call.reply([4, 5], error=OOPS)) == [(2, [], OOPS), (1, [40], None)]


def test_a_task_that_raises_is_tried_again_as_often_as_the_user_says():
    call = Call(slots=1, retries=2)
    call.arrive(1)
    assert sent_tasks(call.reply([0], error=OOPS)) == [(0,)]
    assert sent_tasks(call.reply([0], error=OOPS)) == [(0,)]
    last = ValueError("third")
    assert call.reply([0], error=last) == [Deliver(0, [], last)]


def test_a_task_that_takes_too_long_fails_and_those_around_it_run_again_without_blame():
    call = Call(slots=1, fixed_batches=True, return_exceptions=True)
    call.arrive(4)
    commands = call.lose([0, 1, 2, 3], LostKind.OVERRUN, OOPS, started=2)
    assert sent_tasks(commands) == [(0, 1)]
    assert [c.deaths for c in commands if isinstance(c, Send)] == [0]
    assert sent_tasks(call.reply([0, 1])) == [(3,)]
    assert call.reply([3]) == [Deliver(0, [0, 10, OOPS, 30], None)]
    assert sorted(call.forgotten) == [0, 1, 2, 3]


def test_a_task_that_takes_too_long_is_tried_again_as_often_as_the_user_says():
    call = Call(slots=1, retries=1)
    call.arrive(1)
    assert sent_tasks(call.lose([0], LostKind.OVERRUN, OOPS, started=0, raised=True)) == [(0,)]
    assert call.lose([0], LostKind.OVERRUN, OOPS, started=0, raised=True) == [Deliver(0, [], OOPS)]
    call = Call(slots=1, retries=1)
    call.arrive(1)
    assert call.lose([0], LostKind.OVERRUN, OOPS, started=0) == [Deliver(0, [], OOPS)], "retries are not for it"


def test_a_retried_task_is_alone_and_its_neighbours_run_once():
    call = Call(slots=1, retries=1, fixed_batches=True)
    call.arrive(4)
    assert sent_tasks(call.reply([0, 1, 2, 3], n_done=1, error=OOPS)) == [(2, 3)]
    assert sent_tasks(call.reply([2, 3])) == [(1,)]
    assert call.reply([1]) == [Deliver(0, [0, 10, 20, 30], None)]


def two_more_in_flight_than_go_now(**changes):
    """Give a call that has four chunks of two tasks in flight and, its tasks making calls, sends two at most."""
    call = Call(slots=2, **changes).knows_tasks_to_be(TARGET_S / 4)
    for _ in range(4):
        call.arrive(2)
    call.state.nests = True
    assert list(call.sent.values()) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    return call


def goes_before_what_comes_later(call, *chunks):
    """Check in which chunks what was queued again goes, and then a batch that has come meanwhile."""
    call.arrive(2)
    sent = []
    while call.sent:
        sent += sent_tasks(call.reply(next(iter(call.sent.values())), each_s=TARGET_S / 4))
    assert sent == [*chunks, (8, 9)]


def test_a_retried_task_is_not_mixed_with_what_comes_later():
    call = two_more_in_flight_than_go_now(retries=1)
    assert call.reply([0, 1], n_done=1, error=OOPS, each_s=TARGET_S / 4) == []
    goes_before_what_comes_later(call, (1,))


def test_each_task_has_retries_of_its_own():
    call = Call(slots=1, retries=1)
    call.arrive(2)
    assert sent_tasks(call.reply([0], error=OOPS)) == [(0,)]
    assert sent_tasks(call.reply([0])) == [(1,)]
    assert sent_tasks(call.reply([1], error=OOPS)) == [(1,)]
    assert call.reply([1]) == [Deliver(0, [0, 10], None)]


# Chunks that are lost


def test_a_chunk_whose_data_are_lost_runs_again_whole():
    call = Call(slots=1, fixed_batches=True)
    call.arrive(3)
    for _ in range(MAX_DATA_LOSSES):
        assert sent_tasks(call.lose([0, 1, 2], LostKind.DATA)) == [(0, 1, 2)]
    assert call.lose([0, 1, 2], LostKind.DATA) == [Deliver(0, [], LOST)]
    assert call.forgotten == [0, 1, 2]


def test_what_has_lost_its_data_is_not_mixed_with_what_comes_later():
    call = two_more_in_flight_than_go_now()
    assert call.lose([0, 1], LostKind.DATA) == []
    call.state.sizer.size = 100
    goes_before_what_comes_later(call, (0, 1))


def test_what_may_kill_its_worker_is_not_mixed_with_what_comes_later():
    call = two_more_in_flight_than_go_now()
    assert sends(call.lose([0, 1])) == []
    goes_before_what_comes_later(call, (0, 1))


def sends(commands):
    return [(tuple(c.tasks), c.report_every, c.deaths) for c in commands if isinstance(c, Send)]


def test_the_task_that_kills_workers_is_found_and_the_others_have_their_results():
    call = Call(slots=1, fixed_batches=True)
    call.arrive(9)
    call.arrive(2)
    first = tuple(range(9))
    assert sends(call.lose(first)) == [(first, 3, 1)], "every third task says that it starts"
    assert sends(call.lose(first, started=3)) == [((3, 4, 5), 1, 2)], "those that ended or never ran are clear"
    commands = call.lose([3, 4, 5], started=1)
    assert outcomes(commands) == [(0, [], LOST)]
    assert {0, 5} < set(call.forgotten)
    assert outcomes(call.reply([9, 10])) == [(1, [90, 100], None)]


def test_what_the_tasks_caller_must_know_goes_before_what_is_sent_again():
    call = Call(slots=1, fixed_batches=True)
    call.arrive(1)
    assert [type(c) for c in call.lose([0])] == [NoteDeaths, Send]
    first, second = call.lose([0], started=0)
    assert (first, second.deaths) == (NoteDeaths(2), 2)
    assert NoteDeaths(0) in call.reply([0]), "it has got over it"


def test_what_workers_died_of_before_counts_for_each_task():
    call = Call(slots=2, deaths=2)
    call.arrive(1)
    assert sends(call.arrive(1)) == [], "it runs by itself"
    commands = call.lose([0], started=0)
    assert outcomes(commands) == [(0, [], LOST)]
    assert sends(commands) == [((1,), 1, 2)]
    assert not [c for c in commands if isinstance(c, NoteDeaths)]


def test_deaths_in_calls_of_a_task_name_it_though_its_chunk_is_not_watched():
    call = Call(slots=1, fixed_batches=True)
    call.arrive(4)
    assert sends(call.lose([0, 1, 2, 3], started=2, before=1)) == [((2,), 1, 2)]
    assert outcomes(call.lose([2], started=0)) == [(0, [], LOST)]


def test_what_only_waited_on_the_worker_is_not_blamed():
    call = Call(slots=1, fixed_batches=True)
    call.arrive(1)
    call.lose([0])
    for _ in range(MAX_UNSTARTED_LOSSES):
        assert sends(call.lose([0])) == [((0,), 1, 1)]
    assert outcomes(call.lose([0])) == [(0, [], LOST)], "but workers that die before anything runs end the call"


def test_who_saw_two_workers_die_runs_while_nothing_else_does():
    """It might be blamed for what that does: a worker may have several threads."""
    call = Call(slots=4, fixed_batches=True)
    for _ in range(4):
        call.arrive(1)
    call.lose([0])
    call.lose([1])
    assert sends(call.lose([0], started=0)) == [], "the others have to come back first"
    assert sends(call.reply([2])) == []
    assert sends(call.lose([1], started=0)) == []
    assert sends(call.arrive(1)) == []
    assert sends(call.reply([3])) == [((1,), 1, 2)]
    assert sends(call.arrive(1)) == []
    assert sends(call.reply([1])) == [((0,), 1, 2)]
    assert sends(call.lose([0], started=0)) == [((4,), 0, 0), ((5,), 0, 0)]
    assert 0 in call.delivered


def test_what_a_watched_chunk_leaves_stays_watched():
    call = Call(slots=1).knows_tasks_to_be(TARGET_S / 4)
    call.arrive(4)
    assert sends(call.lose([0, 1, 2, 3])) == [((0, 1, 2, 3), 2, 1)]
    assert sends(call.reply([0, 1, 2, 3], n_done=1, each_s=TARGET_S / 4)) == [((1, 2, 3), 2, 1)]


@pytest.mark.parametrize("kind", [LostKind.SCHEDULER, LostKind.ENGINE])
def test_a_lost_cluster_ends_the_batch(kind):
    call = Call(slots=1, fixed_batches=True)
    call.arrive(2)
    assert call.lose([0, 1], kind) == [Deliver(0, [], LOST)]


@pytest.mark.parametrize("kind", [LostKind.SCHEDULER, LostKind.ENGINE])
def test_every_batch_of_a_chunk_that_is_given_up_gets_its_outcome(kind):
    call = Call(slots=1).knows_tasks_to_be(TARGET_S / 4)
    call.arrive(4)
    for _ in range(4):
        call.arrive(1)
    call.reply([0, 1, 2, 3], each_s=TARGET_S / 4)
    assert (4, 5, 6, 7) not in call.sent.values()
    tasks = next(tasks for tasks in call.sent.values() if len(tasks) > 1)
    commands = call.lose(tasks, kind)
    assert [(batch, error) for batch, _, error in outcomes(commands)] == [(1 + t - 4, LOST) for t in tasks]


# Slots


def test_new_slots_are_fed_from_the_queue_and_joblib_is_asked_for_more():
    call = Call(slots=1, ahead_per_slot=2.0)
    call.arrive(1)
    call.arrive(1)
    assert call.slots(3) == [Send(1, range(1, 2)), AskForMore(4)]


@pytest.mark.parametrize(
    ("changes", "slots", "asked"),
    [
        ({"ahead_per_slot": None}, 8, 0),
        ({"ahead_per_slot": 1.5}, 8, 12),
        ({"n_jobs": 3}, 8, 6),
        ({"n_jobs": 2}, 8, 0),
        ({"n_jobs": -3}, 8, 12),
        ({"fixed_batches": True}, 8, 16),
        ({}, 2, 0),
        ({}, 1, 0),
    ],
)
def test_joblib_is_asked_for_as_much_as_the_new_slots_may_run(changes, slots, asked):
    call = Call(slots=2, **{"ahead_per_slot": 2.0, **changes})
    call.slots(slots)
    assert call.asked == asked


def test_joblib_is_not_asked_again_for_what_it_still_owes():
    call = Call(slots=2, ahead_per_slot=2.0)
    for total in [4, 2, 4, 5, 1, 5]:
        call.slots(total)
    assert call.asked == 2 * 5


def test_joblib_is_asked_for_as_many_tasks_as_the_size_of_batches_now_means():
    """It has worked out `pre_dispatch` when batches had one task, and cuts small ones at the end of the input."""
    call = Call(slots=2, ahead_per_slot=2.0)
    for _ in range(4):
        call.arrive(1)
    assert call.asked == 0
    call.reply([0], each_s=TARGET_S / 10)
    assert call.state.sizer.size == 10
    # One batch comes for the one that was delivered, and three tasks count as one more.
    assert call.asked == 4 - 1 - 1
    for _ in range(3):
        call.arrive(10)
    assert call.asked == 2


def test_joblib_is_asked_for_more_batches_where_they_must_be_small():
    call = Call(slots=2, ahead_per_slot=2.0)
    for _ in range(4):
        call.arrive(1)
    call.state.sizer.observe_making(1, MAKING_S / 4)
    call.reply([0], each_s=TARGET_S / 10)
    assert (call.state.sizer.size, call.state.sizer.batch_size) == (10, 2)
    # Of forty tasks that should lie ready three do, and two come for the batch that was delivered.
    assert call.asked == (40 - 3) // 2 - 1
    for _ in range(20):
        call.arrive(2)
    assert call.asked == (40 - 3) // 2 - 1


def test_results_that_nobody_takes_have_nothing_more_dispatched():
    call = Call(slots=1, streamed=True, ahead_per_slot=2.0)
    for _ in range(2):
        call.arrive(1)
    for task in range(8):
        call.reply([task], each_s=TARGET_S * 2)
        if len(call.delivered) > task:
            call.arrive(1)
        elif not call.sent:
            break
    assert len(call.delivered) == 2
    assert call.asked == 0


def test_slots_that_come_back_are_not_new():
    call = Call(slots=4, ahead_per_slot=2.0)
    for total in [2, 4, 2, 4, 3, 4]:
        call.slots(total)
    assert call.asked == 0


@pytest.mark.parametrize("n_jobs", [-1, 2])
def test_a_cluster_that_has_shrunk_to_nothing_is_shown_that_work_waits(n_jobs):
    """An adaptive cluster starts workers only for tasks that its scheduler knows of."""
    call = Call(slots=2, n_jobs=n_jobs)
    call.slots(0)
    assert len(sent_tasks(call.arrive(4))) >= 1


@pytest.mark.parametrize(("n_jobs", "n_batches"), [(-1, 4), (-2, 3), (-4, 2), (3, 3), (50, 50)])
def test_how_many_batches_joblib_makes_at_a_time_is_known_whatever_workers_join(n_jobs, n_batches):
    call = Call(slots=4, n_jobs=n_jobs)
    assert call.state.sizer.n_batches == n_batches
    call.slots(1000)
    assert call.state.sizer.n_batches == n_batches


@pytest.mark.parametrize(
    ("changes", "size"), [({}, 2), ({"streamed": True}, 1), ({"timeout_s": 60.0}, 1), ({"n_jobs": MANY_JOBS - 1}, 1)]
)
def test_many_jobs_have_first_batches_of_two_where_nobody_waits_for_each(changes, size):
    call = Call(slots=MANY_JOBS, **changes)
    assert call.state.sizer.batch_size == size
    assert Call(slots=2, **{**changes, "n_jobs": 2}).state.sizer.batch_size == 1
    call.knows_tasks_to_be(TARGET_S)
    assert call.state.sizer.batch_size == 1, "from then on they are as large as chunks"


def test_what_is_sent_while_nothing_is_known_comes_in_portions():
    call = Call(slots=3 * SENT_UNKNOWN)
    assert sent_tasks(call.arrive(1000)) == [(task,) for task in range(SENT_UNKNOWN)]
    assert call.state.hold_until_s == call.now_s, "nothing is waited for"
    assert len(sent_tasks(call.slots(3 * SENT_UNKNOWN))) == SENT_UNKNOWN
    later = sent_tasks(call.reply([0], each_s=TARGET_S / 4))
    assert [len(tasks) for tasks in later] == [4] * len(later), "and goes by what others have shown"
    assert len(later) > SENT_UNKNOWN
    assert call.state.hold_until_s is None
    whole = Call(slots=3 * SENT_UNKNOWN, fixed_batches=True)
    for _ in range(4 * SENT_UNKNOWN):
        whole.arrive(1)
    assert len(whole.sent) == 3 * SENT_UNKNOWN, "there is nothing to learn"


@pytest.mark.parametrize("task_s", [TARGET_S, 3.0])
def test_no_more_is_shown_than_may_run_at_once_when_slots_join(task_s):
    call = Call(slots=4, n_jobs=5).knows_tasks_to_be(task_s)
    call.arrive(50)
    for _ in range(3):
        call.now_s += 2.0
        call.slots(4)
    assert 4 <= len(call.sent) <= 5, "these all start if more slots join, before that is known"


def test_no_slot_for_too_long_ends_the_call():
    call = Call(slots=2, no_workers_timeout_s=60.0)
    call.arrive(5)
    call.slots(0)
    call.now_s += 59.9
    assert outcomes(call.slots(0)) == []
    call.now_s += 0.2
    ((batch, results, error),) = outcomes(call.slots(0))
    assert (batch, results) == (0, [])
    assert isinstance(error, NoWorkersError)
    assert "wait_for_workers_timeout=120" in str(error)
    assert not call.state.unfinished
    for chunk in call.sent:
        assert call.tell(ChunkLost(chunk, LostKind.DATA, LOST)) == []


def test_a_slot_that_comes_back_in_time_starts_the_wait_anew():
    call = Call(slots=1, no_workers_timeout_s=60.0)
    call.arrive(2)
    call.slots(0)
    call.now_s += 59
    call.slots(1)
    call.now_s += 59
    call.slots(0)
    call.now_s += 59
    assert outcomes(call.slots(0)) == []


def test_a_cluster_that_is_slow_is_shown_more_work_than_it_has_slots_for():
    """An adaptive cluster grows only for tasks that its scheduler knows of."""
    call = Call(slots=1)
    call.arrive(4)
    assert len(call.sent) == 1
    call.slots(1)
    call.now_s += 1.0
    assert sent_tasks(call.slots(1)) == [(1,), (2,), (3,)]
    several = Call(slots=1, n_jobs=3)
    several.arrive(5)
    several.slots(1)
    several.now_s += 1.0
    assert len(sent_tasks(several.slots(1))) == 2
    no_more_than_asked_for = Call(slots=4, n_jobs=2)
    no_more_than_asked_for.arrive(5)
    no_more_than_asked_for.slots(4)
    no_more_than_asked_for.now_s += 1.0
    assert sent_tasks(no_more_than_asked_for.slots(4)) == []


def test_a_call_that_waits_for_nothing_has_no_need_of_slots():
    call = Call(slots=1, no_workers_timeout_s=60.0)
    call.arrive(1)
    call.reply([0])
    for _ in range(3):
        call.now_s += 100
        assert call.slots(0) == []


def test_the_wait_for_slots_begins_when_there_is_work():
    call = Call(slots=1, no_workers_timeout_s=60.0)
    for _ in range(3):
        call.now_s += 100
        call.slots(0)
    call.arrive(1)
    call.now_s += 1
    assert outcomes(call.slots(0)) == []


def test_no_slot_for_too_long_ends_every_batch():
    call = Call(slots=2, no_workers_timeout_s=60.0)
    for _ in range(3):
        call.arrive(1)
    call.slots(0)
    call.now_s += 61
    assert [batch for batch, _, _ in outcomes(call.slots(0))] == [0, 1, 2]


def test_replies_are_awaited_if_they_are_overdue_and_as_much_lies_ready():
    call = Call(slots=1)
    call.arrive(5)
    assert not call.state.awaits_replies(call.now_s + 100)  # nothing is known of the tasks
    call.reply([0], each_s=2.0)
    assert call.sent == {1: (1,)}
    assert not call.state.awaits_replies(call.now_s + 3.0)
    assert call.state.awaits_replies(call.now_s + 3.02)
    call.reply([1], each_s=2.0)
    assert not call.state.awaits_replies(call.now_s + 3.0)
    call.reply([2], each_s=2.0)
    call.reply([3], each_s=2.0)
    assert call.sent == {4: (4,)}
    assert not call.state.awaits_replies(call.now_s + 100)  # nothing could be sent


# Results that are taken while the call runs


def run_ahead(call, n):
    """Finish tasks 0 to n - 1, each a batch, with a new one for each; give the batches delivered."""
    for _ in range(n):
        call.arrive(1)
    for _ in range(n):
        call.reply(next(iter(call.sent.values())))
    return call.delivered


@pytest.mark.parametrize("ordered", [True, False])
def test_results_that_nobody_takes_are_held_back(ordered):
    call = Call(slots=2, streamed=True, ordered=ordered)
    assert run_ahead(call, 9) == [0, 1, 2, 3]
    assert outcomes(call.consume(0)) == [(4, [40], None)]
    assert outcomes(call.consume(1)) == [(5, [50], None)]
    for batch in range(2, 9):
        call.consume(batch)
    assert call.delivered == list(range(9))


@pytest.mark.parametrize("ordered", [True, False])
def test_more_results_lie_ready_where_tasks_are_shorter_than_joblibs_looks_are_apart(ordered):
    call = Call(slots=2, streamed=True, ordered=ordered).knows_tasks_to_be(2e-6)
    for _ in range(9):
        call.arrive(1)
    while call.sent:
        call.reply(next(iter(call.sent.values())), each_s=2e-6)
    assert call.delivered == list(range(9))


@pytest.mark.parametrize(("size", "most"), [(1, 2 * YIELDED_S / 1e-4 // MIN_BATCH), (45, 2 * YIELDED_S / 1e-4 // 45)])
def test_but_no_more_than_slots_do_until_then_in_batches_that_are_not_too_many(size, most):
    call = Call(slots=2, streamed=True).knows_tasks_to_be(1e-4)
    for _ in range(20):
        call.arrive(size)
    while call.sent:
        call.reply(next(iter(call.sent.values())), each_s=1e-4)
    assert call.delivered == list(range(int(most)))
    assert [number for number, _, _ in outcomes(call.consume(0))] == [most]


def test_results_of_a_call_that_gives_a_list_are_never_held_back():
    assert run_ahead(Call(slots=1, streamed=False), 50) == list(range(50))


@pytest.mark.parametrize("ordered", [True, False])
def test_a_failure_is_not_held_back(ordered):
    call = Call(slots=1, streamed=True, ordered=ordered)
    run_ahead(call, 4)
    assert call.delivered == [0, 1]
    call.arrive(1)
    assert outcomes(call.reply([4], error=OOPS)) == [(4, [], OOPS)]


def test_the_batch_that_the_consumer_waits_for_is_not_held_back():
    call = Call(slots=2, streamed=True, ordered=True)
    for _ in range(8):
        call.arrive(1)
    for task in [1, 2, 3, 4]:
        call.reply([task])
    assert call.delivered == [1, 2, 3, 4], "the look-ahead is used up"
    assert sent_tasks(call.reply([5])) == [(6,)]
    assert outcomes(call.reply([0])) == [(0, [0], None)]
    # Only what waits for it is let through, not what comes after.
    assert call.consume(0) == []
    assert outcomes(call.consume(1)) == [(5, [50], None)]


def test_what_is_held_back_goes_in_order():
    call = Call(slots=2, streamed=True, ordered=True)
    for _ in range(8):
        call.arrive(1)
    for task in [0, 1, 2, 3, 5]:
        call.reply([task])
    assert outcomes(call.reply([4])) == []
    assert outcomes(call.consume(0)) == [(4, [40], None)]
    assert outcomes(call.consume(1)) == [(5, [50], None)]


def test_what_comes_before_all_that_was_delivered_is_held_back_if_the_consumer_waits_for_another():
    call = Call(slots=3, streamed=True, ordered=True)
    for _ in range(9):
        call.arrive(1)
    for task in [2, 3, 4, 5, 6, 7]:
        call.reply([task])
    assert call.delivered == [2, 3, 4, 5, 6, 7]
    assert outcomes(call.reply([1])) == [], "0 is what it waits for"
    assert outcomes(call.reply([0])) == [(0, [0], None)]
    assert outcomes(call.consume(0)) == [(1, [10], None)]


def test_batches_are_delivered_as_they_come_when_order_does_not_matter():
    call = Call(slots=2, streamed=True, ordered=False)
    for _ in range(8):
        call.arrive(1)
    for task in [1, 2, 3, 0]:
        call.reply([task])
    assert call.delivered == [1, 2, 3, 0]
    assert outcomes(call.reply([5])) == outcomes(call.reply([4])) == []
    assert outcomes(call.consume(3)) == [(5, [50], None)]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("n_jobs", [-1, 2])
def test_a_result_is_delivered_though_its_worker_was_the_last(n_jobs, ordered):
    call = Call(slots=2, n_jobs=n_jobs, streamed=True, ordered=ordered)
    call.arrive(1)
    call.slots(0)
    assert outcomes(call.reply([0])) == [(0, [0], None)]


# The last tasks, a second time


@pytest.mark.parametrize(
    ("away_s", "expected_s", "slow"),
    [
        (1e9, None, False),
        (LEAST_S, 0.01, False),
        (LEAST_S + 0.1, 0.01, True),
        (10 * FACTOR, 10.0, False),
        (10 * FACTOR + 1, 10.0, True),
    ],
)
def test_what_is_slow_is_so_by_comparison(away_s, expected_s, slow):
    assert is_straggler(away_s, expected_s) is slow


def speculating(n=3, slots=2, **changes):
    """Give a call whose last task is away for long, and the other slots idle."""
    call = Call(slots=slots, speculation=True, fixed_batches=True, **changes)
    for _ in range(n):
        call.arrive(1)
    call.state.input_ended = True
    for task in range(n - 1):
        call.reply([task], each_s=2.0)
    assert list(call.sent.values()) == [(n - 1,)]
    call.now_s += 2.0 * FACTOR + 1
    return call


def test_a_straggler_runs_once_more_and_the_first_answer_counts():
    call = speculating()
    assert [(c.tasks, c.copy_of) for c in call.slots(2)] == [(range(2, 3), 2)]
    assert call.slots(2) == [], "not a third time"
    call.now_s += 1e6
    assert call.slots(2) == []
    commands = call.tell(ChunkReplied(3, [20], None, 1.0, False))
    assert commands == [GiveUp(2), Deliver(2, [20], None)]
    assert call.tell(ChunkReplied(2, ["late"], None, 1.0, False)) == []
    assert not call.state.unfinished


def test_the_first_answer_may_be_the_stragglers_own():
    call = speculating()
    call.slots(2)
    assert call.tell(ChunkReplied(2, [20], None, 9.0, False)) == [GiveUp(3), Deliver(2, [20], None)]
    assert call.forgotten == [0, 1, 2]


def test_an_exception_is_an_answer():
    call = speculating()
    call.slots(2)
    assert call.tell(ChunkReplied(3, [], OOPS, 1.0, False)) == [GiveUp(2), Deliver(2, [], OOPS)]


@pytest.mark.parametrize("first", [2, 3])
@pytest.mark.parametrize("kind", [LostKind.WORKER, LostKind.DATA])
def test_if_one_of_the_two_is_lost_the_other_is_waited_for(first, kind):
    call = speculating()
    call.slots(2)
    assert sends(call.tell(ChunkLost(first, kind, LOST))) == []
    assert outcomes(call.tell(ChunkReplied(5 - first, [20], None, 1.0, False))) == [(2, [20], None)]


def test_that_it_ran_twice_at_once_does_not_cost_more_workers():
    call = speculating(return_exceptions=True)
    call.slots(2)
    call.tell(ChunkLost(2, LostKind.WORKER, LOST))
    _, again = call.tell(ChunkLost(3, LostKind.WORKER, LOST))
    assert (again.tasks, again.deaths) == (range(2, 3), 2)
    assert outcomes(call.tell(ChunkLost(again.chunk, LostKind.WORKER, LOST, started=0))) == [(2, [LOST], None)]


def test_nothing_runs_twice_unless_the_user_says_so():
    call = speculating()
    call.state.limits = limits(fixed_batches=True)
    assert call.slots(2) == []


def test_nothing_runs_twice_while_there_is_something_else_to_do():
    call = speculating(slots=1)
    assert call.slots(1) == [], "no slot is idle"
    call = speculating()
    call.state.input_ended = False
    assert call.slots(2) == [], "more tasks may come"
    call = speculating()
    call.now_s -= 2.0
    assert call.slots(2) == [], "it is not late yet"


# What waits behind a task that takes long


def of_a_long_chunk(**changes):
    """Give a call on two slots whose first runs tasks 0 to 5, the other task 6, and nothing is queued."""
    call = Call(slots=2, ahead_per_slot=None, **changes)
    call.state.sizer.observe(1, 0.001)
    call.state.sizer.size = 6
    call.state.sizer.mean_s = 0.02  # so that chunks may wait on a worker
    assert sent_tasks(call.arrive(7)) == [tuple(range(6)), (6,)]
    return call


def test_what_is_behind_a_task_that_takes_long_runs_elsewhere():
    call = of_a_long_chunk()
    assert call.tell(ChunkCut(0, 2)) == [], "it might wait behind that task"
    assert sent_tasks(call.reply([6], each_s=0.001)) == [(2, 3, 4, 5)]
    call.sent[0] = (0, 1)
    assert call.reply([2, 3, 4, 5], each_s=0.001) == []
    assert call.reply([0, 1]) == [Deliver(0, [10 * i for i in range(7)], None)]
    assert call.forgotten == [6, 2, 3, 4, 5, 0, 1]


@pytest.mark.parametrize("n_jobs", [-1, 5])
def test_nor_does_anything_wait_behind_it_when_nothing_has_come_back_for_long(n_jobs):
    call = of_a_long_chunk(n_jobs=n_jobs)
    call.tell(ChunkCut(0, 2))
    for _ in range(2):
        call.now_s += 2.0
        assert sent_tasks(call.slots(2)) == []


def test_what_lasts_long_enough_to_be_moved_may_wait_on_a_worker():
    call = of_a_long_chunk()
    call.state.sizer.mean_s = MIN_MOVED_S / 4
    assert sent_tasks(call.tell(ChunkCut(0, 2))) == [(2, 3, 4, 5)]


def test_a_chunk_that_was_cut_may_be_lost():
    call = of_a_long_chunk()
    call.tell(ChunkCut(0, 2))
    call.sent[0] = (0, 1)
    assert sent_tasks(call.lose([0, 1], LostKind.DATA)) == [(0, 1), (2, 3, 4, 5)]
    call.reply([6])
    call.reply([2, 3, 4, 5])
    assert call.reply([0, 1]) == [Deliver(0, [10 * i for i in range(7)], None)]


def test_a_task_that_was_given_back_is_not_blamed_for_what_the_chunk_did():
    call = of_a_long_chunk(retries=1)
    call.tell(ChunkCut(0, 2))
    call.sent[0] = (0, 1)
    assert sent_tasks(call.lose([0, 1], LostKind.OVERRUN, started=3, raised=True))[0] == (0, 1)
    call.reply([6])
    assert outcomes(call.reply([2, 3, 4, 5], 0, OOPS)) == [], "it has its own try left"


@pytest.mark.parametrize(("chunk", "n_kept"), [(0, 6), (0, 7), (1, 1), (5, 1)])
def test_a_chunk_that_has_nothing_to_give_back_goes_on(chunk, n_kept):
    call = of_a_long_chunk()
    assert call.tell(ChunkCut(chunk, n_kept)) == []
    call.reply([0, 1, 2, 3, 4, 5])
    assert call.reply([6]) == [Deliver(0, [10 * i for i in range(7)], None)]


def test_of_two_chunks_with_the_same_tasks_the_whole_one_is_given_up_when_the_other_is_cut():
    call = of_a_long_chunk(speculation=True)
    call.state.input_ended = True
    call.reply([6], each_s=0.001)
    call.now_s += 1000.0
    assert [(c.tasks, c.copy_of) for c in call.slots(2)] == [(range(6), 0)]
    commands = call.tell(ChunkCut(0, 2))
    assert commands[0] == GiveUp(2)
    assert sent_tasks(commands) == [(2, 3, 4, 5)]


def test_inner_calls_are_not_made_twice():
    call = Call(slots=2, speculation=True, fixed_batches=True)
    for _ in range(2):
        call.arrive(1)
    call.state.input_ended = True
    call.reply([0], each_s=1.0, nested=True)
    call.now_s += 100.0
    assert call.slots(2) == []


# Tasks known from earlier calls

SHORT_S = 0.001


class KnownCall(Call):
    """A call whose tasks are known to be short; by the real policy."""

    def __init__(self, slots=2, **changes):
        super().__init__(slots, **{"ahead_per_slot": 2.0, **changes})
        self.state.sizer = ChunkSizer(slots, self.state.limits.queued)

    def arrive(self, size=1, each_s=SHORT_S):
        return self.tell(BatchArrived(size, known=None if each_s is None else Known(each_s, nested=False)))

    def pause(self):
        return self.tell(DispatchPaused())

    def wait(self, seconds):
        self.now_s += seconds
        return sent_tasks(self.state.handle_all((), self.now_s))

    def end_input(self):
        self.state.input_ended = True
        return self.wait(0)


def test_where_results_are_taken_as_they_come_none_waits_for_those_that_go_along():
    call = KnownCall(streamed=True)
    assert [sent_tasks(call.arrive()) for _ in range(2)] == [[(0,)], [(1,)]]
    assert call.state.sizer.batch_size == 1


def test_the_first_tasks_wait_for_the_others_of_their_chunks():
    call = KnownCall()
    assert [sent_tasks(call.arrive()) for _ in range(4)] == [[]] * 4
    assert call.asked == 0, "the caller is still pulling the user's iterable"
    assert sent_tasks(call.pause()) == []
    assert call.asked > 0
    call.arrive(4)
    assert call.end_input() == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_but_not_for_long():
    call = KnownCall()
    call.arrive()
    assert call.state.hold_until_s == call.now_s + HOLD_S
    assert call.wait(HOLD_S / 2) == []
    assert call.wait(HOLD_S) == [(0,)]
    assert sent_tasks(call.arrive()) == [(1,)]


def test_nor_for_more_than_may_go_in_one_round():
    call = KnownCall()
    assert sent_tasks(call.arrive(80)) == []
    assert sent_tasks(call.arrive(1)) == [tuple(range(20)), tuple(range(20, 40))]


def test_those_that_may_go_in_one_round_do_however_they_come():
    call = KnownCall(queued=True)
    assert sent_tasks(call.arrive(60)) == []
    assert sent_tasks(call.arrive(20)) == []
    assert call.end_input() == [tuple(range(40)), tuple(range(40, 80))]


def first_chunks_sent():
    """Give a call whose first chunks, by a guess, run; 50 tasks are there, and more are to come."""
    call = KnownCall(queued=True)
    assert sent_tasks(call.arrive(90)) == [tuple(range(20)), tuple(range(20, 40))]
    return call


def test_what_is_behind_the_first_chunks_waits_for_those_that_go_along():
    call = first_chunks_sent()
    assert sent_tasks(call.arrive(410)) == []
    # Nobody has an equal share if they are cut one by one as tasks come.
    assert [len(tasks) for tasks in call.end_input()] == [173, 173]


def test_but_not_so_long_that_a_slot_waits():
    call = first_chunks_sent()
    assert call.wait(HOLD_NEXT_S / 2) == []
    assert [len(tasks) for tasks in call.wait(HOLD_NEXT_S)] == [25, 20]
    call = first_chunks_sent()
    sent = sent_tasks(call.reply(range(20), each_s=SHORT_S))
    assert sum(sent, ()) == tuple(range(40, 90))
    assert call.state.hold_until_s is None


def test_nor_for_more_than_a_chunk_of_full_length_for_each_slot():
    call = first_chunks_sent()
    assert sent_tasks(call.arrive(1949)) == []
    assert sum(sent_tasks(call.arrive(1)), ()) == tuple(range(40, 1540))


def fed_slowly(made_s=GATHERED_S / 10, **changes):
    """Give a call whose tasks take so long to make, and no time to do; one runs, and a slot has nothing to do."""
    call = Call(slots=2, **{"streamed": True, "ahead_per_slot": 2.0, "queued": True, **changes})
    call.state.sizer.observe_making(100, 100 * made_s + BATCH_S)
    call.arrive(1)
    call.arrive(1)
    call.reply([0], each_s=1e-5)
    assert call.sent
    return call


def test_few_tasks_wait_for_others_where_these_take_longer_to_make_than_to_do():
    call = fed_slowly()
    assert sent_tasks(call.arrive(9)) == []
    assert sent_tasks(call.arrive(1)) == [tuple(range(2, 12))]
    assert sent_tasks(call.arrive(1)) == [], "and so on"


def test_but_no_longer_than_these_should_take():
    call = fed_slowly()
    call.arrive(9)
    assert call.state.hold_until_s == call.now_s + GATHERED_S
    assert sent_tasks(call.consume(0)) == []
    call.now_s += GATHERED_S
    assert sent_tasks(call.consume(0)) == [tuple(range(2, 11))]
    assert call.state.hold_until_s is None


def end_input(call):
    call.state.input_ended = True


def have_them_take_long(call):
    call.state.sizer.observe(1, 1.0)


@pytest.mark.parametrize("change", [end_input, have_them_take_long])
def test_nor_without_a_reason(change):
    call = fed_slowly()
    assert sent_tasks(call.arrive(9)) == []
    change(call)
    assert sent_tasks(call.consume(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: fed_slowly(made_s=2 * GATHERED_S),  # the next one is not there in that time
        lambda: fed_slowly(fixed_batches=True),
        lambda: fed_slowly(queued=False),  # what a chunk costs others does not make the client slower
    ],
)
def test_nor_do_such_that_would_wait_alone(call):
    assert sent_tasks(call().arrive(1)) == [(2,)]


def test_nor_where_joblib_is_to_dispatch_no_more():
    call = fed_slowly(ahead_per_slot=None)
    assert call.asked == 0
    assert sent_tasks(call.arrive(1)) == [(2,)], "it came for the one that was delivered"


def guessed_to_be_fed_slowly(**changes):
    """Give a call whose first chunks run, by a guess, and the chunks that go with them.

    A hundred of its tasks are made in the time for which a chunk waits, two hundred done in that of a guessed chunk.
    """
    call = KnownCall(**changes)
    call.state.sizer.observe_making(1000, 1000 * GATHERED_S / 100 + BATCH_S)
    return call, sent_tasks(call.arrive(801, each_s=GUESSED_S / 200))


def test_where_tasks_are_done_faster_than_made_more_go_before_any_reply_is_read():
    call, sent = guessed_to_be_fed_slowly(queued=True)
    assert [len(tasks) for tasks in sent] == [200, 200, 201, 200]
    for _ in range(2 * UNREAD_CHUNKS - 4):
        assert sent_tasks(call.arrive(99)) == []
        assert [len(tasks) for tasks in sent_tasks(call.arrive(1))] == [100]
    assert sent_tasks(call.arrive(200)) == []


def test_what_a_chunk_leaves_waits_like_any_few_tasks():
    call, _ = guessed_to_be_fed_slowly(queued=True)
    assert [len(tasks) for tasks in sent_tasks(call.arrive(230))] == [200]
    assert [len(tasks) for tasks in sent_tasks(call.arrive(70))] == [100]
    assert [len(tasks) for tasks in sent_tasks(call.arrive(210))] == [200]
    assert [len(tasks) for tasks in call.wait(GATHERED_S)] == [10]


def test_the_rest_is_shared_out_as_if_what_was_sent_before_were_done():
    call, _ = guessed_to_be_fed_slowly(queued=True)
    assert sent_tasks(call.arrive(90)) == []
    assert [len(tasks) for tasks in call.end_input()] == [45, 45]


def all_known(n_tasks, slots=2):
    """Give a call of which all tasks are there and known to take 1 ms, and the chunks that are sent at first."""
    call = KnownCall(slots, queued=True)
    for _ in range(3):
        call.state.sizer.observe(call.state.sizer.size, call.state.sizer.size * SHORT_S)
    call.state.input_ended = True
    return call, sent_tasks(call.arrive(n_tasks))


@pytest.mark.parametrize("slots", [1, 2, 3, 16])
def test_slots_that_begin_together_get_equal_chunks_until_the_end(slots):
    _, sent = all_known(500 * slots, slots)
    sizes = [len(tasks) for tasks in sent]
    assert set(sizes[:slots]) == {375}
    assert set(sizes[slots:]) == {94}, "three quarters of what these leave"


@pytest.mark.parametrize(
    ("late_s", "span_s"),
    [
        (0.0, 0.062 / 2),
        (0.15, (0.563 + 0.525 + 0.062) / 2 - 0.525),  # the second slot is free before the first, which has what waits
        (0.3, 0.062),  # the first slot has all that is left
    ],
)
def test_a_slot_that_is_free_later_gets_less(late_s, span_s):
    call, sent = all_known(1000)
    assert [len(tasks) for tasks in sent] == [375, 375, 94, 94], "62 are left"
    call.state._chunks[1].began_s += late_s
    assert call.state._span_s(call.now_s) == pytest.approx(span_s, abs=1e-4)


@pytest.mark.parametrize("changes", [{"each_s": None}, {"each_s": 0.1}])
def test_tasks_that_are_long_or_unknown_go_at_once(changes):
    call = KnownCall()
    assert sent_tasks(call.arrive(**changes)) == [(0,)]


def test_the_users_batches_go_at_once():
    call = KnownCall(fixed_batches=True)
    assert sent_tasks(call.arrive(3)) == [(0, 1, 2)]


def sent_here(commands):
    return [(tuple(command.tasks), command.here) for command in commands if isinstance(command, Send)]


def short_call(n_tasks, each_s=SHORT_S, **changes):
    """Give what is sent of a call whose caller could do all of it."""
    call = KnownCall(help_s=0.03, **changes)
    call.arrive(n_tasks, each_s)
    call.state.input_ended = True
    return call, sent_here(call.pause())


def test_a_short_call_is_left_to_its_caller():
    call, sent = short_call(30)
    assert sent == [(tuple(range(30)), True)]
    assert outcomes(call.reply(range(30), each_s=SHORT_S)) == [(0, [10 * task for task in range(30)], None)]


def test_what_the_caller_did_not_come_to_goes_to_the_cluster():
    call, _ = short_call(30)
    call.tell(ChunkReplied(0, [0] * 2, None, 5.0, False))
    assert {here for _, here in sent_here(call.slots(2))} <= {False}
    assert {tuple(tasks) for tasks in call.sent.values()} >= {(2,), (3,)}


def test_a_call_that_is_longer_goes_to_the_cluster():
    _, sent = short_call(31)
    assert {here for _, here in sent} == {False}


def test_a_caller_that_cannot_help_gets_nothing():
    call = KnownCall()
    call.arrive(4)
    call.state.input_ended = True
    assert {here for _, here in sent_here(call.state.handle(DispatchPaused(), call.now_s))} == {False}


def test_a_caller_that_does_not_come_to_wait_gets_nothing():
    call = KnownCall(help_s=0.03)
    call.arrive(4)
    assert call.end_input() == []
    call.now_s += HELP_HOLD_S
    assert {here for _, here in sent_here(call.state.handle_all((), call.now_s))} == {False}


def test_a_chunk_says_whether_others_wait_for_a_slot():
    call = Call(slots=2)
    sent = [command for _ in range(4) for command in call.arrive()]
    sent += [command for task in (0, 1) for command in call.reply([task]) if isinstance(command, Send)]
    assert [(tuple(command.tasks), command.others_wait) for command in sent] == [
        ((0,), False),
        ((1,), False),
        ((2,), True),
        ((3,), False),
    ]
