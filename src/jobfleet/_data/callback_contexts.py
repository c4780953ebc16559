"""What a task of scikit-learn's needs of the tree of callback contexts that it is in (scikit-learn 1.9).

Each fit of a search gets a context of its own. That knows its parent, and the parent all its children: so each fit
would bring those of all others, thousands of objects with each of thousands of tasks. Only callbacks look at them.
"""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Callable, Iterable
from typing import Any

_NEEDED = {"parent", "task_id", "_children_map"}


class CallbackMet(Exception):
    """Say that a callback is pickled, which may look at all of the tree."""


def without_siblings(given: Iterable[Any]) -> Callable[[Any], Any] | None:
    """Give the way to pickle a task whose context leads up to the root and to no other fit.

    Parameters
    ----------
    given
        What the task gets: its function and arguments.

    Returns
    -------
    callable
        See `dump_with_memo`; raises `CallbackMet`. None if the task gets no context.
    """
    states = _path(given)
    if not states:
        return None

    def reduce(obj: Any) -> Any:
        state = states.get(id(obj))
        if state is not None:
            return copyreg.__newobj__, (type(obj),), state  # type: ignore[attr-defined]  # as `object` is reduced
        if hasattr(type(obj), "on_fit_task_end"):
            raise CallbackMet
        return NotImplemented

    return reduce


def _path(given: Iterable[Any]) -> dict[int, dict[str, Any]]:
    """Give by `id` the attributes of a task's context and of those above it, which have one child each."""
    kind = getattr(sys.modules.get("sklearn.callback"), "CallbackContext", None)
    contexts = [] if kind is None else [thing for thing in given if type(thing) is kind]
    if len(contexts) != 1 or not _pickles_as_it_is(kind):
        return {}
    states: dict[int, dict[str, Any]] = {}
    lower, context = None, contexts[0]
    while context is not None:
        state = dict(vars(context))
        if not state.keys() >= _NEEDED or id(context) in states:
            return {}
        if lower is not None:
            if state["_children_map"].get(lower.task_id) is not lower:
                return {}
            state["_children_map"] = {lower.task_id: lower}
        states[id(context)] = state
        lower, context = context, state["parent"]
    return states


def _pickles_as_it_is(kind: Any) -> bool:
    """Whether a class has no way of its own to pickle, which would know better."""
    return all(getattr(kind, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__", "__getstate__"))
