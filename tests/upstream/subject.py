"""The backend class under test: jobfleet's, or joblib's own Dask backend to see what the harness itself does."""

import joblib._dask
import joblib.parallel

NAMES = ("jobfleet", "builtin")


def load(name):
    """Return the class under test."""
    if name == "builtin":
        return _Builtin
    import jobfleet  # noqa: F401 - the import registers it

    return joblib.parallel.BACKENDS["dask"]


def register(backend_class):
    """Register the class, if its import has not; after collection, which makes an object of each registered class."""
    joblib.parallel.BACKENDS.setdefault("dask", backend_class)


class _Builtin(joblib._dask.DaskDistributedBackend):
    """The built-in backend, made usable as ``Parallel(backend="dask")``: joblib then passes ``nesting_level``."""

    def __init__(self, nesting_level=None, **kwargs):
        super().__init__(**kwargs)
        self.nesting_level = nesting_level


_Builtin.__name__ = joblib._dask.DaskDistributedBackend.__name__
