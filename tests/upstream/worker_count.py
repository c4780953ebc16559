"""Preloaded by every Dask worker of a run: writes one line for each task that ends, with the process it ran in.

The backend under test has no say in these numbers. Loaded from its file, so it imports nothing of ours.
"""

import os

from distributed.diagnostics.plugin import WorkerPlugin

FILE = os.environ["UPSTREAM_WORKER_COUNTS"]


def write(kind):
    """Append one short line; the kernel keeps lines of several processes apart."""
    with open(FILE, "a", buffering=1) as file:
        file.write(f"{kind} {os.getpid()}\n")


class CountTasks(WorkerPlugin):
    """One line for each Dask task that ran here."""

    def transition(self, key, start, finish, **kwargs):
        """Write a line when a task leaves the state in which it runs."""
        if start in ("executing", "long-running") and finish in ("memory", "error"):
            write("task")


def count_sklearn_calls():
    """Write one line for each single call that scikit-learn's ``Parallel`` made in this process."""
    from sklearn.utils.parallel import _FuncWrapper

    call = _FuncWrapper.__call__

    def counting_call(self, *args, **kwargs):
        write("call")
        return call(self, *args, **kwargs)

    _FuncWrapper.__call__ = counting_call


async def dask_setup(worker):
    """Called by Dask when the worker starts."""
    await worker.plugin_add(CountTasks(), name="upstream-count")
    if "UPSTREAM_COUNT_SKLEARN" in os.environ:
        count_sklearn_calls()
