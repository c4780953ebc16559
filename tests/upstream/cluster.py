"""The one cluster of a run: two worker processes of one thread each."""

import os
import signal
import time

import distributed

N_WORKERS = 2
SETTLE_S = 1.0
"""How long tasks of a test that ended may go on before their workers are killed."""
RETURN_S = 30.0
"""How long killed workers may take to come back before the cluster is given up for a new one."""


class Cluster:
    """A cluster that is the default one, and is left idle by one test before the next begins."""

    def __init__(self):
        self.cluster = None
        self.client = None
        self.kills = 0
        self.renewals = 0

    def start(self):
        """Start it and make its client the default one."""
        self.cluster = distributed.LocalCluster(
            n_workers=N_WORKERS, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        )
        self.client = distributed.Client(self.cluster)

    def settle(self):
        """Wait until nothing runs; what a test left asleep in a worker cannot be interrupted, so that worker goes."""
        deadline = time.monotonic() + SETTLE_S
        while busy := {address: pid for address, pid in self.client.run(_pid_if_running).items() if pid}:
            if time.monotonic() > deadline:
                self._replace(busy)
                return
            time.sleep(0.02)

    def _replace(self, workers):
        for pid in workers.values():
            os.kill(pid, signal.SIGKILL)  # its nanny starts another
            self.kills += 1
        deadline = time.monotonic() + RETURN_S
        while time.monotonic() < deadline:
            addresses = self.client.run_on_scheduler(_addresses)
            if len(addresses) == N_WORKERS and addresses.isdisjoint(workers):
                return
            time.sleep(0.05)
        self.renewals += 1
        self.close()
        self.start()

    def close(self):
        """Stop everything."""
        self.client.close()
        self.cluster.close()


def _pid_if_running(dask_worker):
    return os.getpid() if dask_worker.state.executing or dask_worker.state.long_running else None


def _addresses(dask_scheduler):
    return set(dask_scheduler.workers)
