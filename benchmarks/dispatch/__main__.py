"""The command line."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..machine import facts
from .counts import Counter
from .report import summary, table
from .results import MACHINE, RowResult, load, save
from .rows import DASK, ROWS, Prepared, Row
from .spinner import Spinners
from .subjects import SUBJECTS, Cluster, cluster

RESULTS = Path(__file__).parents[1] / "results"


@click.command()
@click.option(
    "--rows", default="all", help=f"Comma-separated, or a beginning of names: {', '.join(r.name for r in ROWS)}."
)
@click.option("--subjects", default=",".join(SUBJECTS), show_default=True, help="Comma-separated.")
@click.option("--repeats", default=5, show_default=True, help="How often each subject runs each row, in turns.")
@click.option("--quick", is_flag=True, help="Everything small and once: to see that it runs.")
@click.option(
    "--wait-for-quiet", "quiet_s", default=0.0, help="Seconds that a run may wait for others to leave the CPUs."
)
@click.option("--cluster", "kind", type=click.Choice(["embedded", "local"]), default="embedded", show_default=True)
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path),
    help="Where the numbers are kept; rows that are there are replaced.",
)
@click.option("--add", is_flag=True, help="Add to the repeats that are there.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw a picture of what is kept; needs matplotlib.")
@click.option("--show", is_flag=True, help="Measure nothing: print the table of what is kept.")
def main(
    rows: str,
    subjects: str,
    repeats: int,
    quick: bool,
    quiet_s: float,
    kind: str,
    path: Path | None,
    add: bool,
    picture: Path | None,
    show: bool,
) -> None:
    """Compare jobfleet with joblib's built-in Dask backend, loky and threading."""
    if path is None:
        path = RESULTS / ("quick.json" if quick else f"dispatch-{kind}.json")
    results = load(path)
    if not show:
        chosen = _chosen(rows)
        with cluster(kind) as on, Spinners(on.slots) as spinners:
            for row in chosen:
                result = results.get(row.name) if add else None
                result = result or RowResult()
                _measure(row, result, on, spinners, subjects.split(","), 1 if quick else repeats, quick, quiet_s)
                results[row.name] = result
                click.echo(f"{row.name}: {summary(result)}", err=True)
                save(path, results)
            # Last: counting slows everything down that comes after.
            counter = None
            counted = [row for row in chosen if row.counted]
            for row in counted:
                counter = counter or Counter(on)
                _count(counter, row.prepare(on.slots, quick), results[row.name], on, subjects.split(","))
            save(path, results)
    click.echo(table(results))
    if picture is not None:
        from .picture import draw  # matplotlib is there only in the dependency group "bench"

        draw(results, picture)


def _chosen(names: str) -> list[Row]:
    if names == "all":
        return list(ROWS)
    exact = {row.name for row in ROWS}.intersection(names.split(","))
    beginnings = tuple(name for name in names.split(",") if name not in exact)
    chosen = [row for row in ROWS if row.name in exact or (beginnings and row.name.startswith(beginnings))]
    if not chosen:
        raise click.BadParameter(f"there are: {', '.join(row.name for row in ROWS)}", param_hint="--rows")
    return chosen


def _measure(
    row: Row,
    result: RowResult,
    on: Cluster,
    spinners: Spinners,
    subjects: list[str],
    repeats: int,
    quick: bool,
    quiet_s: float,
) -> None:
    prepared = row.prepare(on.slots, quick)
    result.facts = prepared.facts | {f"scale_{subject}": scale for subject, scale in prepared.scales.items()}
    result.machine = facts()
    workloads = {subject: prepared.workloads[subject] for subject in subjects if subject in prepared.workloads}
    for subject, workload in workloads.items():
        with on.using(subject):
            workload.warm()
    for _ in range(repeats):
        for subject, workload in workloads.items():
            spinners.wait_until_quiet(quiet_s)
            with on.using(subject):
                sample = workload.once()
            for what in ("wall_s", "cpu_s"):
                if what in sample:
                    sample[what] *= prepared.scales.get(subject, 1.0)
            result.samples.setdefault(subject, []).append(sample)
        if row.spins:
            wall_s = spinners.spin(prepared.facts["work_s"])
            result.samples.setdefault(MACHINE, []).append({"wall_s": wall_s})


def _count(counter: Counter, prepared: Prepared, result: RowResult, on: Cluster, subjects: list[str]) -> None:
    for subject in DASK:
        if subject in subjects:
            with on.using(subject):
                result.counts[subject] = counter.count(prepared.workloads[subject], prepared.facts.get("work_s", 0.0))


if __name__ == "__main__":
    sys.exit(main())
