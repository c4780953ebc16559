"""Clusters to be broken: each test has one of its own."""

import contextlib

import pytest
from distributed import Client, LocalCluster

from tests.cluster.conftest import START_WITHIN_S, Processes
from tests.witness import wait_until

SLOTS = 2


def keys_on(dask_scheduler):
    """Name all keys of a scheduler."""
    return list(dask_scheduler.tasks)


def serves_nothing(dask_worker):
    """Say whether a worker neither runs nor holds anything."""
    return not dask_worker.state.tasks


def assert_nothing_is_left(client):
    """Wait until a call has left neither keys nor tasks on its cluster."""
    wait_until(lambda: not client.run_on_scheduler(keys_on), "no key left on the scheduler")
    wait_until(lambda: all(client.run(serves_nothing).values()), "no task left on the workers")
    assert not client.futures


@pytest.fixture
def nannies(tmp_path):
    """Give a factory of clients of a cluster whose workers have nannies."""
    with contextlib.ExitStack() as stack:

        def start(n_workers=SLOTS, threads=1, **options):
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=n_workers,
                    threads_per_worker=threads,
                    dashboard_address="127.0.0.1:0",
                    local_directory=str(tmp_path),
                    **options,
                )
            )
            client = stack.enter_context(Client(cluster, set_as_default=False))
            client.wait_for_workers(n_workers, timeout=START_WITHIN_S)
            return client

        yield start


@pytest.fixture
def processes(tmp_path):
    """Give a scheduler in a process of its own; the test starts workers, without nannies."""
    started = Processes(tmp_path)
    try:
        started.start_scheduler()
        yield started
    finally:
        started.stop()


@pytest.fixture
def bare(processes):
    """Give a factory of clients of such a scheduler with so many workers."""
    with contextlib.ExitStack() as stack:

        def connect(n_workers=SLOTS):
            for _ in range(n_workers):
                processes.start_worker()
            client = stack.enter_context(Client(scheduler_file=str(processes.scheduler_file), set_as_default=False))
            client.wait_for_workers(n_workers, timeout=START_WITHIN_S)
            return client

        yield connect
