"""One measurement, in a process of its own: ``python -m benchmarks.data.subject '{...}'`` prints JSON.

The process has a network of its own where the system allows it (see `__main__`), so that the counters of the
loopback interface count what this measurement sends and nothing else.
"""

import contextlib
import json
import os
import sys
import threading
import time
import warnings

import joblib
import numpy as np
import psutil
from joblib import Parallel, delayed

PAGE_ITEMS = 512  # of eight bytes: one in each page


class Holder:
    """An object with a large attribute, and a method that uses it."""

    def __init__(self, data):
        self.data = data

    def touch(self, i):
        """Touch every page of the data."""
        return touch(self.data, i)


def touch(thing, i):
    """Touch every page of all arrays in `thing`, and no more."""
    return os.getpid(), sum(float(array.reshape(-1, order="A")[i % 7 :: PAGE_ITEMS].sum()) for array in arrays(thing))


def arrays(thing):
    """Give the large arrays in anything measured here."""
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, dict):
        return [array for value in thing.values() for array in arrays(value)]
    if isinstance(thing, list):
        return [array for value in thing for array in arrays(value)]
    if hasattr(thing, "to_numpy"):
        return [thing.to_numpy(copy=False)]
    if hasattr(thing, "indptr"):
        return [thing.data]
    return [array for value in getattr(thing, "__dict__", {}).values() for array in arrays(value)]


def make(row, nbytes):
    """Give the argument of this row, of about `nbytes`."""
    flat = np.random.default_rng(0).random(nbytes // 8)
    if row == "list":
        return [flat]
    if row == "dict":
        return {"X": flat}
    if row == "estimator":
        from sklearn.linear_model import LinearRegression

        model = LinearRegression()
        model.coef_ = flat
        return model
    if row == "frame":
        import pandas as pd

        return pd.DataFrame(flat[: flat.size // 50 * 50].reshape(-1, 50))
    if row == "sparse":
        from scipy import sparse

        n = nbytes // 12
        columns = np.arange(n, dtype=np.int32) % 1000
        rows = np.arange(0, n + 1000, 1000).clip(max=n)
        return sparse.csr_matrix((flat[:n], columns, rows), shape=(rows.size - 1, 1000))
    return flat


def calls(row, thing, n):
    """Give the calls."""
    if row == "closure":
        return [delayed(lambda i: touch(thing, i))(i) for i in range(n)]
    if row == "method":
        return [delayed(Holder(thing).touch)(i) for i in range(n)]
    return [delayed(touch)(thing, i) for i in range(n)]


@contextlib.contextmanager
def backend(name, n_workers):
    """Give the keywords of `parallel_config` that choose a backend with running workers."""
    if name == "loky":
        yield {"backend": "loky", "n_jobs": n_workers}
        return
    from distributed import Client, LocalCluster

    if name == "jobfleet":
        import jobfleet  # noqa: F401 - registers itself
    else:
        from joblib._dask import DaskDistributedBackend

        joblib.register_parallel_backend("builtin", DaskDistributedBackend)
    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=None, memory_limit=0, silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(n_workers)
        yield {"backend": "dask" if name == "jobfleet" else "builtin"}


def processes():
    """Give this process and all below it."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def memory():
    """Give what all processes hold together: memory of their own, and shared memory, each page once."""
    total = 0
    for process in processes():
        with contextlib.suppress(OSError, psutil.Error), open(f"/proc/{process.pid}/smaps_rollup") as lines:
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
    status = os.statvfs("/dev/shm")
    return total + (status.f_blocks - status.f_bfree) * status.f_frsize


def over_sockets():
    """Give the bytes that went over the loopback interface."""
    with open("/proc/net/dev") as lines:
        return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


class Peak:
    """Watch memory while something runs."""

    def __enter__(self):
        self.nbytes = memory()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._ended.wait(0.05):
            self.nbytes = max(self.nbytes, memory())

    def __exit__(self, *exc):
        self._ended.set()
        self._thread.join()


def measure(subject, row, n_workers, nbytes, n_tasks, n_calls):
    """Measure one row: a call of `n_tasks`, or `n_calls` calls of four tasks."""
    with backend(subject, n_workers) as config:
        with joblib.parallel_config(**config):
            # The workers have imported what they need, and everything has been used once.
            for _ in range(2):
                Parallel()(calls(row, make(row, 80_000), 8 * n_workers))
        thing = make(row, nbytes)
        size = sum(array.nbytes for array in arrays(thing))
        if row == "scatter":
            config["scatter"] = [thing]
        before, sockets = memory(), over_sockets()
        # The sampling takes a core's time, so what is timed is another run of the same than what is watched.
        watch = n_calls == 1 and os.environ.get("WATCH") == "1"
        with Peak() if watch else contextlib.nullcontext() as peak:
            start = time.perf_counter()
            with joblib.parallel_config(**config):
                for _ in range(n_calls):
                    answers = Parallel()(calls(row, thing, n_tasks if n_calls == 1 else 4))
            seconds = time.perf_counter() - start
            result = {"sockets": over_sockets() - sockets, "seconds": seconds}
            if watch:
                result["after"] = (memory() - before) / size
        if watch:
            result["peak"] = (peak.nbytes - before) / size
        result["n_processes"] = len({pid for pid, _ in answers})
        return result


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
