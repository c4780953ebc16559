"""Results never depend on where a task ran: no task sees what another did to its arguments, nor does the caller."""

import functools
import itertools

import numpy as np
import pytest
from joblib import Parallel, delayed
from sklearn.linear_model import LinearRegression

from tests.witness import meet

CHUNKINGS = (1, 2, 5, "auto")
NUMBER = 12
LARGE = 300_000  # float64 items: over joblib's 1 MB


class Tally:
    def __init__(self):
        self.total = 0
        self.seen = []

    def add(self, amount):
        self.total += amount
        self.seen.append(amount)
        return self.total, len(self.seen)


class Box:
    def __init__(self, content):
        self.content = content


def grow_list(shared, i):
    shared.append(i)
    return len(shared)


def grow_dict(shared, i):
    shared[i] = i
    return len(shared)


def grow_inner_list(shared, i):
    shared["inner"][0].append(i)
    return len(shared["inner"][0])


def raise_array(shared, i):
    shared += 1
    return float(shared[0])


def raise_array_in_box(shared, i):
    shared.content[0] += 1
    return float(shared.content[0])


def refit(shared, i):
    fitted_before = hasattr(shared, "coef_")
    shared.fit([[0.0], [1.0]], [0.0, float(i)])
    shared.set_params(fit_intercept=False)
    return fitted_before


def grow_set(shared, i):
    shared.add(-1 - i)
    return len(shared)


def grow_bytearray(shared, i):
    shared.append(1)
    return len(shared)


def grow_frame(shared, i):
    shared.loc[len(shared), "a"] = float(i)
    return len(shared)


def frame():
    import pandas as pd

    return pd.DataFrame({"a": [1.0, 2.0]})


# kind -> (a shared argument, what each task does to it, what each must return, how to look at the caller's own)
SHARED = {
    "list": (lambda: [0], grow_list, 2, list),
    "dict": (lambda: {"a": 0}, grow_dict, 2, dict),
    "nested": (lambda: {"inner": [[1, 2]]}, grow_inner_list, 3, lambda x: [list(x["inner"][0])]),
    "set": (lambda: {1, 2}, grow_set, 3, set),
    "bytearray": (lambda: bytearray(3), grow_bytearray, 4, bytes),
    "small array": (lambda: np.zeros(10), raise_array, 1.0, np.ndarray.tolist),
    "array in an object": (lambda: Box(np.zeros(10)), raise_array_in_box, 1.0, lambda x: x.content.tolist()),
    "estimator": (LinearRegression, refit, False, lambda x: sorted(vars(x).items())),
    "frame": (frame, grow_frame, 3, lambda x: x.to_dict()),
}


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("kind", SHARED)
def test_a_change_in_place_stays_in_its_task(backend, kind, chunking):
    make, change, expected, look = SHARED[kind]
    shared = make()
    before = look(shared)
    with backend():
        results = Parallel(batch_size=chunking)(delayed(change)(shared, i) for i in range(NUMBER))
        again = Parallel(batch_size=chunking)(delayed(change)(shared, i) for i in range(NUMBER))
    assert results == [expected] * NUMBER
    assert again == [expected] * NUMBER
    assert look(shared) == before


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("kind", SHARED)
def test_a_change_of_scattered_data_stays_in_its_task(backend, against, kind, chunking):
    if against == "loky":
        pytest.skip("loky has no scatter")
    make, change, expected, look = SHARED[kind]
    shared = make()
    before = look(shared)
    with backend(scatter=[shared]):
        results = Parallel(batch_size=chunking)(delayed(change)(shared, i) for i in range(NUMBER))
    assert results == [expected] * NUMBER
    assert look(shared) == before


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_state_behind_the_function_stays_in_its_task(backend, chunking):
    """The same through a bound method, a partial, a closure and a callable's attribute."""
    tally, history = Tally(), []

    def remember(i):
        history.append(i)
        return len(history)

    partial = functools.partial(grow_list, [])
    with backend():
        by_method = Parallel(batch_size=chunking)(delayed(tally.add)(1) for _ in range(NUMBER))
        by_closure = Parallel(batch_size=chunking)(delayed(remember)(i) for i in range(NUMBER))
        by_partial = Parallel(batch_size=chunking)(delayed(partial)(i) for i in range(NUMBER))
        with_lists = Parallel(batch_size=chunking)(delayed(remember)([i]) for i in range(NUMBER))
    assert by_method == [(1, 1)] * NUMBER
    assert by_closure == [1] * NUMBER
    assert by_partial == [1] * NUMBER
    assert with_lists == [1] * NUMBER
    assert (tally.total, tally.seen, history, partial.args) == (0, [], [], ([],))


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_state_of_a_function_sent_by_value_stays_in_its_task(backend, chunking):
    """Defaults, attributes and globals of functions that the workers cannot import."""

    def by_default(i, seen=[]):  # noqa: B006 - the slip this is about
        seen.append(i)
        return len(seen)

    def by_attribute(i):
        by_attribute.calls += 1
        return by_attribute.calls

    by_attribute.calls = 0
    module = {"__name__": "__main__"}
    exec("seen = []\ndef by_global(i):\n    seen.append(i)\n    return len(seen)", module)
    for function in (by_default, by_attribute, module["by_global"]):
        with backend():
            assert Parallel(batch_size=chunking)(delayed(function)(i) for i in range(NUMBER)) == [1] * NUMBER
    assert (by_attribute.calls, module["seen"]) == (0, [])


def test_the_argument_is_as_it_was_when_the_call_was_read(backend):
    """The input changes one list between its calls, as loops do."""
    growing = []

    def calls():
        for i in range(8):
            growing.append(i)
            yield delayed(list)(growing)

    with backend():
        results = Parallel(n_jobs=2, batch_size=1, pre_dispatch=1)(calls())
    for earlier, later in itertools.pairwise(results):
        assert later[: len(earlier)] == earlier
    assert results[-1] == list(range(8))


def same(a, b):
    a_is_b = a is b
    return a_is_b


def test_one_object_given_twice_to_a_call_is_one_object_there(backend):
    shared = [1]
    with backend():
        assert Parallel()(delayed(same)(shared, shared) for _ in range(4)) == [True] * 4


def try_to_write(array):
    writeable = bool(array.flags.writeable)
    try:
        array[0] = -1.0
    except ValueError as error:
        return writeable, "read-only" in str(error), float(array[0])
    return writeable, False, float(array[0])


def dig(route, data):
    return {"list": lambda: data[0], "dict": lambda: data["x"], "object": lambda: data.content}[route]()


def try_to_write_inside(route, data):
    return try_to_write(dig(route, data))


def test_a_large_array_is_read_only(backend):
    large = np.ones(LARGE)
    with backend():
        results = Parallel()(delayed(try_to_write)(large) for _ in range(6))
    assert results == [(False, True, 1.0)] * 6
    assert large.flags.writeable
    assert large[0] == 1.0
    large[0] = 2.0  # still the caller's


@pytest.mark.parametrize("route", ["list", "dict", "object"])
def test_a_large_array_inside_something_is_read_only(backend, route):
    large = np.ones(LARGE)
    data = {"list": [large], "dict": {"x": large}, "object": Box(large)}[route]
    with backend():
        results = Parallel()(delayed(try_to_write_inside)(route, data) for _ in range(4))
    assert results == [(False, True, 1.0)] * 4
    assert large[0] == 1.0


def test_a_large_scattered_array_is_read_only(backend, against):
    if against == "loky":
        pytest.skip("loky has no scatter")
    large = np.ones(LARGE)
    with backend(scatter=[large]):
        results = Parallel()(delayed(try_to_write)(large) for _ in range(6))
    assert results == [(False, True, 1.0)] * 6
    assert large[0] == 1.0


def test_a_small_array_is_the_tasks_own(backend):
    small = np.ones(10)
    with backend():
        results = Parallel()(delayed(try_to_write)(small) for _ in range(6))
    assert results == [(True, False, -1.0)] * 6
    assert small[0] == 1.0


def test_without_max_nbytes_a_large_array_is_the_tasks_own(backend):
    large = np.ones(LARGE)
    with backend(max_nbytes=None):
        results = Parallel()(delayed(try_to_write)(large) for _ in range(4))
    assert results == [(True, False, -1.0)] * 4
    assert large[0] == 1.0


def fill(array, value):
    return float(array[0]), float(array.sum()) - value * array.size


@pytest.mark.parametrize("size", [10, LARGE])
def test_an_array_refilled_in_place_arrives_as_it_was_at_each_call(backend, size):
    """Between two Parallel calls, and between two calls of one, new content is never taken for old."""
    array = np.zeros(size)

    def calls():
        for value in range(6):
            array[:] = value
            yield delayed(fill)(array.copy() if size > 10 else array, value)

    with backend():
        for value in range(4):
            array[:] = value
            assert Parallel()(delayed(fill)(array, value) for _ in range(3)) == [(value, 0.0)] * 3
        assert Parallel(n_jobs=2, pre_dispatch=1, batch_size=1)(calls())[0] == (0.0, 0.0)


ORDERS = ("C", "F", "reversed", "strided", "empty", "structured", "object", "text")


def arrays(kind):
    base = np.arange(400_000, dtype="f8").reshape(400, 1000)
    return {
        "C": base,
        "F": np.asfortranarray(base),
        "reversed": base[::-1],
        "strided": base[:, ::2],
        "empty": base[:0],
        "structured": np.zeros(100_000, dtype=[("a", "i8"), ("b", "f8")]),
        "object": np.array([{"k": i} for i in range(100)], dtype=object),
        "text": np.array([f"item {i}" for i in range(50_000)]),
    }[kind]


@pytest.mark.parametrize("kind", ORDERS)
def test_arrays_of_any_layout_arrive_and_return_equal(backend, kind):
    array = arrays(kind)
    with backend():
        for result in Parallel()(delayed(np.array)(array) for _ in range(2)):
            assert result.dtype == array.dtype
            np.testing.assert_array_equal(result, array)
        for result in Parallel()(delayed(np.asarray)(array) for _ in range(2)):
            np.testing.assert_array_equal(result, array)


class FitsItself(LinearRegression):
    def fit_together(self, directory, value):
        """Set a parameter while the same estimator is being used by another task at the same moment."""
        self.value = value
        meet(directory, 2, timeout_s=10)
        return self.value


@pytest.mark.engines("dask-inprocess", "dask-processes")
def test_two_tasks_at_once_never_share_an_estimator(backend, tmp_path):
    estimator = FitsItself()
    with backend():
        results = Parallel(n_jobs=2, batch_size=1)(
            delayed(estimator.fit_together)(tmp_path, value) for value in range(2)
        )
    assert results == [0, 1]
    assert not hasattr(estimator, "value")
