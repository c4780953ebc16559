"""The command line."""

from __future__ import annotations

from pathlib import Path

import click

from .measure import Measurement
from .report import summary, table
from .results import SUBJECTS, RowResult, load, save
from .rows import ROWS, Row
from .spinner import Spinners
from .subjects import cluster

RESULTS = Path(__file__).parents[1] / "results"
FILE = click.Path(path_type=Path)


@click.command()
@click.option("--rows", default="all", help=f"Comma-separated names or beginnings: {', '.join(r.name for r in ROWS)}.")
@click.option("--subjects", default=",".join(SUBJECTS), show_default=True, help="Comma-separated.")
@click.option("--repeats", default=5, show_default=True, help="How often each subject runs each row, in turns.")
@click.option("--quick", is_flag=True, help="Everything small and once: to see that it runs.")
@click.option("--wait-for-quiet", "quiet_s", default=0.0, help="Seconds each run may wait for idle CPUs.")
@click.option("--cluster", "kind", type=click.Choice(["own", "embedded", "local"]), default="own", show_default=True)
@click.option("--json", "path", type=FILE, help="Where the numbers are kept; rows that are there are replaced.")
@click.option("--add", is_flag=True, help="Add to the repeats that are there.")
@click.option("--picture", type=FILE, help="Draw a picture of what is kept; needs matplotlib.")
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
    path = path or RESULTS / ("quick.json" if quick else f"dispatch-{kind}.json")
    results = load(path)
    if not show:
        chosen = _chosen(rows)
        with cluster(kind, quick) as on, Spinners(on.slots) as spinners:
            measurement = Measurement(on, spinners, subjects.split(","), 1 if quick else repeats, quick, quiet_s)
            for row in chosen:
                result = results[row.name] = (results.get(row.name) if add else None) or RowResult()
                measurement.time(row, result, lambda: save(path, results))
                click.echo(f"{row.name}: {summary(result)}", err=True)
            # Last: counting slows everything down that comes after.
            for row in chosen:
                if row.counted:
                    measurement.count(row, results[row.name])
                    save(path, results)
    click.echo(table(results))
    if picture is not None:
        from .picture import draw  # matplotlib is there only with the dependency group "bench"

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


if __name__ == "__main__":
    main()
