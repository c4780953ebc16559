"""Parallel calls inside tasks run on the same cluster, without deadlock and without flooding it."""

import numpy as np
import pytest
import threadpoolctl
from joblib import Parallel, delayed, parallel_config

from tests.witness import (
    Presence,
    count,
    mark,
    meet,
    names,
    open_gate,
    pass_gate,
    place,
    wait_until,
    wait_until_still,
)

CLUSTERS = ("dask-inprocess", "dask-processes")


def square(x):
    return x * x


def level(depth, width, value):
    if depth == 0:
        return value * value
    return Parallel(n_jobs=-1)(delayed(level)(depth - 1, width, 10 * value + i) for i in range(width))


@pytest.mark.parametrize(("depth", "width"), [(1, 5), (2, 4), (3, 3)])
def test_nested_results_equal_the_sequential_run(backend, depth, width):
    with parallel_config("sequential"):
        expected = level(depth, width, 1)
    with backend():
        assert level(depth, width, 1) == expected


def row_sums(matrix, low, high):
    return Parallel(n_jobs=-1)(delayed(np.sum)(matrix[i]) for i in range(low, high))


def scaled_sums(matrix, factor):
    scaled = matrix * factor  # as large as the argument, made on the worker
    parts = Parallel(n_jobs=-1)(delayed(row_sums)(scaled, low, low + 2) for low in range(0, 8, 2))
    return [value for part in parts for value in part]


def test_large_arrays_through_three_levels(backend):
    matrix = np.arange(8 * 40_000, dtype="f8").reshape(8, 40_000)
    with backend():
        results = Parallel(n_jobs=-1)(delayed(scaled_sums)(matrix, factor) for factor in (1, 2, 3))
    for factor, result in zip((1, 2, 3), results, strict=True):
        np.testing.assert_array_equal(result, (matrix * factor).sum(axis=1))


@pytest.mark.parametrize("form", ["generator", "generator_unordered"])
def test_a_generator_inside_a_task(backend, form):
    def outer(index):
        return sorted(Parallel(n_jobs=2, return_as=form)(delayed(square)(10 * index + k) for k in range(6)))

    with backend():
        results = Parallel()(delayed(outer)(i) for i in range(4))
    assert results == [[(10 * i + k) ** 2 for k in range(6)] for i in range(4)]


def test_several_calls_inside_one_task(backend):
    def outer(index):
        with Parallel(n_jobs=2) as parallel:
            return [parallel(delayed(pow)(index, e) for e in range(1, 4)) for _ in range(3)]

    with backend():
        results = Parallel()(delayed(outer)(i) for i in range(4))
    assert results == [[[i, i**2, i**3]] * 3 for i in range(4)]


def test_an_error_deep_inside_comes_out_as_itself(backend):
    def inner(i, j):
        if (i, j) == (1, 2):
            raise LookupError(f"inner {i} {j}")
        return i, j

    def outer(i):
        return Parallel(n_jobs=2)(delayed(inner)(i, j) for j in range(4))

    with backend():
        with pytest.raises(LookupError, match="inner 1 2"):
            Parallel(n_jobs=2)(delayed(outer)(i) for i in range(3))
        assert Parallel()(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_an_inner_error_that_is_caught_does_no_harm(backend):
    def inner(j):
        if j == 1:
            raise LookupError("caught")
        return j

    def outer(i):
        try:
            Parallel(n_jobs=2)(delayed(inner)(j) for j in range(3))
        except LookupError:
            return Parallel(n_jobs=2)(delayed(square)(i + k) for k in range(3))

    with backend():
        assert Parallel()(delayed(outer)(i) for i in range(4)) == [[(i + k) ** 2 for k in range(3)] for i in range(4)]


@pytest.mark.engines(*CLUSTERS)  # two slots that run at once
def test_inner_calls_use_the_whole_cluster(backend, tmp_path):
    """The task that waits gives its slot to the work it waits for."""

    def inner():
        meet(tmp_path, 2, timeout_s=15)
        return place()

    def outer():
        return place(), Parallel(n_jobs=2, batch_size=1)(delayed(inner)() for _ in range(2))

    with backend():
        ((_, places),) = Parallel(n_jobs=2)(delayed(outer)() for _ in range(1))
    assert len({tuple(where) for where in places}) == 2


def test_a_call_while_a_generator_of_the_same_task_is_suspended(backend):
    def outer(index):
        ahead = Parallel(n_jobs=2, return_as="generator")(delayed(square)(10 * index + k) for k in range(6))
        first = next(ahead)
        between = Parallel(n_jobs=2)(delayed(square)(k) for k in range(3))
        return [first, *ahead], between, Parallel(n_jobs=2)(delayed(square)(k) for k in range(3))

    with backend():
        results = Parallel(n_jobs=2)(delayed(outer)(i) for i in range(4))
    assert results == [([(10 * i + k) ** 2 for k in range(6)], [0, 1, 4], [0, 1, 4]) for i in range(4)]


@pytest.mark.engines(*CLUSTERS)
def test_started_outer_tasks_are_bounded(backend, tmp_path):
    """Inner work of a started task goes before outer tasks that have not started."""

    def inner(i, j):
        return i * j

    def outer(i):
        with Presence(tmp_path) as presence:
            results = Parallel(n_jobs=-1, batch_size=1)(delayed(inner)(i, j) for j in range(4))
            presence.look()
        return results

    with backend():
        results = Parallel(n_jobs=-1, batch_size=1, pre_dispatch="all")(delayed(outer)(i) for i in range(24))
    assert results == [[i * j for j in range(4)] for i in range(24)]
    peak = Presence(tmp_path).peak()
    assert peak <= 6, f"{peak} outer tasks in flight on two slots"


@pytest.mark.engines(*CLUSTERS)
def test_inner_work_goes_before_outer_work(backend, tmp_path):
    """An outer task's inner calls are all over before the last outer tasks start."""

    def inner(i):
        mark(tmp_path, f"inner {i}")

    def outer(i):
        mark(tmp_path, f"outer {i}")
        Parallel(n_jobs=-1, batch_size=1)(delayed(inner)(i) for _ in range(4))

    with backend():
        Parallel(n_jobs=-1, batch_size=1, pre_dispatch="all")(delayed(outer)(i) for i in range(12))
    order = names(tmp_path)
    last_inner_of_first = max(k for k, name in enumerate(order) if name == "inner 0")
    started_before = [name for name in order[:last_inner_of_first] if name.startswith("outer")]
    assert len(started_before) <= 6, order


def blas_threads():
    np.ones((4, 4)) @ np.ones((4, 4))
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


def inner_blas_threads():
    return Parallel(n_jobs=2)(delayed(blas_threads)() for _ in range(2))


@pytest.mark.parametrize("limit", [1, 2])
def test_inner_calls_keep_the_outer_calls_options(backend, limit):
    with backend(inner_max_num_threads=limit):
        for threads in Parallel(n_jobs=2)(delayed(inner_blas_threads)() for _ in range(2)):
            for pools in threads:
                assert pools
                assert set(pools) == {limit}


def test_a_sequential_block_inside_a_task_is_obeyed(backend):
    def outer():
        with parallel_config("sequential"):
            return place(), Parallel(n_jobs=2)(delayed(place)() for _ in range(3))

    with backend():
        for own, inner in Parallel(n_jobs=2)(delayed(outer)() for _ in range(3)):
            assert set(map(tuple, inner)) == {tuple(own)}


def test_a_threading_block_inside_a_task_is_obeyed(backend):
    def outer():
        with parallel_config("threading", n_jobs=2):
            return place()[0], Parallel()(delayed(place)() for _ in range(3))

    with backend():
        for pid, inner in Parallel(n_jobs=2)(delayed(outer)() for _ in range(3)):
            assert {inner_pid for inner_pid, _ in inner} == {pid}


def endless(n, width, keywords):
    return Parallel(n_jobs=2, **keywords)(delayed(endless)(n + 1, width, keywords) for _ in range(width))


# A tree of 2**16 tasks would be a burden on the machine, should it not be stopped.
@pytest.mark.parametrize(
    ("width", "options", "keywords"),
    [(1, {}, {}), (2, {"max_nesting_depth": 5}, {}), (1, {"max_nesting_depth": 5}, {"retries": 1})],
)
def test_endless_recursion_is_a_clear_error(backend, against, width, options, keywords):
    if against != "jobfleet":
        pytest.skip("the others do not stop it")
    from jobfleet.errors import JobfleetError

    with backend(**options):
        with pytest.raises(JobfleetError, match=r"(?i)nest|recurs|deep|level"):
            Parallel(n_jobs=2)(delayed(endless)(0, width, keywords) for _ in range(width))
        assert Parallel()(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


@pytest.mark.engines(*CLUSTERS)  # an outer task fails while another one's inner tasks run
def test_the_inner_work_of_a_call_that_failed_is_given_up(backend, tmp_path):
    gate, started = tmp_path / "gate", tmp_path / "started"

    def inner():
        mark(started)
        pass_gate(gate, timeout_s=10)

    def outer(index):
        if index == 0:
            wait_until(lambda: count(started) >= 1, "an inner task started", 10)
            raise LookupError("outer 0")
        Parallel(n_jobs=2, batch_size=1, pre_dispatch="all")(delayed(inner)() for _ in range(40))

    with backend():
        with pytest.raises(LookupError, match="outer 0"):
            Parallel(n_jobs=2, batch_size=1)(delayed(outer)(i) for i in range(2))
        open_gate(gate)
        assert Parallel()(delayed(square)(i) for i in range(8)) == [i * i for i in range(8)]
        number = wait_until_still(lambda: count(started))
    assert number <= 10, f"{number} of 40 inner tasks started"
