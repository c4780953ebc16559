"""Which upstream tests are left out, each with its reason.

A left-out test is still run and must fail; one that passes is a stale exclusion and fails the run. ``run=False`` is for
those that would hang, and for those that pass or fail by chance.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """One left-out test, or several whose names match."""

    test: str
    """``file::test`` for all its parameters, ``file::test[params]`` for one; ``*`` stands for anything."""
    reason: str
    instead: str | None = None
    """The test of ours that checks the behaviour the upstream test was after."""
    run: bool = True

    def matches(self, nodeid):
        """Tell whether this exclusion is about that test."""
        pattern = re.escape(self.test).replace(r"\*", ".*")
        return re.fullmatch(pattern, nodeid) or re.fullmatch(pattern, nodeid.partition("[")[0])


def _exclusions(file, *entries):
    """Make the exclusions of one file from ``(test, reason)`` or ``(test, reason, keywords)``."""
    return tuple(Exclusion(f"{file}::{test}", reason, **dict(*rest)) for test, reason, *rest in entries)


JOBLIB_DASK = _exclusions(
    "joblib/test/test_dask.py",
    (
        "test_dask_backend_uses_autobatching",
        "private names: asks for the batching of AutoBatchingMixin, and reads its attributes",
        {"instead": "replacements.py::test_short_tasks_travel_together"},
    ),
    (
        "test_no_undesired_distributed_cache_hit",
        "mechanism: counts Dask's scatter events, which are also how jobfleet sends its own code",
        {"instead": "replacements.py::test_a_changed_argument_is_sent_anew"},
    ),
    (
        "test_manual_scatter",
        "asks for as many picklings of a scattered object as Dask makes, three; jobfleet makes one",
        {"instead": "replacements.py::test_scattered_objects_are_pickled_no_more_than_by_dask"},
    ),
    (
        "test_auto_scatter",
        "mechanism: wants arguments of 10 kB scattered; below max_nbytes they are cheaper inside the message",
        {"instead": "replacements.py::test_a_large_argument_is_held_once_by_a_worker"},
    ),
    ("test_errors", "wants an error when there is no client; jobfleet starts a cluster then"),
)

EXCLUSIONS = {"joblib-dask": JOBLIB_DASK, "joblib-parallel": (), "sklearn": ()}
