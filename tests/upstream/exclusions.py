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


def _all(file, reason, tests, **kwargs):
    """Leave out several tests of one file for the same reason."""
    return tuple(Exclusion(f"{file}::{test}", reason, **kwargs) for test in tests)


EXCLUSIONS = {"joblib-dask": (), "joblib-parallel": (), "sklearn": ()}
