"""Every fault at every point of a small call, however its results are taken: no luck of a random walk is needed."""

import itertools

import pytest
from tests.unit.test_state_walk import Books

from jobfleet._call.state import CallLimits

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

N_BATCHES = 4
BATCH_SIZE = 2
SLOTS = 2

RETURN_AS = {"list": (False, True), "generator": (True, True), "generator_unordered": (True, False)}

#: What may happen beside a reply, with two numbers to choose with: which chunk, and where in it.
FAULTS = {
    "a worker dies, before its task": [(Books.a_worker_dies, 0, 3)],
    "a worker dies, in its first task": [(Books.a_worker_dies, 0, 0)],
    "a worker dies, after its tasks": [(Books.a_worker_dies, 0, 1)],
    "both workers die": [(Books.a_worker_dies, 0, 0)] * 2,
    "data are lost": [(Books.data_are_lost, 0, 0)],
    "a task raises": [(Books.a_task_raises, 0, 0)],
    "a later task raises": [(Books.a_task_raises, 1, 1)],
    "a part comes back": [(Books.a_worker_replies_with_a_part, 0, 1)],
    "a silent worker answers late": [(Books.a_worker_replies, 0, 0), (Books.an_outcome_comes_a_second_time, 0, 1)],
    "a silent worker is lost late": [(Books.a_worker_replies, 0, 0), (Books.an_outcome_comes_a_second_time, 0, 0)],
    "a chunk is cut": [(Books.a_chunk_is_cut, 0, 0)],
    "a chunk is cut, and its worker dies": [(Books.a_chunk_is_cut, 0, 0), (Books.a_worker_dies, 0, 0)],
    "one slot is left": [(Books.slots_change, 0, 0)],
    "workers join": [(Books.slots_change, 3, 0)],
    "all slots go": [(Books.all_slots_go, 0, 0)],
    "all workers die": [(Books.a_worker_dies, 0, 0), (Books.a_worker_dies, 0, 0), (Books.all_slots_go, 0, 0)],
    "tasks make calls": [(Books.a_worker_tells_of_inner_calls, 0, 0)],
    "the scheduler is lost": [(Books.a_chunk_is_given_up, 0, 0)],
    "the engine fails": [(Books.a_chunk_is_given_up, 0, 1)],
    "what arrives does not pickle": [(Books.a_batch_arrives_that_does_not_pickle, 1, 0)],
    "one call of what arrives does not pickle": [(Books.a_batch_arrives_with_one_that_does_not_pickle, 1, 0)],
}

#: A call without faults: the points are before each of these, and after the last.
COURSE = [
    *[(Books.a_batch_arrives, BATCH_SIZE - 1, 0)] * N_BATCHES,
    *[(Books.a_worker_replies, 0, 0), (Books.the_user_takes_results, 0, 0)] * (N_BATCHES * BATCH_SIZE),
]


@pytest.mark.parametrize("return_as", RETURN_AS)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_call_comes_to_its_end(fault, return_as):
    """At each point it strikes once, and three times in a row; with each combination of the user's limits."""
    streamed, ordered = RETURN_AS[return_as]
    combinations = itertools.product(range(len(COURSE) + 1), (1, 3), (False, True), (0, 2), (False, True))
    for point, times, fixed, retries, return_exceptions in combinations:
        limits = CallLimits(
            n_jobs=-1,
            fixed_batches=fixed,
            streamed=streamed,
            ordered=ordered,
            retries=retries,
            ahead_per_slot=None,
            no_workers_timeout_s=1e9,
            return_exceptions=return_exceptions,
        )
        books = Books(limits, SLOTS)
        for event, one, other in [*COURSE[:point], *FAULTS[fault] * times, *COURSE[point:]]:
            event(books, one, other)
        books.finish()
