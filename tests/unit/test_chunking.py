"""Chunks are long enough to hide what they cost, and grow towards that in bounded steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobfleet._call.chunking import (
    BATCH_S,
    GATHERED_S,
    GUESSED_S,
    LEAST_BEFORE_END_PER_SLOT_S,
    LEAST_BUDGET_S,
    LEAST_PER_SLOT_S,
    LEAST_S,
    LEAST_TIMED,
    MAKING_PER_SLOT_S,
    MAKING_S,
    MAX_CHUNK_NBYTES,
    MAX_DISPATCHED,
    MAX_READY_NBYTES,
    MAX_WAITING_S,
    MIN_BATCH,
    MIN_BATCH_FED_SLOWLY,
    MIN_WAITING_S,
    MOST_LEAST_BEFORE_END_S,
    QUEUED_PART,
    QUEUED_TARGET_S,
    READY_PER_SLOT_NBYTES,
    TARGET_S,
    TASK_NBYTES,
    UNREAD_CHUNKS,
    YIELDED_S,
    ChunkSizer,
    least_s,
    target_s,
)

pytestmark = pytest.mark.timeout(20)

GROWTH = 256
LARGEST = 10_000


def sized_by(*durations_s):
    """Give a sizer that has seen chunks of one task with these durations."""
    sizer = ChunkSizer(2)
    for duration_s in durations_s:
        sizer.observe(1, duration_s)
    return sizer


def test_begins_with_single_tasks_one_per_slot():
    sizer = ChunkSizer(2)
    assert (sizer.size, sizer.mean_s, sizer.chunks_per_slot()) == (1, None, 1)


def test_grows_by_a_bounded_factor_however_short_the_tasks():
    sizer = ChunkSizer(2)
    sizes = []
    for _ in range(6):
        sizer.observe(sizer.size, 0.0)
        sizes.append(sizer.size)
    assert sizes == [GROWTH, *[LARGEST] * 5]


def test_shrinks_at_once_when_tasks_turn_out_long():
    sizer = sized_by(*[1e-5] * 10)
    assert sizer.size > 1000
    sizer.observe(1, 2 * TARGET_S)
    assert sizer.size == 1


def guessed(mean_s, slots=2):
    sizer = ChunkSizer(slots)
    sizer.guess(mean_s)
    return sizer


def test_a_guess_cuts_the_first_chunks_short():
    sizer = guessed(GUESSED_S / 10)
    assert (sizer.size, sizer.chunks_per_slot()) == (10, 1)
    assert sizer.share(1000, 0, is_all=False) == 10
    assert sizer.batch_size == sizer.n_first // 2 == 10, "they wait for no more"
    sizer.observe_making(sizer.n_one_round, 0.0)
    assert sizer.batch_size == 10, "unless these are all"
    sizer.observe_making(1, 0.0)
    # What lies ready when they come back is enough for chunks of full length.
    assert sizer.batch_size == int(TARGET_S / (GUESSED_S / 10))


def test_the_first_chunk_that_ran_counts_more_than_a_guess():
    sizer = guessed(1e-6)
    sizer.observe(1, 3.0)
    assert (sizer.mean_s, sizer.size) == (3.0, 1)
    sizer.guess(1e-6)
    assert sizer.mean_s == 3.0


def test_few_tasks_guessed_to_be_short_go_in_one_round():
    sizer = guessed(GUESSED_S / 3)
    assert sizer.size == 3
    assert sizer.share(8, 0, is_all=True) == 4
    assert sizer.share(4, 4, is_all=True) == 4
    assert sizer.share(100, 0, is_all=True) == 3


def test_guessed_chunks_are_worth_what_they_cost_one_scheduler():
    assert guessed(0.1, slots=2).size == 1
    assert guessed(0.1, slots=1000).size == int(LEAST_PER_SLOT_S * 1000 / 0.1)


def test_while_more_may_come_chunks_of_many_slots_are_longer_but_may_be_nearly_all():
    assert least_s(1000, is_all=False) == LEAST_BEFORE_END_PER_SLOT_S * 1000 > least_s(1000, is_all=True)
    assert least_s(10_000, is_all=False) == MOST_LEAST_BEFORE_END_S
    assert least_s(2, is_all=False) == least_s(2, is_all=True) == LEAST_S


@pytest.mark.parametrize("slots", [2, 64, 10_000])
def test_joblib_is_not_asked_for_many_tasks_at_a_time(slots):
    most = max(MIN_BATCH, MAX_DISPATCHED // slots)
    sizer = sized_by(*[1e-6] * 10)
    sizer.n_slots = sizer.n_batches = slots
    assert guessed(0.0, slots).batch_size == sizer.batch_size == most


def test_but_for_more_of_them_where_slots_wait_for_the_client():
    sizer = guessed(1e-6, slots=1000)
    assert sizer.batch_size == MIN_BATCH
    sizer.observe_making(10_000, 10_000 * 3e-6 + BATCH_S)
    assert sizer.is_fed_slowly
    assert sizer.batch_size == MIN_BATCH_FED_SLOWLY
    slow = guessed(0.01, slots=1000)
    slow.observe_making(10_000, 10_000 * 3e-6 + BATCH_S)
    assert slow.batch_size == MIN_BATCH


def test_what_joblib_makes_at_a_time_depends_on_its_jobs_and_not_on_the_slots_that_there_are_now():
    sizer = guessed(0.0, slots=2)
    sizer.n_slots = 50
    assert sizer.batch_size == MAX_DISPATCHED // 2
    sizer = guessed(0.0, slots=2)
    sizer.n_batches = 32
    assert sizer.batch_size == MAX_DISPATCHED // 32
    sizer.observe_making(100, 100 * 1e-3 + BATCH_S)
    assert sizer.batch_size == 1


@pytest.mark.parametrize("slots", [2, 64, 1000])
def test_enough_lies_ready_for_a_chunk_of_full_length_for_each_slot(slots):
    sizer = guessed(0.1, slots)
    assert sizer.ready_size == int(target_s(slots) / 0.1)


@pytest.mark.parametrize("task_nbytes", [0, 1000, 2**20])
@pytest.mark.parametrize("slots", [2, 16, 1000, 10_000])
def test_what_lies_ready_does_not_fill_the_clients_memory(slots, task_nbytes):
    sizer = ChunkSizer(slots)
    for _ in range(10):
        sizer.observe(sizer.size, 0.0, task_nbytes * sizer.size)
    each = task_nbytes + TASK_NBYTES
    most = max(MAX_READY_NBYTES, READY_PER_SLOT_NBYTES * slots)
    assert sizer.ready_size == 1 or sizer.ready_size * slots * each <= most
    assert sizer.ready_size == sizer.size or (sizer.ready_size + 1) * slots * each > most


@pytest.mark.parametrize(
    ("task_s", "nbytes", "most"), [(1e-5, 0, 2 * YIELDED_S / 1e-5), (1e-5, 2**18, 64), (1.0, 0, 0)]
)
def test_as_much_lies_ready_to_be_yielded_as_slots_do_while_joblib_does_not_look(task_s, nbytes, most):
    sizer = ChunkSizer(2)
    assert sizer.yielded_size == 0
    for _ in range(60):
        sizer.observe(sizer.size, sizer.size * task_s, nbytes * sizer.size)
    assert most - 1 <= sizer.yielded_size <= most


@pytest.mark.parametrize("slots", [1, 10])
def test_it_is_known_whether_tasks_take_longer_to_make_than_to_do(slots):
    sizer = ChunkSizer(slots)
    sizer.observe_making(10, 10 * 0.002 + BATCH_S)
    assert not sizer.is_fed_slowly, "nothing is known of the tasks"
    sizer.observe(1, slots * 0.0021)
    assert not sizer.is_fed_slowly
    sizer.observe_making(10, 10 * 0.003 + BATCH_S)
    assert sizer.is_fed_slowly


@pytest.mark.parametrize(("task_s", "n_tasks"), [(1e-5, 200), (LEAST_S / 50, 50), (GATHERED_S / 8, 1)])
def test_a_chunk_waits_for_what_is_made_soon_and_not_longer_than_it_lasts(task_s, n_tasks):
    sizer = ChunkSizer(20, queued=True)
    for _ in range(60):
        sizer.observe(sizer.size, sizer.size * task_s)
    sizer.observe_making(1000, 1000 * GATHERED_S / 200 + BATCH_S)
    assert sizer.gathered_size == pytest.approx(n_tasks, abs=1)


@pytest.mark.parametrize(
    ("queued", "nested", "n_chunks"), [(True, False, UNREAD_CHUNKS), (True, True, 1), (False, False, 1)]
)
def test_replies_may_lie_unread_only_where_chunks_may_wait(queued, nested, n_chunks):
    sizer = ChunkSizer(2, queued)
    sizer.guess(1e-5, nested)
    sizer.observe_making(1000, 1000 * 1e-4 + BATCH_S)
    assert sizer.chunks_per_slot() == n_chunks
    sizer.observe(100, 100 * 1e-5)
    assert (sizer.chunks_per_slot() == UNREAD_CHUNKS) == queued


def test_the_last_tasks_are_no_more_chunks_than_are_worth_it_where_they_are_done_faster_than_made():
    sizer = sized_by(*[1e-5] * 20)
    sizer.queued = True
    assert sizer.share(100, 0, is_all=True) == 50
    sizer.observe_making(1000, 1000 * GATHERED_S / 200 + BATCH_S)
    assert sizer.share(100, 0, is_all=True) >= 100
    assert sizer.share(300, 0, is_all=True) == 150


def test_nor_for_what_takes_long_to_make():
    """joblib makes a batch for each slot before it hands over the first."""
    sizer = guessed(TARGET_S / 500, slots=4)
    sizer.observe_making(200, 200 * MAKING_S / 100 + BATCH_S)
    assert (sizer.batch_size, sizer.ready_size) == (100 // 4, 500)
    sizer.observe_making(100, 1000 * MAKING_S)
    assert (sizer.batch_size, sizer.ready_size) == (1, 500)


def test_what_a_batch_costs_beside_its_tasks_does_not_make_them_small():
    sizer = guessed(TARGET_S / 500)
    for _ in range(sizer.n_one_round + 1):
        sizer.observe_making(1, BATCH_S)
    assert sizer.batch_size == 500


def test_with_many_slots_more_time_may_pass_until_there_is_a_batch_for_each():
    sizer = guessed(0.0, slots=1000)
    sizer.observe_making(100, 100 * 1e-5 + BATCH_S)
    assert sizer.batch_size == int(MAKING_PER_SLOT_S / 1e-5)


def test_a_later_call_expects_what_all_tasks_took():
    sizer = ChunkSizer(2)
    sizer.guess(0.5)
    assert sizer.overall_mean_s is None
    sizer.observe(9, 0.9)
    sizer.observe(1, 1.1)
    assert sizer.overall_mean_s == pytest.approx(0.2)


def test_recent_chunks_count_more():
    sizer = sized_by(1.0, 2.0)
    assert sizer.mean_s == pytest.approx(1.5)
    sizer.observe(10, 10 * 0.375)
    assert sizer.mean_s == pytest.approx(0.75)


@pytest.mark.parametrize(("before_s", "after_s"), [(1e-3, 1.0), (1.0, 1e-3)])
def test_follows_a_jump_by_a_thousand_within_a_few_chunks(before_s, after_s):
    sizer = sized_by(*[before_s] * 20)
    for _ in range(5):
        sizer.observe(1, after_s)
    assert after_s / 2 < sizer.mean_s < after_s * 2


@pytest.mark.parametrize("nbytes", [1000, MAX_CHUNK_NBYTES // 10, MAX_CHUNK_NBYTES * 10])
def test_a_chunk_carries_no_more_than_may_pass_at_once(nbytes):
    sizer = ChunkSizer(2)
    for _ in range(10):
        sizer.observe(sizer.size, 0.0, nbytes * sizer.size)
    assert sizer.size == 1 or sizer.size * nbytes <= MAX_CHUNK_NBYTES
    assert sizer.size == LARGEST or (sizer.size + 1) * nbytes > MAX_CHUNK_NBYTES


def test_what_waits_is_shared_out_in_ever_smaller_chunks():
    sizer = sized_by(*[0.01] * 20)
    left, sizes = 250, []
    while left:
        sizes.append(min(left, sizer.share(left, 250 - left, is_all=True)))
        left -= sizes[-1]
    assert sizes[0] == sizer.size == 50
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes[:-1]) >= 2, "but not so small that a chunk costs more than it does"


def test_what_has_come_so_far_is_shared_among_all_slots():
    sizer = sized_by(*[0.01] * 20)
    sizer.n_slots = 10
    # Each slot has two chunks.
    assert [sizer.share(n, 0, is_all=False) for n in (1000, 100, 50)] == [50, 5, 3]
    assert [sizer.share(n, 0, is_all=True) for n in (1000, 100, 50)] == [50, 5, 3]


def test_no_slot_gets_more_than_its_part_of_what_is_left():
    sizer = sized_by(*[0.005] * 20)
    assert sizer.share(6, 0, is_all=True) == 3
    assert sizer.share(6, 4, is_all=True) == 4, "a smaller chunk would cost more than it does"


def test_very_short_tasks_are_not_shared_out():
    assert sized_by(*[1e-6] * 20).share(5000, 20_000, is_all=True) == LARGEST


@pytest.mark.parametrize("n_slots", [64, 1000, 10_000])
def test_many_slots_have_longer_chunks_so_that_one_scheduler_can_feed_them(n_slots):
    sizer = ChunkSizer(n_slots)
    for _ in range(20):
        sizer.observe(sizer.size, sizer.size * 0.05)
    assert n_slots / (sizer.size * 0.05) <= 320, "chunks a second"


def test_a_chunk_that_finished_nothing_tells_nothing():
    sizer = sized_by(0.01)
    before = sizer.size, sizer.mean_s
    sizer.observe(0, 30.0)
    assert (sizer.size, sizer.mean_s) == before


def test_chunks_wait_behind_one_another_unless_they_are_long_or_too_short_for_dask_to_move():
    assert sized_by(MAX_WAITING_S * 0.99).chunks_per_slot() == 2
    assert sized_by(MAX_WAITING_S * 1.01).chunks_per_slot() == 1
    assert sized_by(MIN_WAITING_S * 1.01).chunks_per_slot() == 2
    assert sized_by(MIN_WAITING_S / GROWTH * 0.99).chunks_per_slot() == 1


@pytest.mark.parametrize("each_s", [MIN_WAITING_S / GROWTH / 2, MAX_WAITING_S * 2])
def test_any_chunk_waits_for_the_first_free_slot_as_soon_as_it_is_known_that_tasks_make_no_calls(each_s):
    sizer = ChunkSizer(2, queued=True)
    assert sizer.chunks_per_slot() == 1
    sizer.guess(each_s, nested=True)
    assert sizer.chunks_per_slot() == 1
    sizer.observe(1, each_s)
    assert sizer.chunks_per_slot() == 2
    sizer = ChunkSizer(2, queued=True)
    sizer.guess(each_s)
    assert sizer.chunks_per_slot() == 2


def test_what_waits_behind_the_first_chunks_is_of_full_length():
    sizer = ChunkSizer(2, queued=True)
    sizer.guess(0.001)
    assert sizer.share(10_000, 0, is_all=True) == sizer.share(10_000, sizer.size, is_all=False) == sizer.size == 20
    assert sizer.share(10_000, sizer.n_first, is_all=True) == 1000
    assert sizer.share(10_000, sizer.n_first, is_all=False) == 1000


def test_a_chunk_takes_a_part_of_its_slots_time_until_the_end():
    sizer = ChunkSizer(2, queued=True)
    sizer.observe(1, 0.001)
    sizer.observe(sizer.size, sizer.size * 0.001)
    assert sizer.share(1000, 0, is_all=True) == 375, "of 500 for each slot"
    assert sizer.share(1000, 0, is_all=True, span_s=0.4) == 300
    assert sizer.share(1000, 0, is_all=True, span_s=0.0) == 20


def test_it_takes_the_less_the_more_tasks_differ():
    firsts = []
    for long_s in (0.01, 0.1, 0.3, 1.0):
        sizer = ChunkSizer(2, queued=True)
        seconds = 19 * 0.01 + long_s
        sizer.observe(20, seconds)
        sizer.observe_spread(20, seconds, 19 * 0.01**2 + long_s**2)
        sizer.size = 1000
        firsts.append(sizer.share(200, 0, is_all=True) / 200)
    assert firsts == sorted(firsts, reverse=True)
    assert firsts[0] == pytest.approx(QUEUED_PART / 2)
    assert firsts[-1] < 0.3


def test_how_much_tasks_differ_is_known_from_the_call_before_until_there_are_enough():
    sizer = ChunkSizer(2)
    assert sizer.dispersion_s == 0.0
    sizer.guess(0.01, dispersion_s=0.5)
    sizer.observe_spread(LEAST_TIMED - 1, 0.01 * (LEAST_TIMED - 1), 0.01**2 * (LEAST_TIMED - 1))
    assert sizer.dispersion_s == 0.5
    sizer.observe_spread(1, 0.01, 0.01**2)
    assert sizer.dispersion_s == pytest.approx(0.0, abs=1e-12)
    sizer.observe_spread(LEAST_TIMED, 0.03 * LEAST_TIMED, 0.03**2 * LEAST_TIMED)
    assert sizer.dispersion_s == pytest.approx(0.01**2 / 0.02), "variance over mean of 0.01 s and 0.03 s"


@pytest.mark.parametrize(("queued", "size"), [(False, 20), (True, 30)])
def test_no_slot_takes_all_of_its_part_at_once(queued, size):
    sizer = ChunkSizer(2, queued)
    sizer.observe(1, 0.01)
    assert sizer.share(80, 0, is_all=True) == size, "of 40"


def test_a_chunk_that_does_not_wait_behind_another_one_may_last_longer():
    sizer = ChunkSizer(2, queued=True)
    for _ in range(3):
        sizer.observe(sizer.size, sizer.size * 0.01)
    assert sizer.size * 0.01 == pytest.approx(QUEUED_TARGET_S)


@pytest.mark.parametrize(
    ("slots", "timeout_s", "seconds"), [(2, 1.0, 0.25), (2, 0.0, 0.02), (500, 1.0, 0.5), (2, 60, 1.0)]
)
def test_with_a_timeout_chunks_last_a_part_of_it_unless_slots_are_too_many(slots, timeout_s, seconds):
    sizer = ChunkSizer(slots, queued=True)
    sizer.timeout_s = timeout_s
    for _ in range(3):
        sizer.observe(sizer.size, sizer.size * 0.01)
    assert sizer.size * 0.01 == pytest.approx(seconds)


def test_a_chunk_is_given_twice_the_time_it_should_take_and_not_less_than_a_moment():
    sizer = sized_by(*[0.01] * 20)
    assert sizer.budget_s(20) == pytest.approx(0.4)
    assert sizer.budget_s(1) == LEAST_BUDGET_S
    assert ChunkSizer(2).budget_s(1) == LEAST_BUDGET_S


@settings(deadline=None, database=None)
@given(st.floats(1e-6, 10.0))
def test_settles_on_chunks_of_the_target_duration(task_s):
    sizer = ChunkSizer(2)
    for _ in range(60):
        sizer.observe(sizer.size, sizer.size * task_s)
    assert sizer.size == 1 or sizer.size * task_s <= TARGET_S * 1.001
    assert sizer.size == LARGEST or (sizer.size + 1) * task_s >= TARGET_S * 0.999


@settings(deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1e6, allow_nan=False)), max_size=30))
def test_stays_within_bounds_whatever_it_is_told(chunks):
    sizer = ChunkSizer(2)
    for n_tasks, seconds in chunks:
        before = sizer.size
        sizer.observe(n_tasks, seconds)
        assert 1 <= sizer.size <= min(LARGEST, before * GROWTH)
        assert sizer.chunks_per_slot() in (1, 2)
