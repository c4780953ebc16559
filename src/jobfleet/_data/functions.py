"""Which functions may be pickled once and shared by all tasks."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

from .._pickling import ATOMS

_MISSING = object()

#: A function that does one of these may change what it was made of.
_CHANGES = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"}
_CHANGES_BY_NAME = {"setattr", "delattr", "globals", "vars", "exec", "eval", "__dict__"}


class StatelessFunction:
    """Remember what makes a function safe to share, and check that it still does.

    A function that travels by name (importable, not from `__main__`) is what the worker
    imports. One that travels by value is shared only when nothing in it can change: no closure,
    no attributes, atoms as defaults, no assignment to globals or attributes, and globals that are
    importable modules, atoms or functions of the same kind. Otherwise one task could see what
    another did to it.
    """

    __slots__ = ("_globals", "_parts", "function")

    function: Any
    _globals: list[tuple[dict[str, Any], str, Any]]
    """Where its code looks for globals, their names, and what was found."""
    _parts: list[tuple[FunctionType, CodeType, Any, Any]]
    """Functions that travel by value, and what they are made of."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self._globals = []
        self._parts = []

    def unchanged(self) -> bool:
        """Whether it is still what was pickled."""
        for function, code, defaults, kwdefaults in self._parts:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or (function.__kwdefaults__ or {}) != kwdefaults
                or function.__dict__
            ):
                return False
        return all(space.get(name, _MISSING) is value for space, name, value in self._globals)

    def holds(self, function: Any) -> bool:
        """Whether `function`, which it consists of, is without state."""
        if travels_by_name(function):
            return True
        if type(function) is not FunctionType:
            return False
        if any(function is known for known, *_ in self._parts):
            return True
        code, kwdefaults = function.__code__, function.__kwdefaults__
        self._parts.append((function, code, function.__defaults__, dict(kwdefaults or {})))
        if function.__closure__ or function.__dict__ or _changes_something(code):
            return False
        if not _atoms(function.__defaults__ or ()) or not _atoms((kwdefaults or {}).values()):
            return False
        return all(self._holds_global(function.__globals__, name) for name in global_names(code))

    def _holds_global(self, space: dict[str, Any], name: str) -> bool:
        value = space.get(name, _MISSING)
        self._globals.append((space, name, value))
        if value is _MISSING or type(value) in ATOMS:
            return True
        if isinstance(value, ModuleType):
            return value.__spec__ is not None and sys.modules.get(value.__name__) is value
        return self.holds(value)


def stateless(function: Any) -> StatelessFunction | None:
    """Give the proof that `function` may be shared between tasks, or None."""
    proof = StatelessFunction(function)
    return proof if proof.holds(function) else None


def travels_by_name(function: Any) -> bool:
    """Whether cloudpickle sends the name only: it can be imported, and not from `__main__`."""
    if isinstance(function, BuiltinFunctionType):
        owner = function.__self__
        return owner is None or isinstance(owner, ModuleType)
    if not isinstance(function, (FunctionType, type)):
        return False
    module_name = str(function.__module__)
    if module_name == "__main__" or _sent_by_value(module_name):
        return False
    found: Any = sys.modules.get(module_name)
    if found is None or getattr(found, "__spec__", None) is None:
        return False
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def _sent_by_value(module_name: str) -> bool:
    """Whether the user has had cloudpickle send this module, or one above it, by value."""
    registered = cloudpickle.list_registry_pickle_by_value()
    return any(module_name == name or module_name.startswith(f"{name}.") for name in registered)


def _atoms(values: Iterable[Any]) -> bool:
    return all(type(v) in ATOMS for v in values)


def _codes(code: CodeType) -> Iterable[CodeType]:
    """Give the code and that of all functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _changes_something(code: CodeType) -> bool:
    return any(
        not _CHANGES_BY_NAME.isdisjoint(part.co_names) or any(i.opname in _CHANGES for i in dis.get_instructions(part))
        for part in _codes(code)
    )


def global_names(code: CodeType) -> set[str]:
    """Give every name the code may look up as a global: attribute names too, to be safe."""
    return {name for part in _codes(code) for name in part.co_names}
