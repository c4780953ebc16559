"""What is scattered is sent once, and every call that passes it by any route uses the sent copy."""

import functools
import uuid
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator

NUMBER = 10


@pytest.fixture(autouse=True)
def scatter_exists(against):
    if against == "loky":
        pytest.skip("loky has no scatter")


class Picklings:
    """How often each tagged object was pickled in this process."""

    counts: ClassVar = {}

    @classmethod
    def add(cls, tag):
        cls.counts[tag] = cls.counts.get(tag, 0) + 1


def counting(base):
    """Derive a class whose instances count their own picklings under the attribute ``tag``."""

    class Counting(base):
        tag = None

        def __reduce_ex__(self, protocol):
            Picklings.add(self.tag)
            return super().__reduce_ex__(protocol)

    return Counting


# At module level, so that they pickle by reference and nothing else of them is sent.
CountingList = counting(list)
CountingDict = counting(dict)
CountingEstimator = counting(BaseEstimator)
CountingObject = counting(object)
CountingArray = counting(np.ndarray)
CountingFrame = counting(pd.DataFrame)
for _class in (CountingList, CountingDict, CountingEstimator, CountingObject, CountingArray, CountingFrame):
    _name = next(name for name, value in list(globals().items()) if value is _class)
    _class.__name__ = _class.__qualname__ = _name
CountingFrame._metadata = ["tag"]


def make(kind):
    """Build one object of a kind; small ones and large ones."""
    if kind == "list":
        made = CountingList(range(100))
    elif kind == "dict":
        made = CountingDict(a=1, b=[2])
    elif kind == "estimator":
        made = CountingEstimator()
    elif kind == "object":
        made = CountingObject()
    elif kind == "array":
        made = np.arange(1000.0).view(CountingArray)
    elif kind == "large array":
        made = np.arange(300_000.0).view(CountingArray)
    else:
        made = CountingFrame({"a": np.arange(1000.0)})
    made.tag = uuid.uuid4().hex
    return made


def assert_sent_once(backend, thing):
    """One pickling; a worker inside the caller's process may do without."""
    number = Picklings.counts.get(thing.tag, 0)
    assert number == 1 if backend.remote else number <= 1


KINDS = ("list", "dict", "estimator", "object", "array", "large array", "frame")


def type_of(thing):
    return type(thing).__name__


def by_keyword(*, thing):
    return type_of(thing)


def first(things):
    return type_of(things[0])


def under_key(things):
    return type_of(things["x"])


def beside(thing, other):
    return type_of(thing)


class Holder:
    def __init__(self, thing):
        self.thing = thing

    def type_held(self):
        return type_of(self.thing)

    def __call__(self):
        return type_of(self.thing)


def closing_over(thing):
    def task():
        return type_of(thing)

    return task


ROUTES = {
    "argument": lambda thing: delayed(type_of)(thing),
    "keyword": lambda thing: delayed(by_keyword)(thing=thing),
    "in a list": lambda thing: delayed(first)([thing]),
    "in a dict": lambda thing: delayed(under_key)({"x": thing}),
    "in a partial": lambda thing: delayed(functools.partial(beside, thing))(1),
    "by a bound method": lambda thing: delayed(Holder(thing).type_held)(),
    "by a callable": lambda thing: delayed(Holder(thing))(),
    "by a closure": lambda thing: delayed(closing_over(thing))(),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["list", "estimator", "array", "large array", "frame"])
def test_pickled_once_whatever_the_route(backend, kind, route):
    thing = make(kind)
    with backend(scatter=[thing]):
        results = Parallel(batch_size=1)(ROUTES[route](thing) for _ in range(NUMBER))
    assert results == [type(thing).__name__] * NUMBER
    assert_sent_once(backend, thing)


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_at_most_once_per_parallel_call(backend, kind):
    """Once more in each call tells whether it has changed since."""
    thing = make(kind)
    with backend(scatter=[thing]):
        for _ in range(3):
            assert Parallel()(delayed(type_of)(thing) for _ in range(4)) == [type(thing).__name__] * 4
    assert Picklings.counts.get(thing.tag, 0) <= 3


@pytest.mark.parametrize("size", [10, 300_000])
def test_a_change_between_two_calls_is_seen(backend, size):
    array, rows = np.zeros(size), [0]
    with backend(scatter=[array, rows]):
        for value in range(3):
            array[:] = value
            rows[0] = value
            assert Parallel()(delayed(np.max)(array) for _ in range(3)) == [value] * 3
            assert Parallel()(delayed(sum)(rows) for _ in range(3)) == [value] * 3


def test_several_scattered_at_once(backend):
    things = [make(kind) for kind in KINDS]

    def types(items):
        return [type_of(item) for item in items]

    with backend(scatter=things):
        results = Parallel()(delayed(types)(list(things)) for _ in range(4))
    assert results == [[type(thing).__name__ for thing in things]] * 4
    for thing in things:
        assert_sent_once(backend, thing)


def test_what_is_not_scattered_is_not_affected(backend):
    scattered, other = [1, 2, 3], [1, 2, 3]
    with backend(scatter=[scattered]):
        assert Parallel()(delayed(sum)(data) for data in (scattered, other, [4])) == [6, 6, 4]


@pytest.mark.parametrize("form", [list, tuple, iter, lambda items: (item for item in items)])
def test_any_iterable_is_accepted(backend, form):
    array, text = np.arange(5.0), ["a"]
    with backend(scatter=form([array, text])):
        assert Parallel()(delayed(np.sum)(array) for _ in range(3)) == [10.0] * 3
        assert Parallel()(delayed(len)(text) for _ in range(3)) == [1] * 3


def test_nothing_scattered_is_fine(backend):
    for nothing in ([], (), None):
        with backend(scatter=nothing):
            assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


@pytest.mark.parametrize("plain", [0, "text", b"bytes", None, (1, 2), 3.5])
def test_plain_values_may_be_scattered_too(backend, plain):
    with backend(scatter=[plain]):
        assert Parallel()(delayed(type_of)(plain) for _ in range(3)) == [type(plain).__name__] * 3


WRONG = {
    "number": 5,
    "text": "X",
    "bytes": b"X",
    "one array instead of a list": np.ones((3, 3)),
    "one frame instead of a list": pd.DataFrame({"a": [1]}),
    "a dict": {"X": [1]},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_type_says_what_is_accepted(backend, wrong):
    with pytest.raises(TypeError, match="scatter") as caught, backend(scatter=WRONG[wrong]):
        Parallel()(delayed(abs)(i) for i in range(3))
    message = str(caught.value)
    assert type(WRONG[wrong]).__name__ in message
    assert "list" in message or "iterable" in message


def test_an_unpicklable_one_is_named(backend, against):
    import threading

    if against != "jobfleet":
        pytest.skip("another error tree")
    from jobfleet.errors import JobfleetError

    lock = threading.Lock()
    with pytest.raises((JobfleetError, TypeError), match="lock"), backend(scatter=[[1], lock]):
        Parallel()(delayed(type_of)(lock) for _ in range(3))
    with backend():
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
