"""The command line."""

import signal
import sys
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
@click.option("--size-mb", default=200, show_default=True, help="Of the data; strings have a tenth.")
@click.option("--repeats", default=3, show_default=True, help="How often each row is timed; the built-in once.")
@click.option("--minutes", default=15.0, show_default=True, help="No repeat begins that would end later than that.")
@click.option("--no-memory", is_flag=True, help="Only time: leave out the runs whose memory is watched.")
@click.option("--quick", is_flag=True, help="Everything small, once, on two workers: to see that it runs.")
@click.option("--json", "path", type=FILE, help="Where the numbers are kept; rows that are there are replaced.")
@click.option("--add", is_flag=True, help="Add to the repeats that are there.")
@click.option("--show", is_flag=True, help="Measure nothing: print the tables of what is kept.")
@click.option("--write", is_flag=True, help="Put the tables into benchmarks/README.md and README.md.")
def main(rows, subjects, workers, size_mb, repeats, minutes, no_memory, quick, path, add, show, write):
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
        # What was started is ended then too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        numbers = [int(number) for number in workers.split(",")]
        for n_workers in numbers:
            _prepare(plan, n_workers, results if add else {}, results)
        begun = time.monotonic()
        for done, n_workers in enumerate(numbers, 1):
            until = begun + 60 * minutes * done / len(numbers)
            _measure(plan, n_workers, results, lambda: save(path, results), until)
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


def _measure(plan, n_workers, results, keep, until):
    # What is needed of all rows first, then repeats as long as there is time.
    rounds = [(0, False), *([(0, True)] if plan.memory else []), *((i, False) for i in range(1, plan.repeats))]
    lasted = dict.fromkeys(plan.subjects, 0.0)
    with Turns(n_workers, plan.size_mb * 10**6) as turns:
        for i, watch in rounds:
            subjects = [s for s in plan.subjects if watch or i < REPEATS_AT_MOST.get(s, plan.repeats)]
            if i and time.monotonic() + sum(lasted[s] for s in subjects) > until:
                click.echo(f"{n_workers} workers: no time for repeat {i + 1} of {plan.repeats}", err=True)
                break
            if not watch:
                lasted = dict.fromkeys(subjects, 0.0)
            for row in plan.rows:
                for subject in subjects:
                    if (row.name, subject) == ("scatter", "loky"):
                        continue
                    start = time.monotonic()
                    sample = turns.take(row, subject, watch)
                    took_s = time.monotonic() - start
                    if not watch:
                        lasted[subject] += took_s
                    results[key(row, n_workers)].samples.setdefault(subject, []).append(sample)
                    keep()
                    click.echo(f"{row.name}, {n_workers} workers: {subject} {progress(sample, took_s)}", err=True)


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
