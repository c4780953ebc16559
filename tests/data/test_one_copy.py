"""On the client's host a large buffer is written once and mapped by all workers, whatever it hides in."""

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from joblib import Parallel, delayed, parallel_config
from scipy import sparse
from sklearn.linear_model import LinearRegression

from tests.data.for_workers import address, look, mapped_file, memory_of, touch_and_meet
from tests.witness import wait_until

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]

N = 300_000


def floats(seed=0, shape=(N,)):
    # Whole numbers: their sum does not depend on how the memory is aligned.
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(float)


class Holder:
    def __init__(self, data):
        self.data = data

    def look(self, _):
        return look(self.data)


def read_only(array):
    array.flags.writeable = False
    return array


def fitted():
    model = LinearRegression()
    model.coef_ = floats()
    return model


THINGS = {
    "array": floats,
    "F order": lambda: np.asfortranarray(floats(shape=(600, 500))),
    "read-only": lambda: read_only(floats()),
    "narrow gaps": lambda: floats(shape=(3000, 101))[:, :-1],
    "wide gaps": lambda: floats(shape=(2 * N,))[::2],
    "columns of a frame": lambda: pd.DataFrame(floats(shape=(1000, 400))).iloc[:, 50:350],
    "structured": lambda: floats().view([("a", "f8"), ("b", "f8", 2)]),
    "list": lambda: [floats(0), floats(1)],
    "dict": lambda: {"a": floats(0), "b": [floats(1)]},
    "object": lambda: Holder(floats()),
    "estimator": fitted,
    "frame": lambda: pd.DataFrame(floats(shape=(1000, 300))),
    "Arrow table": lambda: pa.table(
        {"words": [f"word {i}" for i in range(150_000)], "numbers": floats(shape=(150_000,))}
    ),
    "sparse": lambda: sparse.random(2000, 2000, density=0.2, format="csr", random_state=0),
}


@pytest.fixture
def client(hosts, connect):
    for _ in range(2):
        hosts.start_worker("")
    return connect(2)


def expected(thing):
    return look(thing)[2]


@pytest.fixture(params=["argument", "closure", "method", "partial", "scatter"])
def route(request):
    return request.param


def calls(route, thing, n):
    if route == "closure":
        return [delayed(lambda i: look(thing))(i) for i in range(n)]
    if route == "method":
        return [delayed(Holder(thing).look)(i) for i in range(n)]
    if route == "partial":
        import functools

        return [delayed(functools.partial(look, thing))() for i in range(n)]
    return [delayed(look)(thing) for _ in range(n)]


def test_everything_is_mapped_whatever_the_route(hosts, client, route):
    """One cluster for all types: each must come as a mapping of a file of the store, and with the right content."""
    for kind, make in THINGS.items():
        thing = make()
        scatter = [thing] if route == "scatter" else []
        with parallel_config("dask", client=client, scatter=scatter):
            answers = Parallel(batch_size=1)(calls(route, thing, 6))
        for _, files, sums in answers:
            assert sums == expected(thing), kind
            assert files, kind
            assert all(file.startswith(str(hosts.shared_memory)) for file in files), (kind, files)
    # Equal content is one file, whatever it was in.
    assert len(hosts.files()) <= 2 + 2 + 1 + 3 + 3 + 3


def test_memory_over_all_processes_is_that_of_one_copy(hosts, client, tmp_path):
    """As proportional shares, while each worker has touched everything."""
    array = floats(shape=(25_000_000,))  # 200 MB
    with parallel_config("dask", client=client):
        Parallel()(delayed(look)(floats(1)) for _ in range(4))
        before = {p.pid: memory_of(p.pid) for p in hosts.processes.values()}
        answers = Parallel(n_jobs=2, batch_size=1)(delayed(touch_and_meet)(array, tmp_path) for _ in range(2))
    assert len({pid for pid, _ in answers}) == 2
    grown = sum(memory - before[pid] for pid, memory in answers)
    assert grown <= 1.15 * array.nbytes
    assert [path.stat().st_size for path in hosts.files()].count(array.nbytes) == 1


def test_the_next_call_and_another_one_use_what_is_there(hosts, client):
    array = floats()
    with parallel_config("dask", client=client):
        Parallel()(delayed(look)(array) for _ in range(4))
        (first,) = hosts.files()
        written = first.stat().st_ino
        Parallel()(delayed(look)([array]) for _ in range(4))
        Parallel()(delayed(Holder(array).look)(i) for i in range(4))
    (again,) = hosts.files()
    assert again.stat().st_ino == written


def test_what_one_task_needs_goes_with_it(hosts, client):
    with parallel_config("dask", client=client):
        results = Parallel(batch_size=1)(delayed(look)(floats(i)) for i in range(8))
    assert [sums for _, _, sums in results] == [[float(floats(i).sum())] for i in range(8)]
    assert hosts.files() == []


@pytest.mark.parametrize("size", [3_000, 100_000, N, 4 * N])
def test_a_refilled_buffer_arrives_as_it_was_at_each_task(client, size):
    array = np.zeros(size)

    def tasks():
        for value in range(12):
            array[:] = value // 3  # now and then it stays the same
            array[size // 2] = 0.25
            yield delayed(np.unique)(array)

    with parallel_config("dask", client=client):
        for batch_size in (1, "auto"):
            results = Parallel(n_jobs=2, batch_size=batch_size, pre_dispatch=2)(tasks())
            # joblib reads a few calls ahead before it hands over the first: newer content is right, older is not.
            for i, result in enumerate(results):
                assert min(result) <= 0.25
                assert i // 3 <= max(result) if i >= 3 else True
                if batch_size == 1:
                    assert max(result) <= max(0.25, (i + 1) // 3)
            for value in range(3):
                array[:] = value
                assert Parallel()(delayed(np.max)(array) for _ in range(4)) == [value] * 4


def write_through(array, i):
    array[0] = -1.0 - i
    return float(array[0]), float(array[1])


def test_copy_on_write_leaks_nothing(hosts, client):
    array = np.zeros(N)
    with parallel_config("dask", client=client, mmap_mode="c"):
        for _ in range(2):
            results = Parallel()(delayed(write_through)(array, i) for i in range(10))
            assert results == [(-1.0 - i, 0.0) for i in range(10)]
            assert Parallel()(delayed(np.max)(array) for _ in range(3)) == [0.0] * 3
            assert set(Parallel()(delayed(mapped_file)(array) for _ in range(4))) <= set(map(str, hosts.files()))
    assert array.max() == array.min() == 0


def test_private_copies_are_writable(client):
    array = np.zeros(N)
    with parallel_config("dask", client=client, mmap_mode=None):
        assert Parallel()(delayed(write_through)(array, i) for i in range(6)) == [(-1.0 - i, 0.0) for i in range(6)]
        assert set(Parallel()(delayed(mapped_file)(array) for _ in range(2))).isdisjoint({"/dev/shm"})


def test_writing_to_a_read_only_argument_says_what_to_do(client):
    with parallel_config("dask", client=client), pytest.raises(ValueError, match="read-only") as caught:
        Parallel()(delayed(write_through)(np.zeros(N), i) for i in range(3))
    assert any("mmap_mode" in note for note in caught.value.__notes__)


def large_result(i):
    return {"data": np.full(N, float(i)), "i": i}


def test_large_results_are_the_callers_own(hosts, client):
    with parallel_config("dask", client=client):
        for _ in range(3):
            results = Parallel(batch_size=1)(delayed(large_result)(i) for i in range(10))
            for i, result in enumerate(results):
                assert result["i"] == i
                assert result["data"].flags.writeable
                result["data"] += 1
                assert set(result["data"]) == {i + 1.0}
    assert hosts.files() == []


def test_a_view_of_what_tasks_got_may_be_sent_on(client):
    """A nested call with the array a task was given, and with a part of it."""
    array = floats()
    with parallel_config("dask", client=client):
        results = Parallel()(delayed(inner)(array, i) for i in range(4))
    assert results == [(float(array.sum()), float(array[:200_000].sum()))] * 4


def inner(array, _):
    whole, part = Parallel()(delayed(np.sum)(data) for data in (array, array[:200_000]))
    return float(whole), float(part)


def test_workers_let_go_of_what_is_not_used(hosts, client):
    """A mapping would keep the memory of a file that is removed."""
    pids = [process.pid for name, process in hosts.processes.items() if name != "scheduler"]

    def mapped():
        return any(str(hosts.shared_memory) in map.path for pid in pids for map in psutil.Process(pid).memory_maps())

    with parallel_config("dask", client=client):
        Parallel()(delayed(look)(floats()) for _ in range(4))
    wait_until(lambda: not mapped(), "the workers have let go", 20)
    assert address(floats()) > 0
