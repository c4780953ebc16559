"""Results equal the sequential run's, in order, for whatever can be called."""

import functools
import operator
import threading
from collections import Counter

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from tests.witness import mark, marks

FORMS = ("list", "generator", "generator_unordered")


def square(x):
    return x * x


def describe(*args, **kwargs):
    return args, sorted(kwargs.items())


class Account:
    def __init__(self, balance):
        self.balance = balance

    def after(self, amount, *, fee=0):
        return self.balance + amount - fee

    @classmethod
    def opened_with(cls, amount):
        return cls(amount).balance

    @staticmethod
    def interest(amount):
        return amount / 100

    def __call__(self, amount):
        return self.balance * amount


def sequential(calls):
    with parallel_config("sequential"):
        return Parallel(n_jobs=1)(calls)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", [0, 1, 2, 7, 200])
def test_results_equal_the_sequential_run(backend, form, number):
    with backend():
        results = list(Parallel(return_as=form)(delayed(square)(i) for i in range(number)))
    expected = sequential(delayed(square)(i) for i in range(number))
    if form == "generator_unordered":
        assert Counter(results) == Counter(expected)
    else:
        assert results == expected


def test_a_list_of_calls_is_as_good_as_a_generator(backend):
    calls = [delayed(square)(i) for i in range(9)]
    with backend():
        assert Parallel()(calls) == sequential(calls)


def out_of_order(directory, index, number):
    """Finish only after every later call has started, as far as the slots go."""
    mark(directory, index)
    return index


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_order_is_of_the_calls_not_of_their_ends(backend, tmp_path, batch_size):
    with backend():
        results = Parallel(batch_size=batch_size)(delayed(out_of_order)(tmp_path, i, 30) for i in range(30))
    assert results == list(range(30))
    assert Counter(entry["name"] for entry in marks(tmp_path)) == Counter(str(i) for i in range(30))


CALLABLES = {
    "lambda": lambda: [delayed(lambda x: x + 1)(i) for i in range(5)],
    "closure": lambda: [delayed(closure(10))(i) for i in range(5)],
    "function with a closed-over cell each": lambda: [delayed(closure(i))(i) for i in range(5)],
    "bound method": lambda: [delayed(Account(5).after)(i, fee=1) for i in range(5)],
    "bound method of each its own": lambda: [delayed(Account(i).after)(i) for i in range(5)],
    "class method": lambda: [delayed(Account.opened_with)(i) for i in range(5)],
    "static method": lambda: [delayed(Account.interest)(i) for i in range(5)],
    "callable object": lambda: [delayed(Account(3))(i) for i in range(5)],
    "partial": lambda: [delayed(functools.partial(pow, 2))(i) for i in range(5)],
    "partial with keywords": lambda: [delayed(functools.partial(int, base=16))("ff") for i in range(5)],
    "builtin": lambda: [delayed(len)("x" * i) for i in range(5)],
    "method of a builtin object": lambda: [delayed("a,b,c".split)(",") for i in range(5)],
    "operator": lambda: [delayed(operator.itemgetter(i))([3, 1, 4, 1, 5]) for i in range(5)],
    "class": lambda: [delayed(complex)(i, 1) for i in range(5)],
    "numpy ufunc": lambda: [delayed(np.sqrt)(float(i)) for i in range(5)],
    "different functions in one call": lambda: [delayed(f)(2.0) for f in (square, abs, np.exp, closure(1))],
    "positional and keyword arguments": lambda: [
        delayed(describe)(1, i, a=None, func="f", tasks=[i]) for i in range(5)
    ],
    "no arguments": lambda: [delayed(describe)() for i in range(5)],
}


def closure(offset):
    def add(x):
        return x + offset

    return add


@pytest.mark.parametrize("kind", CALLABLES)
def test_anything_that_can_be_called(backend, kind):
    calls = CALLABLES[kind]()
    with backend():
        assert Parallel()(calls) == sequential(calls)


def test_keywords_of_a_call_never_meet_keywords_of_the_backend(backend):
    names = ["func", "args", "kwargs", "key", "retries", "workers", "priority", "callback", "index", "self", "batch"]
    calls = [delayed(describe)(**dict.fromkeys(names, i)) for i in range(4)]
    with backend():
        assert Parallel()(calls) == sequential(calls)


def recursive_local(depth):
    def fall(n):
        return 0 if n == 0 else 1 + fall(n - 1)

    return fall(depth)


def test_a_local_function_that_calls_itself(backend):
    def fall(n):
        return 0 if n == 0 else 1 + fall(n - 1)

    with backend():
        assert Parallel()(delayed(fall)(i) for i in range(5)) == list(range(5))


def test_results_of_any_type_come_back_equal(backend):
    def make(i):
        return {
            "none": None,
            "text": "é" * i,
            "bytes": bytes(i),
            "nested": [(i, {i}), {"k": frozenset([i])}],
            "array": np.arange(i),
            "huge": 1 << (1000 + i),
            "class": Account,
        }

    with backend():
        results = Parallel()(delayed(make)(i) for i in range(4))
    for i, result in enumerate(results):
        expected = make(i)
        np.testing.assert_array_equal(result.pop("array"), expected.pop("array"))
        assert result.pop("class") is Account
        expected.pop("class")
        assert result == expected


def test_a_result_larger_than_a_megabyte_is_whole_and_writable(backend):
    def ramp(start):
        return np.arange(start, start + 300_000, dtype="f8")

    with backend():
        results = Parallel()(delayed(ramp)(i) for i in range(3))
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, ramp(i))
        result += 1  # the caller owns what it was given


def test_a_returned_exception_is_a_result(backend):
    with backend():
        results = Parallel()(delayed(ValueError)(i) for i in range(3))
    assert [(type(r), r.args) for r in results] == [(ValueError, (i,)) for i in range(3)]


def test_tasks_do_not_run_in_the_callers_thread(backend, against):
    def thread():
        import os

        return os.getpid(), threading.get_ident()

    with backend():
        places = set(Parallel()(delayed(thread)() for _ in range(6)))
    import os

    if backend.remote:
        assert os.getpid() not in {pid for pid, _ in places}
    elif backend.name == "dask-inprocess":
        assert threading.get_ident() not in {ident for _, ident in places}


@pytest.mark.parametrize("engine_block", ["parallel_config", "parallel_backend"])
def test_both_of_joblibs_blocks_select_it(backend, engine_block):
    import joblib

    selection = backend._selection()
    with getattr(joblib, engine_block)(**selection):
        assert Parallel()(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]


def test_set_for_good_and_taken_back(backend):
    config = parallel_config(**backend._selection())
    try:
        assert Parallel()(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]
    finally:
        config.unregister()
    assert Parallel(n_jobs=1)(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]


def test_functions_of_main(script, process_client, against):
    """A program's own functions, classes and globals reach workers that never saw the program."""
    out = script.run(
        """
import sys
import joblib
from distributed import Client
from joblib import Parallel, delayed

FACTOR = 3

class Scaled:
    def __init__(self, value):
        self.value = value
    def times(self, factor):
        return Scaled(self.value * factor)

def helper(x):
    return x * FACTOR

def task(x):
    return Scaled(helper(x)).times(2)

if __name__ == "__main__":
    with Client(sys.argv[1]) as client, joblib.parallel_config("dask", client=client):
        results = Parallel()(delayed(task)(i) for i in range(4))
        print([r.value for r in results], all(type(r) is Scaled for r in results))
""",
        process_client.scheduler.address,
    )
    assert out.strip() == "[0, 6, 12, 18] True"
