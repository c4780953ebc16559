"""Every name of joblib that is private, or differs between its versions.

`tests/unit/test_compat.py` has a test for each that fails when it moves.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
from typing import Any

import joblib.parallel
from joblib._parallel_backends import FallbackToBackend
from joblib.parallel import BatchCompletionCallBack, Parallel, ParallelBackendBase, parallel_config

__all__ = [
    "FallbackToBackend",
    "ParallelBackendBase",
    "ahead_per_slot",
    "awaits_results",
    "backend_for_tasks",
    "batch_calls",
    "dispatch_more",
    "fail_call",
    "forget_leftovers",
    "input_ended",
    "raise_early_failure",
]


def batch_calls(batch: Any) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Give the calls of what joblib hands to `submit`."""
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = batch.items
    return calls


def ahead_per_slot(parallel: Parallel) -> float | None:
    """Give the batches to be dispatched ahead for each slot; None if `pre_dispatch` does not depend on the slots."""
    pre_dispatch = parallel.pre_dispatch
    if not isinstance(pre_dispatch, str) or "n_jobs" not in pre_dispatch:
        return None
    many = 1000
    return float(joblib.parallel.eval_expr(pre_dispatch.replace("n_jobs", str(many))) / many)


def input_ended(parallel: Parallel) -> bool:
    """Whether joblib has found the end of the user's iterable, or reads all of it at once."""
    # It is set a moment after the call has started.
    return getattr(parallel, "_original_iterator", parallel) is None


def dispatch_more(parallel: Parallel, smaller_at_end: bool = True) -> None:
    """Have joblib dispatch one batch more than it would by itself, if there is one.

    Parameters
    ----------
    parallel
        The call.
    smaller_at_end
        joblib cuts the last tasks of the user's iterable into batches of a tenth, so that all workers end together. It
        knows the end by the iterator that it holds itself, so it gets one that reads from this.
    """
    with parallel._lock:
        iterator = parallel._original_iterator
        if parallel._aborting or iterator is None:
            return
        if smaller_at_end or not parallel.dispatch_one_batch(itertools.islice(iterator, None)):
            parallel.dispatch_next()  # which notes that there are no more


def fail_call(parallel: Parallel, error: BaseException) -> None:
    """End a running call with an error that belongs to none of its batches.

    It is what joblib does itself when the user's iterable raises.
    """
    tracker = BatchCompletionCallBack(0, 1, parallel)
    parallel._register_new_job(tracker)
    tracker._register_outcome({"result": error, "status": joblib.parallel.TASK_ERROR})


def forget_leftovers(parallel: Parallel) -> None:
    """Drop tasks of a call that has failed, which joblib would run as part of the next one.

    joblib cuts several batches at a time and keeps those it has not dispatched in a queue
    that an abort does not empty (joblib 1.6).
    """
    with parallel._lock, contextlib.suppress(queue.Empty):
        while True:
            parallel._ready_batches.get(block=False)


def raise_early_failure(parallel: Parallel) -> None:
    """Raise what has failed before results are waited for.

    Where the user's iterable raises while ``pre_dispatch="all"`` reads it and no task is left to wait for, joblib
    itself would give an empty list (joblib 1.6).
    """
    if parallel._aborting:
        parallel._raise_error_fast()


def awaits_results(parallel: Parallel) -> bool:
    """Whether a running call has tasks to dispatch or to complete, and has not failed."""
    return not parallel._aborting and bool(parallel._wait_retrieval())


class backend_for_tasks:
    """Make a backend the active one of this thread; `renew` undoes what a task has changed.

    joblib's own context manager sets the same thread-local value.
    """

    def __init__(self, backend: ParallelBackendBase) -> None:
        self._backend = backend

    def __enter__(self) -> backend_for_tasks:
        self._config = parallel_config(backend=self._backend, n_jobs=-1)
        self._active = joblib.parallel._backend.config
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._config.unregister()

    def renew(self) -> None:
        """Make the backend active again, whatever a task has left behind."""
        joblib.parallel._backend.config = self._active
