"""Clusters whose workers pretend to be on hosts of their own, and one on the client's host."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from multiprocessing import resource_tracker
from pathlib import Path

import dask.config
import pytest
from distributed import Client

from tests.witness import wait_until

ROOT = Path(__file__).parents[2]
START_WITHIN_S = 30
SHARED_MEMORY = "/dev/shm"


def plain_environment(temporary):
    """Give the environment of a process that finds the tests, and none of the caller's settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    return env | {"PYTHONPATH": str(ROOT), "DASK_TEMPORARY_DIRECTORY": str(temporary)}


class Hosts:
    """Starts a scheduler, and workers on hosts of any name; "" is the client's own.

    Attributes
    ----------
    shared_memory
        Where all of them, and the client, keep their buffers.
    """

    def __init__(self, directory, shared_memory):
        self.directory = Path(directory)
        self.shared_memory = Path(shared_memory)
        self.temporary = self.directory
        self.scheduler_file = self.directory / "scheduler.json"
        self.processes = {}

    def environment(self, host=""):
        """Give the environment of a process on this host."""
        env = plain_environment(self.temporary)
        env["DASK_JOBFLEET__SHARED_MEMORY"] = str(self.shared_memory)
        if host:
            env["DASK_JOBFLEET__HOST"] = host
        return env

    def start(self, module, name, *arguments, host="", hides=None):
        """Start a part of the cluster, which does not see what is in the directory `hides`."""
        hiding = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hides)] if hides else []
        with open(self.directory / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                [*hiding, sys.executable, "-m", module, "--scheduler-file", str(self.scheduler_file), *arguments],
                cwd=self.directory,
                env=self.environment(host),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def start_scheduler(self):
        """Start the scheduler and wait until it is there."""
        process = self.start(
            "distributed.cli.dask_scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"
        )
        wait_until(lambda: self.scheduler_file.exists() or process.poll() is not None, "a scheduler", START_WITHIN_S)

    def start_worker(self, host, *arguments, nanny=False, hides=None):
        """Start a worker of one thread; its name is that of the host with a number."""
        name = f"{host or 'here'}-{len(self.processes)}"
        local = self.directory / (host or "here")
        local.mkdir(exist_ok=True)
        self.start(
            "distributed.cli.dask_worker",
            name,
            *("--nthreads", "1", "--name", name, "--no-dashboard", "--host", "127.0.0.1"),
            *("--local-directory", str(local), "--nanny" if nanny else "--no-nanny", *arguments),
            host=host,
            hides=hides,
        )
        return name

    def kill(self, *names):
        """Kill processes, and what they have started, as nothing can be caught."""
        for name in names:
            process = self.processes.pop(name)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait(10)

    def stop(self):
        """End all."""
        # Workers first: one that has lost its scheduler looks for it for a while.
        scheduler = self.processes.pop("scheduler", None)
        for processes in (list(self.processes.values()), [scheduler] if scheduler else []):
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, 9)
                    process.wait(10)

    def files(self, host=""):
        """Give the buffers that are stored on a host: their paths below `shared_memory`."""
        return sorted(
            path
            for path in map(Path, self.left())
            if path.parent.name.split("-")[4:] == ([host] if host else []) and _holds_something(path)
        )

    def left(self):
        """Give all that is there."""
        # Unlike `glob`, this does not mind what goes while it looks.
        return [os.path.join(top, name) for top, dirs, files in os.walk(self.shared_memory) for name in dirs + files]


def _holds_something(path):
    try:
        return path.is_file() and path.stat().st_size > 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="package", autouse=True)
def lasting(ledger):
    """Start what multiprocessing keeps for the life of this process."""
    with ledger.entering():
        resource_tracker.ensure_running()


@pytest.fixture
def shared_memory():
    """Give a directory in shared memory that must be empty in the end."""
    if not os.path.isdir(SHARED_MEMORY):
        pytest.skip("no shared memory here")
    directory = tempfile.mkdtemp(prefix="jobfleet-tests-", dir=SHARED_MEMORY)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def hosts(tmp_path, shared_memory):
    """Give a scheduler, to which the test adds workers."""
    hosts = Hosts(tmp_path, shared_memory)
    try:
        hosts.start_scheduler()
        yield hosts
    except BaseException:
        print("\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in sorted(tmp_path.glob("*.log"))))
        raise
    finally:
        hosts.stop()


@pytest.fixture
def connect(hosts):
    """Give a function that connects a client of this process to the cluster, on a host of any name."""
    with contextlib.ExitStack() as stack:

        def connect(n_workers, host="", **config):
            settings = {
                "jobfleet.shared-memory": str(hosts.shared_memory),
                "jobfleet.host": host or None,
            }
            settings |= {"temporary-directory": str(hosts.temporary), **config}
            stack.enter_context(dask.config.set(settings))
            client = stack.enter_context(Client(scheduler_file=str(hosts.scheduler_file), set_as_default=False))
            client.wait_for_workers(n_workers, timeout=START_WITHIN_S)
            return client

        yield connect
