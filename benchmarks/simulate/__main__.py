"""The command line."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from jobfleet._call.durations import Known

from ..columns import aligned
from .call import Simulated, simulate
from .cluster import Costs

RESULTS = Path(__file__).parents[1] / "results"

DISTRIBUTIONS: dict[str, Callable[[int], np.ndarray]] = {
    "constant": lambda n: np.ones(n),
    "lognormal": lambda n: _mean_one(np.random.default_rng(n).lognormal(0, 1.5, n)),
    "jump up": lambda n: _mean_one(np.where(np.arange(n) < n // 2, 1.0, 1000.0)),
    "jump down": lambda n: _mean_one(np.where(np.arange(n) < n // 2, 1000.0, 1.0)),
    "last 20x": lambda n: np.where(np.arange(n) < n - 1, 1.0, 20.0),
}

SLOTS = (10, 100, 1000, 10_000)
TASKS = (1000, 10_000, 100_000, 1_000_000)
MEANS_S = (0.001, 0.1)
ROUND_TRIPS_S = (0.001, 0.01, 0.05)
#: From so many tasks on all that makes little difference, and simulating them takes long.
MANY_TASKS = 1_000_000
FEW_DISTRIBUTIONS = ("constant", "lognormal")
COMMON_ROUND_TRIP_S = 0.01
MOST_WORK_S = 500


def _mean_one(values: np.ndarray) -> np.ndarray:
    return values / values.mean()


@dataclass(frozen=True)
class Cell:
    """Name one simulation."""

    slots: int
    tasks: int
    mean_s: float
    distribution: str
    round_trip_s: float

    def run(self) -> tuple[Simulated, Simulated]:
        """Simulate it, and another call of the same tasks, which knows from this one what they take."""
        durations = DISTRIBUTIONS[self.distribution](self.tasks) * self.mean_s
        known = Known(durations.mean(), nested=False, dispersion_s=durations.var() / durations.mean())
        costs = Costs(round_trip_s=self.round_trip_s)
        first = simulate(durations.tolist(), self.slots, costs)
        return first, simulate(durations.tolist(), self.slots, costs, known=known)


def cells(max_tasks: int, max_slots: int) -> Iterator[Cell]:
    """Give what is simulated."""
    for slots, tasks, mean_s in itertools.product(SLOTS, TASKS, MEANS_S):
        # Less than a second of work for a slot only shows how a call begins, and a lot of it shows nothing.
        if tasks > max_tasks or slots > max_slots or not 1 <= tasks * mean_s / slots <= MOST_WORK_S:
            continue
        many = tasks >= MANY_TASKS
        kinds, trips_s = (FEW_DISTRIBUTIONS, (COMMON_ROUND_TRIP_S,)) if many else (DISTRIBUTIONS, ROUND_TRIPS_S)
        for distribution, round_trip_s in itertools.product(kinds, trips_s):
            yield Cell(slots, tasks, mean_s, distribution, round_trip_s)


@click.command()
@click.option("--max-tasks", default=1_000_000, show_default=True)
@click.option("--max-slots", default=10_000, show_default=True)
@click.option("--below", default=0.95, show_default=True, help="Mark what uses less of what is possible.")
@click.option("--processes", default=1, show_default=True)
@click.option("--only-below", is_flag=True, help="Show only these.")
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS / "simulate.json", show_default=True)
def main(max_tasks: int, max_slots: int, below: float, processes: int, only_below: bool, path: Path) -> None:
    """Simulate the chunking of calls: which part of the slots' time is used, and which part could be."""
    started = time.perf_counter()
    chosen = list(cells(max_tasks, max_slots))
    with ProcessPoolExecutor(processes) as pool:
        # The long ones first: they would hold up the end.
        longest = sorted(range(len(chosen)), key=lambda i: -chosen[i].tasks * chosen[i].mean_s)
        futures = {i: pool.submit(chosen[i].run) for i in longest}
        outcomes = [futures[i].result() for i in range(len(chosen))]
    kept = [
        {**asdict(cell), **asdict(first), "again_s": again.wall_s}
        for cell, (first, again) in zip(chosen, outcomes, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(one) for one in kept) + "\n]\n")
    click.echo(table(chosen, outcomes, below, only_below))
    click.echo(f"{len(chosen)} cells in {time.perf_counter() - started:.0f} s")


def table(chosen: list[Cell], outcomes: list[tuple[Simulated, Simulated]], below: float, only_below: bool) -> str:
    """Lay out all cells; used by the first call and by another one, and possible, for each round trip."""
    titles = ["slots", "tasks", "mean", "durations", "trip", "used", "again", "possible", "chunks", "stolen", ""]
    rows = [[*titles, "% used in each tenth of the time"]]
    n_below = n_below_again = 0
    for cell, (one, again) in zip(chosen, outcomes, strict=True):
        is_below = one.used < below * min(1.0, one.possible)
        n_below += is_below
        n_below_again += again.used < below * min(1.0, one.possible)
        if only_below and not is_below:
            continue
        times = [f"{cell.mean_s * 1000:g} ms", cell.distribution, f"{cell.round_trip_s * 1000:g} ms"]
        shares = [f"{one.used:.3f}", f"{again.used:.3f}", f"{one.possible:.3f}"]
        numbers = [str(one.chunks), str(one.stolen), "<" if is_below else ""]
        course = " ".join(f"{100 * part:.0f}" for part in one.course)
        rows.append([str(cell.slots), str(cell.tasks), *times, *shares, *numbers, course])
    verdict = (
        f"{n_below} of {len(chosen)} use less than {below} of what is possible (marked <); another call, which knows "
        f"what the tasks take, {n_below_again}"
    )
    return "\n".join([*aligned(rows), verdict])


if __name__ == "__main__":
    main()
