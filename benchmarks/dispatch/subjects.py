"""What is compared: the ways to run the same `Parallel` call on the same number of workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import joblib
from distributed import Client, LocalCluster
from joblib import Parallel, delayed, effective_n_jobs, parallel_config, register_parallel_backend
from joblib._dask import DaskDistributedBackend

import jobfleet  # noqa: F401  # registers "jobfleet", and "dask" in place of joblib's own
from jobfleet._engine.embedded import close_embedded, embedded_client

register_parallel_backend("builtin", DaskDistributedBackend)

#: In the order of the tables.
SUBJECTS = ("jobfleet", "builtin", "loky", "threading")


@dataclass(frozen=True)
class Cluster:
    """Hold what all subjects run on."""

    kind: str
    client: Client
    slots: int

    def using(self, subject: str) -> AbstractContextManager[Any]:
        """Make a subject the backend of a block."""
        if subject == "jobfleet":
            return parallel_config("jobfleet", client=None if self.kind == "embedded" else self.client)
        if subject == "builtin":
            return parallel_config("builtin", client=self.client)
        return parallel_config(subject, n_jobs=self.slots)


@contextlib.contextmanager
def cluster(kind: str) -> Iterator[Cluster]:
    """Start what the Dask backends share: one single-thread worker process per CPU.

    Parameters
    ----------
    kind
        ``"embedded"``, the cluster that jobfleet starts by itself, or ``"local"``, Dask's own `LocalCluster`.
    """
    if kind == "embedded":
        with parallel_config("jobfleet"):
            Parallel()(delayed(int)() for _ in range(2))
            slots = effective_n_jobs(-1)
        try:
            yield Cluster(kind, embedded_client(), slots)
        finally:
            close_embedded()
        return
    slots = joblib.cpu_count()
    with (
        LocalCluster(n_workers=slots, threads_per_worker=1, processes=True, dashboard_address=None) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield Cluster(kind, client, slots)
