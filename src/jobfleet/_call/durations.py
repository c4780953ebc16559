"""What tasks of a function took in earlier calls of this process: a guess at what they will take."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

_MAX_FUNCTIONS = 256


class Durations:
    """Remember the mean duration of tasks by the name of their function.

    Only a guess comes of it, which the first reply of a call replaces: it decides how the very first chunks are
    cut. A guess that is too short keeps all slots busy all the same, since each gets no more than its share and
    a chunk that takes too long answers with what it has.

    Notes
    -----
    Thread-safe: each method does one step that matters.
    """

    _means_s: OrderedDict[str, float]

    def __init__(self) -> None:
        self._means_s = OrderedDict()

    def expected_s(self, function: Any) -> float | None:
        """Give what a task of `function` took last, None if that is not known."""
        return self._means_s.get(_name(function))

    def note(self, function: Any, mean_s: float) -> None:
        """Take note of what tasks of `function` take."""
        self._means_s[_name(function)] = mean_s
        while len(self._means_s) > _MAX_FUNCTIONS:
            self._means_s.popitem(last=False)


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    # scikit-learn wraps what it calls.
    function = getattr(function, "function", function)
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        function, name = type(function), type(function).__qualname__
    return f"{getattr(function, '__module__', None)}.{name}"


#: Of all calls of this process.
durations = Durations()
