"""The command line."""

import time
from dataclasses import dataclass
from pathlib import Path

import click

from ..dispatch.results import RowResult, load, save
from ..machine import facts
from ..readme import put_between_markers
from .measure import Turns, has_namespaces
from .report import SUBJECTS, key, progress, summary, tables, workers_in
from .rows import ROWS, Row

HERE = Path(__file__).parents[1]
FILE = click.Path(path_type=Path)
#: The built-in takes many times as long as the others: it is measured less often.
REPEATS_AT_MOST = {"builtin": 1}


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    rows: list[Row]
    subjects: list[str]
    size_mb: int
    repeats: int
    memory: bool


@click.command()
@click.option("--rows", default="all", help=f"Comma-separated: {', '.join(row.name for row in ROWS)}.")
@click.option("--subjects", default=",".join(SUBJECTS), show_default=True, help="Comma-separated.")
@click.option("--workers", default="2,8", show_default=True, help="Numbers of worker processes, comma-separated.")
@click.option("--size-mb", default=300, show_default=True, help="Of the data; strings have a tenth.")
@click.option("--repeats", default=3, show_default=True, help="How often each row is timed; the built-in once.")
@click.option("--no-memory", is_flag=True, help="Only time: leave out the runs whose memory is watched.")
@click.option("--quick", is_flag=True, help="Everything small, once, on two workers: to see that it runs.")
@click.option("--json", "path", type=FILE, help="Where the numbers are kept; rows that are there are replaced.")
@click.option("--add", is_flag=True, help="Add to the repeats that are there.")
@click.option("--show", is_flag=True, help="Measure nothing: print the tables of what is kept.")
@click.option("--write", is_flag=True, help="Put the tables into benchmarks/README.md and README.md.")
def main(rows, subjects, workers, size_mb, repeats, no_memory, quick, path, add, show, write):
    """Measure what large arguments cost with jobfleet, joblib's built-in Dask backend and loky, in turns."""
    path = path or HERE / "results" / ("quick.json" if quick else "data.json")
    if quick:
        workers, size_mb, repeats = "2", min(size_mb, 8), 1
    results = load(path)
    if not show:
        names = _chosen(rows, [row.name for row in ROWS])
        plan = Plan(
            [row for row in ROWS if row.name in names], _chosen(subjects, SUBJECTS), size_mb, repeats, not no_memory
        )
        for n_workers in map(int, workers.split(",")):
            _prepare(plan, n_workers, results if add else {}, results)
            _measure(plan, n_workers, results, lambda: save(path, results))
    text = tables(results)
    click.echo(text)
    if write:
        _write(results, text)


def _chosen(names, known):
    chosen = list(known) if names == "all" else names.split(",")
    unknown = set(chosen).difference(known)
    if unknown:
        raise click.BadParameter(f"there is no {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return chosen


def _prepare(plan, n_workers, known, results):
    machine = {**facts(), "namespaces": has_namespaces(), "at": time.strftime("%Y-%m-%d")}
    for row in plan.rows:
        result = known.get(key(row, n_workers)) or RowResult({"size_mb": plan.size_mb, "tasks": row.tasks})
        if result.facts["size_mb"] != plan.size_mb:
            size = f"{result.facts['size_mb']:.0f} MB"
            raise click.UsageError(f"{row.name} was measured with {size}: --add takes the same --size-mb only")
        result.machine = machine
        results[key(row, n_workers)] = result


def _measure(plan, n_workers, results, keep):
    with Turns(n_workers, plan.size_mb * 10**6) as turns:
        for i in range(plan.repeats + plan.memory):
            watch = i == plan.repeats
            for row in plan.rows:
                result = results[key(row, n_workers)]
                for subject in plan.subjects:
                    has_none = (row.name, subject) == ("scatter", "loky")
                    if has_none or (not watch and i >= REPEATS_AT_MOST.get(subject, plan.repeats)):
                        continue
                    start = time.monotonic()
                    sample = turns.take(row, subject, watch)
                    result.samples.setdefault(subject, []).append(sample)
                    text = progress(sample, time.monotonic() - start)
                    click.echo(f"{key(row, n_workers)}: {subject} {text}", err=True)
                    keep()


def _write(results, text):
    machine = next(iter(results.values())).machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    commits = ", ".join(sorted({f"`{result.machine['commit']}`" for result in results.values()}))
    where = (
        f"{machine['cpus']} processors ({machine['cpu']}), {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}, {versions}. Measured at {commits}."
    )
    put_between_markers(HERE / "README.md", "data", f"{where}\n\n```text\n{text}\n```")
    put_between_markers(HERE.parent / "README.md", "data", summary(results, workers_in(results)[-1]))


if __name__ == "__main__":
    main()
