"""What is remembered of the duration of tasks, by their function."""

import functools
import math

from jobfleet._call.durations import Durations


class Wrapped:
    """As scikit-learn wraps the functions that it calls."""

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        return self.function(x)


class Model:
    def fit(self):
        pass

    def score(self):
        pass


def known(function):
    durations = Durations()
    durations.note(function, 0.5)
    return durations


def test_is_known_by_the_function_and_not_by_another():
    assert known(math.sqrt).expected_s(math.sqrt) == 0.5
    assert known(math.sqrt).expected_s(math.cos) is None
    assert known(Model().fit).expected_s(Model().fit) == 0.5
    assert known(Model().fit).expected_s(Model().score) is None
    assert known(Model()).expected_s(Wrapped(None)) is None


def test_sees_through_what_wraps_a_function():
    assert known(math.sqrt).expected_s(functools.partial(functools.partial(math.sqrt), 2)) == 0.5
    assert known(Wrapped(math.sqrt)).expected_s(math.sqrt) == 0.5
    assert known(Wrapped(math.sqrt)).expected_s(Wrapped(math.cos)) is None


def test_the_last_call_counts():
    durations = known(math.sqrt)
    durations.note(math.sqrt, 2.0)
    assert durations.expected_s(math.sqrt) == 2.0


def test_does_not_remember_without_bound():
    durations = Durations()
    for i in range(2000):
        durations.note(type(f"Function{i}", (), {})(), 1.0)
    assert len(durations._means_s) <= 256
