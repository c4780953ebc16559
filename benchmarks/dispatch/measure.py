"""Measuring the rows: every subject in turn, again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ..machine import facts
from .counts import Counter
from .plain import Elsewhere, PlainProcess
from .results import DASK, MACHINE, RowResult
from .rows import Row
from .spinner import Spinners
from .subjects import Cluster


@dataclass(frozen=True)
class Measurement:
    """Measure rows on a cluster.

    Parameters
    ----------
    on
        Where the Dask backends run their tasks.
    plain
        Where the other backends run them.
    spinners
        As many processes as it has slots.
    subjects
        Who is measured, in this order.
    repeats
        How often.
    quick
        Make everything small.
    quiet_s
        How long each run may wait for others to leave the processors.
    """

    on: Cluster
    plain: PlainProcess
    spinners: Spinners
    subjects: Sequence[str]
    repeats: int
    quick: bool
    quiet_s: float
    _counters: dict[str, Counter] = field(default_factory=dict)

    def time(self, row: Row, result: RowResult, keep: Callable[[], None]) -> None:
        """Add to what was measured of a row; `keep` is called after each repeat."""
        prepared = row.prepare(self.on.slots, self.quick)
        result.facts = prepared.facts | {f"scale_{subject}": scale for subject, scale in prepared.scales.items()}
        result.machine = facts()
        workloads = {
            subject: prepared.workloads[subject] if subject in DASK else Elsewhere(self.plain, row.name, subject)
            for subject in self.subjects
            if subject in prepared.workloads
        }
        for subject, workload in workloads.items():
            with self._using(subject):
                workload.warm()
        for _ in range(self.repeats):
            for subject, workload in workloads.items():
                self.spinners.wait_until_quiet(self.quiet_s)
                with self.on.alone(subject), self._using(subject):
                    sample = workload.once()
                scale = prepared.scales.get(subject, 1.0)
                scaled = {what: value * scale for what, value in sample.items() if what in ("wall_s", "cpu_s")}
                result.samples.setdefault(subject, []).append(sample | scaled)
            if row.spins:
                self.spinners.wait_until_quiet(self.quiet_s)
                with self.on.alone(MACHINE):
                    wall_s = self.spinners.spin(prepared.facts["work_s"])
                result.samples.setdefault(MACHINE, []).append({"wall_s": wall_s})
            keep()

    def _using(self, subject: str) -> AbstractContextManager[Any]:
        return self.on.using(subject) if subject in DASK else contextlib.nullcontext()

    def count(self, row: Row, result: RowResult) -> None:
        """Count messages and CPU time, in runs that are not timed."""
        prepared = row.prepare(self.on.slots, self.quick)
        work_s = prepared.facts.get("work_s", 0.0)
        for _ in range(self.repeats):
            for subject in DASK:
                if subject in self.subjects:
                    with self.on.alone(subject), self.on.using(subject):
                        if subject not in self._counters:
                            self._counters[subject] = Counter(self.on, subject)
                        counts = self._counters[subject].count(prepared.workloads[subject], work_s)
                    result.counts.setdefault(subject, []).append(counts)
