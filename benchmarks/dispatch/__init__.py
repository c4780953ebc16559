"""Compare jobfleet with joblib's other backends: `python -m benchmarks.dispatch`."""
