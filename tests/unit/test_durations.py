"""What is remembered of the duration of tasks, by their function."""

import functools
import math

from jobfleet._call.durations import Durations, Known


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


def knowing(function):
    durations = Durations()
    durations.note(function, Known(0.5, nested=False))
    return durations


def test_is_known_by_the_function_and_not_by_another():
    assert knowing(math.sqrt).known(math.sqrt).mean_s == 0.5
    assert knowing(math.sqrt).known(math.cos) is None
    assert knowing(Model().fit).known(Model().fit).mean_s == 0.5
    assert knowing(Model().fit).known(Model().score) is None
    assert knowing(Model()).known(Wrapped(None)) is None


def test_sees_through_what_wraps_a_function():
    assert knowing(math.sqrt).known(functools.partial(functools.partial(math.sqrt), 2)).mean_s == 0.5
    assert knowing(Wrapped(math.sqrt)).known(math.sqrt).mean_s == 0.5
    assert knowing(Wrapped(math.sqrt)).known(Wrapped(math.cos)) is None


def test_the_last_call_counts():
    durations = knowing(math.sqrt)
    durations.note(math.sqrt, Known(2.0, nested=False))
    assert durations.known(math.sqrt).mean_s == 2.0


def test_does_not_remember_without_bound():
    durations = Durations()
    for i in range(2000):
        durations.note(type(f"Function{i}", (), {})(), Known(1.0, nested=False))
    assert len(durations._known) <= 256
