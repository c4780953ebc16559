"""Results taken one by one: order, closing early, a slow consumer, several at once."""

import gc
import warnings
from collections import Counter

import pytest
from joblib import Parallel, delayed

from tests.witness import count, mark, names, open_gate, pass_gate, wait_until, wait_until_still

GENERATORS = ("generator", "generator_unordered")


def square(x):
    return x * x


def leave_mark(directory, index):
    mark(directory, index)
    return index


def first_free_then_gate(directory, gate, index):
    mark(directory, index)
    if index > 0:
        pass_gate(gate)
    return index


def heavy(directory, index):
    mark(directory, index)
    return bytes([index % 256]) * 200_000


def test_the_first_result_comes_while_others_still_run(backend, tmp_path):
    gate = tmp_path / "gate"
    with backend():
        results = Parallel(n_jobs=2, return_as="generator", batch_size=1)(
            delayed(first_free_then_gate)(tmp_path / "started", gate, i) for i in range(3)
        )
        assert next(results) == 0
        open_gate(gate)
        assert list(results) == [1, 2]


@pytest.mark.engines("dask-inprocess", "dask-processes", "scripted")
def test_unordered_gives_what_is_ready(backend, tmp_path):
    gate = tmp_path / "gate"

    def last_shall_be_first(index):
        if index == 0:
            pass_gate(gate)
        return index

    with backend():
        results = Parallel(n_jobs=2, return_as="generator_unordered", batch_size=1)(
            delayed(last_shall_be_first)(i) for i in range(6)
        )
        early = [next(results) for _ in range(5)]
        open_gate(gate)
        assert sorted(early) == [1, 2, 3, 4, 5]
        assert list(results) == [0]


@pytest.mark.parametrize("form", GENERATORS)
def test_closing_early_cancels_the_rest(backend, tmp_path, form):
    gate, started = tmp_path / "gate", tmp_path / "started"
    with backend():
        results = Parallel(n_jobs=2, return_as=form, batch_size=1, pre_dispatch="all")(
            delayed(first_free_then_gate)(started, gate, i) for i in range(60)
        )
        assert next(results) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib's remark about unused results
            results.close()
        open_gate(gate)
        # Another call gets through every slot: whatever was left of the first is over.
        assert Parallel()(delayed(square)(i) for i in range(8)) == [i * i for i in range(8)]
        number = wait_until_still(lambda: count(started))
    assert number <= 10, f"{number} of 60 started"  # the first, what ran, and what waited in each slot


def test_a_dropped_generator_cancels_the_rest(backend, tmp_path):
    gate, started = tmp_path / "gate", tmp_path / "started"
    with backend():
        results = Parallel(n_jobs=2, return_as="generator", batch_size=1, pre_dispatch="all")(
            delayed(first_free_then_gate)(started, gate, i) for i in range(60)
        )
        assert next(results) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            del results
            gc.collect()
        open_gate(gate)
        assert Parallel()(delayed(square)(i) for i in range(8)) == [i * i for i in range(8)]
        assert wait_until_still(lambda: count(started)) <= 10


def test_closing_inside_a_managed_parallel_cancels_too(backend, tmp_path):
    gate, started = tmp_path / "gate", tmp_path / "started"
    with backend(), Parallel(n_jobs=2, return_as="generator", batch_size=1, pre_dispatch="all") as parallel:
        results = parallel(delayed(first_free_then_gate)(started, gate, i) for i in range(60))
        assert next(results) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.close()
        open_gate(gate)
        assert list(parallel(delayed(square)(i) for i in range(8))) == [i * i for i in range(8)]
        assert wait_until_still(lambda: count(started)) <= 10


@pytest.mark.parametrize("form", GENERATORS)
def test_results_nobody_takes_do_not_pile_up(backend, tmp_path, form):
    number = 300
    with backend():
        results = Parallel(n_jobs=2, return_as=form, batch_size=1)(delayed(heavy)(tmp_path, i) for i in range(number))
        taken = [next(results)]
        ahead = wait_until_still(lambda: count(tmp_path), window_s=1.0, timeout_s=30)
        taken.extend(results)
    assert ahead < number / 2, f"{ahead} of {number} ran for a consumer that took one"
    assert Counter(item[0] for item in taken) == Counter(i % 256 for i in range(number))
    assert all(len(item) == 200_000 for item in taken)
    assert sorted(map(int, names(tmp_path))) == list(range(number))


def test_a_consumer_that_stops_for_a_while_misses_nothing(backend, tmp_path):
    with backend():
        results = Parallel(n_jobs=2, return_as="generator")(delayed(leave_mark)(tmp_path, i) for i in range(60))
        taken = [next(results) for _ in range(20)]
        wait_until(lambda: count(tmp_path) >= 20, "what was taken has run")
        taken.extend(results)
    assert taken == list(range(60))


@pytest.mark.parametrize("form", GENERATORS)
def test_two_generators_interleaved_in_one_block(backend, form):
    with backend():
        left = Parallel(n_jobs=2, return_as=form)(delayed(square)(i) for i in range(25))
        right = Parallel(n_jobs=2, return_as=form)(delayed(pow)(i, 3) for i in range(25))
        pairs = list(zip(left, right, strict=True))
    assert sorted(a for a, _ in pairs) == [i**2 for i in range(25)]
    assert sorted(b for _, b in pairs) == [i**3 for i in range(25)]
    if form == "generator":
        assert pairs == [(i**2, i**3) for i in range(25)]


def test_one_generator_waiting_does_not_stop_the_other(backend):
    with backend():
        waiting = Parallel(n_jobs=2, return_as="generator")(delayed(square)(i) for i in range(200))
        assert next(waiting) == 0
        assert Parallel()(delayed(square)(i) for i in range(50)) == [i * i for i in range(50)]
        assert list(waiting) == [i * i for i in range(1, 200)]


def test_a_generator_outlives_the_block_it_was_made_in(backend):
    with backend():
        results = Parallel(n_jobs=2, return_as="generator")(delayed(square)(i) for i in range(40))
    assert list(results) == [i * i for i in range(40)]


def test_an_error_ends_the_generator_where_it_happened(backend):
    def fail(x):
        if x == 5:
            raise ZeroDivisionError("five")
        return x

    with backend():
        results = Parallel(n_jobs=2, return_as="generator", batch_size=1)(delayed(fail)(i) for i in range(20))
        taken = []
        with pytest.raises(ZeroDivisionError, match="five"):
            taken.extend(results)
        assert taken == list(range(len(taken)))
        assert len(taken) <= 5
        assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]
