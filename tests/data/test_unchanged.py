"""A digest is remembered only while the kernel proves that the memory was not written to."""

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from jobfleet._data.buffers import content_digest
from jobfleet._data.unchanged import MIN_WATCHED_NBYTES, Unchanged, _Kernel

pytestmark = pytest.mark.timeout(20)

SIZE = 2 * MIN_WATCHED_NBYTES + 12_345


class Counting:
    """The real digest, and how often it was asked for."""

    def __init__(self):
        self.n = 0

    def __call__(self, data):
        self.n += 1
        return content_digest(data)


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
def memory(counting):
    memory = Unchanged(counting)
    yield memory
    memory.close()


@pytest.fixture
def watched(memory, counting):
    """Give an array that is watched by now, or skip where the kernel does not watch."""
    try:
        _Kernel().close()
    except OSError as reason:
        pytest.skip(
            f"this kernel does not say what was written to (Linux 6.7 and newer do, unless forbidden): {reason}"
        )
    array = np.arange(SIZE, dtype=np.uint8)
    for _ in range(3):
        assert memory.digest(memoryview(array)) == content_digest(array)
    assert counting.n == 2, "it was not read a third time"
    return array


def is_watched():
    """Whether any memory of this process is: the kernel marks it so."""
    return " uw" in Path("/proc/self/smaps").read_text()


def looks_right(memory, array):
    return memory.digest(memoryview(array)) == content_digest(array)


def test_what_nobody_writes_to_is_not_read_again(memory, watched, counting):
    for _ in range(20):
        assert looks_right(memory, watched)
    assert counting.n == 2


PLACES = [0, 1, 4095, 4096, SIZE // 2, SIZE - 4096, SIZE - 1]


@pytest.mark.parametrize("place", PLACES)
def test_a_change_of_one_byte_anywhere_is_seen(memory, watched, place):
    watched[place] ^= 1
    assert looks_right(memory, watched)
    watched[place] ^= 1
    assert looks_right(memory, watched)


def test_a_change_through_another_view_is_seen_though_the_array_is_read_only(memory, watched):
    writable = watched[:]
    watched.flags.writeable = False
    assert looks_right(memory, watched)
    writable[SIZE // 2] ^= 1
    assert looks_right(memory, watched)


def test_what_the_kernel_itself_writes_is_seen(memory, watched):
    with open("/dev/zero", "rb", buffering=0) as zeros:
        zeros.readinto(memoryview(watched)[SIZE // 2 : SIZE // 2 + 100])
    assert looks_right(memory, watched)


def test_a_change_is_seen_though_an_overlapping_view_was_looked_at_since(memory, watched):
    half = watched[: SIZE // 2 + 7]
    watched[10_000] ^= 1
    for _ in range(4):
        assert looks_right(memory, half)
    assert looks_right(memory, watched)


def test_memory_that_was_given_back_and_taken_again_is_read_again(memory):
    """The addresses are the same, the content is not."""
    region = mmap.mmap(-1, 4 * MIN_WATCHED_NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(region, dtype=np.uint8)
    array[:] = 1
    for _ in range(3):
        assert looks_right(memory, array)
    region.madvise(mmap.MADV_DONTNEED)
    assert array[0] == 0
    assert looks_right(memory, array)


def test_memory_shared_with_others_is_read_each_time(memory, counting, tmp_path):
    """Another process could write to it, unseen."""
    path = tmp_path / "shared"
    np.zeros(SIZE, np.uint8).tofile(path)
    mine, theirs = (np.memmap(path, np.uint8, mode="r+") for _ in range(2))
    for value in range(5):
        theirs[SIZE // 2] = value
        assert looks_right(memory, mine)
    assert counting.n == 5


def test_what_is_often_refilled_is_not_watched(memory, counting):
    array = np.zeros(SIZE, np.uint8)
    for value in range(8):
        array[:] = value
        assert looks_right(memory, array)
    assert counting.n == 8
    assert not is_watched()


def test_many_arrays_at_once(memory):
    arrays = [np.full(MIN_WATCHED_NBYTES, i, np.uint8) for i in range(100)]
    for turn in range(4):
        for array in arrays:
            assert looks_right(memory, array)
            if turn == 2:
                array[MIN_WATCHED_NBYTES // 2] = 255


def test_a_fork_does_not_keep_the_parents_memory_watched(memory, watched, counting):
    """And what the child writes is the child's."""
    child = os.fork()
    if not child:
        watched[:] = 7
        os._exit(0 if looks_right(memory, watched) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert looks_right(memory, watched)
    assert counting.n == 2


def test_after_the_end_nothing_is_watched(counting):
    memory = Unchanged(counting)
    array = np.zeros(SIZE, np.uint8)
    for _ in range(3):
        memory.digest(memoryview(array))
    memory.close()
    assert not is_watched()
    array[:] = 1
    assert looks_right(memory, array)
    memory.close()
