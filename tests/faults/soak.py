"""A long search on four workers while faults strike at random: its results are the sequential run's.

``make soak``; ``SOAK_MINUTES=3 SOAK_SEED=7 make soak`` for a shorter one that strikes as an earlier one did.
"""

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter

import numpy as np
import psutil
from distributed import Client
from joblib import Parallel, delayed, parallel_config
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import jobfleet  # noqa: F401
from tests.cluster.conftest import Processes
from tests.faults.tasks import square

N_WORKERS = 4
WORKER_TTL_S = 5.0
#: A call that is not back by then hangs.
DEADLINE_S = 120


class Faults(threading.Thread):
    """Strikes a worker every few seconds, and sees to it that there are new ones."""

    def __init__(self, processes, seed):
        super().__init__(daemon=True)
        self.processes = processes
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.struck = Counter()

    def run(self):
        while not self.over.wait(self.random.uniform(1, 5)):
            fault = self.random.choice([self.kill, self.kill, self.freeze, self.kill_with_nanny])
            nannies = [process for process in self.processes.running[1:] if process.poll() is None]
            if nannies:
                self.struck[fault.__name__] += fault(self.random.choice(nannies))
            for _ in range(N_WORKERS - sum(p.poll() is None for p in self.processes.running[1:])):
                self.processes.start_worker("--nanny")

    def worker_of(self, nanny):
        children = psutil.Process(nanny.pid).children()
        return next((c for c in children if "spawn_main" in " ".join(c.cmdline())), None)

    def signal(self, nanny, number):
        try:
            worker = self.worker_of(nanny)
            if worker is not None:
                worker.send_signal(number)
            return worker
        except psutil.NoSuchProcess:
            return None

    def kill(self, nanny):
        return self.signal(nanny, signal.SIGKILL) is not None

    def kill_with_nanny(self, nanny):
        nanny.kill()
        nanny.wait()
        return True

    def freeze(self, nanny):
        worker = self.signal(nanny, signal.SIGSTOP)
        if worker is not None:
            delay_s = self.random.choice([1, 2 * WORKER_TTL_S])
            threading.Timer(delay_s, lambda: worker.is_running() and worker.resume()).start()
        return worker is not None


def search():
    """Give what a search finds."""
    X, y = make_classification(300, random_state=0)
    grid = {"C": np.logspace(-2, 2, 8), "gamma": np.logspace(-3, 1, 5)}
    found = GridSearchCV(SVC(), grid, cv=4, n_jobs=-1).fit(X, y)
    return found.cv_results_["mean_test_score"].tolist(), found.best_params_


def slow_square(i):
    time.sleep(0.05)
    return square(i)


def squares():
    return list(
        Parallel(n_jobs=-1, return_as="generator", timeout=DEADLINE_S)(delayed(slow_square)(i) for i in range(200))
    )


def main():
    minutes = float(os.environ.get("SOAK_MINUTES", 15))
    seed = int(os.environ.get("SOAK_SEED", time.time()))
    print(f"{minutes:g} minutes of faults, SOAK_SEED={seed}", flush=True)
    with parallel_config("sequential"):
        expected = {work: work() for work in (search, squares)}
    finished = Counter()
    with tempfile.TemporaryDirectory() as directory:
        processes = Processes(directory)
        try:
            processes.start_scheduler()
            for _ in range(N_WORKERS):
                processes.start_worker("--nanny")
            with Client(scheduler_file=str(processes.scheduler_file), set_as_default=False) as client:
                client.wait_for_workers(N_WORKERS, timeout=180)
                faults = Faults(processes, seed)
                faults.start()
                end = time.monotonic() + 60 * minutes
                while time.monotonic() < end:
                    for work, result in expected.items():
                        began = time.monotonic()
                        with parallel_config("dask", client=client, worker_ttl=WORKER_TTL_S):
                            assert work() == result, f"{work.__name__} gives another result"
                        took_s = time.monotonic() - began
                        assert took_s < DEADLINE_S, f"{work.__name__} took {took_s:.0f} s"
                        finished[work.__name__] += 1
                faults.over.set()
                faults.join()
        finally:
            for process in processes.running:
                process.kill()
            processes.stop()
    done = ", ".join(f"{n} {name}" for name, n in sorted(finished.items()))
    struck = ", ".join(f"{n} {name}" for name, n in sorted(faults.struck.items()))
    print(f"as the sequential run: {done}; under {struck}")


if __name__ == "__main__":
    sys.exit(main())
