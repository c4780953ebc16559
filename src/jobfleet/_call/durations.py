"""What tasks of a function took in earlier calls of this process: a guess at what they will take."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any, NamedTuple

_MAX_FUNCTIONS = 256


class Known(NamedTuple):
    """What is known of a function's tasks."""

    mean_s: float
    nested: bool
    """They made `Parallel` calls of their own."""
    dispersion_s: float = 0.0
    """See `ChunkSizer.dispersion_s`."""


class Durations:
    """Remember what is known of tasks by the name of their function.

    Only a guess comes of it, which the first reply of a call replaces: it decides how the very first chunks are
    cut. A guess that is too short keeps all slots busy all the same, since each gets no more than its share and
    a chunk that takes too long answers with what it has.

    Notes
    -----
    Thread-safe: each method does one step that matters.
    """

    _known: OrderedDict[str, Known]

    def __init__(self) -> None:
        self._known = OrderedDict()

    def known(self, function: Any) -> Known | None:
        """Give what the last call of tasks of `function` has shown, None if there was none."""
        return self._known.get(_name(function))

    def note(self, function: Any, known: Known) -> None:
        """Take note of what a call of tasks of `function` has shown."""
        self._known[_name(function)] = known
        while len(self._known) > _MAX_FUNCTIONS:
            self._known.popitem(last=False)


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
