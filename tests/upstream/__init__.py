"""The installed tests of joblib and scikit-learn, run with jobfleet as their backend.

``python -m tests.upstream`` runs all three suites, ``--suite NAME`` one of them; what follows ``--`` goes to pytest.
"""
