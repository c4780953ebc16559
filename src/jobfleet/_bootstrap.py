"""The function that every chunk brings along, and the loader for this package's source.

Both run on workers that have nothing of ours installed. `run_chunk` is sent by value, so it
uses nothing but its arguments and the standard library; the rest is executed from its source.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import threading
from typing import Any


def run_chunk(digest: str, request: Any, *values: Any, code: bytes | None = None) -> Any:
    """Run a chunk with the package whose source has `digest`, or ask for that source."""
    import importlib
    import pickle
    import sys
    import zlib

    name = "_jobfleet_" + digest
    entry = sys.modules.get(name + "._entry")
    if entry is None and "jobfleet" in sys.modules:
        # This process uses one under its own name, maybe the same, and be it as a client: no class must be there twice.
        try:
            own = importlib.import_module("jobfleet._ship")
            if own.package_code()[0] == digest:
                own.bootstrap()
                entry = importlib.import_module(name + "._entry")
        except Exception:
            pass  # a release that is made otherwise
    # Another thread may have it half imported; importing it waits for that thread.
    if not hasattr(entry, "run"):
        if code is None:
            return "jobfleet:need-code"
        sources = pickle.loads(zlib.decompress(code))
        loader: dict[str, Any] = {"__name__": "_jobfleet_loader"}
        exec(sources["_bootstrap.py"], loader)
        loader["install"](name, code, sources)
        entry = importlib.import_module(name + "._entry")
    return entry.run(request, values)  # type: ignore[union-attr]


async def place_ahead(run: Any, digest: str, placed: Any, code: bytes | None, dask_worker: Any) -> Any:
    """Have the worker's host get the buffers that tasks will need; like `run_chunk`, but on the worker's event loop."""
    import asyncio

    return await asyncio.to_thread(run, digest, None, placed, dask_worker, code=code)


def keep_buffers(digest: str, token: str, key: str) -> None:
    """Keep a client's buffers on this host for as long as Dask keeps this task's result.

    Where the package is not, there are no buffers: the worker that was meant is gone.
    """
    import sys

    entry = sys.modules.get(f"_jobfleet_{digest}._entry")
    if hasattr(entry, "keep_buffers"):
        entry.keep_buffers(token, key)  # type: ignore[union-attr]


class ShippedFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Find the modules of a package that was sent, under its private name."""

    def __init__(self, name: str, code: bytes, sources: dict[str, str]) -> None:
        self.name = name
        self._code = code
        self._sources = sources

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Give the spec of `fullname` if it belongs to the package."""
        if fullname.partition(".")[0] != self.name or self._file(fullname) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def is_package(self, fullname: str) -> bool:
        """Whether `fullname` is a package."""
        return str(self._file(fullname)).endswith("__init__.py")

    def get_source(self, fullname: str) -> str:
        """Give the text of a module, also for tracebacks."""
        return self._sources[str(self._file(fullname))]

    def exec_module(self, module: Any) -> None:
        """Run the module's text; the package can then send itself on from here."""
        module.__shipped__ = self._code
        # No angle brackets around the name: with them, tracebacks do not ask for the text.
        exec(compile(self.get_source(module.__name__), f"{module.__name__}.py", "exec"), module.__dict__)

    def _file(self, fullname: str) -> str | None:
        rest = fullname.partition(".")[2].replace(".", "/")
        for file in (f"{rest}/__init__.py" if rest else "__init__.py", f"{rest}.py"):
            if file in self._sources:
                return file
        return None


class AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Give the modules of one package under the name of another that does not exist.

    On a worker, ``import jobfleet`` gives the package that was sent, where none is installed. In
    a client, what a worker pickled by its private name is found here.
    """

    def __init__(self, alias: str, name: str) -> None:
        self.name = alias
        self._real_name = name

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Give a spec for the alias and what is below it."""
        root, _, rest = fullname.partition(".")
        if root != self.name:
            return None
        origin = f"{self._real_name}.{rest}" if rest else self._real_name
        return importlib.util.spec_from_loader(fullname, self, origin=origin)

    def create_module(self, spec: Any) -> Any:
        """Give the real module."""
        module = importlib.import_module(spec.origin)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        """Put back the module's own spec, which the import system has replaced by the alias's."""
        module.__spec__ = module.__spec__.loader_state


_lock = threading.Lock()


def install(name: str, code: bytes, sources: dict[str, str]) -> None:
    """Make the package that was sent importable as `name`, and as ``jobfleet`` if none is installed."""
    add_finder(ShippedFinder(name, code, sources))
    add_finder(AliasFinder("jobfleet", name), last=True)


def add_finder(finder: ShippedFinder | AliasFinder, *, last: bool = False) -> None:
    """Add `finder` unless its name is taken; one that is `last` gives way to what is installed.

    Private names must come first: with an aliased package's path, the import system would find
    its submodules by itself, and load each a second time.
    """
    with _lock:
        if finder.name not in (getattr(other, "name", None) for other in sys.meta_path):
            sys.meta_path.insert(len(sys.meta_path) if last else 0, finder)
