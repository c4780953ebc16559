"""The one cluster of a run: two worker processes of one thread each."""

import time

import distributed

SETTLE_S = 1.0
"""How long tasks of a test that ended may go on before the workers are started anew."""


class Cluster:
    """A cluster that is the default one, and is left idle by one test before the next begins."""

    def __init__(self):
        self.cluster = None
        self.client = None
        self.restarts = 0

    def start(self):
        """Start it and make its client the default one."""
        self.cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        )
        self.client = distributed.Client(self.cluster)

    def settle(self):
        """Wait until nothing runs; what a test left asleep in a worker cannot be interrupted, so that worker goes."""
        deadline = time.monotonic() + SETTLE_S
        while any(self.client.run(_running).values()):
            if time.monotonic() > deadline:
                self.client.restart()
                self.restarts += 1
                return
            time.sleep(0.02)

    def close(self):
        """Stop everything."""
        self.client.close()
        self.cluster.close()


def _running(dask_worker):
    return len(dask_worker.state.executing) + len(dask_worker.state.long_running)
