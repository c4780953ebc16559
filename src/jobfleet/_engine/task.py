"""A Dask task, as the place where a chunk runs."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import distributed
from distributed.utils import sync, thread_state

from .._worker.interrupt import Interruptible
from .._worker.limit import TimeLimit, watch
from .base import Callers, Engine, Session
from .dask import DaskEngine, clients_in_use
from .deaths import STARTS
from .handing_back import lookout_of
from .helping import HelpingSession
from .leaving import given_up, slot_given_back
from .local import LocalEngine, LocalSession
from .overruns import Overdue
from .place import NestedBackend, TaskPlace

logger = logging.getLogger(__name__)

_REPORT_DEADLINE_S = 10.0

#: How long it is believed that others wait for slots, after the chunk was told so.
_STAYS_BUSY_S = 1.0


class DaskPlace(TaskPlace):
    """Give a chunk its surroundings in a Dask task."""

    def limit(self, limit: TimeLimit) -> None:
        """Interrupt a task that takes longer than it may, then have its process replaced."""
        worker = distributed.get_worker()
        overdue = Overdue(worker, thread_state.key, limit)
        worker.loop.add_callback(
            watch, limit, self._region, worker.loop.call_later, lambda: worker.loop.add_callback(overdue.end)
        )

    def give_back(self, kept: Callable[[], int | None], over_after_s: float) -> AbstractContextManager[None]:
        """Give back what is behind a task that takes long; `kept` gives how many tasks are not, once that is so."""
        return lookout_of(distributed.get_worker()).watch(thread_state.key, kept, over_after_s)

    def report_start(self, position: int) -> None:
        """Tell the scheduler that a task of the chunk starts; returns when it knows."""
        worker = distributed.get_worker()
        message = {"key": thread_state.key, "position": position}
        try:
            report = worker.scheduler.log_event
            sync(worker.loop, report, topic=STARTS, msg=message, callback_timeout=_REPORT_DEADLINE_S)
        except (OSError, TimeoutError):
            # What is not known to have started is not blamed.
            logger.debug("the scheduler does not hear that %s starts", message, exc_info=True)

    def _task(self, position: int) -> tuple[tuple[str, int], ...]:
        return ((current_key(), position),)


def current_key() -> str:
    """Give the key of the Dask task that this thread runs."""
    key: str = thread_state.key
    return key


@contextlib.contextmanager
def dask_place(nested_backend: NestedBackend, others_wait: bool = False) -> Iterator[TaskPlace]:
    """Give the Dask task that this thread runs.

    Parameters
    ----------
    nested_backend
        Makes the backend of calls that the chunk's tasks make.
    others_wait
        See `Request.others_wait`.
    """
    busy_until_s = time.monotonic() + _STAYS_BUSY_S if others_wait else 0.0
    worker = distributed.get_worker()
    key = thread_state.key

    def cancelled() -> bool:
        return given_up(worker, key)

    def make_engine(depth: int, callers: Callable[[], Callers]) -> Engine:
        task = worker.state.tasks.get(key)
        if task is not None and task.resource_restrictions:
            # It keeps its resources while it waits: inner tasks that want the same might wait for ever.
            return LocalEngine(nested_backend, depth, cancelled)
        return DaskEngine(lambda options: _client(worker), depth, cancelled, helped, callers)

    def helped(session: Session) -> Session:
        def make_place(closed: Callable[[], bool], region: Interruptible) -> TaskPlace:
            return TaskPlace(nested_backend, make_engine, worker.address, lambda: closed() or cancelled(), region)

        return HelpingSession(session, LocalSession(make_place, n_threads=0), time.monotonic() < busy_until_s)

    with slot_given_back(worker, key) as region:
        yield DaskPlace(nested_backend, make_engine, worker.address, cancelled, region)


def _client(worker: distributed.Worker) -> distributed.Client:
    """Give a client of the worker's cluster: that of the outer call if it lives in this process.

    Dask would make one for each worker, which in the client's process outlives the cluster.
    """
    address = worker.scheduler.address
    for client in list(clients_in_use):
        if client.status == "running" and client.scheduler.address == address:
            return client
    return distributed.get_client()
