"""The one cluster of a run: two worker processes of one thread each."""

import distributed


class Cluster:
    """A cluster that is the default one.

    Nothing cleans up between tests: what a test has given up must not hold up the next, asleep in a worker as it is.
    """

    def __init__(self):
        self.cluster = None
        self.client = None

    def start(self):
        """Start it and make its client the default one."""
        self.cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        )
        self.client = distributed.Client(self.cluster)

    def close(self):
        """Stop everything."""
        self.client.close()
        self.cluster.close()
