"""The worker processes of one embedded cluster, as long as nothing has to be known of Dask.

This module does not import distributed, nor does what it imports: it starts the workers, which take
their time to import it, before the client does so.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import dask.config
import joblib

from ..errors import EmbeddedClusterError
from .embedded_process import Janitor, PrivateDirectory, WorkerProcess

#: How long a worker process may take to end itself before it is killed.
GRACE_S = 0.4
#: How long one that was killed, and the janitor, may take to disappear.
KILL_DEADLINE_S = 5.0

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class Launch:
    """Start worker processes in numbered slots, and end them.

    Parameters
    ----------
    n_workers
        Number of slots.

    Notes
    -----
    One thread at a time, except `close`, after which nothing is started any more.
    """

    n_workers: int
    directory: PrivateDirectory
    _janitor: Janitor
    _first: dict[str, Any]
    _environment: dict[str, str]
    _specification: Mapping[str, Any] | None
    _processes: dict[int, WorkerProcess]
    _generations: dict[int, int]
    _lock: threading.Lock
    _on_end: Callable[[int, WorkerProcess], None] | None
    _ended: list[tuple[int, WorkerProcess]]
    _closed: bool

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self.directory = PrivateDirectory(dask.config.get("temporary-directory", None))
        self._janitor = Janitor("")
        self._first = {}
        self._environment = {}
        self._specification = None
        self._processes = {}
        self._generations = dict.fromkeys(range(n_workers), 0)
        self._lock = threading.Lock()
        self._on_end = None
        self._ended = []
        self._closed = False

    def start(self) -> None:
        """Make the directory, and start all processes."""
        try:
            self.directory.create()
            self._janitor = Janitor(self.directory.path)
            self._janitor.start()
            self._first = _first_message()
            self._environment = _environment(self.n_workers)
            for slot in range(self.n_workers):
                self.start_process(slot)
        except OSError as error:
            raise EmbeddedClusterError(start_message(f"{type(error).__name__}: {error}")) from error

    def start_process(self, slot: int) -> None:
        """Start the process of a slot, or the next one."""
        generation = self._generations[slot]
        self._generations[slot] += 1
        # The scheduler refuses a name that it has not yet forgotten.
        name = f"{slot}-{generation}" if generation else f"{slot}"
        process = WorkerProcess(name, self._first, self._environment)
        with self._lock:
            # `close` must see every process that there is, so none may start beside it.
            if self._closed:
                return
            self._processes[slot] = process
            process.start(lambda ended: self._note_end(slot, ended))
        self._janitor.watch(process.pid)
        if process.wait(0):
            # It ended at once, so `_note_end` may have come before the line above.
            self._janitor.unwatch(process.pid)
        if self._specification is not None:
            process.send({**self._specification, "name": name})

    def specify(self, specification: Mapping[str, Any]) -> None:
        """Tell all processes, and those still to come, what worker to run."""
        self._specification = specification
        for process in self._processes.values():
            process.send({**specification, "name": process.name})

    def follow(self, on_end: Callable[[int, WorkerProcess], None]) -> None:
        """Have `on_end` called, on a thread of its own, with each process that has ended or will."""
        with self._lock:
            self._on_end = on_end
            ended, self._ended = self._ended, []
        for slot, process in ended:
            on_end(slot, process)

    def let_go(self) -> None:
        """Make all processes end themselves; start no more."""
        with self._lock:
            self._closed = True
            processes = list(self._processes.values())
        for process in processes:
            process.let_go()

    def close(self) -> None:
        """End all processes and remove all files. Idempotent."""
        self.let_go()
        processes = list(self._processes.values())
        grace = time.monotonic() + GRACE_S
        for process in processes:
            if not process.wait(grace):
                process.kill()
        deadline = time.monotonic() + KILL_DEADLINE_S
        for process in processes:
            process.wait(deadline)
        self.directory.remove()
        self._janitor.dismiss(deadline)

    def _note_end(self, slot: int, process: WorkerProcess) -> None:
        self._janitor.unwatch(process.pid)
        with self._lock:
            on_end = self._on_end
            if on_end is None:
                self._ended.append((slot, process))
        if on_end is not None:
            on_end(slot, process)


def _first_message() -> dict[str, Any]:
    name = f"{__package__}.embedded_worker"
    spec = importlib.util.find_spec(name)
    source = spec.loader.get_source(name) if spec is not None and spec.loader is not None else None  # type: ignore[attr-defined]
    try:
        here = os.getcwd()
    except OSError:  # removed; the process starts where we are all the same
        here = ""
    # As multiprocessing does it, so that modules beside the user's script can be imported.
    return {"source": source, "sys_path": [path or here for path in sys.path], "argv": sys.argv}


def _environment(n_workers: int) -> dict[str, str]:
    """Give a worker's environment, in which native libraries share the CPUs out between the workers."""
    threads = str(max(joblib.cpu_count() // n_workers, 1))
    return dict.fromkeys(_THREAD_VARIABLES, threads) | dict(os.environ)


def start_message(what: str) -> str:
    """Say why there is no worker, and what to do."""
    indented = "\n".join(f"    {line}" for line in what.splitlines())
    return (
        "the cluster that jobfleet starts on this machine has no worker:\n"
        f"{indented}\n"
        f"Likely causes: the workers' interpreter ({sys.executable}) cannot import distributed; "
        "the number of processes or open files is limited (ulimit -a); there is no memory left; "
        "or the machine is overloaded.\n"
        f'Try `{sys.executable} -c "import distributed.worker"`, or pass a cluster of your own: '
        'parallel_config("dask", client=...).'
    )
