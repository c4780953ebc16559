"""A memmap of a file that workers can see is opened there, not sent; what they get is never older than the call."""

import os
import subprocess
import time

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from tests.data.for_workers import held_up, mapped_file
from tests.data.test_hosts import Traffic
from tests.witness import count, open_gate, wait_until

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]

SHAPE = (600, 800)


@pytest.fixture
def path(tmp_path):
    """Give a file that was not written just now."""
    path = tmp_path / "files" / "data.bin"
    path.parent.mkdir()
    return write(path, 0)


def write(path, seed, at=1_000_000):
    np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(float).tofile(path)
    os.utime(path, (at, at))
    return path


def opened(path, mode="r", **keywords):
    return np.memmap(path, mode=mode, **{"dtype": float, "shape": SHAPE, **keywords})


def describe(array, *_):
    """Give the file behind an array, what it holds, and how it may be used."""
    array = array[0] if isinstance(array, list) else array
    return mapped_file(array), array.tobytes("A"), array.shape, array.strides, array.dtype, array.flags.writeable


VIEWS = {
    "whole": lambda path: opened(path),
    "in a list": lambda path: [opened(path)],
    "as an array": lambda path: np.asarray(opened(path)),
    "offset": lambda path: opened(path, offset=800 * 8 * 3 + 8, shape=(500, 800)),
    "Fortran order": lambda path: opened(path, order="F"),
    "transposed": lambda path: opened(path).T,
    "structured": lambda path: opened(path, dtype=[("a", "i4"), ("b", "f4", 3)], shape=(SHAPE[0] * SHAPE[1] // 2,)),
    "rows": lambda path: opened(path)[100:500],
    "columns": lambda path: opened(path)[:, 100:500],
    "every other": lambda path: opened(path)[::2],
    "backwards": lambda path: opened(path)[::-1, 50:700],
    "another dtype": lambda path: opened(path)[7:].view(np.int64),
}


@pytest.mark.parametrize("host", ["", "far"])
def test_it_is_opened_whatever_it_shows(hosts, connect, path, host):
    hosts.start_worker(host)
    client = connect(1)
    traffic = Traffic(client)
    for kind, make in VIEWS.items():
        array = make(path)
        with parallel_config("dask", client=client):
            results = Parallel(batch_size=1)(delayed(describe)(array, [i]) for i in range(3))
        assert set(results) == {(str(path), *describe(array)[1:])}, kind
    assert traffic.sent == 0
    assert hosts.files() == hosts.files(host) == []


def test_that_the_file_is_settled_is_waited_for_if_that_is_quicker_than_to_read_it(hosts, connect, tmp_path):
    hosts.start_worker("")
    client = connect(1)
    path = tmp_path / "new.bin"
    np.zeros(2**24).tofile(path)
    array = np.memmap(path, mode="r", dtype=float)
    with parallel_config("dask", client=client):
        Parallel()(delayed(abs)(i) for i in range(3))
        just_now = time.time_ns() - 20 * 10**6
        os.utime(path, ns=(just_now, just_now))
        assert set(Parallel()(delayed(mapped_file)(array) for _ in range(3))) == {str(path)}
    assert hosts.files() == []


def add_one(array):
    array += 1
    return array.sum()


def test_modes(hosts, connect, path):
    hosts.start_worker("")
    client = connect(1)
    array = opened(path)
    # As under loky, a memmap that is read-only stays so.
    for mmap_mode in ("r", "c"):
        with parallel_config("dask", client=client, mmap_mode=mmap_mode), pytest.raises(ValueError, match="read-only"):
            Parallel()(delayed(add_one)(array) for _ in range(3))
    with parallel_config("dask", client=client, mmap_mode="c"):
        private = opened(path, mode="c")
        assert Parallel()(delayed(add_one)(private) for _ in range(3)) == [array.sum() + array.size] * 3
    assert np.fromfile(path).sum() == array.sum()
    # What is not in the file, or may be written to meanwhile, is sent as it is.
    changed = opened(path, mode="c")
    changed[5] = -1
    with parallel_config("dask", client=client):
        assert Parallel()(delayed(np.sum)(changed) for _ in range(3)) == [changed.sum()] * 3
    both = opened(path, mode="r+")

    def refilled(shown):
        for value in range(6):
            both[:] = value
            yield delayed(np.unique)(shown)

    for shown in (both, array):
        with parallel_config("dask", client=client):
            results = Parallel(n_jobs=2, batch_size=1, pre_dispatch=2)(refilled(shown))
        for i, values in enumerate(results):
            # joblib reads a call ahead: newer content is right, older is not.
            assert len(values) == 1
            assert i <= values[0] <= i + 1


def test_workers_that_do_not_see_the_file_get_the_data_once_per_host(hosts, connect, path):
    try:
        subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(path.parent)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be hidden from workers here: {error}")
    for host in ("", "far", "far"):
        hosts.start_worker(host, hides=path.parent)
    client = connect(3)
    traffic = Traffic(client)
    array = opened(path)
    with parallel_config("dask", client=client):
        for _ in range(2):
            results = Parallel(batch_size=1)(delayed(describe)(array, [i]) for i in range(9))
            assert {result[1] for result in results} == {array.tobytes()}
            assert all("jobfleet-store" in file for file, *_ in results)
    assert traffic.sent == array.nbytes
    assert [path.stat().st_size for path in hosts.files("far")] == [array.nbytes]


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_a_change_between_two_calls_is_seen(hosts, connect, path, how):
    hosts.start_worker("")
    client = connect(1)
    array = opened(path)
    with parallel_config("dask", client=client):
        before = Parallel()(delayed(np.sum)(array) for _ in range(2))
        if how == "another file":
            # The memmap goes on showing what has lost its name.
            write(path.with_name("other"), 1).rename(path)
        else:
            write(path, 1, at=1_000_007)
        after = Parallel()(delayed(np.sum)(array) for _ in range(2))
    assert (before[0] == after[0]) == (how == "another file")
    assert after == [array.sum()] * 2


def test_what_has_changed_before_a_task_could_look_is_an_error_and_not_another_result(hosts, connect, path, tmp_path):
    hosts.start_worker("")
    client = connect(1)
    array = opened(path)
    with parallel_config("dask", client=client):
        results = Parallel(n_jobs=2, return_as="generator", batch_size=1)(
            delayed(held_up)(array if i else np.zeros(1), tmp_path / "gate", tmp_path / "ran") for i in range(2)
        )
        wait_until(lambda: count(tmp_path / "ran") == 1, "the first task runs")
        write(path, 1, at=1_000_007)
        open_gate(tmp_path / "gate")
        with pytest.raises(Exception, match="has changed since a memmap"):
            list(results)
