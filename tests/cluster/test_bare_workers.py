"""The workers need nothing from us; nothing but their task threads and the client touches user objects."""

import importlib.util
import sys

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from tests.cluster.conftest import HERE


@pytest.fixture
def courier(monkeypatch):
    monkeypatch.syspath_prepend(HERE / "for_workers")
    import courier

    yield courier
    del sys.modules["courier"]


def test_the_workers_cannot_import_jobfleet(bare_client):
    """What the other tests of this file rest on."""

    def can_import_jobfleet():  # a local function travels by value: the scheduler has no tests to import
        try:
            return importlib.util.find_spec("jobfleet") is not None
        except ModuleNotFoundError:
            return False

    assert set(bare_client.run(can_import_jobfleet).values()) == {False}
    assert bare_client.run_on_scheduler(can_import_jobfleet) is False


def test_results_output_errors_and_nesting_without_jobfleet_there(bare_client, capsys):
    def inner(i, j):
        return i * j

    def outer(i):
        print("outer", i)
        return Parallel(n_jobs=2)(delayed(inner)(i, j) for j in range(3))

    def fail(i):
        raise LookupError(f"call {i}")

    with parallel_config("dask", client=bare_client):
        assert Parallel()(delayed(outer)(i) for i in range(4)) == [[i * j for j in range(3)] for i in range(4)]
        with pytest.raises(LookupError, match="call 0"):
            Parallel()(delayed(fail)(i) for i in range(1))
        large = np.ones(300_000)
        assert Parallel()(delayed(np.sum)(large) for _ in range(3)) == [300_000.0] * 3
    assert sorted(capsys.readouterr().out.splitlines()) == [f"outer {i}" for i in range(4)]


def test_a_worker_that_joins_later_gets_what_it_needs(bare_processes, bare_client):
    """It was not there when the first call brought the code."""
    with parallel_config("dask", client=bare_client):
        assert Parallel()(delayed(abs)(-i) for i in range(6)) == list(range(6))
        late = bare_processes.start_worker("--name", "late")
        try:
            bare_client.wait_for_workers(3, timeout=30)
            with parallel_config("dask", client=bare_client, workers=["late"]):
                assert Parallel()(delayed(abs)(-i) for i in range(6)) == list(range(6))
        finally:
            late.terminate()
            late.wait(15)


def roles(courier, directory, what):
    found = {(note["role"], note["thread"]) for note in courier.notes(directory) if note["what"] == what}
    return {role for role, _ in found}, {thread for role, thread in found if role == "worker"}


@pytest.mark.parametrize("scattered", [False, True])
def test_only_task_threads_and_the_client_unpickle(bare_client, courier, tmp_path, scattered):
    """Arguments, results: the scheduler, which lacks the module, sees bytes; event loops unpickle nothing."""
    shared = courier.Courier(tmp_path, 100)
    options = {"scatter": [shared]} if scattered else {}
    with parallel_config("dask", client=bare_client, **options):
        results = Parallel()(delayed(courier.double)(courier.Courier(tmp_path, i)) for i in range(6))
        results += Parallel()(delayed(courier.double)(shared) for _ in range(3))
    assert [result.value for result in results] == [0, 2, 4, 6, 8, 10, 200, 200, 200]
    who, threads = roles(courier, tmp_path, "unpickle")
    assert who == {"worker", "client"}
    assert all(thread.startswith("Dask-Default-Threads") for thread in threads), threads
    who, threads = roles(courier, tmp_path, "pickle")
    assert who == {"worker", "client"}
    assert all(thread.startswith("Dask-Default-Threads") for thread in threads), threads
    in_client = {n["thread"] for n in courier.notes(tmp_path) if n["role"] == "client"}
    assert not {thread for thread in in_client if thread.startswith(("IO loop", "Dask-Offload"))}, in_client


def test_each_argument_is_pickled_and_unpickled_once(bare_client, courier, tmp_path):
    """The built-in backend counts 100 picklings for 50 tasks: the scheduler does it again."""
    with parallel_config("dask", client=bare_client):
        Parallel()(delayed(len)([courier.Courier(tmp_path, i)]) for i in range(10))
    what = [note["what"] for note in courier.notes(tmp_path)]
    assert what.count("pickle") == 10
    assert what.count("unpickle") == 10


def test_an_exception_too_is_unpickled_by_the_client_only(bare_client, courier, tmp_path):
    with parallel_config("dask", client=bare_client), pytest.raises(courier.CourierError) as caught:
        Parallel()(delayed(courier.fail)(courier.Courier(tmp_path, i)) for i in range(1))
    assert caught.value.args[0].value == 0
    assert roles(courier, tmp_path, "unpickle")[0] == {"worker", "client"}


def test_the_scheduler_keeps_living_without_the_modules(bare_processes, bare_client):
    assert all(process.poll() is None for process in bare_processes.running[:3]), bare_processes.logs()
    assert len(bare_client.ncores()) >= 2  # `scheduler_info` may be empty for a moment: Dask renews it without workers
