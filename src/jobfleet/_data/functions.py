"""Which functions may be pickled once and shared by all tasks."""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from .._pickling import ATOMS


class StatelessFunction:
    """Remember what makes a function safe to share, and check that it still does.

    A function that travels by name (importable, not from `__main__`) is what the worker
    imports. One that travels by value is shared only when nothing in it can change: no closure,
    no attributes, atoms as defaults, and globals that are modules, atoms or functions of the
    same kind. Otherwise one task could see what another did to it.
    """

    __slots__ = ("_globals", "function")

    function: Any
    _globals: list[tuple[dict[str, Any], str, Any]]

    def __init__(self, function: Any, global_values: list[tuple[dict[str, Any], str, Any]]) -> None:
        self.function = function
        self._globals = global_values

    def unchanged(self) -> bool:
        """Whether its globals are still those it was pickled with."""
        return all(space.get(name, _MISSING) is value for space, name, value in self._globals)


_MISSING = object()


def stateless(function: Any) -> StatelessFunction | None:
    """Give the proof that `function` may be shared between tasks, or None."""
    found: list[tuple[dict[str, Any], str, Any]] = []
    if _is_stateless(function, found, set()):
        return StatelessFunction(function, found)
    return None


def _is_stateless(function: Any, found: list[tuple[dict[str, Any], str, Any]], seen: set[int]) -> bool:
    if id(function) in seen:
        return True
    seen.add(id(function))
    if isinstance(function, (FunctionType, BuiltinFunctionType, type)) and _travels_by_name(function):
        return True
    if type(function) is not FunctionType:
        return False
    if function.__closure__ or function.__dict__ or not _atoms(function.__defaults__):
        return False
    if function.__kwdefaults__ and not _atoms(function.__kwdefaults__.values()):
        return False
    space = function.__globals__
    for name in _global_names(function.__code__):
        value = space.get(name, _MISSING)
        if value is not _MISSING:
            found.append((space, name, value))
            if not (type(value) in ATOMS or isinstance(value, ModuleType) or _is_stateless(value, found, seen)):
                return False
    return True


def _travels_by_name(function: Any) -> bool:
    """Whether cloudpickle sends the name only: it can be imported, and not from `__main__`."""
    module_name = getattr(function, "__module__", None)
    if isinstance(function, BuiltinFunctionType):
        owner = function.__self__
        return owner is None or isinstance(owner, ModuleType)
    if module_name is None or module_name == "__main__":
        return False
    found: Any = sys.modules.get(module_name)
    if found is None or getattr(found, "__spec__", None) is None:
        return False
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def _atoms(values: Any) -> bool:
    return all(type(v) in ATOMS for v in values or ())


def _global_names(code: CodeType) -> set[str]:
    """Give every name the code may look up as a global: attribute names too, to be safe."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _global_names(constant)
    return names
