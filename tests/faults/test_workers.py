"""Workers that die, leave, freeze and join in the middle of a call: only what was not finished runs again."""

import contextlib
import os
import signal
from collections import Counter

import psutil
import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet.errors import ClusterLostError, NoWorkersError
from tests.faults.conftest import assert_nothing_is_left, meanwhile
from tests.faults.tasks import square, square_behind_gate
from tests.witness import marks, names, open_gate, wait_until

N_TASKS = 12
HELD = 3
TTL_S = 1.5

pytestmark = pytest.mark.slow


def address_of(client, pid):
    return next(a for a, worker in client.run(os.getpid).items() if worker == pid)


def kill(client, pid):
    os.kill(pid, signal.SIGKILL)


def kill_with_nanny(client, pid):
    nanny = psutil.Process(pid).parent()
    nanny.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def retire(client, pid):
    client.retire_workers([address_of(client, pid)])


def freeze(client, pid):
    os.kill(pid, signal.SIGSTOP)


#: What strikes the worker that runs the held task, the cluster, and how often that task starts at most.
FAULTS = [
    (kill, {"nanny": True}, 2),
    (kill, {}, 2),
    (kill_with_nanny, {"nanny": True}, 2),
    (retire, {}, 2),
    (freeze, {}, 2),
]


def strike_when_half_is_done(client, directory, fault):
    """Have the fault strike the worker that runs the held task, once others are done; gives its process."""
    ran = directory / "ran"
    wait_until(lambda: len(names(ran)) > N_TASKS // 2 and str(HELD) in names(ran), "half of the tasks have run")
    pid = next(mark["pid"] for mark in marks(ran) if mark["name"] == str(HELD))
    fault(client, pid)
    return pid


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize(("fault", "options", "most"), FAULTS)
def test_only_what_was_not_finished_runs_again(cluster, tmp_path, fault, options, most, return_as):
    client = cluster(**options)
    gate, stricken = tmp_path / "gate", []

    def strike():
        stricken.append(strike_when_half_is_done(client, tmp_path, fault))
        if fault is freeze:  # the task has not ended there, and never will
            wait_until(lambda: Counter(names(tmp_path / "ran"))[str(HELD)] == 2, "it starts elsewhere")
        open_gate(gate)

    with meanwhile(strike), parallel_config("dask", client=client, worker_ttl=TTL_S):
        tasks = [delayed(square_behind_gate)(tmp_path / "ran", gate, [HELD], i) for i in range(N_TASKS)]
        results = list(Parallel(batch_size=1, return_as=return_as)(tasks))
    assert sorted(results) == [i * i for i in range(N_TASKS)]
    assert return_as == "generator_unordered" or results == [i * i for i in range(N_TASKS)]
    ran = Counter(map(int, names(tmp_path / "ran")))
    assert ran.pop(HELD) <= most
    assert set(ran.values()) <= {1, 2}
    assert sum(ran.values()) <= N_TASKS  # of the others, one may have waited or run on the same worker
    if fault is freeze:
        os.kill(stricken[0], signal.SIGCONT)
        wait_until(lambda: len(client.run(os.getpid)) == 2, "the worker is back")
    with parallel_config("dask", client=client):
        assert Parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]
    assert_nothing_is_left(client)


def gate_tasks(directory, gate):
    return [delayed(square_behind_gate)(directory / "ran", gate, range(N_TASKS), i) for i in range(N_TASKS)]


def test_all_die_and_one_joins_later(cluster, processes, tmp_path):
    client = cluster()
    gate = tmp_path / "gate"

    def strike():
        wait_until(lambda: len(names(tmp_path / "ran")) == 2, "both workers run a task")
        for process in processes.running[1:]:
            process.kill()
        wait_until(lambda: not client.scheduler_info()["workers"], "no worker is left")
        open_gate(gate)
        processes.start_worker()

    with meanwhile(strike), parallel_config("dask", client=client):
        assert Parallel(batch_size=1)(gate_tasks(tmp_path, gate)) == [i * i for i in range(N_TASKS)]
    ran = Counter(map(int, names(tmp_path / "ran")))
    assert sum(ran.values()) == N_TASKS + 2
    assert_nothing_is_left(client)


def test_all_die_and_none_comes(cluster, processes, tmp_path):
    client = cluster()

    def strike():
        wait_until(lambda: len(names(tmp_path / "ran")) == 2, "both workers run a task")
        for process in processes.running[1:]:
            process.kill()

    with (
        meanwhile(strike),
        parallel_config("dask", client=client, wait_for_workers_timeout=2),
        pytest.raises(NoWorkersError, match="none has come back for 2 seconds"),
    ):
        Parallel(batch_size=1)(gate_tasks(tmp_path, tmp_path / "never"))
    wait_until(lambda: not client.futures, "nothing is kept")


def test_the_scheduler_comes_back(cluster, processes, tmp_path):
    """At its address, with new workers: the call goes on, and what was finished is not computed again."""
    client = cluster()
    gate = tmp_path / "gate"
    port = client.scheduler.address.rpartition(":")[2]

    def strike():
        wait_until(lambda: len(names(tmp_path / "ran")) > N_TASKS // 2, "half of the tasks have run")
        for process in processes.running:
            process.kill()
            process.wait()
        processes.scheduler_file.unlink()
        processes.start_scheduler(port)
        open_gate(gate)
        for _ in range(2):
            processes.start_worker()

    with meanwhile(strike), parallel_config("dask", client=client):
        tasks = [delayed(square_behind_gate)(tmp_path / "ran", gate, [HELD], i) for i in range(N_TASKS)]
        results = Parallel(batch_size=1)(tasks)
    assert results == [i * i for i in range(N_TASKS)]
    ran = Counter(map(int, names(tmp_path / "ran")))
    assert sum(ran.values()) <= N_TASKS + 4  # two ran, and two waited
    assert_nothing_is_left(client)


def test_the_scheduler_does_not_come_back(cluster, processes, tmp_path, monkeypatch):
    client = cluster()
    monkeypatch.setattr(client, "_timeout", 2)

    def strike():
        wait_until(lambda: len(names(tmp_path / "ran")) == 2, "both workers run a task")
        for process in processes.running:
            process.kill()

    with (
        meanwhile(strike),
        parallel_config("dask", client=client),
        pytest.raises(ClusterLostError, match="scheduler was lost"),
    ):
        Parallel(batch_size=1)(gate_tasks(tmp_path, tmp_path / "never"))
    client._loop_runner.stop(10)  # a client that has closed itself leaves its thread
