"""A cluster is shared: with other people's tasks, other programs, other threads."""

import contextlib
import warnings

import dask.config
import numpy as np
import pytest
from distributed import Client
from joblib import Parallel, delayed, parallel_config

from tests.witness import count, mark, open_gate, pass_gate, wait_until


def square(x):
    return x * x


def held(gate, value):
    pass_gate(gate)
    return value


def test_other_peoples_tasks_are_untouched(small_cluster, tmp_path):
    """Whatever ends a call of ours, what others submitted goes on, and what they have stays."""
    client = small_cluster({"nthreads": 2}, {"nthreads": 2})
    with Client(client.cluster, set_as_default=False) as other:
        kept = other.submit(square, 7, key="theirs-kept")
        assert kept.result(timeout=10) == 49
        [data] = other.scatter([list(range(10))])
        running = other.submit(held, tmp_path / "gate", "theirs", key="theirs-running", pure=False)
        later = other.submit(lambda a, b: (a, len(b)), running, data, key="theirs-later")

        def fail(i):
            raise ValueError("ours")

        def slow(i):
            mark(tmp_path / "ours")
            pass_gate(tmp_path / "gate")

        with parallel_config("dask", client=client):
            with pytest.raises(ValueError, match="ours"):
                Parallel()(delayed(fail)(i) for i in range(10))
            results = Parallel(return_as="generator", batch_size=1)(delayed(slow)(i) for i in range(30))
            wait_until(lambda: count(tmp_path / "ours") >= 1, "one of ours started")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results.close()
            open_gate(tmp_path / "gate")
            assert Parallel()(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]
        assert later.result(timeout=15) == ("theirs", 10)
        assert kept.status == "finished"
        assert kept.result() == 49
        assert data.result() == list(range(10))


def test_nothing_of_ours_stays_on_the_scheduler(small_cluster):
    client = small_cluster({"nthreads": 2})

    def n_tasks(dask_scheduler):
        return len(dask_scheduler.tasks)

    with parallel_config("dask", client=client, scatter=[list(range(100))]):
        Parallel()(delayed(square)(i) for i in range(20))
        with pytest.raises(TypeError):
            Parallel()(delayed(square)(None) for i in range(20))
    import gc

    gc.collect()
    wait_until(lambda: client.run_on_scheduler(n_tasks) == 0, "the scheduler forgot our tasks", 15)


def test_dasks_configuration_may_have_lost_our_defaults(small_cluster, monkeypatch):
    """Dask's own test helpers put the configuration back to what it was before jobfleet came."""
    monkeypatch.delitem(dask.config.config, "jobfleet")
    array = np.ones(2**18)
    with parallel_config("dask", client=small_cluster({"nthreads": 2})):
        assert Parallel()(delayed(np.sum)(array) for _ in range(4)) == [2**18] * 4


def test_users_futures_are_left_to_the_user(small_cluster):
    client = small_cluster({"nthreads": 2})
    mine = client.submit(square, 3)
    with parallel_config("dask", client=client):
        Parallel()(delayed(square)(i) for i in range(20))
    assert mine.result() == 9
    assert client.submit(square, 4).result() == 16


PROGRAM = """
import sys
from distributed import Client
from joblib import Parallel, delayed, parallel_config
from tests.witness import meet

def task(name, directory, index):
    if index == 0:
        meet(directory, 2)  # both programs are at work at the same time
    print(f"{name} says {index}")
    print(f"{name} complains {index}", file=sys.stderr)
    return f"{name} {index}"

if __name__ == "__main__":
    name, address, directory = sys.argv[1:]
    with Client(address) as client, parallel_config("dask", client=client):
        results = Parallel(batch_size=1)(delayed(task)(name, directory, i) for i in range(12))
    assert results == [f"{name} {i}" for i in range(12)], results
"""


def test_two_programs_at_once_each_with_its_own_results_and_output(script, bare_client, tmp_path, against):
    if against == "builtin":
        pytest.skip("shows no output at all")
    address = bare_client.scheduler.address
    programs = [script.start(PROGRAM, name, address, tmp_path / "both") for name in ("alice", "bob")]
    for name, program in zip(("alice", "bob"), programs, strict=True):
        out = script.finish(program)
        assert sorted(out.splitlines()) == sorted(f"{name} says {i}" for i in range(12))


def test_output_goes_to_the_client_that_called_and_not_to_an_idle_one(script, bare_client, capsys, against):
    if against == "builtin":
        pytest.skip("shows no output at all")
    with contextlib.ExitStack():
        script.run(PROGRAM.replace("meet(directory, 2)", "pass"), "carol", bare_client.scheduler.address, "nowhere")
    captured = capsys.readouterr()
    assert "carol" not in captured.out + captured.err


def test_two_clients_of_one_program(small_cluster):
    client = small_cluster({"nthreads": 2})
    with Client(client.cluster, set_as_default=False) as second:
        with parallel_config("dask", client=client):
            left = Parallel(return_as="generator")(delayed(square)(i) for i in range(30))
        with parallel_config("dask", client=second):
            right = Parallel(return_as="generator")(delayed(square)(-i) for i in range(30))
        assert list(zip(left, right, strict=True)) == [(i * i, i * i) for i in range(30)]
