"""Run joblib and scikit-learn code on a Dask cluster.

Importing the package registers the joblib backends ``"dask"`` (in place of joblib's own) and
``"jobfleet"``; nothing else happens.
"""

from joblib import register_parallel_backend

from ._backend import JobfleetBackend

__version__ = "0.1.0"
__all__ = ["JobfleetBackend", "__version__"]

register_parallel_backend("dask", JobfleetBackend)
register_parallel_backend("jobfleet", JobfleetBackend)
