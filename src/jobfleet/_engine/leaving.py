"""Give a worker its slot back when the chunk that holds it has been given up.

Dask lets a task that was cancelled run to its end in its thread, which may take hours, and starts nothing
in its place. Here the task is interrupted, and its thread leaves the worker's pool, as by `distributed.secede`, though
another thread does it: a new one takes the slot at once, and the old one ends with what it runs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import distributed
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.threadpoolexecutor import threads_lock
from distributed.worker_state_machine import SecedeEvent

from .._ship import package_code
from .._worker.interrupt import REPORT_AFTER_S, Interruptible, insist

#: Below Dask's own, so that `Client.get_worker_logs` shows it.
logger = logging.getLogger("distributed.worker.jobfleet")

_lock = threading.Lock()
_of_worker: weakref.WeakKeyDictionary[distributed.Worker, _Leaving] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def slot_given_back(worker: distributed.Worker, key: str) -> Iterator[Interruptible]:
    """Have this thread, which runs the task `key`, leave the pool as soon as the task is cancelled.

    Gives what the task is to be run in: it is interrupted then.
    """
    region = Interruptible()
    with _lock:
        leaving = _of_worker.get(worker)
        if leaving is None:
            leaving = _of_worker[worker] = _Leaving(worker)
            # A worker may serve several releases: another one's must not take its place.
            worker.loop.add_callback(worker.plugin_add, leaving, name=f"jobfleet_{package_code()[0]}_leaving")
    leaving.enter(key, region)
    try:
        yield region
    finally:
        leaving.exit(key)


class _Leaving(distributed.WorkerPlugin):
    """Watch what becomes of the chunks that one worker runs.

    Notes
    -----
    `enter` and `exit` are called by task threads, `transition` by the worker's event loop. A chunk that ends while it
    is being cancelled: whichever of `exit` and `_leave` takes the lock first finds it in `_threads`.
    """

    def __init__(self, worker: distributed.Worker) -> None:
        # The worker holds its plugins, so this must not hold the worker.
        self._worker = weakref.ref(worker)
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._regions: dict[str, Interruptible] = {}
        self._left: set[str] = set()

    def setup(self, worker: distributed.Worker) -> None:
        """See to the chunks that were there before the state machine was watched."""
        with self._lock:
            keys = list(self._regions)
        for key in keys:
            self._leave(key)

    def enter(self, key: str, region: Interruptible) -> None:
        with self._lock:
            self._threads[key] = threading.current_thread()
            self._regions[key] = region
        worker = self._worker()
        if worker is not None and given_up(worker, key):
            # It was cancelled while it was being set up, when `transition` did not know it.
            worker.loop.add_callback(self._leave, key)

    def exit(self, key: str) -> None:
        with self._lock:
            del self._regions[key]
            self._left.discard(key)
            has_left = self._threads.pop(key, None) is None
        if has_left:
            # Its place in the pool is taken: the thread must not take another task.
            pool_state.proceed = False

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Look at the task once the state machine has finished with it."""
        worker = self._worker()
        if worker is not None and key in self._regions:
            worker.loop.add_callback(self._leave, key)

    def _leave(self, key: str) -> None:
        worker = self._worker()
        if worker is None or not given_up(worker, key):
            return
        with self._lock:
            region = self._regions.get(key)
            if region is None or key in self._left:
                return
            self._left.add(key)
        insist(region, worker.loop.call_later, lambda: self._report(key))
        with self._lock:
            thread = self._threads.get(key)
            executor = worker.executors["default"]
            with threads_lock:
                if thread not in executor._threads:
                    # It has ended; or it waits for inner tasks and holds no slot: these end now, and it will
                    # come back to the pool, where it must be able to go on.
                    return
                executor._threads.discard(thread)
                executor._adjust_thread_count()
            del self._threads[key]
        worker.handle_stimulus(
            SecedeEvent(key=key, compute_duration=0.0, stimulus_id=f"jobfleet-leaving-{time.time()}")
        )

    def _report(self, key: str) -> None:
        logger.warning(
            "%s was given up %g s ago and still runs: it is in a call of native code, which cannot be interrupted, or "
            "catches every exception. It has no slot any more, but takes processor time and memory until it ends.",
            key,
            REPORT_AFTER_S,
        )


def given_up(worker: distributed.Worker, key: str) -> bool:
    """Whether the task was cancelled: Dask has no use for its result."""
    task = worker.state.tasks.get(key)
    return task is None or task.state == "cancelled"
