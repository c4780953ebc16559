"""Dask's `LocalCluster` and joblib's built-in backend on it, in a process of its own: all of it can be stopped."""

from __future__ import annotations

import functools
import json
import os
import sys
from contextlib import AbstractContextManager
from typing import Any

from distributed import Client, LocalCluster
from joblib import parallel_config, register_parallel_backend
from joblib._dask import DaskDistributedBackend

from .apart import Runner
from .counts import Counter, everywhere

register_parallel_backend("builtin", DaskDistributedBackend)


class Builtin(Runner):
    """Run the built-in on a cluster of single-thread worker processes."""

    def __init__(self, cluster: LocalCluster, client: Client, quick: bool) -> None:
        super().__init__(len(cluster.workers), quick)
        self._address = cluster.scheduler_address
        self._client = client
        self._counter = functools.cache(lambda: Counter(client))

    def using(self, subject: str) -> AbstractContextManager[Any]:
        """Make the built-in that of a block."""
        return parallel_config(subject, client=self._client)

    def address(self) -> str:
        """Give the scheduler's address."""
        return str(self._address)

    def pids(self) -> list[int]:
        """Give the cluster's processes; they answer when they have done what was due."""
        return [os.getpid(), *everywhere(self._client, os.getpid)]

    def count(self, row: str, subject: str) -> dict[str, float]:
        """Count messages and CPU time of a run that is not timed."""
        prepared = self.prepared(row)
        with self.using(subject):
            return self._counter().count(prepared.workloads[subject], prepared.facts.get("work_s", 0.0))


def main() -> None:
    """Run until the input ends."""
    slots, quick = json.loads(sys.argv[1])
    settings = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(n_workers=slots, **settings) as cluster, Client(cluster, set_as_default=False) as client:
        Builtin(cluster, client, quick).serve()


if __name__ == "__main__":
    main()
