"""The tables."""

from __future__ import annotations

from collections.abc import Iterable

from ..columns import aligned
from .results import MACHINE, SUBJECTS, Results, RowResult, divided
from .rows import ROWS, Row

#: Whose use of the cores' time is shown.
_USERS = ("jobfleet", "builtin", "loky", MACHINE)


def table(results: Results) -> str:
    """Lay out all rows that were measured."""
    rows = [row for row in ROWS if row.name in results]
    parts = [_times(rows, results), _expected(rows, results), _counts(rows, results)]
    return "\n\n".join(part for part in parts if part)


def _times(rows: Iterable[Row], results: Results) -> str:
    lines = [["row", *SUBJECTS, "repeats", *(f"used: {s}" for s in _USERS), "what"]]
    notes = []
    for row in rows:
        result = results[row.name]
        scales = {s: result.facts[f"scale_{s}"] for s in SUBJECTS if f"scale_{s}" in result.facts}
        times = [_seconds(result.median(s), "~" if s in scales else "") for s in SUBJECTS]
        repeats = str(len(result.samples.get("jobfleet", [])))
        lines.append([row.name, *times, repeats, *(_number(result.used(s)) for s in _USERS), row.about])
        for subject, scale in scales.items():
            fewer = f"{result.facts['tasks'] / scale:,.0f} tasks"
            notes.append(f"~ {row.name}: {subject} ran {fewer}; its time is multiplied by {scale:g}.")
    return "\n".join(["Medians of wall time", "", *aligned(lines), *notes])


def _expected(rows: Iterable[Row], results: Results) -> str:
    lines = [["row", "expected", "is", "met", "of what the machine gave"]]
    for row in rows:
        for expectation in row.expected:
            value = expectation.value(results[row.name], results)
            met = "?" if value is None else "yes" if expectation.met(value) else "no"
            if expectation.stretch:
                met += " (stretch)"
            of_machine = divided(value, results[row.name].used(MACHINE)) if expectation.of_machine else None
            lines.append([row.name, expectation.text, _number(value, 3), met, _number(of_machine, 3)])
    return "\n".join(["What is expected of jobfleet", "", *aligned(lines)])


def _counts(rows: Iterable[Row], results: Results) -> str:
    lines = [
        ["row", "subject", "chunks", "comm writes a chunk", "loop turns", "CPU ms", "whole CPU / work", "idle CPU ms/s"]
    ]
    for row in rows:
        result = results[row.name]
        for subject in SUBJECTS:
            cpu_s, work_s = result.median(subject, "cpu_s"), result.facts.get("work_s")
            if subject not in result.counts:
                continue
            each = [_number(result.count(subject, f"{what}_per_chunk"), 1) for what in ("writes", "turns", "cpu_ms")]
            idle = f"{1000 * result.count(subject, 'idle_cpu'):.0f}"
            of_work = f"{cpu_s / work_s:.2f}" if cpu_s and work_s else ""
            lines.append([row.name, subject, f"{result.count(subject, 'chunks'):.0f}", *each, of_work, idle])
    return "\n".join(["Messages", "", *aligned(lines)]) if len(lines) > 1 else ""


def _seconds(value: float | None, mark: str) -> str:
    if value is None:
        return "-"
    return f"{mark}{value * 1000:.2f} ms" if value < 0.1 else f"{mark}{value:.3f} s"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def summary(result: RowResult) -> str:
    """Say the medians of one row, while measuring."""
    return ", ".join(f"{s} {_seconds(result.median(s), '')}" for s in (*SUBJECTS, MACHINE) if s in result.samples)
