"""A host's store: files that appear complete, and directories that go with their last owner."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from jobfleet._store import MIN_MAPPED_NBYTES, Attached, StoreDirectory, directory_path, remove_abandoned, sweep

pytestmark = pytest.mark.timeout(20)

LARGE = MIN_MAPPED_NBYTES + 5


@pytest.fixture
def path(tmp_path):
    return directory_path(str(tmp_path), "token", "")


@pytest.fixture
def store(path):
    store = StoreDirectory(path)
    store.own()
    yield store
    store.leave(remove=True)


def content(seed, nbytes=LARGE):
    return np.random.default_rng(seed).bytes(nbytes)


def test_it_is_the_users_alone(store):
    status = os.stat(store.path)
    assert status.st_mode & 0o777 == 0o700
    store.write("x", [b"abc"], 3)
    assert os.stat(f"{store.path}/x").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("nbytes", [1, 100, MIN_MAPPED_NBYTES - 1, MIN_MAPPED_NBYTES, LARGE])
def test_what_is_written_can_be_attached(store, nbytes):
    data = content(0, nbytes)
    store.write("x", [data[:7], memoryview(data)[7:]], nbytes)
    attached = store.attach("x", nbytes)
    assert (attached.view if isinstance(attached, Attached) else attached) == data


def test_what_is_attached_is_read_only_and_outlives_its_file(store):
    data = content(1)
    store.write("x", [data], LARGE)
    view = store.attach("x", LARGE).view
    store.leave(remove=True)
    assert view.readonly
    assert view == data
    with pytest.raises(TypeError):
        view[0] = 0


def test_a_private_copy_is_writable_and_leaks_nothing(store):
    data = content(2)
    store.write("x", [data], LARGE)
    attached = store.attach("x", LARGE)
    first, second = attached.copy_on_write(), attached.copy_on_write()
    first[0] = (data[0] + 1) % 256
    assert second == data
    assert attached.view == data
    assert store.attach("x", LARGE).view == data


def test_nothing_is_there_until_it_is_complete(store):
    with store.writing("x", LARGE) as fd:
        os.write(fd, b"half")
        assert store.attach("x", LARGE) is None
        assert not store.holds("x")
    assert store.holds("x")


def test_what_fails_leaves_nothing(store):
    before = set(os.listdir(store.path))

    def fail():
        with store.writing("x", LARGE) as fd:
            os.write(fd, b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert set(os.listdir(store.path)) == before


def test_a_file_of_another_size_is_none(store):
    store.write("x", [b"abc"], 3)
    assert store.attach("x", 4) is None


def test_more_than_there_is_room_for_is_refused_before_it_is_written(store):
    with pytest.raises(OSError, match="do not fit"):
        store.write("x", [], 2**60)


def test_the_oldest_that_nobody_uses_make_room(store):
    for i in range(4):
        store.write(f"{i}", [content(i)], LARGE)
        os.utime(f"{store.path}/{i}", (0, 1000 + i))
    used = store.attach("1", LARGE)
    os.utime(f"{store.path}/1", (0, 1001))
    share = 3.5 * LARGE / store.capacity()
    store.make_room(LARGE, share)
    assert [i for i in range(4) if store.holds(f"{i}")] == [1, 3]
    assert used.view == content(1)


def test_what_was_used_just_now_stays(store):
    store.write("x", [content(0)], LARGE)
    store.make_room(LARGE, 0.5 * LARGE / store.capacity())
    assert store.holds("x")


OWNER = """
import sys, time
from jobfleet._store import StoreDirectory
store = StoreDirectory(sys.argv[1])
store.own()
print("owned", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(path):
    """Start processes that own the directory."""
    processes = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "owned\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_directory_goes_with_its_last_owner_however_that_ends(store, path, owner, tmp_path):
    first, second = owner(), owner()
    store.leave()
    sweep(str(tmp_path))
    assert os.path.isdir(path)
    first.kill()
    first.wait()
    sweep(str(tmp_path))
    assert os.path.isdir(path)
    second.kill()
    second.wait()
    sweep(str(tmp_path))
    assert not os.path.exists(path)


def test_the_last_to_leave_removes_it(store, path):
    other = StoreDirectory(path)
    other.own()
    store.leave()
    assert os.path.isdir(path)
    other.leave()
    assert not os.path.exists(path)


def test_one_that_was_removed_is_made_again(store, path):
    store.leave(remove=True)
    store.write("x", [b"abc"], 3)
    assert store.attach("x", 3) == b"abc"
    remove_abandoned(path)
    assert os.path.isdir(path)


def test_one_that_is_just_being_made_is_left_alone(tmp_path):
    path = directory_path(str(tmp_path), "young", "")
    os.mkdir(path, 0o700)
    sweep(str(tmp_path))
    assert os.path.isdir(path)
    os.utime(path, (0, time.time() - 3600))
    sweep(str(tmp_path))
    assert not os.path.exists(path)


def test_a_directory_that_others_may_open_is_not_used(tmp_path):
    path = directory_path(str(tmp_path), "open", "")
    os.mkdir(path)
    os.chmod(path, 0o755)
    with pytest.raises(PermissionError):
        StoreDirectory(path).own()


def test_other_peoples_directories_are_left_alone(tmp_path):
    path = tmp_path / "jobfleet-store-99999-token"
    path.mkdir()
    os.utime(path, (0, 0))
    sweep(str(tmp_path))
    assert path.is_dir()


def test_a_fork_does_not_own(store, path):
    forked, told = os.pipe()
    child = os.fork()
    if not child:
        os.write(told, b"x")
        time.sleep(60)  # killed below
        os._exit(0)
    os.read(forked, 1)
    os.close(forked)
    os.close(told)
    try:
        store.leave()
        assert not os.path.exists(path)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_one_process_at_a_time_provides_a_file(store, path):
    other = StoreDirectory(path)
    with store.trying_lock("x") as mine, other.trying_lock("x") as theirs:
        assert (mine, theirs) == (True, False)
    with other.trying_lock("x") as theirs:
        assert theirs
    other.leave()
