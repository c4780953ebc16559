"""What is compared: the ways to run the same `Parallel` call on the same number of workers."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import joblib
from distributed import Client
from joblib import Parallel, delayed, effective_n_jobs, parallel_config, register_parallel_backend
from joblib._dask import DaskDistributedBackend

import jobfleet  # noqa: F401  # registers "jobfleet", and "dask" in place of joblib's own
from jobfleet._engine.embedded import close_embedded, embedded_client

from .local_cluster import local_cluster
from .results import DASK

register_parallel_backend("builtin", DaskDistributedBackend)

T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """Hold what the Dask backends run on."""

    kind: str
    clients: dict[str, Client]
    """Of the two Dask backends; one and the same, or each its own."""
    slots: int

    def using(self, subject: str) -> AbstractContextManager[Any]:
        """Make a Dask backend that of a block."""
        by_itself = subject == "jobfleet" and self.kind != "local"
        return parallel_config(subject, client=None if by_itself else self.clients[subject])

    @contextlib.contextmanager
    def alone(self, subject: str) -> Iterator[None]:
        """Stop the processes of clusters that are not a subject's for the length of a block.

        What they do when idle would take a tenth of a processor from it. The embedded cluster's scheduler goes on:
        it is in this process.
        """
        others = {client for client in self.clients.values() if client is not self.clients.get(subject)}
        pids = [pid for client in others for pid in everywhere(client, os.getpid)]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            for client in others:
                client.run(os.getpid)  # which they answer when they have done what was due meanwhile


def everywhere(client: Client, function: Callable[[], T]) -> list[T]:
    """Call a function in the processes of a client's cluster, but for this one."""
    results = list(client.run(function).values())
    if client.run_on_scheduler(os.getpid) != os.getpid():
        results.append(client.run_on_scheduler(function))
    return results


@contextlib.contextmanager
def cluster(kind: str) -> Iterator[Cluster]:
    """Start what the Dask backends share: one single-thread worker process per CPU.

    Parameters
    ----------
    kind
        ``"own"``: each Dask backend has the cluster that its users have on one machine, jobfleet the one that it starts
        by itself, the built-in Dask's `LocalCluster`. ``"embedded"`` or ``"local"``: both have the one or the other.
    """
    with contextlib.ExitStack() as stack:
        clients: dict[str, Client] = {}
        slots = joblib.cpu_count()
        if kind != "local":
            with parallel_config("jobfleet"):
                Parallel()(delayed(int)() for _ in range(2))
                slots = effective_n_jobs(-1)
            stack.callback(close_embedded)
            clients = dict.fromkeys(DASK, embedded_client())
        if kind != "embedded":
            address = stack.enter_context(local_cluster(slots))
            client = stack.enter_context(Client(address, set_as_default=False))
            clients = {"jobfleet": client, **clients, "builtin": client}
        yield Cluster(kind, clients, slots)
