"""From a call in the client to its result: encoded, packed, run and read back."""

import functools
import os
import sys
import threading
import types
import weakref

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.unit.chunks import Client, Failed, in_main, request

from jobfleet import _wire as wire
from jobfleet._data import buffers
from jobfleet._data.encode import EncodingError, unpicklable_part
from jobfleet._pickling import MIN_SHARED_NBYTES

pytestmark = pytest.mark.timeout(30)

BIG = 2**20


def array(nbytes=BIG, seed=0):
    return np.random.default_rng(seed).integers(0, 255, nbytes, dtype=np.uint8)


def identity(*args, **kwargs):
    return (args, kwargs) if kwargs or len(args) != 1 else args[0]


def total(a):
    return int(np.sum(a, dtype=np.int64))


def writable(a):
    return a.flags.writeable


def add_one_and_sum(a):
    a += 1
    return total(a)


# Small values


def test_calls_with_short_immutable_arguments_go_as_one_list():
    client = Client()
    tasks = [client.encode(identity, i, "a", None, k=2.0) for i in range(5)]
    items = request(client.pack(tasks)).items
    assert [item[0] for item in items] == [wire.MANY]
    assert client.run(tasks) == [((i, "a", None), {"k": 2.0}) for i in range(5)]


def test_other_calls_are_pickles_of_their_own_and_keep_their_order():
    client = Client()
    arguments = [1, [2], 3, 4, {5}, [6], 7]
    tasks = [client.encode(identity, a) for a in arguments]
    tasks.insert(4, client.encode(abs, -4))
    kinds = [item[0] for item in request(client.pack(tasks)).items]
    assert kinds == [wire.MANY, wire.ONE, wire.MANY, wire.MANY, wire.ONE, wire.ONE, wire.MANY]
    assert client.run(tasks) == [1, [2], 3, 4, 4, {5}, [6], 7]


@pytest.mark.parametrize("value", ["x" * (MIN_SHARED_NBYTES + 1), b"x" * (MIN_SHARED_NBYTES + 1), (1,), True, 2**100])
def test_any_argument_arrives_as_it_was(value):
    (result,) = Client().call(identity, (value,))
    assert result == value
    assert type(result) is type(value)


def test_no_task_sees_what_another_did_to_its_arguments():
    client = Client()
    shared = [[], {"k": [1]}]

    def change(value, *, key=None):
        value[0].append(1)
        value[1]["k"].append(2)
        return len(value[0]), len(value[1]["k"])

    assert client.call(change, (shared,), (shared,), (shared,)) == [(1, 2)] * 3
    assert shared == [[], {"k": [1]}]


def test_within_a_task_an_object_stays_one():
    a = array(MIN_SHARED_NBYTES)
    same = lambda x, y, k: (x is y, y is k[0])  # noqa: E731
    assert Client().call(same, (a, a, [a]), ([], [], [0])) == [(True, True), (False, False)]
    method = make_pipeline(StandardScaler()).fit
    (result,) = Client().call(lambda m, o: m.__self__ is o, (method, method.__self__))
    assert result is True


def test_a_call_is_what_it_was_when_it_was_dispatched():
    client = Client()
    value = [1]
    task = client.encode(identity, value)
    value.append(2)
    assert client.run([task]) == [[1]]


def test_a_dict_of_keywords_that_is_used_again_does_not_change_what_was_dispatched():
    """joblib takes plain tuples too: ``Parallel()((f, (), kwargs) for ...)``."""
    client = Client()
    kwargs = {"k": 1}
    task = client.encoder.encode([(identity, (), kwargs)])
    kwargs["k"] = 2
    assert client.run([task[:1]]) == [((), {"k": 1})]


# Large buffers


def holders(a):
    """Give one of each kind of thing an array may hide in, with what gives its sum."""
    frame = pd.DataFrame({"x": a.view(np.int64)})
    sparse = scipy.sparse.csr_matrix(np.ones((1, len(a))))
    sparse.data = a.view(np.int64).astype(float)
    sparse.indices, sparse.indptr = np.arange(len(sparse.data)), np.array([0, len(sparse.data)])
    estimator = LogisticRegression()
    estimator.coef_ = a
    script, _ = in_main("def make(a):\n    def f(k):\n        return a if k else None\n    return f")
    return {
        "list": [[a]],
        "dict": {"k": (a,)},
        "frame": frame,
        "series": frame["x"],
        "sparse": sparse,
        "estimator": make_pipeline(StandardScaler(), estimator),
        "closure": script.make(a),
        "partial": functools.partial(identity, a),
        "bound method": estimator.get_params,
        "object array's item": np.array([a, None], dtype=object),
        "Fortran order": np.asfortranarray(a.reshape(64, -1)),
        "structured": a.view([("x", "i4"), ("y", "i4")]),
    }


@pytest.mark.parametrize("where", holders(array(64)))
def test_a_large_buffer_leaves_the_pickle_wherever_it_hides(where):
    client = Client()
    task = client.encode(identity, holders(array())[where])
    assert len(task.buffers) >= 1
    assert len(task.data) < 10_000
    assert sum(len(blob.data) for blob, _ in task.buffers) >= BIG


#: These have no buffer that pickle could leave out.
WITHIN = {
    "masked": np.ma.MaskedArray(array(), mask=array() > 9),
    "datetime": array().view("datetime64[ns]"),
    "bytearray": bytearray(array()),
    "text": "x" * BIG,
}


@pytest.mark.parametrize("where", ["list", "dict", "frame", "series", "Fortran order", "structured", *WITHIN])
def test_what_is_large_arrives_equal(where):
    value = WITHIN[where] if where in WITHIN else holders(array())[where]
    (result,) = Client().call(identity, (value,))
    if isinstance(value, (pd.DataFrame, pd.Series)):
        assert result.equals(value)
    else:
        np.testing.assert_equal(result, value)


def test_an_estimator_and_a_sparse_matrix_work_where_they_arrive():
    rng = np.random.default_rng(0)
    X = scipy.sparse.random(2000, 200, density=0.5, format="csr", random_state=0)
    y = rng.integers(0, 2, 2000)
    model = LogisticRegression(max_iter=5, tol=10).fit(X, y)
    model.kept_ = array()

    def predict(model, X):
        return model.predict(X)

    (result,) = Client(max_nbytes=1000).call(predict, (model, X))
    np.testing.assert_array_equal(result, model.predict(X))


def test_a_memory_mapped_file_arrives_as_the_array_it_shows(tmp_path):
    a = array()
    file = tmp_path / "a.bin"
    a.tofile(file)
    mapped = np.memmap(file, dtype=np.uint8, mode="r")
    client = Client()
    tasks = [client.encode(identity, mapped), client.encode(identity, mapped[:100]), client.encode(identity, [mapped])]
    os.unlink(file)
    whole, part, inside = client.run(tasks)
    np.testing.assert_array_equal(whole, a)
    np.testing.assert_array_equal(part, a[:100])
    np.testing.assert_array_equal(inside[0], a)
    assert type(whole) is type(part) is np.ndarray


@pytest.mark.parametrize("max_nbytes", [0, 1, 1000, BIG, BIG + 1, None])
def test_empty_and_strided_arrays_arrive(max_nbytes):
    a = array()
    values = [np.empty(0), np.empty((0, 5)), a[::2], a[::-1], a.reshape(16, -1).T, np.float64(1), np.array(5)]
    results = Client(max_nbytes=max_nbytes).call(identity, *[(v,) for v in values])
    for value, result in zip(values, results, strict=True):
        np.testing.assert_array_equal(result, value)
        assert result.dtype == value.dtype


# Who may write where


def test_an_array_from_max_nbytes_on_is_shared_and_read_only():
    client = Client()
    a = array()
    tasks = [client.encode(writable, a) for _ in range(3)]
    packed = client.pack(tasks)
    assert len(packed.placed) == 1
    assert not packed.inline
    assert client.run(tasks) == [False] * 3


def test_the_tasks_of_a_chunk_map_the_very_same_memory():
    address = lambda a: a.__array_interface__["data"][0]  # noqa: E731
    client = Client()
    assert len(set(client.call(address, *[(array(),)] * 3))) == 1
    assert len(set(client.call(address, *[(array(BIG // 2),)] * 3))) <= 3


def test_writing_to_a_shared_array_is_an_error_as_under_loky():
    client = Client()
    with pytest.raises(Failed) as error:
        client.call(add_one_and_sum, (array(),))
    assert error.value.failure.type_name in ("ValueError", "UFuncTypeError")
    assert "read-only" in error.value.failure.message


@pytest.mark.parametrize(("max_nbytes", "nbytes"), [(BIG, BIG - 1), (BIG, MIN_SHARED_NBYTES), (BIG, 40), (None, BIG)])
def test_a_smaller_array_or_any_without_max_nbytes_is_a_copy_of_each_tasks_own(max_nbytes, nbytes):
    client = Client(max_nbytes=max_nbytes)
    a = array(nbytes) // 2
    before = total(a)
    assert client.call(add_one_and_sum, (a,), (a,), (a,)) == [before + nbytes] * 3
    assert total(a) == before


@pytest.mark.parametrize("nbytes", [40, MIN_SHARED_NBYTES, BIG - 1])
def test_a_copy_is_read_only_where_the_original_was(nbytes):
    a = array(nbytes)
    a.flags.writeable = False
    assert Client().call(writable, (a,)) == [False]
    assert Client(max_nbytes=None).call(writable, (a,)) == [False]


def test_max_nbytes_may_be_as_small_as_the_user_likes():
    a = np.arange(5.0)
    client = Client(max_nbytes=1)
    assert a.nbytes == 40
    assert client.call(writable, (a,), (a,)) == [False, False]
    assert client.call(writable, (np.float64(1) + np.zeros(()),)) == [False]


# Content, not identity


def test_equal_arrays_are_one_buffer():
    client = Client()
    tasks = [client.encode(identity, array()), client.encode(identity, array()), client.encode(identity, array(seed=1))]
    assert tasks[0].buffers[0][0] is tasks[1].buffers[0][0]
    assert len(client.pack(tasks).placed) == 2


@pytest.mark.parametrize("nbytes", [40, MIN_SHARED_NBYTES, BIG])
def test_an_array_that_is_refilled_between_two_tasks_is_never_stale(nbytes):
    client = Client()
    a = np.empty(nbytes, dtype=np.uint8)
    tasks = []
    for i in range(4):
        a[:] = i % 3
        tasks.append(client.encode(total, a))
    a[:] = 99
    assert client.run(tasks) == [0, nbytes, 2 * nbytes, 0]
    # Also by a task of its own, and after the table has seen all of these.
    assert client.call(total, (a,)) == [99 * nbytes]


def test_a_single_byte_far_inside_makes_another_buffer():
    client = Client()
    a = array()
    first = client.encode(total, a)
    a[BIG // 2] ^= 1
    assert client.run([first, client.encode(total, a)]) == [total(array()), total(a)]


# Where buffers travel


def test_a_buffer_that_one_task_needs_travels_with_it_until_a_second_wants_it():
    client = Client()
    a = array(MIN_SHARED_NBYTES)
    task = client.encode(identity, a)
    packed = client.pack([task])
    assert ([], [a.tobytes()]) == (packed.placed, packed.inline)
    packed = client.pack([client.encode(identity, a)])
    assert (packed.placed[0].data, packed.inline) == (a.tobytes(), [])


def test_a_chunk_holds_each_buffer_once():
    client = Client(max_nbytes=None)
    a = array(MIN_SHARED_NBYTES)
    packed = client.pack([client.encode(identity, a, [a, a.copy()]) for _ in range(3)])
    assert len(packed.placed) + len(packed.inline) == 1


def test_what_a_chunk_carries_is_not_all_its_own_once_another_task_wants_it():
    client = Client()
    a, b = array(MIN_SHARED_NBYTES), array(MIN_SHARED_NBYTES, seed=1)
    packed = client.pack([client.encode(identity, a, b)])
    assert packed.own_nbytes == packed.nbytes > 2 * MIN_SHARED_NBYTES
    client.encode(identity, a)
    assert packed.own_nbytes == packed.nbytes - MIN_SHARED_NBYTES


@pytest.mark.parametrize("columns", [slice(90), slice(10)])
def test_slices_of_an_array_go_once_and_as_they_are_at_each_batch(columns):
    client = Client(max_nbytes=None)
    table = array(10**6).reshape(-1, 100)
    first = client.encoder.encode([(identity, (table[:, columns], [i]), {}) for i in range(3)])
    before = table[:, columns].copy()
    table += 1
    second = client.encoder.encode([(identity, (table[:, columns], [i]), {}) for i in range(3)])
    packed = client.pack([*first, *second])
    assert (len(packed.placed), packed.inline) == (2, [])
    results = client.run([*first, *second])
    for i, (got, _) in enumerate(args for args, _ in results):
        np.testing.assert_array_equal(got, before if i < 3 else table[:, columns])


def test_how_a_class_travels_is_asked_for_each_batch():
    module = types.ModuleType("a_module_of_the_users")
    exec("class A: k = 3", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        client = Client()
        by_name = client.encode(identity, [module.A])
        cloudpickle.register_pickle_by_value(module)
        by_value = client.encode(identity, [module.A])
        cloudpickle.unregister_pickle_by_value(module)
    finally:
        del sys.modules[module.__name__]
    assert client.run([by_value])[0][0].k == 3
    with pytest.raises(Failed):
        client.run([by_name])


def test_everything_that_travels_with_a_chunk_is_opaque():
    """Dask's scheduler unpickles what it is given; of user objects it must see bytes only."""
    client = Client(scatter=[[1, 2]])
    packed = client.pack([client.encode(identity, v) for v in (1, [2], array(), array(MIN_SHARED_NBYTES))])
    assert type(packed.request) is bytes
    assert {type(v) for v in packed.inline} == {bytes}
    assert {type(b.data) for b in packed.placed} == {bytes}


# Objects sent ahead


class Holder:
    def __init__(self, value):
        self.value = value

    def method(self, k=0):
        return total(self.value)


def test_a_scattered_object_is_used_by_whatever_route_it_comes():
    value = {"a": array(), "b": "x" * 100_000}
    client = Client(scatter=[value])
    holder = Holder(value)
    tasks = [
        client.encode(identity, value),
        client.encode(identity, [value]),
        client.encode(identity, k={"k": (value,)}),
        client.encode(lambda _: value, []),
        client.encode(functools.partial(identity, value), k=[]),
        client.encode(identity, holder),
        client.encode(identity, np.array([value], dtype=object)),
    ]
    for task in tasks:
        assert len(task.data) < 3000
        assert not task.buffers
        assert [one.obj for one in task.scattered] == [value]
    packed = client.pack(tasks)
    assert len(request(packed).scattered) == 1
    assert len(packed.placed) == 2  # its pickle and its array
    results = client.run(tasks)
    np.testing.assert_equal(results[0], value)
    for result in (
        results[1][0],
        results[2][1]["k"]["k"][0],
        results[3],
        results[4][0][0],
        results[5].value,
        results[6][0],
    ):
        np.testing.assert_equal(result, value)


def test_the_object_of_a_scattered_bound_method_is_the_sent_copy():
    holder = Holder(array())
    client = Client(scatter=[holder])
    task = client.encode(holder.method)
    assert len(task.function.data) < 1000
    assert client.run([task]) == [total(array())]


def test_of_a_scattered_object_each_task_has_its_own():
    value = [1, 2]
    client = Client(scatter=[value])
    change = lambda v: (v.append(3), len(v))[1]  # noqa: E731
    assert client.call(change, (value,), (value,)) == [3, 3]
    assert client.call(lambda v, w: v is w[0], (value, [value])) == [True]


def test_an_equal_object_is_not_the_scattered_one():
    client = Client(scatter=[[1, 2]])
    assert client.encode(identity, [1, 2]).scattered == ()


def test_what_changes_in_a_scattered_object_between_two_calls_is_sent_anew():
    value = [array(), "a"]
    (sent,) = Client(scatter=[value]).scattered
    assert sent.refreshed() is sent
    value[0][0] ^= 1
    again = sent.refreshed()
    assert again is not sent
    assert again.blobs[0].digest == sent.blobs[0].digest, "its pickle is the same"
    assert again.blobs[1].digest != sent.blobs[1].digest
    value[1] = "b"
    assert again.refreshed() is not again


def test_one_object_given_twice_is_sent_once_and_atoms_not_at_all():
    value = [1]
    assert [one.obj for one in Client(scatter=[value, value, 1, "text", None]).scattered] == [value]


# What is kept, and for how long


def test_nothing_is_left_when_all_tasks_are_done():
    client = Client()
    tasks = [client.encode(identity, array(seed=i), array(MIN_SHARED_NBYTES, seed=i)) for i in range(4)]
    for task in tasks:
        client.release(task)
    assert len(client.dropped) == 8
    assert not client.blobs._blobs
    assert not client.blobs._idle


def test_what_several_tasks_wanted_is_kept_for_the_next_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(buffers, "MAX_IDLE_NBYTES", 3 * BIG)
    client = Client()
    for seed in range(6):
        for task in [client.encode(identity, array(seed=seed)) for _ in range(2)]:
            client.release(task)
    assert len(client.dropped) == 3
    before = dict(client.blobs._blobs)
    assert client.encode(identity, array(seed=5)).buffers[0][0] in before.values()
    assert client.encode(identity, array(seed=0)).buffers[0][0] not in before.values()


def test_the_users_arrays_are_not_kept_alive():
    client = Client()
    a = array()
    alive = weakref.ref(a)
    task = client.encode(total, a)
    del a
    assert alive() is None
    assert client.run([task]) == [total(array())]


def test_a_call_that_does_not_pickle_leaves_nothing_behind():
    client = Client()
    with pytest.raises(EncodingError) as error:
        client.encoder.encode([(identity, (array(),), {}), (identity, (array(), threading.Lock()), {})])
    assert error.value.position == 1
    assert isinstance(error.value.__cause__, TypeError)
    assert not client.blobs._blobs


# The part that does not pickle


def test_the_part_that_does_not_pickle_is_named():
    lock = threading.Lock()
    assert unpicklable_part(lambda: lock, (), {}) == "function, a function,"
    assert unpicklable_part(identity, (1, [lock]), {}) == "argument 1, a list,"
    assert unpicklable_part(identity, (1,), {"k": lock}) == "argument 'k', a lock,"
    assert unpicklable_part(identity, (1,), {}) == "argument"


# Failures on the worker


def test_results_before_a_failure_arrive_and_the_calls_after_it_do_not_run():
    ran = []

    def f(x):
        sys.modules[__name__].RAN.append(x)
        return [1 / x]

    RAN.clear()
    client = Client()
    with pytest.raises(Failed) as error:
        client.call(f, (1,), (2,), (0,), (4,))
    assert error.value.results == [[1.0], [0.5]]
    assert error.value.failure.kind == wire.RAISED
    assert RAN == [1, 2, 0]
    assert ran == []


RAN = []
