"""What was measured, as it is kept in JSON, and what follows from it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: What is compared, in the order of the tables.
SUBJECTS = ("jobfleet", "builtin", "loky", "threading")

#: Those that run on Dask.
DASK = ("jobfleet", "builtin")

#: The name of what the machine gives to processes that do nothing but the work.
MACHINE = "machine"


@dataclass
class RowResult:
    """Hold the numbers of one row."""

    facts: dict[str, float] = field(default_factory=dict)
    """Of the row itself: `tasks`, `slots`, `work_s`, `best_s`..."""
    samples: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """By subject, one for each repeat."""
    counts: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """By subject: messages, chunks and CPU time, one for each of the runs that were not timed."""
    machine: dict[str, Any] = field(default_factory=dict)

    def median(self, subject: str, what: str = "wall_s") -> float | None:
        """Give the median over the repeats, None if it was not measured."""
        return _median(self.samples.get(subject, []), what)

    def count(self, subject: str, what: str) -> float | None:
        """Give the median of what was counted, None if it was not."""
        return _median(self.counts.get(subject, []), what)

    def ratio(self, subject: str, other: str, what: str = "wall_s") -> float | None:
        """Give how many times as much `subject` took as `other`."""
        return divided(self.median(subject, what), self.median(other, what))

    def used(self, subject: str) -> float | None:
        """Give the part of the cores' time that the tasks themselves took."""
        wall_s, work_s = self.median(subject), self.facts.get("work_s")
        return None if wall_s is None or work_s is None else work_s / (self.facts["slots"] * wall_s)


def _median(samples: list[dict[str, float]], what: str) -> float | None:
    values = [sample[what] for sample in samples if what in sample]
    return statistics.median(values) if values else None


def divided(one: float | None, other: float | None) -> float | None:
    """Divide, if both are known."""
    return None if one is None or not other else one / other


Results = dict[str, RowResult]


@dataclass(frozen=True)
class Expectation:
    """What a row should show."""

    text: str
    """With its bound, for the table."""
    value: Callable[[RowResult, Results], float | None]
    at_least: float | None = None
    at_most: float | None = None
    of_machine: bool = False
    """It is a part of the cores' time, of which the machine may not give all."""
    stretch: bool = False
    """Wished for, not demanded."""

    def met(self, value: float) -> bool:
        """Tell whether `value` is as expected."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def load(path: Path) -> Results:
    """Read what `save` wrote; nothing if there is no such file."""
    if not path.exists():
        return {}
    return {name: RowResult(**row) for name, row in json.loads(path.read_text())["rows"].items()}


def save(path: Path, results: Results) -> None:
    """Keep raw numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: _rounded(asdict(row)) for name, row in results.items()}
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
