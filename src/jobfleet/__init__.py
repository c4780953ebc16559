"""Run joblib and scikit-learn code on a Dask cluster."""

__version__ = "0.1.0"
