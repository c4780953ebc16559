"""Large results of other hosts come from the workers themselves, or piece by piece through the scheduler."""

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet._engine.placement import placement_of
from tests.data.for_workers import memory_of
from tests.witness import count, mark, wait_until

pytestmark = [pytest.mark.timeout(90), pytest.mark.slow]

N = 6_000_000  # 48 MB: several pieces


def large(i, size=N):
    return {"i": i, "data": [np.full(size, float(i)), np.arange(10.0), np.full((2, 200_000), -float(i), order="F")]}


def check(results, size=N):
    for i, result in enumerate(results):
        whole, small, more = result["data"]
        assert (result["i"], len(whole), whole[0], whole[-1], whole[size // 2]) == (i, size, i, i, i)
        assert small[-1] == 9
        assert more.shape == (2, 200_000)
        assert set(more[:, -1]) == {-float(i)}
        for array in result["data"]:
            assert array.flags.writeable
            array += 1


def peak_of(pid):
    """Give the most memory that a process has ever had."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize("reached", [True, False], ids=["direct", "through the scheduler"])
def test_the_scheduler_never_holds_them(hosts, connect, reached):
    for host in ("a", "b"):
        hosts.start_worker(host)
    client = connect(2)
    scheduler = hosts.processes["scheduler"].pid
    workers = [process.pid for name, process in hosts.processes.items() if name != "scheduler"]
    placement = placement_of(client)
    with parallel_config("dask", client=client):
        Parallel()(delayed(large)(i, 10) for i in range(4))
        addresses = client.scheduler_info(n_workers=-1)["workers"]
        placement._reached.update(dict.fromkeys(addresses, reached))
        before, idle = peak_of(scheduler), sum(map(memory_of, workers))
        results = Parallel(batch_size=2)(delayed(large)(i) for i in range(6))
        check(results)
        assert peak_of(scheduler) - before < 8 * N
        assert placement._reached == dict.fromkeys(addresses, reached)
        # Not of all: the allocator keeps some.
        wait_until(lambda: sum(map(memory_of, workers)) - idle < 3 * 8 * N, "the workers have let go", 10)


def marked(i, ran):
    mark(ran)
    return large(i)


def test_a_worker_that_dies_before_its_result_is_fetched_costs_its_chunk(hosts, connect, tmp_path):
    names = [hosts.start_worker("a"), hosts.start_worker("b")]
    client = connect(2)
    placement = placement_of(client)
    call = placement._call
    info = {worker["name"]: address for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()}
    killed = []

    def killing(worker, op, **message):
        if op == "result" and message["offset"] and not killed:
            killed.append(worker)
            hosts.kill(next(name for name in names if info[name] == worker))
        return call(worker, op, **message)

    placement._call = killing
    with parallel_config("dask", client=client):
        check(Parallel(batch_size=1)(delayed(marked)(i, tmp_path / "ran") for i in range(6)))
    assert killed
    assert 6 < count(tmp_path / "ran") <= 6 + 3
