"""scikit-learn's own tests with the backend under test, two workers wide, as the backend of every ``Parallel``."""

import joblib
import pytest

MODULES = [
    "sklearn.model_selection",
]


def targets(package):
    """What pytest is to run."""
    return ["--pyargs", *MODULES]


@pytest.fixture(autouse=True)
def _selected(cluster):
    """Select the backend; an explicit choice also goes before scikit-learn's preference for threads."""
    with joblib.parallel_config("dask", n_jobs=2):
        yield
