"""Over the network a buffer crosses once per host; what is lost on the way is sent again."""

import fcntl
import os
import threading
import time

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet._engine.placement import placement_of
from jobfleet._store import _FRESH_S
from tests.data.for_workers import held_up, look, on_host
from tests.witness import count, open_gate, wait_until

pytestmark = [pytest.mark.timeout(90), pytest.mark.slow]

N = 4_000_000  # 32 MB: two pieces


def floats(seed=0, size=N):
    # Whole numbers: their sum does not depend on how the memory is aligned.
    return np.random.default_rng(seed).integers(0, 1000, size).astype(float)


class Traffic:
    """Counts what a client sends to the buffer services of workers."""

    def __init__(self, client):
        self.sent = 0
        self.at_first_piece = lambda: None
        placement = placement_of(client)
        call = placement._call

        def counting(worker, op, **message):
            if op == "put" and not self.sent:
                self.at_first_piece()
            self.sent += len(message.get("data", b""))
            return call(worker, op, **message)

        placement._call = counting


def names(client):
    return [worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]


def on_all(client, array, n_hosts, tmp_path):
    """Run tasks that wait for each other, so that each host has one; give what they saw."""
    with parallel_config("dask", client=client):
        return Parallel(n_jobs=max(2, n_hosts), batch_size=1)(
            delayed(on_host)(array, tmp_path / "all", n_hosts) for _ in range(n_hosts)
        )


@pytest.mark.parametrize("n_hosts", [1, 3])
def test_the_client_sends_a_buffer_once_however_many_hosts_there_are(hosts, connect, tmp_path, n_hosts):
    names = [f"h{i}" for i in range(n_hosts)]
    for name in names:
        hosts.start_worker(name)
        hosts.start_worker(name)
    client = connect(2 * n_hosts)
    traffic = Traffic(client)
    array = floats()
    answers = on_all(client, array, 2 * n_hosts, tmp_path)
    assert {host for host, *_ in answers} == set(names)
    assert all(total == array.sum() for *_, total in answers)
    assert traffic.sent == array.nbytes
    for name in names:
        assert [path.stat().st_size for path in hosts.files(name)] == [array.nbytes]
    # And not again by the next call.
    on_all(client, array, 2 * n_hosts, tmp_path / "again")
    assert traffic.sent == array.nbytes
    array[0] += 1
    assert {total for *_, total in on_all(client, array, 2 * n_hosts, tmp_path / "changed")} == {array.sum()}
    assert traffic.sent == 2 * array.nbytes


def test_with_workers_on_the_clients_host_nothing_is_sent(hosts, connect, tmp_path):
    hosts.start_worker("")
    hosts.start_worker("")
    client = connect(2)
    traffic = Traffic(client)
    on_all(client, floats(), 2, tmp_path)
    assert traffic.sent == 0


@pytest.mark.parametrize("scatter", [False, True], ids=["automatic", "scatter"])
def test_a_host_that_joins_late_is_served(hosts, connect, tmp_path, scatter):
    hosts.start_worker("first")
    client = connect(1)
    traffic = Traffic(client)
    array = floats()
    with parallel_config("dask", client=client, scatter=[array] if scatter else []):
        results = Parallel(return_as="generator", batch_size=1)(
            delayed(held_up)(array, tmp_path / "gate", tmp_path / "ran") for _ in range(12)
        )
        wait_until(lambda: count(tmp_path / "ran") >= 1, "a task runs")
        hosts.start_worker("late")
        client.wait_for_workers(2, timeout=30)
        open_gate(tmp_path / "gate")
        assert list(results) == [array.sum()] * 12
        answers = on_all(client, array, 2, tmp_path)
    assert {host for host, *_ in answers} == {"first", "late"}
    assert traffic.sent == array.nbytes


def test_a_late_host_is_served_when_the_first_ones_are_gone(hosts, connect, tmp_path):
    first = hosts.start_worker("first")
    client = connect(1)
    array = floats()
    on_all(client, array, 1, tmp_path / "1")
    hosts.kill(first)
    hosts.start_worker("late")
    wait_until(lambda: len(names(client)) == 1 and first not in names(client), "only the late one is there")
    ((host, _, total),) = on_all(client, array, 1, tmp_path / "2")
    assert (host, total) == ("late", array.sum())


@pytest.mark.parametrize("scatter", [False, True], ids=["automatic", "scatter"])
def test_all_holders_killed_in_the_middle_cost_a_new_sending_not_the_call(hosts, connect, tmp_path, scatter):
    """Only the tasks that were lost run again."""
    doomed = [hosts.start_worker("a"), hosts.start_worker("b")]
    client = connect(2)
    array = floats()
    with parallel_config("dask", client=client, scatter=[array] if scatter else []):
        results = Parallel(return_as="generator", batch_size=1)(
            delayed(held_up)(array, tmp_path / "gate", tmp_path / "ran", waits=i >= 4) for i in range(12)
        )
        for _ in range(4):
            assert next(results) == array.sum()
        wait_until(lambda: count(tmp_path / "ran") >= 6, "two more run")
        hosts.start_worker("c")
        client.wait_for_workers(3, timeout=30)
        hosts.kill(*doomed)
        open_gate(tmp_path / "gate")
        assert list(results) == [array.sum()] * 8
    assert count(tmp_path / "ran") <= 12 + 2


@pytest.mark.parametrize("host", ["", "far"])
def test_what_is_removed_in_the_middle_of_a_call_comes_back(hosts, connect, tmp_path, host):
    hosts.start_worker(host)
    client = connect(1)
    array = floats()

    def tasks():
        for i in range(8):
            if i in (3, 6):
                for path in hosts.files(host):
                    path.unlink()
            yield delayed(look)(array)

    with parallel_config("dask", client=client):
        results = Parallel(n_jobs=2, batch_size=1, pre_dispatch=1)(tasks())
    assert [total for *_, (total,) in results] == [array.sum()] * 8


@pytest.mark.parametrize("host", ["", "far"])
def test_more_than_the_store_may_keep_goes_and_comes_back(hosts, connect, host):
    """Twice the share in turn, several times."""
    stat = os.statvfs(hosts.shared_memory)
    share = 3.5 * 8 * N / (stat.f_blocks * stat.f_frsize)
    hosts.start_worker(host)
    client = connect(1, **{"jobfleet.shared-memory-share": share})
    arrays = [floats(i) for i in range(7)]
    with parallel_config("dask", client=client):
        for _ in range(2):
            for array in arrays:
                results = Parallel(batch_size=1)(delayed(look)(array) for _ in range(3))
                assert [total for *_, (total,) in results] == [array.sum()] * 3
    here = sum(path.stat().st_size for path in hosts.files(""))
    assert 8 * N <= here <= 4 * 8 * N


@pytest.mark.parametrize("host", ["", "far"])
def test_what_makes_room_in_the_middle_of_a_call_comes_back(hosts, connect, host):
    """An array that no task needs at the moment goes for another, and is needed again."""
    stat = os.statvfs(hosts.shared_memory)
    share = 1.5 * 8 * N / (stat.f_blocks * stat.f_frsize)
    hosts.start_worker(host)
    client = connect(1, **{"jobfleet.shared-memory-share": share})
    traffic = Traffic(client)
    first, second = floats(1), floats(2)
    written = []

    def tasks():
        # joblib asks for two tasks at a time, and when it does, some may be running still: here they are some that need
        # none of the arrays.
        yield from [delayed(look)(array) for array in (first, first, None, None)]
        wait_until(lambda: not any(map(in_use, hosts.files(host))), "the worker has let go of it")
        written.extend(path.stat().st_ino for path in hosts.files(host))
        yield from [delayed(look)(array) for array in (second, None, None, None)]
        if host:  # the client's own host has it as soon as the task is there
            wait_until(only_the_other_is_left, "the worker has got the other one and let go of it")
        yield from [delayed(look)(array) for array in (first, None, None, None, first)]

    def only_the_other_is_left():
        try:
            (path,) = hosts.files(host)
            status = path.stat()
            is_old = time.time() - status.st_mtime > _FRESH_S  # else it would not make room
            return is_old and status.st_ino not in written and not in_use(path)
        except (ValueError, FileNotFoundError):  # it is about to come or go
            return False

    with parallel_config("dask", client=client):
        results = Parallel(n_jobs=2, batch_size=1, pre_dispatch=2)(tasks())
    sums = [total for *_, totals in results for total in totals]
    assert sums == [array.sum() for array in (first, first, second, first, first)]
    assert len(written) == 1
    assert written[0] not in [path.stat().st_ino for path in hosts.files(host)]
    assert traffic.sent == (3 * 8 * N if host else 0)


def in_use(path):
    """Tell whether a process maps a file of a store."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_two_threads_and_two_clients_at_once(hosts, connect, tmp_path):
    for host in ("", "a"):
        hosts.start_worker(host)
        hosts.start_worker(host)
    clients = [connect(4), connect(4)]
    array = floats()
    failures = []

    def work(client):
        with parallel_config("dask", client=client):
            for i in range(3):
                data = array[i:]
                if [t for *_, (t,) in Parallel(batch_size=1)(delayed(look)(data) for _ in range(6))] != [
                    data.sum()
                ] * 6:
                    failures.append(i)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
