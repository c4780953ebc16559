"""Placeholder."""

import distributed

_c = None


def embedded_client():
    global _c
    if _c is None:
        _c = distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None, set_as_default=False)
    return _c
