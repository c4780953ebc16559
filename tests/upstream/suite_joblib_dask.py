"""joblib's ``test_dask.py`` on the backend under test; each test starts its own clusters."""

import pathlib

import joblib._dask
from distributed.utils_test import loop, loop_in_thread  # noqa: F401 - fixtures that joblib's own conftest provides

from . import retarget

REPLACEMENTS = pathlib.Path(__file__).with_name("replacements.py")
BUILTIN = "DaskDistributedBackend"


def targets(package):
    """What pytest is to run."""
    return [str(package / "joblib/test/test_dask.py"), str(REPLACEMENTS)]


def prepare(run):
    """Put our class where test_dask.py imports it from, before it does."""
    joblib._dask.DaskDistributedBackend = run.backend_class


def pytest_pycollect_makeitem(collector, name, obj):
    """A class's name in an expected message, or compared with, is that of the class under test."""
    if name.startswith("test_") and collector.name.endswith("test_dask.py"):
        retarget.replace_constants(obj, {BUILTIN: collector.config.upstream.backend_class.__name__})
