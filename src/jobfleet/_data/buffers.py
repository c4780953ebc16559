"""Large buffers of one call, known by their content."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

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


#: Bound on the buffers kept for tasks that may still come.
MAX_IDLE_NBYTES = 512 * 2**20


class Blob:
    """Hold a private copy of one buffer, while tasks of the call need it.

    Attributes
    ----------
    data
        The bytes, as they were when the first task that uses them was dispatched.
    users
        Unfinished tasks that refer to it.
    sightings
        Tasks that ever did.
    """

    __slots__ = ("data", "digest", "pinned", "sightings", "users")

    data: bytes
    digest: bytes
    pinned: bool
    sightings: int
    users: int

    def __init__(self, digest: bytes, data: bytes) -> None:
        self.digest = digest
        self.data = data
        self.users = 0
        self.sightings = 0
        self.pinned = False


class BlobTable:
    """Keep the buffers that tasks of one call refer to, each content once.

    The content is read each time a task is encoded, so a buffer that its owner
    refills between two tasks becomes a new blob: no task ever sees stale data.
    A blob that served a single task goes with that task. One that served several is kept
    for the next, as long as those kept so take less than `MAX_IDLE_NBYTES` together.

    Parameters
    ----------
    on_drop
        Called with each blob that is not needed any more.

    Notes
    -----
    Thread-safe: tasks are encoded in the thread that dispatches, and released in the driver's.
    """

    _blobs: dict[bytes, Blob]
    _idle: dict[bytes, Blob]
    """In the order in which they became idle."""
    _idle_nbytes: int
    _on_drop: Callable[[Blob], None]

    def __init__(self, on_drop: Callable[[Blob], None]) -> None:
        self._blobs = {}
        self._idle = {}
        self._idle_nbytes = 0
        self._lock = threading.Lock()
        self._on_drop = on_drop

    def acquire(self, view: memoryview) -> Blob:
        """Give the blob with the content of `view`, copying that if it is new."""
        digest = content_digest(view)
        with self._lock:
            blob = self._blobs.get(digest)
            if blob is None:
                blob = self._blobs[digest] = Blob(digest, bytes(view))
            elif self._idle.pop(digest, None) is not None:
                self._idle_nbytes -= len(blob.data)
            blob.users += 1
            blob.sightings += 1
            return blob

    def release(self, blob: Blob) -> None:
        """Say that one task is done with `blob`."""
        with self._lock:
            blob.users -= 1
            if blob.users:
                return
            self._idle[blob.digest] = blob
            self._idle_nbytes += len(blob.data)
            if blob.sightings == 1:
                self._drop(blob)
            while self._idle_nbytes > MAX_IDLE_NBYTES:
                self._drop(next(iter(self._idle.values())))

    def _drop(self, blob: Blob) -> None:
        del self._blobs[blob.digest], self._idle[blob.digest]
        self._idle_nbytes -= len(blob.data)
        self._on_drop(blob)

    def clear(self) -> None:
        """Forget all blobs."""
        with self._lock:
            self._blobs.clear()
            self._idle.clear()
            self._idle_nbytes = 0
