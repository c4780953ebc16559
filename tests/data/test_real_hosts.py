"""Over real links a large array crosses once per host, and a missing link is gone round."""

import contextlib
import json
import subprocess
import sys

import pytest

from tests.data.conftest import plain_environment
from tests.netns import network_or_skip

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

NBYTES = 48 * 10**6
#: With headers, the tasks themselves, and what Dask says meanwhile.
ABOUT_ONCE = 1.15
NEARLY_NOTHING = 0.15

SCHEDULER_PORT = 8786

#: Two processes on the first of them.
WORKER_HOSTS = ("one", "two", "three")
N_WORKERS = 4

PROGRAM = """
import json, sys

START_WITHIN_S = 90
import numpy as np, jobfleet
from distributed import Client
from joblib import Parallel, delayed, parallel_config
from tests.data.for_workers import on_real_host

def main(address):
    with Client(address, timeout=START_WITHIN_S) as client, parallel_config("dask", client=client):
        for line in sys.stdin:
            asked = json.loads(line)
            client.wait_for_workers(asked["n"], timeout=START_WITHIN_S)
            # Whole numbers: their sum does not depend on how the memory is aligned.
            array = np.random.default_rng(0).integers(0, 1000, asked["nbytes"] // 8).astype(float)
            returned = asked["returned"] // 8
            task = delayed(on_real_host)(array, asked["directory"], asked["n"], returned)
            answers = Parallel(n_jobs=asked["n"], batch_size=1)([task] * asked["n"])
            assert all(total == array.sum() for _, total, _ in answers)
            assert all(np.array_equal(part, array[:returned] + 1) for *_, part in answers)
            print(json.dumps(sorted(host for host, *_ in answers)), flush=True)

main(*sys.argv[1:])
"""


class RealCluster:
    """A scheduler, workers and programs, each on a host of its own."""

    def __init__(self, directory, own, hosts):
        self.directory = directory
        self.own = own
        self.hosts = {host.name: host for host in hosts}
        self.address = ""
        (directory / "program.py").write_text(PROGRAM)

    def start(self, name, *command, **keywords):
        """Start a Python program on a host."""
        env = plain_environment(self.own) | {"HOST_OF_TEST": name}
        with open(self.directory / f"{name}.log", "a") as log:
            keywords = {"stdout": log, "stderr": log, **keywords}
            return self.hosts[name].start(sys.executable, *command, env=env, **keywords)

    def start_scheduler(self, name):
        """Start the scheduler; whoever connects to it tries until it is there."""
        options = ("--host", self.hosts[name].address, "--port", SCHEDULER_PORT, "--no-dashboard")
        self.start(name, "-m", "distributed.cli.dask_scheduler", *options)
        self.address = f"tcp://{self.hosts[name].address}:{SCHEDULER_PORT}"

    def start_worker(self, name):
        """Start a worker of one thread."""
        options = ("--host", self.hosts[name].address, "--local-directory", self.own, "--nthreads", "1")
        self.start(name, "-m", "distributed.cli.dask_worker", self.address, *options, "--no-nanny", "--no-dashboard")

    @contextlib.contextmanager
    def client(self, name):
        """Give a client on a host, as a function that makes a call of `n` tasks and gives the host of each."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        program = self.start(name, self.directory / "program.py", self.address, **pipes)
        n_calls = 0

        def call(n, nbytes=NBYTES, returned=0):
            nonlocal n_calls
            n_calls += 1
            met = self.directory / f"met-{program.pid}-{n_calls}"
            asked = {"n": n, "nbytes": nbytes, "returned": returned, "directory": str(met)}
            program.stdin.write(json.dumps(asked) + "\n")
            program.stdin.flush()
            answer = program.stdout.readline()
            assert answer, "it has failed: see its log"
            return json.loads(answer)

        yield call
        program.communicate(timeout=30)
        assert program.returncode == 0

    @contextlib.contextmanager
    def counted(self):
        """Give what each host receives and sends meanwhile, in sizes of the array."""
        before = {name: host.traffic() for name, host in self.hosts.items()}
        counts = {}
        yield counts
        for name, host in self.hosts.items():
            received, sent = host.traffic()
            counts[name] = Crossed((received - before[name][0]) / NBYTES, (sent - before[name][1]) / NBYTES)

    def stored(self, name):
        """Give the sizes of the large buffers on a host."""
        sizes = [path.stat().st_size for path in self.hosts[name].path("/dev/shm").glob("jobfleet-store-*/*")]
        return [size for size in sizes if size > 10**6]


class Crossed:
    """What crossed one link."""

    def __init__(self, received, sent):
        self.received = received
        self.sent = sent

    def __repr__(self):
        return f"received {self.received:.2f}, sent {self.sent:.2f}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Give a cluster of a host for the scheduler, one for the client, and three for workers."""
    directory = tmp_path_factory.mktemp("real")
    own = directory / "own"
    own.mkdir()
    names = ("scheduler", "client", *WORKER_HOSTS, "late")
    with network_or_skip(*names, own_directories=["/dev/shm", own], size="1g") as hosts:
        cluster = RealCluster(directory, own, hosts)
        cluster.start_scheduler("scheduler")
        for name in (*WORKER_HOSTS, WORKER_HOSTS[0]):
            cluster.start_worker(name)
        yield cluster


@pytest.fixture
def logged(cluster):
    """Show what all programs said, if a test fails."""
    yield
    print("\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in sorted(cluster.directory.glob("*.log"))))


@pytest.mark.usefixtures("logged")
def test_an_array_crosses_each_link_once_and_hosts_feed_each_other(cluster):
    with cluster.client("client") as call:
        call(N_WORKERS, nbytes=8)
        with cluster.counted() as crossed:
            assert set(call(N_WORKERS)) == set(WORKER_HOSTS)
        for name in WORKER_HOSTS:
            assert 1 <= crossed[name].received < ABOUT_ONCE, crossed
            assert cluster.stored(name) == [NBYTES]
        # The client's upload is that to one host; the others have it from each other, past the scheduler.
        assert 1 <= crossed["client"].sent < ABOUT_ONCE, crossed
        assert crossed["scheduler"].received < NEARLY_NOTHING, crossed
        with cluster.counted() as crossed:
            call(N_WORKERS)
        assert all(link.received < NEARLY_NOTHING for link in crossed.values()), crossed


@pytest.mark.usefixtures("logged")
def test_a_client_that_reaches_the_scheduler_only(cluster):
    """What it sends to workers is lost in silence, as behind a firewall."""
    client = cluster.hosts["client"]
    for name in WORKER_HOSTS:
        client.separate(cluster.hosts[name])
    try:
        with cluster.client("client") as call, cluster.counted() as crossed:
            assert set(call(N_WORKERS, returned=NBYTES // 4)) == set(WORKER_HOSTS)
        assert 1 <= crossed["client"].sent < ABOUT_ONCE, crossed
        assert all(crossed[name].received < ABOUT_ONCE for name in WORKER_HOSTS), crossed
    finally:
        for name in WORKER_HOSTS:
            client.reunite(cluster.hosts[name])


@pytest.mark.usefixtures("logged")
def test_a_late_host_that_reaches_no_other_worker_is_served_by_the_client(cluster):
    late = cluster.hosts["late"]
    with cluster.client("client") as call:
        call(N_WORKERS)
        for name in WORKER_HOSTS:
            late.separate(cluster.hosts[name])
        try:
            cluster.start_worker("late")
            with cluster.counted() as crossed:
                assert "late" in call(N_WORKERS + 1)
            assert 1 <= crossed["late"].received < ABOUT_ONCE, crossed
            assert 1 <= crossed["client"].sent < ABOUT_ONCE, crossed
            assert crossed["scheduler"].received < NEARLY_NOTHING, crossed
            assert cluster.stored("late") == [NBYTES]
        finally:
            for name in WORKER_HOSTS:
                late.reunite(cluster.hosts[name])
