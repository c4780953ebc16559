"""Limit the threads that BLAS and OpenMP libraries start inside tasks.

OpenMP keeps its limit per thread, most BLAS libraries per process: in a worker with several
threads that run chunks with different explicit limits, the last to start wins for BLAS. A
library that a task itself is the first to load is found by the chunk after it.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from .._sink import active_sink

if TYPE_CHECKING:
    from types import TracebackType

try:
    import threadpoolctl
except ImportError:  # optional: the client's package need not be installed on workers
    threadpoolctl = None


class _Libraries:
    """Hold the controllers of the loaded libraries, found anew after every import.

    Notes
    -----
    Thread-safe without a lock: two threads may both look, the outcome is the same.
    """

    def __init__(self) -> None:
        self._found: tuple[int, list[Any]] = (-1, [])

    def loaded(self) -> list[Any]:
        """Return one controller per library."""
        # Looking through the process's shared objects takes milliseconds; a library that
        # comes, comes with a module.
        modules = len(sys.modules)
        seen, controllers = self._found
        if seen != modules:
            found = threadpoolctl.ThreadpoolController().lib_controllers
            # None is a library that does not say, and cannot be set.
            controllers = [each for each in found if each.num_threads is not None]
            self._found = (modules, controllers)
        return controllers


class _Lowered(threading.local):
    """Remember what the current thread was last lowered to, and with which modules."""

    state: tuple[int, int] | None = None


class _Shared:
    """Limit the libraries that have one limit for the whole process.

    Notes
    -----
    Thread-safe. The lock is held while a library is told its limit, which does not call
    back into Python.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Per library: what it had before, then the limits in force, oldest first. With
        # only what it had before to go by, of two chunks side by side the first to end
        # would lift the limit of the other.
        self._limits: dict[str, list[int]] = {}

    def hold(self, library: Any, limit: int) -> None:
        """Set the limit until it is released."""
        with self._lock:
            limits = self._limits.setdefault(library.filepath, [library.num_threads])
            limits.append(limit)
            _set(library, limit)

    def release(self, library: Any, limit: int) -> None:
        """Set the latest limit still held, or else what there was before."""
        with self._lock:
            limits = self._limits[library.filepath]
            newest = len(limits) - 1 - limits[::-1].index(limit)
            del limits[newest]
            _set(library, limits[-1])
            if len(limits) == 1:
                del self._limits[library.filepath]

    def lower(self, library: Any, limit: int) -> None:
        """Lower the limit, or, while one is held, what comes back after it."""
        with self._lock:
            limits = self._limits.get(library.filepath)
            if limits is None:
                _lower(library, limit)
            else:
                limits[0] = min(limits[0], limit)


def _set(library: Any, limit: int) -> None:
    """Set the limit of a library."""
    if library.num_threads == limit:
        return
    # The first thread that sets OpenBLAS's limit keeps the right to for as long as it
    # lives, and threadpoolctl silently ignores the others (since 3.8; see
    # joblib/threadpoolctl#220). Who wins among our threads is decided above; a thread of
    # the user's takes the right again when it needs it.
    clear = getattr(library, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)
    library.set_num_threads(limit)
    if clear is not None:
        clear(force=True)


def _lower(library: Any, limit: int) -> None:
    if library.num_threads > limit:
        _set(library, limit)


def _per_thread(library: Any) -> bool:
    """Say whether each thread has a limit of its own."""
    return "openmp" in (library.user_api, getattr(library, "threading_layer", None))


_libraries = _Libraries()
_shared = _Shared()
_lowered = _Lowered()


class Limited:
    """Limit thread pools around one chunk, in the thread that runs it.

    Parameters
    ----------
    inner_max_num_threads
        Set every pool to this many threads, and back at the end.
    default
        Without the former: lower every pool that has more, for good.

    Notes
    -----
    With both None nothing is touched, as is right in the client's own process. Without
    `threadpoolctl` nothing can be set; for an explicit number the client gets a warning,
    which its filters show once.
    """

    def __init__(self, inner_max_num_threads: int | None, default: int | None) -> None:
        self._explicit = inner_max_num_threads
        self._default = default
        self._before: list[tuple[Any, int]] = []
        self._held: list[Any] = []

    def __enter__(self) -> Limited:
        if self._explicit is not None:
            self._enter(self._explicit)
        elif self._default is not None and threadpoolctl is not None:
            _lower_all(self._default)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        before, self._before = self._before, []
        held, self._held = self._held, []
        for library, threads in before:
            _set(library, threads)
        for library in held:
            _shared.release(library, self._explicit or 1)

    def _enter(self, limit: int) -> None:
        if threadpoolctl is None:
            _warn_missing(limit)
            return
        for library in _libraries.loaded():
            if not _per_thread(library):
                _shared.hold(library, limit)
                self._held.append(library)
            elif (threads := library.num_threads) != limit:
                self._before.append((library, threads))
                _set(library, limit)


def limited(inner_max_num_threads: int | None, default: int | None) -> Limited:
    """Limit the thread pools of the current thread's tasks, see `Limited`."""
    return Limited(inner_max_num_threads, default)


def _lower_all(default: int) -> None:
    """Lower this thread's pools, unless that was done and nothing was loaded since."""
    # Taken before looking: a module that another thread imports meanwhile is looked for
    # at the next chunk.
    state = (default, len(sys.modules))
    if _lowered.state == state:
        return
    for library in _libraries.loaded():
        if _per_thread(library):
            _lower(library, default)
        else:
            _shared.lower(library, default)
    _lowered.state = state


def _warn_missing(limit: int) -> None:
    sink = active_sink()
    if sink is None:
        return
    # Past this process's filters: an "error" there would fail the chunk here, while at
    # the client it fails the call. Text and place are the same for every worker and chunk,
    # so that the client takes them for the same warning.
    message = RuntimeWarning(
        f"inner_max_num_threads={limit} has no effect: threadpoolctl is not installed on "
        "the workers. Install it there (pip install threadpoolctl)."
    )
    sink.warning(message, "jobfleet", 1, "jobfleet")
