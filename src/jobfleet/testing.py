"""An engine for tests: runs chunks in threads of this process, and fails where it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping

from ._backend import nested_backend
from ._data.packing import PackedChunk
from ._engine.base import Callers, Lost, LostKind, Outcome, Slots
from ._engine.local import LocalEngine, LocalSession
from ._engine.place import TaskPlace
from ._worker.interrupt import Interruptible
from .options import Options

__all__ = ["Fault", "ScriptedEngine"]

#: What becomes of a chunk: it is lost for this reason, or (None) it runs.
Fault = LostKind | None


class ScriptedEngine:
    """Run chunks in threads, and lose those that a script names.

    Parameters
    ----------
    slots
        How many chunks run at once.
    faults
        What happens to the n-th chunk sent, counted from 0 over the life of the engine; chunks that are
        not named run.

    Attributes
    ----------
    n_sent
        Chunks sent so far.

    Examples
    --------
    >>> import joblib, jobfleet
    >>> from jobfleet.testing import Fault, ScriptedEngine
    >>> from jobfleet._engine.base import LostKind
    >>> with joblib.parallel_config("jobfleet", engine=ScriptedEngine(faults={0: LostKind.DATA})):
    ...     joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(3))
    [0, 1, 2]
    """

    depth = 0

    def __init__(self, slots: int = 2, faults: Mapping[int, Fault] | None = None) -> None:
        self._n_slots = slots
        self._faults = dict(faults or {})
        self._lock = threading.Lock()
        self.n_sent = 0

    def slots(self, options: Options) -> Slots:
        """Give the slots."""
        return Slots(self._n_slots, self._n_slots)

    def open(self, options: Options, slots: Slots, *, lends_thread: bool) -> _ScriptedSession:
        """Begin a call."""
        return _ScriptedSession(self._n_slots, self._next_fault)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Do nothing: inner calls run in the thread of their task."""
        yield

    def _next_fault(self) -> Fault:
        with self._lock:
            number, self.n_sent = self.n_sent, self.n_sent + 1
        return self._faults.get(number)


class _ScriptedSession(LocalSession):
    """One call's use of a scripted engine; its threads end with it."""

    def __init__(self, n_slots: int, next_fault: Callable[[], Fault]) -> None:
        super().__init__(_place, n_slots)
        self._next_fault = next_fault

    def submit(self, chunk: PackedChunk, label: str, done: Callable[[Outcome], None], here: bool = False) -> None:
        """Run a chunk in the next free thread, or lose it."""
        fault = self._next_fault()
        if fault is None:
            super().submit(chunk, label, done)
        else:
            # A worker that dies does so when the first task of the chunk has started.
            done(Lost(fault, RuntimeError("scripted"), started=0 if chunk.report_every else None))


def _place(closed: Callable[[], bool], region: Interruptible) -> TaskPlace:
    def make_engine(depth: int, callers: Callable[[], Callers]) -> LocalEngine:
        return LocalEngine(nested_backend, depth, closed)

    return TaskPlace(nested_backend, make_engine, "this process", closed, region)
