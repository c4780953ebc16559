"""`scatter=` has the data on every host before the first task."""

import io
import logging
import sys

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet._engine.base import AheadProgress
from jobfleet._observe.ahead import ScatterProgress
from tests.data.for_workers import on_host
from tests.data.test_hosts import N, Traffic, floats
from tests.witness import count, mark, open_gate, pass_gate, wait_until

pytestmark = [pytest.mark.timeout(90), pytest.mark.slow]


def busy(gate, ran):
    mark(ran)
    pass_gate(gate)


def test_every_host_has_it_before_the_first_task(hosts, connect, tmp_path):
    """Though all workers are busy with other things."""
    names = ["", "a", "b"]
    for name in names:
        hosts.start_worker(name)
    client = connect(3)
    traffic = Traffic(client)
    others = client.map(busy, [tmp_path / "gate"] * 3, [tmp_path / f"ran-{i}" for i in range(3)], pure=False)
    wait_until(lambda: all(count(tmp_path / f"ran-{i}") for i in range(3)), "all workers are busy")
    array = floats()
    there = []

    def tasks():
        there.extend([path.stat().st_size for path in hosts.files(name)] for name in names)
        open_gate(tmp_path / "gate")
        for _ in range(3):
            yield delayed(on_host)(array, tmp_path / "all", 3)

    with parallel_config("dask", client=client, scatter=[array]):
        answers = Parallel(n_jobs=3, batch_size=1)(tasks())
        assert there == [[array.nbytes]] * 3
        assert sorted(host or "" for host, *_ in answers) == names
        assert {total for *_, total in answers} == {array.sum()}
        assert traffic.sent == array.nbytes
        # A host that joins later gets it from the others, and a changed object is brought anew.
        hosts.start_worker("late")
        client.wait_for_workers(4, timeout=30)
        late = Parallel(n_jobs=4, batch_size=1)(delayed(on_host)(array, tmp_path / "late", 4) for _ in range(4))
        assert "late" in {host for host, *_ in late}
        assert traffic.sent == array.nbytes
        array[N // 2] += 1
        there.clear()
        names.append("late")

        def more_tasks():
            there.extend(max(path.stat().st_mtime_ns for path in hosts.files(name)) for name in names)
            yield delayed(np.sum)(array)

        before = max(path.stat().st_mtime_ns for name in names for path in hosts.files(name))
        assert Parallel(n_jobs=2)(more_tasks()) == [array.sum()]
        assert min(there) > before
    del others


@pytest.mark.timeout(20)  # Dask alone would try for half a minute to reach it
def test_one_whose_worker_dies_meanwhile_does_not_hold_up_the_call(hosts, connect, tmp_path):
    doomed = hosts.start_worker("a")
    hosts.start_worker("b")
    client = connect(2)
    array = floats()
    traffic = Traffic(client)
    traffic.at_first_piece = lambda: hosts.kill(doomed)
    with parallel_config("dask", client=client, scatter=[array]):
        assert Parallel(n_jobs=2)(delayed(np.sum)(array) for _ in range(4)) == [array.sum()] * 4


class Terminal(io.StringIO):
    def isatty(self):
        return True


def steps():
    for elapsed_s in (0.5, 2.5, 4.5, 15.0):
        yield AheadProgress(int(elapsed_s * 10**8), 1, 3, 2 * 10**9, elapsed_s)


def test_it_tells_how_far_it_is_when_that_takes_long(monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ScatterProgress() as show:
        for step in steps():
            show(step)
            if step.elapsed_s < 2:
                assert not terminal.getvalue()
    assert "1 of 3 workers" in terminal.getvalue()
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    with caplog.at_level(logging.INFO, "jobfleet"), ScatterProgress() as show:
        for step in steps():
            show(step)
    assert not plain.getvalue()
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "scatter: 250 MB sent",
        "scatter: 1500 MB sent",
    ]
