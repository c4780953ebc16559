"""Large buffers of one call, known by their content."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .._store import FileRegion, attached_at
from .memmaps import MappedFiles
from .unchanged import Unchanged

try:
    import xxhash
except ImportError:  # on a worker, where a nested call encodes without our dependencies
    _xxh3: Callable[[memoryview | bytes], bytes] | None = None
else:
    _xxh3 = xxhash.xxh3_128_digest


def content_digest(data: memoryview | bytes) -> bytes:
    """Give 16 bytes that identify the content (XXH3-128, else BLAKE2b)."""
    if _xxh3 is not None:
        return _xxh3(data)
    return hashlib.blake2b(data, digest_size=16).digest()


#: Bound on the buffers kept in this process for tasks that may still come.
MAX_IDLE_NBYTES = 512 * 2**20

#: From this size on a buffer is stored when it is first seen; smaller ones when a second task wants them.
MIN_STORED_NBYTES = 2**20


@dataclass(frozen=True, slots=True)
class Kept:
    """Say where the private copy of a buffer is."""

    digest: bytes
    """Of the copy, which differs from what was asked for if the buffer was written to meanwhile."""
    data: memoryview | bytes
    stored: bool
    """Whether it lies in the store of this host, for others to map."""


class Keeper(Protocol):
    """Keep private copies of buffers, each content once."""

    def keep(self, view: memoryview, digest: bytes) -> Kept:
        """Copy a buffer whose content has this digest, or find the copy there is; it stays until `drop`."""

    def drop(self, digest: bytes, again: bool) -> None:
        """Say that one who kept this is done with it, and whether it may be wanted again."""


class InProcess:
    """Keep copies in this process's own memory."""

    def keep(self, view: memoryview, digest: bytes) -> Kept:
        """Copy a buffer."""
        return Kept(digest, bytes(view), False)

    def drop(self, digest: bytes, again: bool) -> None:
        """Do nothing: who holds the copy has let it go."""


class Blob:
    """Hold a private copy of one buffer, while tasks of the call need it.

    Attributes
    ----------
    data
        The bytes, as they were when the first task that uses them was dispatched.
    stored
        Whether they lie in this host's store.
    users
        Unfinished tasks that refer to it.
    sightings
        Tasks that ever did.
    pinned
        Whether it is part of an object that the user has sent ahead, and outlives the call.
    file
        The file of the user's that it shows: its digest is that of the file's name and status then.
    copy
        What is sent in its place to workers that do not see the file.
    """

    __slots__ = ("copy", "data", "digest", "file", "pinned", "sightings", "stored", "users")

    data: memoryview | bytes
    digest: bytes
    stored: bool
    pinned: bool
    sightings: int
    users: int
    file: FileRegion | None
    copy: Blob | None

    def __init__(self, kept: Kept, *, pinned: bool = False, file: FileRegion | None = None) -> None:
        self.digest = kept.digest
        self.data = kept.data
        self.stored = kept.stored
        self.users = 0
        self.sightings = 0
        self.pinned = pinned
        self.file = file
        self.copy = None

    @property
    def is_on_hosts(self) -> bool:
        """Whether workers find it in a file, or ask for it."""
        return self.stored or self.file is not None


class BlobTable:
    """Keep the buffers that tasks of one call refer to, each content once.

    Each task is given the content as it is when the task is encoded: the buffer is read again unless the
    kernel proves that nobody has written to it (see `Unchanged`). So a buffer that its owner refills between two
    tasks becomes a new blob: no task ever sees stale data. A blob that served a single task goes with that
    task. One that served several is kept for the next: by the keeper if it is stored there, else here, as
    long as those kept so take less than `MAX_IDLE_NBYTES` together.

    Parameters
    ----------
    on_drop
        Called with each blob that is not needed any more.
    keeper
        Makes the copies.

    Notes
    -----
    Thread-safe, but for `acquire`, which one thread at a time calls: tasks are encoded in the thread that dispatches,
    and released in the driver's.
    """

    _blobs: dict[bytes, Blob]
    _idle: dict[bytes, Blob]
    """In the order in which they became idle."""
    _idle_nbytes: int
    _on_drop: Callable[[Blob], None]
    _keeper: Keeper
    _unchanged: Unchanged

    def __init__(self, on_drop: Callable[[Blob], None], keeper: Keeper | None = None) -> None:
        self._blobs = {}
        self._idle = {}
        self._idle_nbytes = 0
        self._lock = threading.Lock()
        self._on_drop = on_drop
        self._keeper = InProcess() if keeper is None else keeper
        self._unchanged = Unchanged(content_digest)
        self._files = MappedFiles()

    def acquire(self, view: memoryview, n_tasks: int = 1, digest: bytes | None = None) -> Blob:
        """Give the blob with the content of `view`, copying that if it is new, for one or more tasks.

        These release it together. `digest` is that of the content, if it is known.
        """
        if digest is None:
            file = self._files.region(view)
            if file is not None:
                return self._acquire_file(view, n_tasks, file)
            attached = attached_at(view)
            digest = self._unchanged.digest(view) if attached is None else bytes.fromhex(attached.name)
        blob = self._known(digest, n_tasks)
        if blob is None:
            large = view.nbytes >= MIN_STORED_NBYTES
            kept = self._keeper.keep(view, digest) if large else Kept(digest, bytes(view), False)
            blob = self._add(kept, n_tasks)
        self._store_if_wanted(blob)
        return blob

    def _acquire_file(self, view: memoryview, n_tasks: int, file: FileRegion) -> Blob:
        digest = content_digest(repr(file).encode(errors="surrogateescape"))
        return self._known(digest, n_tasks) or self._add(Kept(digest, view, False), n_tasks, file)

    def acquire_again(self, blob: Blob, n_tasks: int) -> None:
        """Acquire a blob for further tasks while another holds it."""
        with self._lock:
            blob.users += 1
            blob.sightings += n_tasks
        self._store_if_wanted(blob)

    def _store_if_wanted(self, blob: Blob) -> None:
        if blob.sightings > 1 and not blob.stored and len(blob.data) < MIN_STORED_NBYTES:
            self._store(blob)

    def _known(self, digest: bytes, n_tasks: int) -> Blob | None:
        with self._lock:
            blob = self._blobs.get(digest)
            if blob is not None:
                if self._idle.pop(digest, None) is not None:
                    self._idle_nbytes -= len(blob.data)
                blob.users += 1
                blob.sightings += n_tasks
            return blob

    def _add(self, kept: Kept, n_tasks: int, file: FileRegion | None = None) -> Blob:
        known = self._known(kept.digest, n_tasks)
        if known is not None:
            # The buffer was written to while it was copied, and has become one that was there.
            self._drop_kept(kept.digest, kept.stored, True)
            return known
        with self._lock:
            blob = self._blobs[kept.digest] = Blob(kept, file=file)
            blob.users, blob.sightings = 1, n_tasks
            return blob

    def _store(self, blob: Blob) -> None:
        """Move a small blob to the store, now that a second task wants it."""
        kept = self._keeper.keep(memoryview(blob.data), blob.digest)
        # Chunks are packed meanwhile: with the flag unset, the data travel with them.
        blob.data = kept.data
        blob.stored = kept.stored

    def release(self, blob: Blob) -> None:
        """Say that one who acquired `blob` is done with it."""
        dropped: list[Blob] = []
        with self._lock:
            blob.users -= 1
            if blob.users:
                return
            self._idle[blob.digest] = blob
            self._idle_nbytes += len(blob.data)
            if blob.sightings == 1 or blob.file is not None or (blob.stored and len(blob.data) >= MIN_STORED_NBYTES):
                dropped.append(self._remove(blob))
            while self._idle_nbytes > MAX_IDLE_NBYTES:
                dropped.append(self._remove(next(iter(self._idle.values()))))
        for one in dropped:
            self._drop(one)

    def _remove(self, blob: Blob) -> Blob:
        del self._blobs[blob.digest], self._idle[blob.digest]
        self._idle_nbytes -= len(blob.data)
        return blob

    def _drop(self, blob: Blob) -> None:
        self._give_back(blob)
        self._on_drop(blob)
        if blob.copy is not None:
            self._on_drop(blob.copy)

    def _give_back(self, blob: Blob) -> None:
        self._drop_kept(blob.digest, blob.stored, blob.sightings > 1)
        if blob.copy is not None:
            self._drop_kept(blob.copy.digest, blob.copy.stored, True)

    def _drop_kept(self, digest: bytes, stored: bool, again: bool) -> None:
        if stored:
            self._keeper.drop(digest, again)

    def clear(self) -> None:
        """Forget all blobs."""
        with self._lock:
            blobs = list(self._blobs.values())
            self._blobs.clear()
            self._idle.clear()
            self._idle_nbytes = 0
        for blob in blobs:
            self._give_back(blob)
        self._unchanged.close()
        self._files.clear()
