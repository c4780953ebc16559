"""This package, sent to workers that do not have it.

A worker needs nothing installed from us. A chunk is run by a small function that travels by value
(`_bootstrap.run_chunk`); it looks for this very source, by the digest of its content, among the
loaded modules. If it is not there the worker answers `NEED_CODE` and gets the chunk again with
the source, which it loads under a private name, ``_jobfleet_<digest>``. So two clients with
different releases can use one worker, and an installed jobfleet does not get in the way. All
imports inside the package are relative for that reason.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.resources
import pickle
import sys
import zlib
from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import cloudpickle

from . import _bootstrap

#: What a worker answers when it has not been sent this package's source yet.
NEED_CODE = "jobfleet:need-code"

_PACKAGE = __name__.rpartition(".")[0]

#: Only clients run these.
_NOT_SHIPPED = {"_cli.py", "_demo.py", "testing.py"}


@functools.cache
def package_code() -> tuple[str, bytes]:
    """Give the digest of this package's source, and the source itself, compressed."""
    code: bytes | None = getattr(sys.modules[_PACKAGE], "__shipped__", None)
    if code is None:
        sources: dict[str, str] = {}
        _collect(importlib.resources.files(_PACKAGE), "", sources)
        code = zlib.compress(pickle.dumps(dict(sorted(sources.items())), protocol=5))
    return hashlib.blake2b(code, digest_size=8).hexdigest(), code


def _collect(folder: Any, prefix: str, sources: dict[str, str]) -> None:
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            _collect(entry, f"{name}/", sources)
        elif name.endswith(".py") and name not in _NOT_SHIPPED:
            sources[name] = entry.read_text(encoding="utf-8")


@functools.cache
def bootstrap() -> Callable[..., Any]:
    """Give the function that runs a chunk on any worker."""
    private_name = f"_jobfleet_{package_code()[0]}"
    if private_name != _PACKAGE:
        # What workers pickle by that name, and a worker that lives in this process, find this package.
        _bootstrap.add_finder(_bootstrap.AliasFinder(private_name, _PACKAGE))
        sys.modules[f"{private_name}._entry"] = importlib.import_module(f"{_PACKAGE}._entry")
    return pickled_once(by_value(_bootstrap.run_chunk))


@functools.cache
def by_value(function: Any) -> Callable[..., Any]:
    """Give a function as one that travels whole; it may use nothing but its arguments and what it imports."""
    # In a module that exists nowhere, which makes cloudpickle send the function by value.
    copy = FunctionType(function.__code__, {"__name__": "_jobfleet_bootstrap"}, function.__name__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__ = "_jobfleet_bootstrap"
    return copy


def pickled_once(function: Any) -> Callable[..., Any]:
    """Give a function by value as a callable whose pickle is made here, and never again.

    Dask pickles the function of each submission twice, in the client and in the scheduler, and each time tries the
    standard pickler before cloudpickle: it would look for the function's module on all of `sys.path`.
    """
    namespace = {
        "__module__": function.__module__,
        "__name__": function.__name__,
        "__call__": staticmethod(function),
        "__reduce__": by_value(_reduce_to_pickle),
        "pickled": None,
    }
    callable_: Any = type("PickledOnce", (), namespace)()
    callable_.pickled = cloudpickle.dumps(callable_, protocol=5)
    return cast("Callable[..., Any]", callable_)


def _reduce_to_pickle(self: Any) -> Any:
    import pickle

    if self.pickled is None:
        return type(self), ()
    return pickle.loads, (self.pickled,), {"pickled": self.pickled}
