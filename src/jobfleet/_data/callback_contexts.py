"""What a task of scikit-learn's needs of the tree of callback contexts that it is in (scikit-learn 1.9).

Each fit of a search gets a context of its own. That knows its parent, and the parent all its children: so each fit
would bring those of all others, thousands of objects with each of thousands of tasks. Only callbacks look at them.
"""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Iterable
from typing import Any

_NEEDED = {"parent", "task_id", "_children_map"}


class CallbackMet(Exception):
    """Say that a callback is pickled, which may look at all of the tree."""


class WithoutSiblings:
    """Pickle a task whose context leads up to the root and to no other fit.

    Raises `CallbackMet`. See `jobfleet._pickling.Reducer`.
    """

    kinds: frozenset[type]
    _states: dict[int, dict[str, Any]]

    def __init__(self, kinds: frozenset[type], states: dict[int, dict[str, Any]]) -> None:
        self.kinds = kinds
        self._states = states

    def __call__(self, obj: Any) -> Any:
        state = self._states.get(id(obj))
        if state is not None:
            return copyreg.__newobj__, (type(obj),), state  # type: ignore[attr-defined]  # as `object` is reduced
        if hasattr(type(obj), "on_fit_task_end"):
            raise CallbackMet
        return NotImplemented


def without_siblings(given: Iterable[Any]) -> WithoutSiblings | None:
    """Give the way to pickle what a task gets: its function and arguments; None if there is no context among these."""
    kind = getattr(sys.modules.get("sklearn.callback"), "CallbackContext", None)
    contexts = [] if kind is None else [thing for thing in given if type(thing) is kind]
    if len(contexts) != 1 or not _pickles_as_it_is(kind):
        return None
    path = _path(contexts[0])
    states = {id(context): state for context, state in path}
    return WithoutSiblings(frozenset(type(context) for context, _ in path), states) if path else None


def _path(context: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Give a task's context and those above it, with attributes as if each had one child; nothing if they are odd."""
    path: list[tuple[Any, dict[str, Any]]] = []
    lower = None
    while context is not None:
        state = dict(vars(context))
        if not state.keys() >= _NEEDED or any(context is below for below, _ in path):
            return []
        if lower is not None:
            if state["_children_map"].get(lower.task_id) is not lower:
                return []
            state["_children_map"] = {lower.task_id: lower}
        path.append((context, state))
        lower, context = context, state["parent"]
    return path


def _pickles_as_it_is(kind: Any) -> bool:
    """Whether a class has no way of its own to pickle, which would know better."""
    return all(getattr(kind, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__", "__getstate__"))
