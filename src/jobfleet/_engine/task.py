"""A Dask task, as the place where a chunk runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import distributed
from distributed.utils import thread_state

from .base import Engine
from .dask import DaskEngine, clients_in_use
from .leaving import given_up, slot_given_back
from .local import LocalEngine
from .place import NestedBackend, TaskPlace


@contextlib.contextmanager
def dask_place(nested_backend: NestedBackend) -> Iterator[TaskPlace]:
    """Give the Dask task that this thread runs."""
    worker = distributed.get_worker()
    key = thread_state.key

    def cancelled() -> bool:
        return given_up(worker, key)

    def make_engine(depth: int) -> Engine:
        task = worker.state.tasks.get(key)
        if task is not None and task.resource_restrictions:
            # It keeps its resources while it waits: inner tasks that want the same might wait for ever.
            return LocalEngine(nested_backend, depth, cancelled)
        return DaskEngine(lambda options: _client(worker), depth, cancelled)

    with slot_given_back(worker, key) as region:
        yield TaskPlace(nested_backend, make_engine, worker.address, cancelled, region)


def _client(worker: distributed.Worker) -> distributed.Client:
    """Give a client of the worker's cluster: that of the outer call if it lives in this process.

    Dask would make one for each worker, which in the client's process outlives the cluster.
    """
    address = worker.scheduler.address
    for client in list(clients_in_use):
        if client.status == "running" and client.scheduler.address == address:
            return client
    return distributed.get_client()
