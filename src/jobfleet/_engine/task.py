"""A Dask task, as the place where a chunk runs."""

from __future__ import annotations

import distributed
from distributed.utils import thread_state

from .dask import DaskEngine
from .place import NestedBackend, TaskPlace


class DaskPlace(TaskPlace):
    """Ask the Dask worker that this thread belongs to."""

    def __init__(self, nested_backend: NestedBackend) -> None:
        self._worker = distributed.get_worker()
        self._key = thread_state.key
        super().__init__(nested_backend, self._engine, self._worker.address)

    def cancelled(self) -> bool:
        """Whether the client has given the chunk up: Dask then has no use for its result."""
        task = self._worker.state.tasks.get(self._key)
        return task is None or task.state == "cancelled"

    @staticmethod
    def _engine(depth: int) -> DaskEngine:
        return DaskEngine(lambda options: distributed.get_client(), depth)
