"""The client's own copies of large buffers, in the shared memory of its host.

Each is written once: the file that the workers of this host map is also the copy that makes a call independent of what
the user does to an array afterwards, and the original from which lost copies elsewhere are made again.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import glob
import os
import tempfile
import threading
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dask.config
import numpy as np
from dask.utils import format_bytes

from .._data.buffers import Blob, Kept, content_digest
from .._store import Attached, StoreDirectory, attached_at, directory_path, sweep
from .._wire import Placed, StoredResult
from ..options import configured
from .embedded_process import Janitor

#: What the names of files begin with that are not yet named by their content.
_NEW = "new-"

#: How long the janitor may take to end.
_JANITOR_S = 5.0

_stores: weakref.WeakSet[ClientStore] = weakref.WeakSet()


@dataclass(slots=True)
class _Entry:
    directory: StoreDirectory
    nbytes: int
    users: int
    shared: bool = False
    """More than one task wanted it: the next call may want it too."""
    buffer: Attached | bytes | None = None
    """Mapped while it is in use."""


class ClientStore:
    """Keep copies of buffers in files, each content once, beyond the call that needed them.

    What nobody uses is removed, least recently used first, when all files together take more than their share
    of the shared memory, or when there is no room for another.

    Notes
    -----
    Thread-safe; content that two threads keep at once for the first time is written twice. The lock is held for
    memory operations and the removal of files.
    """

    token: str
    label: str
    share: float
    home: tuple[str, ...]
    _entries: OrderedDict[bytes, _Entry]
    """Least recently used first."""

    def __init__(self) -> None:
        self.token = uuid4().hex
        self.label = configured("host") or ""
        self.share = float(configured("shared-memory-share"))
        disk = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
        self._roots = (configured("shared-memory"), disk)
        self.home = tuple(directory_path(root, self.token, self.label) for root in self._roots)
        self._lock = threading.Lock()
        self._entries = OrderedDict()
        self._directories: list[StoreDirectory] = []
        self._janitor: Janitor | None = None
        self._pid = os.getpid()
        self._closed = False
        self._has_warned = False

    def keep(self, view: memoryview, digest: bytes) -> Kept:
        """Copy a buffer whose content has this digest, or find the copy there is."""
        found = self._found(digest)
        if found is not None:
            return found
        try:
            directory, name = self._linked(view) or self._write(view)
        except OSError as error:
            self._warn(view.nbytes, error)
            return Kept(digest, bytes(view), False)
        return self._enter(directory, name, view.nbytes)

    def drop(self, digest: bytes, again: bool) -> None:
        """Say that one who kept this is done with it, and whether it may be wanted again."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return
            entry.users -= 1
            entry.shared |= again
            if entry.users:
                return
            entry.buffer = None
            if not entry.shared:
                self._remove(digest)

    def has(self, digest: bytes) -> bool:
        """Whether a copy is there."""
        with self._lock:
            return digest in self._entries

    def restore(self, blob: Blob) -> None:
        """Write a file again that has disappeared.

        Raises
        ------
        OSError
            There is no room.
        """
        with self._lock:
            entry = self._entries.get(blob.digest)
        name = blob.digest.hex()
        if entry is not None and not entry.directory.holds(name):
            entry.directory.write(name, [blob.data], len(blob.data))

    def placed(self, references: Sequence[tuple[Any, ...] | None], result: str) -> bytes | None:
        """Give what tells a worker where buffers are, and how to name the files of results; None without either."""
        if not references and not self._directories:
            return None
        return Placed(self.token, self.label, self.home, self.share, result, tuple(references)).to_bytes()

    def open(self) -> None:
        """Make the directory, so that workers can leave results in it."""
        with contextlib.suppress(OSError):
            next(self._usable(), None)

    def take(self, result: StoredResult) -> np.ndarray[Any, Any]:
        """Give a result's buffer, as memory of this process's own, and remove its file."""
        data = np.empty(result.nbytes, dtype=np.uint8)
        for directory in self._directories:
            if directory.read_into(result.name, data.data):
                directory.remove(result.name)
                return data
        raise OSError(errno.ENOENT, f"the result {result.name} is not there any more", self.home[0])

    def remove_results(self, result: str) -> None:
        """Remove what a chunk has left whose reply is not used."""
        for directory in self._directories:
            for path in glob.glob(os.path.join(glob.escape(directory.path), f"{result}-*")):
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def close(self) -> None:
        """Remove all files. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._entries.clear()
            directories, self._directories = self._directories, []
            janitor, self._janitor = self._janitor, None
        if os.getpid() != self._pid:
            return  # a fork: they are its parent's
        for directory in directories:
            directory.leave(remove=True)
        if janitor is not None:
            janitor.dismiss(time.monotonic() + _JANITOR_S)

    def _found(self, digest: bytes) -> Kept | None:
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return None
            if entry.buffer is None:
                entry.buffer = entry.directory.attach(digest.hex(), entry.nbytes)
                if entry.buffer is None:  # somebody has removed the file
                    del self._entries[digest]
                    return None
            entry.users += 1
            entry.shared = True
            self._entries.move_to_end(digest)
            return Kept(digest, _data(entry.buffer), True)

    def _enter(self, directory: StoreDirectory, name: str, nbytes: int) -> Kept:
        """Name a new file after what it holds.

        The copy is read for that, not the original: that may have been written to while it was copied, and a file
        under a wrong name would be taken for another buffer ever after.
        """
        buffer = directory.attach(name, nbytes)
        if buffer is None:
            raise OSError(errno.ENOENT, "a file was removed as soon as it was written", directory.path)
        if name.startswith(_NEW):
            digest = content_digest(_data(buffer))
            directory.rename(name, digest.hex())
            if isinstance(buffer, Attached):
                buffer.path = os.path.join(directory.path, digest.hex())
        else:
            digest = bytes.fromhex(name)
        with self._lock:
            entry = self._entries.setdefault(digest, _Entry(directory, nbytes, 0))
            if entry.buffer is None:
                entry.buffer = buffer
            entry.users += 1
            self._entries.move_to_end(digest)
            self._trim()
            return Kept(digest, _data(entry.buffer), True)

    def _linked(self, view: memoryview) -> tuple[StoreDirectory, str] | None:
        """Have a file that is attached to this process here too: what a task was given goes to its own tasks."""
        attached = attached_at(view)
        if attached is not None:
            for directory in self._usable():
                if directory.link(attached.path, attached.name):
                    return directory, attached.name
        return None

    def _write(self, view: memoryview) -> tuple[StoreDirectory, str]:
        name = f"{_NEW}{uuid4().hex}"
        error: OSError | None = None
        for directory in self._usable():
            while True:
                try:
                    directory.write(name, [view], view.nbytes)
                    return directory, name
                except OSError as reason:
                    error = reason
                    if reason.errno != errno.ENOSPC or not self._remove_oldest(directory):
                        break
        raise error or OSError(errno.ENOENT, "there is no directory for large buffers")

    def _usable(self) -> Iterator[StoreDirectory]:
        """Give the directories, made when they are first needed."""
        with self._lock:
            if self._closed:
                raise OSError(errno.ESHUTDOWN, "the client is closed")
            known = list(self._directories)
        yield from known
        for path in self.home[len(known) :]:
            directory = StoreDirectory(path)
            with contextlib.suppress(OSError):
                sweep(os.path.dirname(path))
                self._start_janitor()
                directory.own()
                directory.mark_home()
            with self._lock:
                self._directories.append(directory)
            yield directory

    def _start_janitor(self) -> None:
        """Have the files removed if this process is killed."""
        if self._janitor is None:
            self._janitor = Janitor(*self.home)
            self._janitor.start()
            _stores.add(self)

    def _trim(self) -> None:
        """Remove what nobody uses until the rest is within its share."""
        for directory in self._directories:
            limit = self.share * directory.capacity()
            used = sum(entry.nbytes for entry in self._entries.values() if entry.directory is directory)
            for digest, entry in list(self._entries.items()):
                if used <= limit:
                    break
                if entry.directory is directory and not entry.users:
                    self._remove(digest)
                    used -= entry.nbytes

    def _remove_oldest(self, directory: StoreDirectory) -> bool:
        with self._lock:
            for digest, entry in self._entries.items():
                if entry.directory is directory and not entry.users:
                    self._remove(digest)
                    return True
        return False

    def _remove(self, digest: bytes) -> None:
        entry = self._entries.pop(digest)
        entry.directory.remove(digest.hex())

    def _warn(self, nbytes: int, error: OSError) -> None:
        if self._has_warned or self._closed:
            return
        self._has_warned = True
        warnings.warn(
            f"a buffer of {format_bytes(nbytes)} ({nbytes} bytes) does not fit into {' or '.join(self._roots)} "
            f"({error}): large buffers are sent to each worker process, which takes time, and memory in each of them. "
            "Give shared memory more room (docker run --shm-size=...), or name another directory in Dask's "
            "configuration, jobfleet.shared-memory.",
            stacklevel=2,
        )


def _data(buffer: Attached | bytes) -> memoryview | bytes:
    return buffer.view if isinstance(buffer, Attached) else buffer


@atexit.register
def _close_all() -> None:
    for store in list(_stores):
        store.close()
