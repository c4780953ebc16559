"""Point an upstream test at another backend: the constants in its code, and the values it is parametrised over."""

import types

import pytest


def replace_constants(function, replacements):
    """Put other constants into a function's code, and into the functions inside it."""
    function.__code__ = _replaced(function.__code__, replacements)


def _replaced(constant, replacements):
    if isinstance(constant, types.CodeType):
        return constant.replace(co_consts=_replaced(constant.co_consts, replacements))
    if isinstance(constant, tuple):
        return tuple(_replaced(item, replacements) for item in constant)
    if isinstance(constant, str):
        for old, new in replacements.items():
            constant = constant.replace(old, new)
    return constant


def replace_parametrization(function, argnames, values, ids=None):
    """Parametrise a test over other values of ``argnames``; an error if it is not parametrised over them."""
    marks = list(getattr(function, "pytestmark", ()))
    at = [i for i, mark in enumerate(marks) if mark.name == "parametrize" and _argnames(mark) == argnames]
    if len(at) != 1:
        raise LookupError(f"{function.__name__} is not parametrised over {argnames}: classify it anew")
    marks[at[0]] = pytest.mark.parametrize(argnames, values, ids=ids).mark
    function.pytestmark = marks


def _argnames(mark):
    names = mark.args[0] if mark.args else mark.kwargs["argnames"]
    if isinstance(names, str):
        names = names.split(",")
    return ",".join(name.strip() for name in names)


def add_mark(function, mark):
    """Mark a test as a decorator would."""
    function.pytestmark = [*getattr(function, "pytestmark", ()), mark.mark]
