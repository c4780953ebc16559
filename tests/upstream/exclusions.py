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
    """The test in replacements.py that checks the behaviour the upstream test was after."""
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
        {"instead": "test_short_tasks_travel_together"},
    ),
    (
        "test_no_undesired_distributed_cache_hit",
        "mechanism: counts Dask's scatter events, which are also how jobfleet sends its own code",
        {"instead": "test_a_changed_argument_is_sent_anew"},
    ),
    (
        "test_manual_scatter",
        "asks for as many picklings of a scattered object as Dask makes, three; jobfleet makes one",
        {"instead": "test_scattered_objects_are_pickled_no_more_than_by_dask"},
    ),
    (
        "test_auto_scatter",
        "mechanism: wants arguments of 10 kB scattered; below max_nbytes they are cheaper inside the message",
        {"instead": "test_a_large_argument_is_held_once_by_a_worker"},
    ),
    ("test_errors", "wants an error when there is no client; jobfleet starts a cluster then"),
)

JOBLIB_PARALLEL = _exclusions(
    "joblib/test/test_parallel.py",
    (
        "test_nested_loop[loky-dask]",
        'asks for "dask" in a process of loky\'s, which has never imported jobfleet and does not know the name',
    ),
    (
        "test_backend_nesting_level",
        "wants level 1 inside a task; joblib's test_dask.py::test_correct_nested_backend wants levels to start afresh",
    ),
    (
        "test_memmapping_leaks",
        "looks for the files that joblib's memmapping makes in temp_folder; jobfleet makes none",
        {"instead": "test_large_arguments_are_gone_after_a_call"},
    ),
    ("test_backend_batch_statistics_reset", "private names: reads attributes of AutoBatchingMixin"),
    (
        "test_threadpool_limitation_in_child_override",
        "sets environment variables of the client; loky starts its workers afterwards, a cluster runs already",
    ),
    (
        "test_initializer_not_reused",
        "wants new processes for new initargs; a cluster's workers stay, and are initialised anew",
        {"instead": "test_new_initargs_initialise_the_same_workers_anew"},
    ),
)

EXCLUSIONS = {"joblib-dask": JOBLIB_DASK, "joblib-parallel": JOBLIB_PARALLEL, "sklearn": ()}
