"""Chunks are long enough to hide what they cost, and grow towards that in bounded steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobfleet._call.chunking import BUDGET_S, MAX_CHUNK_NBYTES, MAX_WAITING_S, MIN_WAITING_S, TARGET_S, ChunkSizer

pytestmark = pytest.mark.timeout(20)

GROWTH = 16
LARGEST = 10_000


def sized_by(*durations_s):
    """Give a sizer that has seen chunks of one task with these durations."""
    sizer = ChunkSizer()
    for duration_s in durations_s:
        sizer.observe(1, duration_s)
    return sizer


def test_begins_with_single_tasks_one_per_slot():
    sizer = ChunkSizer()
    assert (sizer.size, sizer.mean_s, sizer.chunks_per_slot()) == (1, None, 1)


def test_grows_by_a_bounded_factor_however_short_the_tasks():
    sizer = ChunkSizer()
    sizes = []
    for _ in range(6):
        sizer.observe(sizer.size, 0.0)
        sizes.append(sizer.size)
    assert sizes == [GROWTH, GROWTH**2, GROWTH**3, LARGEST, LARGEST, LARGEST]


def test_shrinks_at_once_when_tasks_turn_out_long():
    sizer = sized_by(*[1e-5] * 10)
    assert sizer.size > 1000
    sizer.observe(1, 2 * TARGET_S)
    assert sizer.size == 1


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
    sizer = ChunkSizer()
    for _ in range(10):
        sizer.observe(sizer.size, 0.0, nbytes * sizer.size)
    assert sizer.size == 1 or sizer.size * nbytes <= MAX_CHUNK_NBYTES
    assert sizer.size == LARGEST or (sizer.size + 1) * nbytes > MAX_CHUNK_NBYTES


def test_what_waits_is_shared_out_in_ever_smaller_chunks():
    sizer = sized_by(*[0.01] * 20)
    left, sizes = 100, []
    while left:
        sizes.append(min(left, sizer.chunk_size(left, n_slots=2)))
        left -= sizes[-1]
    assert sizes[0] == sizer.size == 20
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 2 == min(sizes[:-1]), "but not so small that a chunk costs more than it does"


def test_very_short_tasks_are_not_shared_out():
    sizer = sized_by(*[1e-6] * 20)
    assert sizer.chunk_size(5000, n_slots=8) == LARGEST


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


def test_a_chunk_is_given_more_time_than_it_is_meant_to_take():
    assert TARGET_S < BUDGET_S < MAX_WAITING_S


@settings(deadline=None, database=None)
@given(st.floats(1e-6, 10.0))
def test_settles_on_chunks_of_the_target_duration(task_s):
    sizer = ChunkSizer()
    for _ in range(60):
        sizer.observe(sizer.size, sizer.size * task_s)
    assert sizer.size == 1 or sizer.size * task_s <= TARGET_S * 1.001
    assert sizer.size == LARGEST or (sizer.size + 1) * task_s >= TARGET_S * 0.999


@settings(deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1e6, allow_nan=False)), max_size=30))
def test_stays_within_bounds_whatever_it_is_told(chunks):
    sizer = ChunkSizer()
    for n_tasks, seconds in chunks:
        before = sizer.size
        sizer.observe(n_tasks, seconds)
        assert 1 <= sizer.size <= min(LARGEST, before * GROWTH)
        assert sizer.chunks_per_slot() in (1, 2)
