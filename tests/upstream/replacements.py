"""Own tests for behaviours whose upstream test looks at joblib's built-in Dask backend from inside."""
