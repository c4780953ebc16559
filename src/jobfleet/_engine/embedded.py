"""The cluster that is used when the user has none: one per process, started when first asked for.

What nobody but this user's process can do is use it: every connection is mutual TLS with a
certificate that exists only in this process and its workers; everything listens on the loopback
interface only, and no HTTP server listens at all; files lie in a directory of mode 0700.

It is gone when this process ends: by `atexit`; after ``kill -9`` by what `embedded_process` describes.
A fork gets a cluster of its own.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import joblib

from ..errors import EmbeddedClusterError
from .base import Slots
from .embedded_launch import Launch
from .embedded_process import forget_lines

if TYPE_CHECKING:
    from distributed import Client

    from .embedded_cluster import EmbeddedCluster

__all__ = [
    "close_embedded",
    "embedded_client",
    "embedded_failure",
    "embedded_slots",
    "expected_workers",
    "is_embedded",
]

# Held while a cluster starts or closes, so that a second caller gets the first one's. Both end by
# deadlines of their own.
_lock = threading.RLock()
_current: EmbeddedCluster | None = None
_clients: weakref.WeakSet[Client] = weakref.WeakSet()
# Clusters of the process that this one was forked from. Never collected: their finalizers would
# wait for threads that do not exist here.
_inherited: list[object] = []


def embedded_client() -> Client:
    """Return the client of this process's embedded cluster; start the cluster if there is none.

    Returns
    -------
    Client
        Synchronous, not set as Dask's default; the same one as long as it is usable. All workers are
        there, or the late ones have had some seconds.

    Raises
    ------
    EmbeddedClusterError
        When no worker can be started.

    Notes
    -----
    Thread-safe. May be called inside a coroutine of a running event loop, which waits meanwhile.
    """
    global _current
    if sys.platform == "win32":
        raise EmbeddedClusterError(
            "jobfleet cannot start a cluster of its own on Windows. "
            'Pass one: parallel_config("dask", client=Client()), under `if __name__ == "__main__":`.'
        )
    with _lock:
        if _current is not None and _current.is_alive and _current.client is not None:
            return _current.client
        close_embedded()
        launch = Launch(joblib.cpu_count())
        try:
            launch.start()
            # The processes import Dask while this one does, which saves a third of the time.
            from .embedded_cluster import EmbeddedCluster

            cluster = EmbeddedCluster(launch)
            client = cluster.start()
        except BaseException:
            launch.close()
            raise
        # Later registered, earlier run: before Dask, just imported, closes what it knows of.
        atexit.unregister(close_embedded)
        atexit.register(close_embedded)
        _clients.add(client)
        _current = cluster
        return client


def close_embedded() -> None:
    """End the embedded cluster, if there is one; the next `embedded_client` starts another."""
    global _current
    with _lock:
        cluster, _current = _current, None
        if cluster is not None:
            cluster.close()


def is_embedded(client: Client) -> bool:
    """Say whether the client is one that `embedded_client` has returned."""
    return client in _clients


def embedded_slots(client: Client) -> Slots | None:
    """Give the slots there are now, without asking anybody; None if `client` is not that of the embedded cluster."""
    cluster = _current
    if cluster is None or cluster.client is not client:
        return None
    return Slots(cluster.n_threads, cluster.n_threads, most=cluster.most_threads, queued=True)


def expected_workers() -> int:
    """Give the number of workers that the embedded cluster has or will soon have; 0 without one.

    It is less than the number of CPUs when processes could not be started, see `embedded_failure`.
    """
    cluster = _current
    return 0 if cluster is None else cluster.expected_workers


def embedded_failure() -> str:
    """Say what ended the last process that could not become a worker; empty if all could."""
    cluster = _current
    return "" if cluster is None else cluster.failure


def _after_fork() -> None:
    """Forget the parent's cluster without touching it."""
    global _lock, _current, _clients
    forget_lines()
    _inherited.extend([_current, list(_clients)])
    _lock = threading.RLock()
    _current = None
    _clients = weakref.WeakSet()
    # Large messages are packed on this pool, whose thread was not forked: the first would hang.
    utils: Any = sys.modules.get("distributed.utils")
    if hasattr(utils, "_offload_executor"):
        utils._offload_executor = ThreadPoolExecutor(1, thread_name_prefix="Dask-Offload")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
