"""Count what really went through the backend: in the client by its class, in the workers by a Dask plugin."""

import collections
import dataclasses
import functools
import os
import pathlib

from joblib._parallel_backends import FallbackToBackend, SequentialBackend

PRELOAD = pathlib.Path(__file__).with_name("worker_count.py")


@dataclasses.dataclass
class ClientCounts:
    """What the backend class was asked for in this process."""

    calls: int = 0
    """Parallel calls that the backend ran."""
    in_client: int = 0
    """Times it told joblib to run a call itself, in the client, since n_jobs came to 1."""
    batches: int = 0
    tasks: int = 0
    """Single calls in those batches."""


def count_client(cls):
    """Wrap the class's methods, here only, and return the counts they will keep."""
    counts = ClientCounts()
    start_call, submit, configure = cls.start_call, cls.submit, cls.configure

    @functools.wraps(start_call)
    def counting_start_call(self):
        counts.calls += 1
        return start_call(self)

    @functools.wraps(submit)
    def counting_submit(self, func, callback=None):
        counts.batches += 1
        counts.tasks += len(func)
        return submit(self, func, callback)

    @functools.wraps(configure)
    def counting_configure(self, *args, **kwargs):
        try:
            n_jobs = configure(self, *args, **kwargs)
        except FallbackToBackend as fallback:  # joblib's other way of saying: one job, run it in the client
            counts.in_client += isinstance(fallback.backend, SequentialBackend)
            raise
        counts.in_client += n_jobs == 1
        return n_jobs

    cls.start_call, cls.submit, cls.configure = counting_start_call, counting_submit, counting_configure
    return counts


def worker_environment(file, *, sklearn):
    """Give the environment variables that make every worker, of whatever cluster, write to ``file``."""
    variables = {"UPSTREAM_WORKER_COUNTS": str(file), "DASK_DISTRIBUTED__WORKER__PRELOAD": f'["{PRELOAD}"]'}
    return {**variables, "UPSTREAM_COUNT_SKLEARN": "1"} if sklearn else variables


@dataclasses.dataclass
class WorkerCounts:
    """What ran where."""

    outside: int
    """Dask tasks that ran in another process than the client's."""
    inside: int
    """Dask tasks of workers in the client's own process."""
    processes: int
    """Worker processes that ran at least one."""
    sklearn_calls: int
    """Single calls made by scikit-learn that ran in another process than the client's."""


def read_workers():
    """Sum up the lines the workers wrote."""
    tasks, calls = collections.Counter(), collections.Counter()
    for line in pathlib.Path(os.environ["UPSTREAM_WORKER_COUNTS"]).read_text().splitlines():
        kind, pid = line.split()
        (tasks if kind == "task" else calls)[int(pid)] += 1
    inside = tasks.pop(os.getpid(), 0)
    calls.pop(os.getpid(), 0)
    return WorkerCounts(tasks.total(), inside, len(tasks), calls.total())
