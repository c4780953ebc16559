"""Limit the threads that BLAS and OpenMP libraries start inside tasks.

OpenMP keeps its limit per thread, most BLAS libraries per process; a worker with several
threads that run chunks with different explicit limits therefore shares the BLAS ones, the
last to start winning. A library that a task itself is the first to load is found by the
chunk after it.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from .._sink import active_sink

if TYPE_CHECKING:
    from types import TracebackType

try:
    import threadpoolctl  # type: ignore[import-untyped]
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
            controllers = threadpoolctl.ThreadpoolController().lib_controllers
            self._found = (modules, controllers)
        return controllers


class _Lowered(threading.local):
    """Remember what the current thread was last lowered to, and with which modules."""

    state: tuple[int, int] | None = None


_libraries = _Libraries()
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

    def __enter__(self) -> Limited:
        if self._explicit is not None:
            self._set(self._explicit)
        elif self._default is not None and threadpoolctl is not None:
            _lower(self._default)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        before, self._before = self._before, []
        for controller, threads in before:
            controller.set_num_threads(threads)

    def _set(self, limit: int) -> None:
        if threadpoolctl is None:
            _warn_missing(limit)
            return
        for controller in _libraries.loaded():
            threads = controller.num_threads
            if threads is not None and threads != limit:
                self._before.append((controller, threads))
                controller.set_num_threads(limit)


def limited(inner_max_num_threads: int | None, default: int | None) -> Limited:
    """Limit the thread pools of the current thread's tasks, see `Limited`."""
    return Limited(inner_max_num_threads, default)


def _lower(default: int) -> None:
    """Lower this thread's pools, unless that was done and nothing was loaded since."""
    state = (default, len(sys.modules))
    if _lowered.state == state:
        return
    for controller in _libraries.loaded():
        threads = controller.num_threads
        if threads is not None and threads > default:
            controller.set_num_threads(default)
    # Taken before looking: a module that another thread imports meanwhile is looked for
    # at the next chunk.
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
