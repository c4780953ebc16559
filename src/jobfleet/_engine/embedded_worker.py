"""A worker process of the embedded cluster, from its first line to its last.

The client does not let the new interpreter import this file: it sends the source down the
process's *line* (see `embedded_process`), so the process imports neither jobfleet nor the user's
``__main__``, and starts faster for it. For that reason only the standard library may be imported at
the top, and nothing of jobfleet anywhere.

Main thread: Dask's event loop. A daemon thread reads the line, and ends the process with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any, BinaryIO

#: Dask looks fifty times a second whether its event loop is late: 2 % of a small machine's processors. This,
#: and what it keeps of each process's past, is for a dashboard.
CALM_CLOCKS = {
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.tick.cycle": "10s",
    "distributed.admin.system-monitor.interval": "5s",
}

#: How long messages on this one machine are gathered before they go; between machines Dask takes 2 to 10 ms.
SEND_INTERVAL_S = 0.0005

#: What the worker's own configuration always says, whatever the user's says.
CONFIG: dict[str, Any] = {
    # The worker is told its scheduler; the address configured is of another cluster.
    "scheduler-address": None,
    # Nobody can ask for the profile of a private cluster without a dashboard.
    "distributed.worker.profile.enabled": False,
    "distributed.worker.lifetime.duration": None,
    "distributed.worker.http.routes": [],
    **CALM_CLOCKS,
}

#: How long output that a task left in a buffer may take to be written when the process ends.
FLUSH_DEADLINE_S = 0.2


def main(line: BinaryIO) -> None:
    """Run a worker until the scheduler dismisses it or the line breaks; never return.

    Parameters
    ----------
    line
        Where the specification comes from, once the client knows it.
    """
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    specifications: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=follow, args=(line, specifications), name="jobfleet-line", daemon=True).start()
    status = 1
    try:
        # Most of the start-up time is this import, which needs no specification.
        import distributed  # noqa: F401
        from distributed.config import get_loop_factory

        # No deadline: the thread above ends the process when the client goes away.
        specification = specifications.get()
        configure(specification)
        with asyncio.Runner(loop_factory=get_loop_factory()) as runner:
            runner.run(serve(specification))
        status = 0
    except BaseException:
        report(line, traceback.format_exc())
    leave(status)


def follow(line: BinaryIO, specifications: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Pass on what the line brings; when the client is gone, end this process and what it started."""
    with contextlib.suppress(OSError, ValueError):
        for message in line:
            specifications.put(json.loads(message))
    leave(0)


def report(line: BinaryIO, text: str) -> None:
    """Tell the client why this process ends."""
    with contextlib.suppress(OSError):
        os.write(line.fileno(), text[-16_000:].encode(errors="replace"))


def leave(status: int) -> None:
    """End the process at once, whatever its threads are doing, and all its descendants."""
    # The streams may be blocked by a full pipe, or locked by a task that is printing.
    flusher = threading.Thread(target=flush, daemon=True)
    flusher.start()
    flusher.join(FLUSH_DEADLINE_S)
    if status == 0 and os.getpgrp() == os.getpid():
        # Processes that tasks have started (loky within a task) are in this process's group.
        os.killpg(0, signal.SIGKILL)
    os._exit(status)


def flush() -> None:
    """Write out what is buffered."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):  # a stream put there by user code may raise anything
            if stream is not None:
                stream.flush()


def configure(specification: dict[str, Any]) -> None:
    """Take the client's configuration, which says also what runs the event loop."""
    import dask.config

    multiprocessing.current_process().authkey = bytes.fromhex(specification["authkey"])
    dask.config.update(dask.config.config, specification["config"], priority="new")
    dask.config.set(CONFIG)
    if specification["quiet"]:
        quieten()


async def serve(specification: dict[str, Any]) -> None:
    """Run the worker that the client has specified."""
    import distributed

    class Worker(distributed.Worker):
        """A worker without an HTTP server, which would listen unencrypted."""

        #: The client starts another process when this one ends.
        is_replaced = True

        def start_http_server(self, *args: object, **kwargs: object) -> None:
            pass

    worker = Worker(
        specification["scheduler"],
        name=specification["name"],
        nthreads=1,
        host="127.0.0.1",
        protocol="tls",
        security=distributed.Security(**specification["security"]),
        local_directory=specification["directory"],
        # As under loky, memory is the user's business; shared pages must not pause a worker.
        memory_limit=0,
        death_timeout=specification["connect_deadline_s"],
        # In use only if a release of Dask no longer calls `start_http_server`.
        dashboard=False,
        dashboard_address="127.0.0.1:0",
    )
    worker.batched_stream.interval = SEND_INTERVAL_S
    async with worker:
        await worker.finished()


def quieten() -> None:
    """Keep Dask's logs off the user's terminal; what ends this process is reported to the client."""
    for name in ["distributed", *logging.root.manager.loggerDict]:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
