"""What is compared: the ways to run the same `Parallel` call on the same number of workers."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import joblib
from distributed import Client
from joblib import Parallel, delayed, effective_n_jobs, parallel_config

import jobfleet  # noqa: F401  # registers "jobfleet", and "dask" in place of joblib's own
from jobfleet._engine.embedded import close_embedded, embedded_client

from . import builtin  # noqa: F401  # registers "builtin"
from .apart import Apart, Elsewhere, apart
from .counts import everywhere
from .results import DASK
from .rows import Prepared, Row
from .workloads import Workload


@dataclass(frozen=True)
class Cluster:
    """Hold where each subject runs."""

    kind: str
    slots: int
    clients: dict[str, Client]
    """Of the Dask backends that run in this process."""
    plain: Apart
    """Where loky and threading run."""
    local: Apart | None
    """The process of Dask's `LocalCluster`; the built-in runs there if it does not here."""

    def workload(self, subject: str, row: Row, prepared: Prepared) -> Workload:
        """Give what a subject runs of a row, within `using`."""
        if subject in self.clients:
            return prepared.workloads[subject]
        return Elsewhere(self.apart(subject), row.name, subject)

    def apart(self, subject: str) -> Apart:
        """Give the process of a subject that does not run in this one."""
        process = self.local if subject in DASK else self.plain
        assert process is not None
        return process

    def using(self, subject: str) -> AbstractContextManager[Any]:
        """Make a Dask backend that of a block; nothing for what runs apart."""
        if subject not in self.clients:
            return contextlib.nullcontext()
        by_itself = subject == "jobfleet" and self.kind != "local"
        return parallel_config(subject, client=None if by_itself else self.clients[subject])

    @contextlib.contextmanager
    def alone(self, subject: str) -> Iterator[None]:
        """Stop the processes of clusters that are not a subject's for the length of a block.

        What they do when idle would take a tenth of a processor from it. The embedded cluster's scheduler goes on:
        it is in this process.
        """
        embedded = None if self.kind == "local" else self.clients["jobfleet"]
        on_embedded = embedded is not None and self.clients.get(subject) is embedded
        others: list[Callable[[], list[int]]] = []
        if embedded is not None and not on_embedded:
            others.append(lambda: everywhere(embedded, os.getpid))
        if self.local is not None and (on_embedded or subject not in DASK):
            others.append(functools.partial(self.local.ask, "pids"))
        pids = [pid for ask in others for pid in ask()]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            for ask in others:
                ask()  # which they answer when they have done what was due meanwhile


@contextlib.contextmanager
def cluster(kind: str, quick: bool = False) -> Iterator[Cluster]:
    """Start what the subjects run on: one single-thread worker process per CPU.

    Parameters
    ----------
    kind
        ``"own"``: each Dask backend has the cluster that its users have on one machine, jobfleet the one that it starts
        by itself, the built-in Dask's `LocalCluster`, in a process of its own. ``"embedded"`` or ``"local"``: both run
        in this process and have the one or the other.
    quick
        Whether rows that run in other processes are all small.
    """
    with contextlib.ExitStack() as stack:
        clients: dict[str, Client] = {}
        slots, local = joblib.cpu_count(), None
        if kind != "local":
            with parallel_config("jobfleet"):
                Parallel()(delayed(int)() for _ in range(2))
                slots = effective_n_jobs(-1)
            stack.callback(close_embedded)
            clients = {"jobfleet": embedded_client()}
        if kind != "embedded":
            local = stack.enter_context(apart("builtin", slots, quick))
        if local is not None and kind == "local":
            clients = {"jobfleet": stack.enter_context(Client(local.ask("address"), set_as_default=False))}
        if kind != "own":
            clients["builtin"] = clients["jobfleet"]
        yield Cluster(kind, slots, clients, stack.enter_context(apart("plain", slots, quick)), local)
