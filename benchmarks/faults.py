"""What comes of a call when something fails: jobfleet beside joblib's built-in Dask backend, as a table.

The rows are those of the plan of faults (``tests/faults/plan.py``) and the ways to stop a call
(``tests/faults/stops.py``). Each runs on a cluster of its own in a process of its own, which is killed at the
deadline: what hangs is said to hang.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from tests.faults import plan, stops
from tests.faults.scene import Report, perform_apart
from tests.netns import Unavailable

from .columns import aligned
from .machine import facts

HERE = Path(__file__).parent
KEPT = HERE / "results" / "faults.json"
PAGE = HERE / "README.md"
MARKS = ("<!-- faults -->", "<!-- end faults -->")
SUBJECTS = ("jobfleet", "builtin")
NAMES = [*dict.fromkeys(plan.row_name(row) for row in plan.PLAN if row.shown), *stops.STOPS, stops.CLIENT_DIES]


@click.command()
@click.option("--rows", default="", help="Comma-separated: only rows whose name has one of these in it.")
@click.option("--deadline", "deadline_s", default=60.0, show_default=True, help="What takes longer hangs.")
@click.option("--jobs", default=1, show_default=True, help="Rows at a time: more are sooner done, each takes longer.")
@click.option("--json", "path", type=click.Path(path_type=Path), default=KEPT, help="Where the reports are kept.")
@click.option("--page", is_flag=True, help=f"Write the table into {PAGE.name}, too.")
@click.option("--show", is_flag=True, help="Run nothing: print the table of what is kept.")
def main(rows: str, deadline_s: float, jobs: int, path: Path, page: bool, show: bool) -> None:
    """Break clusters under both backends, and tell what came of it."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    if not show:
        kept["machine"] = facts()
        names = [name for name in NAMES if any(part in name for part in rows.split(","))]
        # In their order, whatever was there before.
        kept["rows"] = {name: {} if name in names else kept["rows"].get(name, {}) for name in NAMES}

        def one(of: tuple[str, str]) -> None:
            entry = kept["rows"][of[0]][of[1]] = run(*of, deadline_s)
            click.echo(f"{', '.join(of)}: {entry}", err=True)

        with ThreadPoolExecutor(jobs) as threads:
            list(threads.map(one, itertools.product(names, SUBJECTS)))
        path.write_text(json.dumps(kept, indent=1) + "\n")
    lines = table(kept)
    click.echo("\n".join(lines))
    if page:
        write(lines, kept)


def run(name: str, subject: str, deadline_s: float) -> dict[str, Any]:
    """Run one row for one subject; gives what is kept of it."""
    row = next((row for row in plan.PLAN if plan.row_name(row) == name), None)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        try:
            report = perform_apart(plan.row_id(row) if row else name, directory, subject, deadline_s)
        except subprocess.TimeoutExpired:
            return {"outcome": f"hangs (> {deadline_s:g} s)", "seconds": round(time.monotonic() - began, 1)}
        except Unavailable as reason:
            return {"outcome": f"not run: {reason}"}
        except RuntimeError:
            return {"outcome": "no cluster could be started"}
    if row is None:
        return {"outcome": report.told, "seconds": round(report.seconds, 1)}
    return {"outcome": outcome(row, report), "seconds": round(report.seconds, 1), "again": report.run_again()}


def outcome(row: plan.Scenario, report: Report) -> str:
    """Say in a few words what came of a row."""
    said = []
    if -1 in report.failures:
        kinds, text = report.failures[-1]
        said.append(f"{kinds.split()[0]}: {_short(text)}" if text else kinds.split()[0])
        if row.fails or not row.ends:
            said.append("no results")
    elif not plan.as_expected(row, report.results):
        said.append("wrong results")
    elif report.failures:
        (kinds,) = {kinds.split()[0] for kinds, _ in report.failures.values()}
        said.append(f"{kinds} for that task, all other results")
    else:
        said.append("all results")
    if report.struck:
        said.append("it did not come to that point" if "the call is there" in report.struck else _short(report.struck))
    if report.next_call:
        said.append("the next call fails")
    if report.left:
        said.append(f"{len(report.left)} things are left behind")
    return "; ".join(said)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:37]}..."


def table(kept: dict[str, Any]) -> list[str]:
    """Lay out what is kept."""
    lines = [["scenario", *(f"{subject}: {what}" for subject in SUBJECTS for what in ("outcome", "s", "again"))]]
    for name, entries in kept["rows"].items():
        cells = [name]
        for subject in SUBJECTS:
            entry = entries.get(subject, {})
            cells += [str(entry.get(column, "")) for column in ("outcome", "seconds", "again")]
        lines.append(cells)
    return aligned(lines)


def write(lines: list[str], kept: dict[str, Any]) -> None:
    """Put the table between its marks."""
    machine = kept["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = (
        f"{machine['cpus']} processors ({machine['cpu']}), {machine['system']}, Python {machine['python']}, {versions}"
    )
    text = PAGE.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    told = f"{where}. Measured at `{machine['commit']}`, with a load of {machine['load']:g} at the start."
    if not all(len(entries) == len(SUBJECTS) for entries in kept["rows"].values()):
        told += " What is empty has not been measured."
    PAGE.write_text("\n".join([before + MARKS[0], told, "", "```text", *lines, "```", MARKS[1] + after]))


if __name__ == "__main__":
    main()
