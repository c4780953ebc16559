"""Clusters to be broken: each test has one of its own."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from distributed import Client

from tests.cluster.conftest import START_WITHIN_S, Processes
from tests.witness import wait_until

SLOTS = 2


@contextlib.contextmanager
def meanwhile(strike):
    """Run a function beside the block; what it raises fails the test."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(strike)
        yield
        future.result(30)


def assert_nothing_is_left(client):
    """Wait until a call has left neither keys nor tasks on its cluster."""

    # Sent by value: a scheduler cannot import the tests.
    def keys_on(dask_scheduler):
        return list(dask_scheduler.tasks)

    def serves_nothing(dask_worker):
        return not dask_worker.state.tasks

    wait_until(lambda: not client.run_on_scheduler(keys_on), "no key left on the scheduler")
    wait_until(lambda: all(client.run(serves_nothing).values()), "no task left on the workers")
    # What was brought and then lost with its worker is gone there, and let go here a moment later.
    wait_until(lambda: not client.futures, "no future left in the client")


@pytest.fixture
def processes(tmp_path):
    """Give a scheduler in a process of its own; the test starts workers, without nannies."""
    started = Processes(tmp_path)
    try:
        started.start_scheduler()
        yield started
    finally:
        # With a nanny's end its worker ends, at once.
        for process in started.running:
            process.kill()
        started.stop()


@pytest.fixture
def cluster(processes):
    """Give a factory of clients of such a scheduler with so many workers, each with a nanny or without."""
    with contextlib.ExitStack() as stack:

        def connect(*arguments, n_workers=SLOTS, nanny=False, hosts=None):
            for host in hosts or [None] * n_workers:
                where = [] if host is None else ["--host", host]
                processes.start_worker("--nanny" if nanny else "--no-nanny", *where, *arguments)
            client = stack.enter_context(Client(scheduler_file=str(processes.scheduler_file), set_as_default=False))
            client.wait_for_workers(len(hosts or []) or n_workers, timeout=START_WITHIN_S)
            return client

        yield connect
