"""Where a chunk runs, as the code that runs it sees it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import joblib

from .._compat import backend_for_tasks
from .._sink import active_sink
from .._wire import CallSpec, process_token
from .._worker.interrupt import Interruptible
from .._worker.limit import TimeLimit, watch
from .base import Callers, Engine

logger = logging.getLogger(__name__)


class NestedBackend(Protocol):
    """Make the joblib backend of calls that tasks make."""

    def __call__(self, spec: CallSpec, engine: Engine) -> Any:
        """Give a backend with an attribute `was_used`."""


class TaskPlace:
    """Give a chunk its surroundings.

    Parameters
    ----------
    nested_backend
        Makes the backend for `Parallel` calls of the tasks.
    make_engine
        Makes the engine of such calls, given their depth, and what gives the tasks that made one.
    address
        Names the place in messages.
    cancelled
        Whether the client has given the chunk up.
    region
        What the chunk's tasks run in.
    """

    address: str

    def __init__(
        self,
        nested_backend: NestedBackend,
        make_engine: Callable[[int, Callable[[], Callers]], Engine],
        address: str,
        cancelled: Callable[[], bool],
        region: Interruptible,
    ) -> None:
        self._nested_backend = nested_backend
        self._make_engine = make_engine
        self.address = address
        self.cancelled = cancelled
        self._region = region

    def report_start(self, position: int) -> None:
        """Do nothing: where a death of this process would be the client's own, nobody asks."""

    def give_back(self, kept: Callable[[], int | None], over_after_s: float) -> contextlib.AbstractContextManager[None]:
        """Do nothing: there is no other place where the tasks could go."""
        return contextlib.nullcontext()

    def limit(self, limit: TimeLimit) -> None:
        """Interrupt a task that takes longer than it may; this process is not ended for it."""
        watch(limit, self._region, call_later, lambda: _still_runs(limit))

    def run(self, function: Callable[[], None]) -> bool:
        """Call what runs the chunk's tasks; gives whether it was not interrupted."""
        self._region.run(function)
        return not self._region.requested

    @contextlib.contextmanager
    def nested(
        self, spec: CallSpec, deaths: int, position: Callable[[], int]
    ) -> Iterator[tuple[Callable[[], None], Callable[[], bool]]]:
        """Let `Parallel` calls of the tasks use the cluster.

        Parameters
        ----------
        spec
            That of the call the chunk belongs to.
        deaths
            How many workers have died with the chunk's tasks.
        position
            Gives that of the task that runs.

        Yields
        ------
        renew
            To be called before each task: undoes what the one before did to joblib's settings.
        was_used
            Whether a task made such a call.
        """

        def callers() -> Callers:
            return Callers(spec.callers + self._task(position()), deaths)

        backend = self._nested_backend(spec, self._make_engine(spec.depth + 1, callers))
        with backend_for_tasks(backend) as active:
            yield active.renew, lambda: backend.was_used

    def _task(self, position: int) -> tuple[tuple[str, int], ...]:
        """Name a task of the chunk if the chunk has a name of its own on the cluster."""
        return ()

    def captures(self, spec: CallSpec) -> bool:
        """Whether output must be sent: it need not when it appears in the caller's process anyway."""
        return spec.capture or spec.origin != process_token()

    def default_threads(self, spec: CallSpec) -> int | None:
        """Share the host's processors among its tasks; the client's own process is left alone."""
        if spec.origin == process_token() or active_sink() is not None:
            return None
        n_cpus: int = joblib.cpu_count()
        return max(1, n_cpus // max(1, spec.host_slots))


def call_later(delay_s: float, function: Callable[[], object]) -> None:
    """Call a function after some seconds, on a thread of its own."""
    timer = threading.Timer(delay_s, function)
    timer.daemon = True
    timer.start()


def _still_runs(limit: TimeLimit) -> None:
    logger.warning(
        "a task has run longer than %g s and cannot be interrupted: it is in a call of native code, or catches every "
        "exception. This process is not ended for it; it is waited for.",
        limit.seconds,
    )
