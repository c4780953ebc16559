"""Measuring the rows: every subject in turn, again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..machine import facts
from .counts import Counter
from .results import DASK, MACHINE, RowResult
from .rows import Prepared, Row
from .spinner import Spinners
from .subjects import Cluster


@dataclass(frozen=True)
class Measurement:
    """Measure rows on a cluster.

    Parameters
    ----------
    on
        Where the subjects run their tasks.
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
            subject: self.on.workload(subject, row, prepared)
            for subject in self.subjects
            if subject in prepared.workloads
        }
        for subject, workload in workloads.items():
            with self.on.using(subject):
                workload.warm()
        for _ in range(self.repeats):
            for subject, workload in workloads.items():
                self.spinners.wait_until_quiet(self.quiet_s)
                with self.on.alone(subject), self.on.using(subject):
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

    def count(self, row: Row, result: RowResult) -> None:
        """Count messages and CPU time, in runs that are not timed."""
        prepared = row.prepare(self.on.slots, self.quick)
        for _ in range(self.repeats):
            for subject in DASK:
                if subject in self.subjects:
                    with self.on.alone(subject), self.on.using(subject):
                        counts = self._count(row, subject, prepared)
                    result.counts.setdefault(subject, []).append(counts)

    def _count(self, row: Row, subject: str, prepared: Prepared) -> dict[str, float]:
        if subject not in self.on.clients:
            counts: dict[str, float] = self.on.apart(subject).ask("count", row.name, subject)
            return counts
        if subject not in self._counters:
            self._counters[subject] = Counter(self.on.clients[subject])
        return self._counters[subject].count(prepared.workloads[subject], prepared.facts.get("work_s", 0.0))
