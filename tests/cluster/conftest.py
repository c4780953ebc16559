"""Clusters of separate processes that know nothing of jobfleet, and small ones inside this process."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker  # noqa: F401

from tests.conftest import open_store
from tests.witness import wait_until

HERE = Path(__file__).parent
START_WITHIN_S = 30


def process_environment(role, *path):
    """Build the environment of a scheduler or worker process in which jobfleet cannot be imported."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DASK_", "PYTHON"))}
    env["PYTHONPATH"] = os.pathsep.join(str(entry) for entry in (HERE / "without_jobfleet", *path))
    env["COURIER_ROLE"] = role
    return env


class Processes:
    """Starts the parts of a cluster as processes of their own, and ends them."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.scheduler_file = self.directory / "scheduler.json"
        self.running = []
        self.environment = {}
        self.scheduler_path = ()

    def listens_on(self, role):
        """Give the address for the next part."""
        return "127.0.0.1"

    def spawn(self, command, **keywords):
        """Run a part whose address was given before."""
        return subprocess.Popen(command, **keywords)

    def start(self, module, role, *arguments, path=()):
        """Start one part; what it says goes to a file that a failing test may show."""
        log = open(self.directory / f"{role}-{len(self.running)}.log", "w")  # noqa: SIM115 - the process keeps it
        with log:
            process = self.spawn(
                [sys.executable, "-m", module, "--scheduler-file", str(self.scheduler_file), *arguments],
                cwd=self.directory,
                env=process_environment(role, *path) | self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.running.append(process)
        return process

    def start_scheduler(self, port=0):
        """Start a scheduler and wait for its file."""
        process = self.start(
            "distributed.cli.dask_scheduler",
            "scheduler",
            *("--host", self.listens_on("scheduler"), "--port", str(port), "--no-dashboard"),
            path=self.scheduler_path,
        )
        wait_until(lambda: self.scheduler_file.exists() or process.poll() is not None, "a scheduler", START_WITHIN_S)
        assert process.poll() is None, self.logs()
        return process

    def start_worker(self, *arguments, path=(HERE / "for_workers", HERE.parents[1])):
        """Start one worker of one thread, without a nanny."""
        return self.start(
            "distributed.cli.dask_worker",
            "worker",
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--host",
            self.listens_on("worker"),
            "--local-directory",
            str(self.directory),
            *arguments,
            path=path,
        )

    def logs(self):
        """Gather what the processes said."""
        return "\n".join(f"{file.name}:\n{file.read_text()}" for file in sorted(self.directory.glob("*.log")))

    def stop(self):
        """End all, workers first."""
        for process in reversed(self.running):
            process.terminate()
        for process in reversed(self.running):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@pytest.fixture(scope="session")
def bare_processes(ledger, tmp_path_factory):
    """Give a scheduler and two workers in processes where jobfleet does not exist."""
    processes = Processes(tmp_path_factory.mktemp("bare"))
    with ledger.entering():
        processes.start_scheduler()
        for _ in range(2):
            processes.start_worker()
    try:
        yield processes
    finally:
        processes.stop()


@pytest.fixture(scope="session")
def bare_client(ledger, bare_processes, pytestconfig):
    """Give a client of the cluster of bare processes."""
    with contextlib.ExitStack() as stack:
        with ledger.entering():
            client = stack.enter_context(
                Client(scheduler_file=str(bare_processes.scheduler_file), set_as_default=False)
            )
            client.wait_for_workers(2, timeout=START_WITHIN_S)
            open_store(client, pytestconfig)
        yield client


@pytest.fixture
def small_cluster(tmp_path):
    """Give a factory of clusters inside this process: one worker for each dict of options."""
    with contextlib.ExitStack() as stack:

        def start(*workers, set_as_default=False):
            defaults = {"nthreads": 1, "local_directory": str(tmp_path), "dashboard_address": ":0"}
            cluster = stack.enter_context(
                SpecCluster(
                    scheduler={
                        "cls": Scheduler,
                        "options": {"protocol": "inproc://", "dashboard": False, "dashboard_address": ":0"},
                    },
                    workers={
                        options.get("name", number): {"cls": Worker, "options": {**defaults, **options}}
                        for number, options in enumerate(workers)
                    },
                    worker={"cls": Worker, "options": defaults},
                )
            )
            client = stack.enter_context(Client(cluster, set_as_default=set_as_default))
            client.wait_for_workers(len(workers), timeout=START_WITHIN_S) if workers else None
            return client

        yield start


@pytest.fixture(autouse=True)
def needs_dask(against):
    """Leave these tests out where there is no Dask."""
    if against == "loky":
        pytest.skip("loky has no cluster")
