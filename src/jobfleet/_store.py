"""Buffers on one host: a directory of files in shared memory, written once and mapped by many processes.

The client of a cluster has a directory of its own on each host that needs it, named by the user and a random
token. A file holds one buffer, is named by the digest of its content, and appears under that name only when it
is complete, so whoever finds it may use it.

A directory lives as long as a process holds a shared lock on the file ``owners`` in it: the kernel lets go of
locks with their process, however that ends, and process ids that are used again mean nothing. A file that a process
maps carries a lock of the same kind, so that no other takes it for unused. Mapped memory stays what it is when its
file is removed.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import mmap
import os
import shutil
import stat
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any
from uuid import uuid4

import numpy as np

if sys.platform != "win32":
    import fcntl

#: Where Linux keeps shared memory.
SHARED_MEMORY = "/dev/shm"

#: Smaller files are read, not mapped: a mapping costs a descriptor.
MIN_MAPPED_NBYTES = 2**20

_PREFIX = "jobfleet-store"
_OWNERS = "owners"
_HOME = "home"

_WRITE_NBYTES = 2**26

#: A directory without `owners` is being made, unless it is older than this.
_YOUNG_S = 60.0

#: A file that was attached so recently is about to be attached again.
_FRESH_S = 5.0

#: Pages of a file that are compared with what they should be.
_SAMPLES = 16

_owned: weakref.WeakSet[StoreDirectory] = weakref.WeakSet()


class Attached:
    """Hold one buffer of a store.

    Parameters
    ----------
    fd
        Descriptor of its file, which this object closes.
    nbytes
        Its size.
    path
        Of the file.
    """

    __slots__ = ("__weakref__", "_fd", "nbytes", "path", "view")

    nbytes: int
    path: str
    view: memoryview
    """The bytes, read-only. Keeps the memory alive by itself."""

    def __init__(self, fd: int, nbytes: int, path: str) -> None:
        self._fd = fd
        self.nbytes = nbytes
        self.path = path
        weakref.finalize(self, os.close, fd)
        self.view = memoryview(mmap.mmap(fd, nbytes, access=mmap.ACCESS_READ))
        _by_address[_address(self.view)] = self

    @property
    def name(self) -> str:
        """Name of the file."""
        return os.path.basename(self.path)

    def is_removed(self) -> bool:
        """Whether the file is gone, and only who has it attached keeps the memory."""
        return os.fstat(self._fd).st_nlink == 0

    def copy_on_write(self) -> memoryview:
        """Give a view that may be written to; what is written is nobody else's."""
        return memoryview(mmap.mmap(self._fd, self.nbytes, access=mmap.ACCESS_COPY))


class AttachedFile(Attached):
    """Hold a part of a file of the user's.

    Parameters
    ----------
    fd
        Descriptor of the file, which this object closes.
    region
        Which part.
    """

    __slots__ = ("_skipped", "_start")

    def __init__(self, fd: int, region: FileRegion) -> None:
        self._fd = fd
        self.nbytes = region.nbytes
        self.path = region.path
        weakref.finalize(self, os.close, fd)
        self._skipped = region.offset % mmap.ALLOCATIONGRANULARITY
        self._start = region.offset - self._skipped
        self.view = self._mapped(mmap.ACCESS_READ)

    def copy_on_write(self) -> memoryview:
        """Give a view that may be written to; what is written is nobody else's, and not in the file."""
        return self._mapped(mmap.ACCESS_COPY)

    def _mapped(self, access: int) -> memoryview:
        mapped = mmap.mmap(self._fd, self._skipped + self.nbytes, access=access, offset=self._start)
        return memoryview(mapped)[self._skipped :]


@dataclass(frozen=True, slots=True)
class FileRegion:
    """Say which bytes of which file a buffer shows, and how to know that file again, elsewhere too."""

    path: str
    offset: int
    nbytes: int
    inode: int
    file_nbytes: int
    modified_ns: int
    sample: bytes
    """Digest of some of the bytes."""

    def as_tuple(self) -> tuple[Any, ...]:
        """Give the plain tuple that travels."""
        return astuple(self)

    def is_current(self) -> bool:
        """Whether the file is there, and as it was."""
        try:
            return self.matches(os.stat(self.path))
        except OSError:
            return False

    def require_current(self) -> None:
        """Raise RuntimeError if the file is not as it was."""
        if not self.is_current():
            raise RuntimeError(
                f"{self.path} has changed since a memmap of it was passed to a task, and what it held then is lost. "
                "Write to another file while tasks use this one, or pass them a copy: numpy.array(the_memmap)"
            )

    def matches(self, status: os.stat_result) -> bool:
        """Whether a file's status is what it was."""
        return (status.st_ino, status.st_size, status.st_mtime_ns) == (self.inode, self.file_nbytes, self.modified_ns)

    def attach(self) -> AttachedFile | None:
        """Map it, if it is the file that is meant."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if self.matches(os.fstat(fd)):
                attached = AttachedFile(os.dup(fd), self)
                return attached if sample_digest(attached.view) == self.sample else None
        except (OSError, ValueError):
            pass
        finally:
            os.close(fd)
        return None


def sample_digest(view: memoryview) -> bytes:
    """Give a digest of some pages of a buffer: two disks that were cloned may have grown apart."""
    digest = hashlib.blake2b(digest_size=16)
    last = max(0, view.nbytes - mmap.PAGESIZE)
    for i in range(_SAMPLES):
        start = last * i // (_SAMPLES - 1)
        digest.update(view[start : start + mmap.PAGESIZE])
    return digest.digest()


#: Buffers that are attached to this process.
_by_address: weakref.WeakValueDictionary[int, Attached] = weakref.WeakValueDictionary()


def attached_at(view: memoryview) -> Attached | None:
    """Give the buffer of a store whose memory this is, all of it: its name says what it holds."""
    attached = _by_address.get(_address(view)) if view.nbytes >= MIN_MAPPED_NBYTES else None
    return attached if attached is not None and attached.nbytes == view.nbytes else None


def _address(view: memoryview) -> int:
    address: int = np.frombuffer(view, dtype=np.uint8).__array_interface__["data"][0]
    return address


class StoreDirectory:
    """Use one directory of buffers.

    Notes
    -----
    Thread-safe. Methods that find no directory behave as if it were empty, except `write` and `own`.
    """

    path: str
    _owners: int | None
    _lock: threading.Lock

    def __init__(self, path: str) -> None:
        self.path = path
        self._owners = None
        self._lock = threading.Lock()

    def own(self) -> None:
        """Make the directory if it is not there, and keep it alive until `leave`.

        Raises
        ------
        OSError
            It cannot be made here, or somebody else has taken its name.
        """
        with self._lock:
            if self._owners is not None and _is_at(self._owners, self._path(_OWNERS)):
                return
            self._let_go()
            _owned.add(self)
            # A sweep may remove the directory between any two of these steps: then begin again.
            for _ in range(100):
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.path, 0o700)
                try:
                    _check_private(self.path)
                    fd = os.open(self._path(_OWNERS), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                except FileNotFoundError:
                    continue
                fcntl.flock(fd, fcntl.LOCK_SH)
                if _is_at(fd, self._path(_OWNERS)):
                    self._owners = fd
                    return
                os.close(fd)
            raise OSError(errno.EBUSY, "it is removed again and again", self.path)

    def leave(self, *, remove: bool = False) -> None:
        """Give up ownership; with `remove`, or when no owner is left, the directory goes."""
        with self._lock:
            self._let_go()
        if remove:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            remove_abandoned(self.path)

    def forget(self) -> None:
        """Let go of what a fork has copied."""
        self._lock = threading.Lock()
        self._let_go()

    def _let_go(self) -> None:
        if self._owners is not None:
            os.close(self._owners)
            self._owners = None

    def mark_home(self) -> None:
        """Say that this is the directory of the client itself."""
        with open(self._path(_HOME), "w"):
            pass

    def is_home(self) -> bool:
        """Whether the client itself uses this directory."""
        return os.path.exists(self._path(_HOME))

    def identity(self) -> str:
        """Give what two processes have in common exactly if they see the same directory."""
        status = os.stat(self.path)
        return f"{_boot_id()}-{status.st_dev}-{status.st_ino}"

    def write(self, name: str, data: Iterable[memoryview | bytes], nbytes: int, *, own: bool = True) -> None:
        """Write a file, in a directory that is made if need be and kept alive, or else is somebody else's.

        Raises
        ------
        OSError
            There is no room for it, or another fault of the file system.
        """
        with self.writing(name, nbytes, own=own) as fd:
            for part in data:
                view = memoryview(part)
                for start in range(0, view.nbytes, _WRITE_NBYTES):
                    _write_all(fd, view[start : start + _WRITE_NBYTES])

    @contextlib.contextmanager
    def writing(self, name: str, nbytes: int, *, own: bool = True) -> Iterator[int]:
        """Give a descriptor to write to; the file appears at the end, or not at all after an error."""
        if own:
            self.own()
        require_room(self.path, nbytes)
        beside = self._path(f"{name}.{uuid4().hex}.part")
        fd = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                yield fd
            finally:
                os.close(fd)
            os.rename(beside, self._path(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise

    def attach(self, name: str, nbytes: int) -> Attached | bytes | None:
        """Give a buffer that is there in full; small ones are read."""
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if os.fstat(fd).st_size != nbytes:
                os.close(fd)
                return None
            # The time says when it was last used, see `make_room`.
            with contextlib.suppress(OSError):
                os.utime(fd)
            if nbytes < MIN_MAPPED_NBYTES:
                data = os.pread(fd, nbytes, 0)
                os.close(fd)
                return data if len(data) == nbytes else None
            # One who holds it exclusively is about to remove it: what is mapped stays all the same.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return Attached(fd, nbytes, self._path(name))
        except OSError:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise

    def read(self, name: str, offset: int, nbytes: int) -> bytes | None:
        """Give a piece of a file, None if it is not there."""
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return os.pread(fd, nbytes, offset)
        finally:
            os.close(fd)

    def read_into(self, name: str, view: memoryview) -> bool:
        """Read a whole file; gives whether it is there and fills the view."""
        try:
            with open(self._path(name), "rb", buffering=0) as file:
                while view.nbytes and (n_read := file.readinto(view)):
                    view = view[n_read:]
        except OSError:
            return False
        return not view.nbytes

    def holds(self, name: str) -> bool:
        """Whether the file is there."""
        return os.path.exists(self._path(name))

    def remove(self, name: str) -> None:
        """Remove a file; who has mapped it keeps it."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(name))

    def link(self, path: str, name: str) -> bool:
        """Give a file of another store a name in this one too; gives whether that was possible."""
        with contextlib.suppress(OSError):
            self.own()
            os.link(path, self._path(name))
        return self.holds(name)

    def rename(self, name: str, new_name: str) -> None:
        """Rename a file."""
        os.rename(self._path(name), self._path(new_name))

    def capacity(self) -> int:
        """Give the size of the file system."""
        status = os.statvfs(self.path)
        return status.f_blocks * status.f_frsize

    def make_room(self, nbytes: int, share: float) -> None:
        """Remove the least recently used files until `nbytes` more fit into this share of the file system.

        What is in use, or was a moment ago, stays.
        """
        self.own()
        limit = share * self.capacity()
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        now = time.time()
        for used_at, size, name in files:
            if used + nbytes <= limit or now - used_at < _FRESH_S:
                break
            if self._remove_unused(name):
                used -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Give time of last use, size and name."""
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_size:
                        yield status.st_mtime, status.st_size, entry.name

    def _remove_unused(self, name: str) -> bool:
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.remove(name)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    @contextlib.contextmanager
    def trying_lock(self, name: str) -> Iterator[bool]:
        """Say whether this process is now the only one on the host that provides the file `name`."""
        self.own()
        fd = os.open(self._path(f"{name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def _path(self, name: str) -> str:
        return os.path.join(self.path, name)


def directory_path(root: str, token: str, label: str) -> str:
    """Give the path of a client's directory below `root`.

    Parameters
    ----------
    root
        Where it lies.
    token
        Identifies the client.
    label
        Name of a pretended host, empty without one.
    """
    return os.path.join(root, "-".join(filter(None, (_PREFIX, str(os.getuid()), token, label))))


def sweep(root: str) -> None:
    """Remove the directories of this user below `root` that no living process owns."""
    for path in glob.glob(os.path.join(glob.escape(root), f"{_PREFIX}-{os.getuid()}-*")):
        remove_abandoned(path)


def remove_abandoned(path: str) -> None:
    """Remove a store's directory if no living process owns it."""
    try:
        status = os.lstat(path)
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
            return
        fd = os.open(os.path.join(path, _OWNERS), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            if time.time() - os.lstat(path).st_mtime > _YOUNG_S:
                shutil.rmtree(path, ignore_errors=True)
        return
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(fd, os.path.join(path, _OWNERS)):
            # Whoever wants to own it meanwhile waits for the lock, then sees that `owners` is gone.
            shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass
    finally:
        os.close(fd)


def require_room(path: str, nbytes: int) -> None:
    """Raise OSError (ENOSPC) if `nbytes` do not fit.

    Shared memory is memory: a file system may offer more than the machine has.
    """
    status = os.statvfs(path)
    room = status.f_bavail * status.f_frsize
    if os.path.realpath(path).startswith(SHARED_MEMORY + "/"):
        room = min(room, int(0.95 * _available_memory()))
    if nbytes > room:
        raise OSError(errno.ENOSPC, f"{nbytes} bytes do not fit into the {room} that are free", path)


def _available_memory() -> int:
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return sys.maxsize


def _write_all(fd: int, view: memoryview) -> None:
    while view.nbytes:
        view = view[os.write(fd, view) :]


def _is_at(fd: int, path: str) -> bool:
    """Whether the open file is the one that has this path."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def _check_private(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "it is not a directory that is this user's alone", path)


def _boot_id() -> str:
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return os.uname().nodename


def _after_fork() -> None:
    for directory in list(_owned):
        directory.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
