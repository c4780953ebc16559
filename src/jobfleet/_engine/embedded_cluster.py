"""The embedded cluster: a scheduler in this process, and a worker process per CPU beside it.

Dask's `LocalCluster` starts its workers with multiprocessing, which imports the user's ``__main__``
again in each of them; a script without an ``if __name__ == "__main__"`` guard then starts clusters
without end. Here the workers are plain new interpreters (`embedded_process`), which `RestartPolicy`
keeps at their number.

Scheduler, client and supervision share one event loop on a thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import sys
import threading
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

import dask.config
from distributed import Client, Scheduler, Security
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.utils import LoopRunner

from ..errors import EmbeddedClusterError
from .deaths import ENDS
from .embedded_launch import Launch, start_message
from .embedded_process import WorkerProcess, describe_exit
from .embedded_worker import CALM_CLOCKS, SEND_INTERVAL_S

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How long the first worker, and any step before it, may take. Under load an import takes long.
START_DEADLINE_S = 60.0
#: How long to wait for the other workers when the first is there.
OTHERS_DEADLINE_S = 5.0
#: How long Dask's part may take to close; then it is left to itself.
CLOSE_DEADLINE_S = 2.0


class RestartPolicy:
    """Decide whether, and when, a process that has ended is started again.

    The first is started again at once; more within `window_s` wait twice as long each time. A place
    whose processes end, `failed_starts_allowed` times in a row, before they are workers is given up.
    """

    window_s = 30.0
    first_delay_s = 0.1
    longest_delay_s = 5.0
    failed_starts_allowed = 3

    _failed_starts: int
    _ends: deque[float]

    def __init__(self) -> None:
        self._failed_starts = 0
        self._ends = deque()

    def after_end(self, worked: bool, now: float) -> float | None:
        """Give the delay before the next start, or None to give up.

        Parameters
        ----------
        worked
            Whether the process had become a worker.
        now
            Monotonic time.
        """
        self._failed_starts = 0 if worked else self._failed_starts + 1
        if self._failed_starts >= self.failed_starts_allowed:
            return None
        self._ends.append(now)
        while self._ends[0] < now - self.window_s:
            self._ends.popleft()
        again = len(self._ends) - 1
        return min(self.first_delay_s * 2 ** (again - 1), self.longest_delay_s) if again else 0.0


class PrivateScheduler(Scheduler):
    """A scheduler without an HTTP server, whose pages everyone on the machine could read, and with little to do."""

    #: How often workers say that they live, where Dask would not have them do so less often: up to ten of them do it
    #: twice a second. Here their processes are watched, and only one that is frozen is noticed by it.
    heartbeat_s = 2.0

    def start_http_server(self, *args: object, **kwargs: object) -> None:
        """Start nothing."""

    def heartbeat_worker(self, **kwargs: Any) -> dict[str, Any]:
        """Take note of a worker's state, and tell it when to come again."""
        reply: dict[str, Any] = super().heartbeat_worker(**kwargs)
        if "heartbeat-interval" in reply:
            reply["heartbeat-interval"] = max(self.heartbeat_s, reply["heartbeat-interval"])
        return reply


class _Watch(SchedulerPlugin):
    """Tell the cluster which workers the scheduler has, and have Dask move tasks only where one waits on a worker.

    Dask looks for such tasks ten times a second. Mostly there are none, since what waits does so on the scheduler.
    """

    name = "jobfleet-embedded"
    cluster: EmbeddedCluster
    _scheduler: Scheduler

    def __init__(self, cluster: EmbeddedCluster, scheduler: Scheduler) -> None:
        self.cluster = cluster
        self._scheduler = scheduler

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        scheduler.stream_comms[worker].interval = SEND_INTERVAL_S
        self.cluster.on_arrival(str(scheduler.workers[worker].name))

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if "processing" not in (start, finish):
            return
        looking = self._scheduler.periodic_callbacks.get("stealing")
        if looking is None:  # switched off in the user's configuration
            return
        waits = any(len(worker.processing) > worker.nthreads for worker in self._scheduler.workers.values())
        if waits and not looking.is_running():
            looking.start()
        elif looking.is_running() and not waits:
            looking.stop()


class _LoopQuiet(logging.Filter):
    """Keep what Dask logs on one thread off the user's terminal; other clusters' logs stay.

    Workers that come and go, and the end of everything, make Dask log at every level what jobfleet
    deals with or reports itself. To see it, set the level of the logger ``jobfleet`` to DEBUG.
    """

    closing: bool
    _thread: int

    def __init__(self, thread: int) -> None:
        super().__init__()
        self.closing = False
        self._thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread or wants_details():
            return True
        if record.name.startswith("distributed") or self.closing:
            return record.levelno >= logging.CRITICAL
        # An unhandled exception, which tornado and asyncio report as an error, would be a bug.
        return record.levelno >= logging.ERROR

    def install(self) -> None:
        """Put the filter on the loggers concerned."""
        for logger_ in self._loggers():
            logger_.addFilter(self)

    def remove(self) -> None:
        """Take the filter off again."""
        for logger_ in self._loggers():
            logger_.removeFilter(self)

    @staticmethod
    def _loggers() -> list[logging.Logger]:
        names = {n for n in logging.root.manager.loggerDict if n.partition(".")[0] in ("distributed", "tornado")}
        # Modules that a scheduler imports, and that log then.
        names.update(dask.config.get("distributed.scheduler.http.routes"))
        return [logging.getLogger(name) for name in sorted(names | {"asyncio"})]


def wants_details() -> bool:
    """Say whether the user wants to see Dask's logs."""
    return logger.isEnabledFor(logging.DEBUG)


class EmbeddedCluster:
    """A Dask cluster of this process's own.

    Parameters
    ----------
    launch
        The worker processes, started.

    Notes
    -----
    `start` and `close` are called by one thread at a time, never the event loop's. `is_alive` and
    `expected_workers` may be called by any thread.
    """

    client: Client | None
    _launch: Launch
    _loop_runner: LoopRunner
    _quiet: _LoopQuiet | None
    _scheduler: PrivateScheduler | None
    _policies: dict[int, RestartPolicy]
    _arrived: set[str]
    _given_up: set[int]
    _failure: str
    _closing: bool
    _changed: threading.Condition

    def __init__(self, launch: Launch) -> None:
        self.client = None
        self._launch = launch
        self._loop_runner = LoopRunner()
        self._quiet = None
        self._scheduler = None
        self._policies = {slot: RestartPolicy() for slot in range(launch.n_workers)}
        self._arrived = set()
        self._given_up = set()
        self._failure = ""
        self._closing = False
        self._changed = threading.Condition()

    @property
    def is_alive(self) -> bool:
        """Whether the cluster can be used."""
        return (
            self.client is not None
            and self.client.status in ("running", "connecting")
            and not self._closing
            and self.expected_workers > 0
        )

    @property
    def expected_workers(self) -> int:
        """Number of workers there are, or will be soon."""
        return self._launch.n_workers - len(self._given_up)

    @property
    def n_threads(self) -> int:
        """Number of threads of the workers that are there."""
        return self._scheduler.total_nthreads if self._scheduler is not None else 0

    @property
    def most_threads(self) -> int:
        """Number of threads of the workers if all are there."""
        return self._launch.n_workers

    @property
    def failure(self) -> str:
        """What ended the last process that could not become a worker."""
        return self._failure

    # ------------------------------------------------------------------ start: the caller's thread

    def start(self) -> Client:
        """Start all that is not yet started, and return when the workers are there."""
        try:
            self._start_loop()
            self._launch.follow(self._post_end)
            security = Security.temporary()
            address = self._run(self._start_scheduler(security), START_DEADLINE_S)
            self._run(self._specify(address, security), START_DEADLINE_S)
            self.client = Client(
                self._scheduler_in_process(),
                security=security,
                loop=self._loop_runner.loop,
                set_as_default=False,
                name="jobfleet-embedded",
                timeout=START_DEADLINE_S,
            )
            self._run(self._shorten_intervals(self.client), START_DEADLINE_S)
            self._wait_for_workers()
        except EmbeddedClusterError:
            self.close()
            raise
        except (OSError, RuntimeError, TimeoutError, ImportError) as error:
            self.close()
            raise EmbeddedClusterError(start_message(f"{type(error).__name__}: {error}")) from error
        except BaseException:
            self.close()
            raise
        return self.client

    def _start_loop(self) -> None:
        self._loop_runner.start()

        async def thread_id() -> int:
            return threading.get_ident()

        self._quiet = _LoopQuiet(self._run(thread_id(), START_DEADLINE_S))
        self._quiet.install()

    def _wait_for_workers(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or not self.expected_workers, START_DEADLINE_S)
            if self._arrived:
                self._changed.wait_for(lambda: len(self._arrived) >= self.expected_workers, OTHERS_DEADLINE_S)
                return
        raise EmbeddedClusterError(start_message(self._failure or f"no worker came within {START_DEADLINE_S:g} s"))

    def _run(self, coroutine: Coroutine[Any, Any, T], deadline_s: float) -> T:
        loop = self._loop_runner.loop.asyncio_loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(deadline_s)

    # ------------------------------------------------------------------ the event loop's thread

    async def _start_scheduler(self, security: Security) -> str:
        # A worker has room for one chunk, so others wait for the first slot that is free: see `waiting`.
        with dask.config.set({**CALM_CLOCKS, "distributed.scheduler.worker-saturation": 1.0}):
            scheduler = PrivateScheduler(
                # Workers come by the first; the client lives in this process, on this very loop.
                protocol=["tls", "inproc"],
                host=["127.0.0.1", None],
                port=[0, 0],
                security=security,
                local_directory=self._launch.directory.path,
                # In use only if a release of Dask no longer calls `start_http_server`.
                dashboard=False,
                dashboard_address="127.0.0.1:0",
            )
        # Configured for other clusters. A worker that is busy in C code for minutes sends no
        # heartbeat, and must not be declared dead: its process is watched here.
        scheduler.idle_timeout = None
        scheduler.no_workers_timeout = None
        scheduler.worker_ttl = None
        for unused in ("worker-ttl", "idle-timeout", "no-workers-timeout"):
            scheduler.periodic_callbacks.pop(unused, None)
        scheduler.add_plugin(_Watch(self, scheduler))
        # Put there for `Client.upload_file`; the user's own modules come first in his process.
        with contextlib.suppress(ValueError):
            sys.path.remove(scheduler.local_directory)
        self._scheduler = scheduler
        await scheduler
        return str(scheduler.address)

    async def _shorten_intervals(self, client: Client) -> None:
        assert self._scheduler is not None
        client.scheduler_comm.interval = SEND_INTERVAL_S
        self._scheduler.client_comms[client.id].interval = SEND_INTERVAL_S

    def _scheduler_in_process(self) -> str:
        assert self._scheduler is not None
        addresses: list[str] = [listener.contact_address for listener in self._scheduler.listeners]
        return next(address for address in addresses if address.startswith("inproc://"))

    async def _specify(self, address: str, security: Security) -> None:
        fields = ["require_encryption", "tls_ca_file"]
        fields += [f"tls_{role}_{part}" for role in ("client", "scheduler", "worker") for part in ("key", "cert")]
        specification = {
            "scheduler": address,
            "security": {field: getattr(security, field) for field in fields},
            "directory": self._launch.directory.path,
            "config": _plain(dask.config.config),
            "quiet": not wants_details(),
            # With it, proxies of the client's multiprocessing managers work in tasks, as under loky.
            "authkey": multiprocessing.current_process().authkey.hex(),
            "connect_deadline_s": START_DEADLINE_S,
        }
        self._launch.specify(specification)

    def on_arrival(self, name: str) -> None:
        """Note that a worker has come."""
        with self._changed:
            self._arrived.add(name)
            self._changed.notify_all()

    def _post_end(self, slot: int, process: WorkerProcess) -> None:
        # On the watching thread. The loop may have been closed meanwhile.
        with contextlib.suppress(RuntimeError):
            self._loop_runner.loop.asyncio_loop.call_soon_threadsafe(self._on_end, slot, process)

    def _on_end(self, slot: int, process: WorkerProcess) -> None:
        if self._closing:
            return
        ended = f"ended with {describe_exit(process.exit_status)}"
        if self._scheduler is not None:
            self._scheduler.log_event(ENDS, {"worker": process.name, "how": f"its process {ended}"})
        what = f"worker process {process.name} {ended}"
        self._after_end(slot, process.name in self._arrived, f"{what}\n{process.last_words}".rstrip())

    def _after_end(self, slot: int, worked: bool, what: str) -> None:
        delay_s = self._policies[slot].after_end(worked, time.monotonic())
        with self._changed:
            if not worked:
                self._failure = what
            if delay_s is None:
                self._given_up.add(slot)
            self._changed.notify_all()
        if delay_s is not None:
            self._loop_runner.loop.asyncio_loop.call_later(delay_s, self._restart, slot)
        elif self._arrived:
            # Otherwise `start` raises an error that says it.
            logger.error("%s", start_message(what))

    def _restart(self, slot: int) -> None:
        try:
            self._launch.start_process(slot)
        except OSError as error:
            self._after_end(slot, False, f"a worker process could not be started: {error}")

    # ------------------------------------------------------------------ close: the caller's thread

    def close(self) -> None:
        """End every process, remove every file, stop the event loop. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._quiet is not None:
            self._quiet.closing = True
        # The workers first: they would find that the scheduler has gone.
        self._launch.let_go()
        with contextlib.suppress(Exception):  # whatever state Dask is in, the rest has to be cleaned up
            if self.client is not None:
                self.client.close(timeout=CLOSE_DEADLINE_S)
        if self._scheduler is not None:
            with contextlib.suppress(Exception):  # as above
                self._run(self._scheduler.close(reason="jobfleet-close"), CLOSE_DEADLINE_S)
        self._launch.close()
        self._loop_runner.stop(timeout=CLOSE_DEADLINE_S)
        if self._quiet is not None:
            self._quiet.remove()


def _plain(config: dict[Any, Any]) -> dict[str, Any]:
    """Keep what of Dask's configuration can be sent as JSON."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            kept[str(key)] = _plain(value)
        elif value is None or isinstance(value, str | int | float) or _is_plain_list(value):
            kept[str(key)] = value
    return kept


def _is_plain_list(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        item is None or isinstance(item, str | int | float) or _is_plain_list(item) for item in value
    )
