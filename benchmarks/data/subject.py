"""One backend with its workers, in a process that `measure` starts: ``python -m benchmarks.data.subject loky 2 DIR``.

It takes its orders as lines of JSON, one for each step of a turn, and answers each with a line.
"""

import contextlib
import json
import os
import sys
import time
import warnings

import joblib
import numpy as np
from joblib import Parallel, delayed

from .rows import STARTS, calls, make, size_of, touch, touch_and_meet

#: A worker that has given sign of life so lately is there again after a stop.
FRESH_S = 1.0
WARM_UP_NBYTES = 80_000


@contextlib.contextmanager
def loky(n_workers):
    """Give a function that gives the keywords of `parallel_config`."""

    @contextlib.contextmanager
    def connect():
        yield {"backend": "loky", "n_jobs": n_workers}

    yield connect


@contextlib.contextmanager
def dask(name, n_workers, directory):
    """Give a function that connects a new client, and gives the keywords of `parallel_config`."""
    import dask
    from distributed import Client, LocalCluster

    if name == "dask":
        import jobfleet  # noqa: F401 - registers itself
    else:
        from joblib._dask import DaskDistributedBackend

        joblib.register_parallel_backend(name, DaskDistributedBackend)
    # Between its turns all is stopped.
    dask.config.set({"distributed.scheduler.worker-ttl": None})
    with LocalCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        dashboard_address=None,
        memory_limit=0,
        silence_logs=50,
        local_directory=directory,
    ) as cluster:

        def are_there():
            workers = cluster.scheduler.workers.values()
            return len(workers) == n_workers and all(time.time() - w.last_seen < FRESH_S for w in workers)

        @contextlib.contextmanager
        def connect():
            while not are_there():
                time.sleep(0.05)
            # A new one knows nothing of what was sent before.
            with Client(cluster, set_as_default=False) as client:
                yield {"backend": name, "client": client}

        yield connect


def turn(connect, row, nbytes, n_tasks, n_calls, n_workers, seed, watch, directory):
    """Measure one row, step by step."""
    with connect() as config:
        with joblib.parallel_config(**config):
            # All has been used once, and the workers have imported what they need.
            for _ in range(2):
                Parallel(batch_size=1)(calls(row, make(row, WARM_UP_NBYTES, seed, directory), 4 * n_workers))
        thing = make(row, nbytes, seed + 1, directory)
        expected = [touch(thing, i)[1] for i in range(STARTS)]
        if row == "scatter":
            config["scatter"] = [thing]
        yield {"nbytes": size_of(thing)}
        sockets = over_sockets()
        start = time.perf_counter()
        with joblib.parallel_config(**config):
            answers = [Parallel()(calls(row, thing, n_tasks)) for _ in range(n_calls)]
        seconds = time.perf_counter() - start
        sockets = over_sockets() - sockets
        for answer in answers:
            if not np.allclose([total for _, total in answer], [expected[i % STARTS] for i in range(n_tasks)]):
                raise ValueError(f"wrong result: {row}")
        yield {"wall_s": seconds, "sockets": sockets}
        if watch:
            with joblib.parallel_config(**config):
                meeting = [delayed(touch_and_meet)(thing, watch, n_workers)] * n_workers
                pids = {pid for pid, _ in Parallel(n_jobs=n_workers, batch_size=1)(meeting)}
            yield {"touched": len(pids)}
    for name in os.listdir(directory):
        if name.startswith("memmap-"):
            os.unlink(os.path.join(directory, name))


def over_sockets():
    """Give the bytes that went over the loopback interface."""
    with open("/proc/net/dev") as lines:
        return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def main(subject, n_workers, directory):
    """Serve one turn after the other."""
    warnings.simplefilter("ignore")
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**facts):
        print(json.dumps(facts), file=answers, flush=True)

    n_workers = int(n_workers)
    names = {"jobfleet": "dask", "builtin": "builtin"}
    running = dask(names[subject], n_workers, directory) if subject in names else loky(n_workers)
    with running as connect:
        with connect() as config, joblib.parallel_config(**config):
            Parallel()(calls("list", [np.zeros(8)], 2 * n_workers))
        answer()
        for line in sys.stdin:
            for facts in turn(connect, n_workers=n_workers, directory=directory, **json.loads(line)):
                answer(**facts)
                sys.stdin.readline()
            answer()


if __name__ == "__main__":
    main(*sys.argv[1:])
