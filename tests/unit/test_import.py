"""Importing the package registers its backends and does nothing else."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import jobfleet
import jobfleet.errors
import jobfleet.testing

SOURCE = Path(jobfleet.__file__).parents[1]

pytestmark = [pytest.mark.timeout(30), pytest.mark.slow]

#: Watches what the interpreter is asked to do while the package is imported, in a fresh process.
PROGRAM = """
import json, sys, threading
seen = []
def hook(event, args):
    if event in ("socket.__new__", "socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "os.mkdir"):
        seen.append(event)
    elif event == "open" and args[1] not in (None, "r", "rb") and isinstance(args[1], str):
        seen.append(f"open {args[0]} {args[1]}")
    elif event == "import":
        imported.append(args[0])
imported = []
sys.dont_write_bytecode = True
import joblib
backends_before = dict(joblib.parallel.BACKENDS)
sys.addaudithook(hook)
import jobfleet
from joblib.parallel import BACKENDS
new = {name: f for name, f in BACKENDS.items() if backends_before.get(name) is not f}
backends = {name: f"{f.__module__}.{f.__qualname__}" for name, f in new.items()}
print(json.dumps({
    "file": jobfleet.__file__,
    "seen": seen,
    "threads": [t.name for t in threading.enumerate()],
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "backends": backends,
    "default": joblib.parallel.DEFAULT_BACKEND,
}))
"""


@pytest.fixture(scope="module")
def fresh():
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return json.loads(process.stdout)


def test_it_is_this_source_that_is_tested(fresh):
    assert fresh["file"] == jobfleet.__file__


def test_registers_its_two_names_and_changes_no_default(fresh):
    backend = "jobfleet._backend.JobfleetBackend"
    assert fresh["backends"] == {"dask": backend, "jobfleet": backend}
    assert fresh["default"] == "loky"


def test_starts_no_thread_opens_no_socket_and_writes_no_file(fresh):
    assert fresh["threads"] == ["MainThread"]
    assert fresh["seen"] == []


@pytest.mark.parametrize(
    "module", ["distributed", "tornado", "sklearn", "pandas", "scipy", "rich", "click", "cryptography"]
)
def test_imports_nothing_that_takes_long(fresh, module):
    assert module not in fresh["modules"]


def public(module):
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", module.__name__) == module.__name__
    }


def test_public_names():
    assert set(jobfleet.__all__) == {"JobfleetBackend", "__version__"}
    for name in jobfleet.__all__:
        assert hasattr(jobfleet, name)


@pytest.mark.parametrize("module", [jobfleet.errors, jobfleet.testing], ids=lambda m: m.__name__)
def test_each_public_module_says_what_is_public(module):
    assert public(module) <= set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name, module) is not module


def test_everything_else_is_private():
    modules = {path.stem for path in (SOURCE / "jobfleet").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {name for name in modules if not name.startswith("_")} == {"errors", "options", "testing"}
