"""Buffers are known by content, copied once, and let go when nobody needs them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jobfleet._data import buffers
from jobfleet._data.buffers import BlobTable, content_digest

pytestmark = pytest.mark.timeout(20)


def view(content, size=1000):
    return memoryview(bytes([content]) * size)


@pytest.fixture
def dropped():
    return []


@pytest.fixture
def table(dropped):
    return BlobTable(lambda blob: dropped.append(blob.data[0]))


def test_one_content_is_one_blob_whoever_owns_it(table):
    first = table.acquire(view(1))
    assert table.acquire(memoryview(bytearray(view(1)))) is first
    assert table.acquire(memoryview(np.full(1000, 1, np.uint8))) is first
    assert table.acquire(view(2)) is not first
    assert table.acquire(view(1, 999)) is not first
    assert (first.users, first.sightings) == (3, 3)


def test_a_blob_is_a_copy(table):
    owner = bytearray(b"before")
    blob = table.acquire(memoryview(owner))
    owner[:] = b"after!"
    assert blob.data == b"before"
    assert table.acquire(memoryview(owner)).data == b"after!"


def test_a_blob_that_served_one_task_goes_with_it(table, dropped):
    table.release(table.acquire(view(1)))
    assert dropped == [1]
    # And may come again.
    blob = table.acquire(view(1))
    assert (blob.users, blob.sightings) == (1, 1)
    table.release(blob)
    assert dropped == [1, 1]


def test_a_blob_is_not_dropped_while_a_task_uses_it(table, dropped):
    blobs = [table.acquire(view(1)) for _ in range(3)]
    for blob in blobs[:2]:
        table.release(blob)
    assert dropped == []
    assert table.acquire(view(1)) is blobs[0]


def test_a_blob_that_served_several_is_kept_for_the_next(table, dropped):
    first, again = table.acquire(view(1)), table.acquire(view(1))
    table.release(first)
    table.release(again)
    assert dropped == []
    assert table.acquire(view(1)) is first


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(table, dropped, monkeypatch):
    monkeypatch.setattr(buffers, "MAX_IDLE_NBYTES", 2500)
    blobs = {n: [table.acquire(view(n)), table.acquire(view(n))] for n in range(5)}
    for n in (3, 1, 4, 0):
        for blob in blobs[n]:
            table.release(blob)
    assert dropped == [3, 1]
    # What is used again is not idle, and counts as new when it becomes idle.
    again = table.acquire(view(4))
    assert again is blobs[4][0]
    for blob in blobs[2]:
        table.release(blob)
    assert dropped == [3, 1]
    table.release(again)
    assert dropped == [3, 1, 0]


def test_a_blob_larger_than_the_bound_is_not_kept(table, dropped, monkeypatch):
    monkeypatch.setattr(buffers, "MAX_IDLE_NBYTES", 2500)
    small = [table.acquire(view(1)), table.acquire(view(1))]
    large = [table.acquire(view(9, 3000)), table.acquire(view(9, 3000))]
    for blob in [*small, *large]:
        table.release(blob)
    assert 9 in dropped
    assert table._idle_nbytes <= 2500


def test_clear_forgets_everything_and_says_nothing(table, dropped):
    table.release(table.acquire(view(1)))
    dropped.clear()
    used, kept = table.acquire(view(2)), table.acquire(view(3))
    table.acquire(view(3))
    table.clear()
    assert dropped == []
    assert table.acquire(view(2)) is not used
    assert table.acquire(view(3)) is not kept


def test_counts_hold_when_threads_encode_and_release_at_once(table, dropped):
    """The thread that dispatches acquires while the driver releases."""
    start = threading.Barrier(4)

    def work(seed):
        start.wait(10)
        for i in range(300):
            table.release(table.acquire(view((seed + i) % 3)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert all(blob.users == 0 for blob in table._blobs.values())
    assert table._blobs.keys() == table._idle.keys()
    assert table._idle_nbytes == sum(len(blob.data) for blob in table._idle.values())


def test_what_is_dropped_is_no_longer_known(table):
    """A blob that comes again while the engine lets the old one go must be a new one."""
    seen = []
    table._on_drop = lambda blob: seen.append(blob.digest in table._blobs)
    table.release(table.acquire(view(1)))
    assert seen == [False]


@pytest.mark.parametrize("without_xxhash", [False, True])
def test_digests_are_of_the_content_alone(without_xxhash, monkeypatch):
    """Workers, which may be clients of inner calls, need not have xxhash."""
    if without_xxhash:
        monkeypatch.setattr(buffers, "_xxh3", None)
    data = np.arange(10_000)
    digests = {content_digest(data.tobytes()), content_digest(memoryview(data).cast("B"))}
    assert [len(digest) for digest in digests] == [16]
    assert content_digest(b"") != content_digest(b"\0")
    changed = data.copy()
    changed[5000] += 1
    assert content_digest(changed.tobytes()) not in digests
