"""Where there is little shared memory, or a worker's memory is limited."""

import json
import os
import subprocess
import sys
import warnings

import dask.config
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from joblib import Parallel, delayed, parallel_config
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

from tests.data.conftest import plain_environment
from tests.data.for_workers import look, mapped_file
from tests.netns import network_or_skip
from tests.witness import wait_until

pytestmark = [pytest.mark.timeout(90), pytest.mark.slow]


@pytest.fixture
def tiny(tmp_path):
    """Give file systems of 4 MB in memory."""
    mounted = []

    def mount(name):
        path = tmp_path / name
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        mounted.append(path)
        return str(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def run(hosts, connect, array, n=6, **config):
    """Run tasks on a large array; give where they found it, and the warnings."""
    client = connect(2, **config)
    with warnings.catch_warnings(record=True) as caught, parallel_config("dask", client=client):
        warnings.simplefilter("always")
        for _ in range(2):
            answers = Parallel(batch_size=1)(delayed(look)(array) for _ in range(n))
            assert [total for *_, (total,) in answers] == [array.sum()] * n
    return {file for _, (file,), _ in answers}, [str(w.message) for w in caught if "jobfleet" in str(w.message)]


def test_without_room_in_shared_memory_a_disk_is_used(hosts, connect, tiny, tmp_path):
    hosts.shared_memory = tiny("shm")
    hosts.start_worker("")
    hosts.start_worker("")
    array = np.random.default_rng(0).integers(0, 1000, 2_000_000).astype(float)
    disk = tmp_path / "disk"
    disk.mkdir()
    files, warned = run(hosts, connect, array)
    assert all(file.startswith(str(hosts.directory)) and "shm" not in file for file in files), files
    assert warned == []


@pytest.mark.parametrize("host", ["", "far"])
def test_without_room_anywhere_it_is_sent_plainly_with_one_warning(hosts, connect, tiny, host):
    hosts.shared_memory = tiny("shm")
    hosts.temporary = tiny("disk")
    for _ in range(2):
        hosts.start_worker(host, "--local-directory", hosts.temporary)
    array = np.random.default_rng(0).integers(0, 1000, 2_000_000).astype(float)
    files, (warned,) = run(hosts, connect, array, **{"temporary-directory": hosts.temporary})
    assert not any("jobfleet-store" in file for file in files)
    assert str(array.nbytes) in warned


def test_what_is_not_used_any_more_makes_room(hosts, connect, tiny):
    """On the disk while workers still map what was removed."""
    hosts.shared_memory = tiny("shm")
    hosts.start_worker("")
    hosts.start_worker("")
    client = connect(2, **{"jobfleet.shared-memory-share": 1.0})
    with parallel_config("dask", client=client):
        for i in range(6):
            array = np.full(300_000, float(i))
            files = Parallel()(delayed(mapped_file)(array) for _ in range(3))
            assert all("jobfleet-store" in file for file in files)
        wait_until(lambda: not mapped(hosts), "the workers have let go", 20)
        files = Parallel()(delayed(mapped_file)(np.full(300_000, 7.0)) for _ in range(3))
    assert all(file.startswith(hosts.shared_memory) for file in files)


def mapped(hosts):
    pids = [process.pid for name, process in hosts.processes.items() if name != "scheduler"]
    return any("jobfleet-store" in area.path for pid in pids for area in psutil.Process(pid).memory_maps())


def test_results_that_do_not_fit_come_otherwise(hosts, connect, tiny):
    hosts.shared_memory = tiny("shm")
    hosts.start_worker("")
    hosts.start_worker("")
    client = connect(2)
    with parallel_config("dask", client=client):
        for _ in range(2):
            results = Parallel(batch_size=1)(delayed(np.full)(1_000_000, float(i)) for i in range(4))
            assert [set(result) for result in results] == [{float(i)} for i in range(4)]


def test_shared_pages_do_not_count_against_a_workers_limit(tmp_path, shared_memory):
    """A search over an array larger than what each worker may have."""
    rng = np.random.default_rng(0)
    X = rng.random((1_000_000, 100))  # 800 MB
    y = X[:, 0]
    rows = [(np.arange(1000), np.arange(1000, 2000)), (np.arange(5000, 6000), np.arange(1000))]
    with (
        dask.config.set({"jobfleet.shared-memory": shared_memory}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=int(0.7 * X.nbytes),
            dashboard_address=":0",
            local_directory=str(tmp_path),
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        parallel_config("dask", client=client),
    ):
        pids = set(client.run(os.getpid).values())
        # All pages of X are touched in each process: counted by the system they are more than the limit.
        for _ in range(3):
            answers = Parallel(batch_size=1)(delayed(touch_for_a_while)(X) for _ in range(8))
        assert max(rss for _, rss in answers) > X.nbytes
        search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0, 10.0]}, cv=rows, n_jobs=-1).fit(X, y)
        assert search.best_score_ > 0.9
        assert set(client.run(os.getpid).values()) == pids
        events = [event for worker in client.scheduler_info()["workers"] for _, event in client.get_events(worker)]
        assert not [event for event in events if event.get("status") == "paused"]


def touch_for_a_while(X):
    """Touch everything for longer than Dask takes to look at the memory."""
    import time

    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        X.sum()
    return os.getpid(), psutil.Process().memory_info().rss


IN_A_CONTAINER = """
import json, warnings
import numpy as np, jobfleet
from distributed import Client, LocalCluster
from joblib import Parallel, delayed, parallel_config
from tests.data.for_workers import look

def main():
    array = np.random.default_rng(0).integers(0, 1000, 12_000_000).astype(float)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        parallel_config("dask", client=client),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for _ in range(2):
            answers = Parallel(batch_size=1)(delayed(look)(array) for _ in range(4))
            assert [total for *_, (total,) in answers] == [array.sum()] * 4
        results = Parallel(batch_size=1)(delayed(np.full)(array.size, float(i)) for i in range(2))
        assert [set(result) for result in results] == [{0.0}, {1.0}]
        print(json.dumps({
            "files": sorted({file for _, (file,), _ in answers}),
            "warned": [str(w.message) for w in caught if "jobfleet" in str(w.message)],
        }))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("full", [False, True], ids=["disk", "full disk"])
def test_shared_memory_of_64_megabytes_as_in_containers(tmp_path, full):
    """Arrays and results of 96 MB, with the settings everybody has."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "program.py").write_text(IN_A_CONTAINER)
    own = ["/dev/shm", disk] if full else ["/dev/shm"]
    with network_or_skip("container", own_directories=own, size="64m") as (host,):
        env = plain_environment(disk) | {"TMPDIR": str(disk)}
        program = host.start(sys.executable, tmp_path / "program.py", env=env, stdout=subprocess.PIPE, text=True)
        said, _ = program.communicate(timeout=80)
        assert program.returncode == 0
        said = json.loads(said)
        if full:
            (warned,) = said["warned"]
            assert str(8 * 12_000_000) in warned
            assert not any("jobfleet-store" in file for file in said["files"])
        else:
            assert said["warned"] == []
            assert all(file.startswith(f"{disk}/jobfleet-store") for file in said["files"]), said
        assert host.call("ls", "/dev/shm") == ""
        assert not list(disk.glob("jobfleet-store*"))
