"""Where the CPU time goes, by thread: `python -m benchmarks.where`."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from joblib import Parallel, delayed

from .columns import aligned
from .dispatch.subjects import Cluster, cluster
from .dispatch.tasks import busy, empty
from .machine import facts

RESULTS = Path(__file__).parent / "results"

#: The call, how many tasks it has, how much CPU time a task burns, and how many calls are made.
CALLS: dict[str, tuple[Callable[[], Any], int, float, int]] = {
    "tiny: 200,000 square roots": (lambda: Parallel()(delayed(math.sqrt)(i) for i in range(200_000)), 200_000, 0, 3),
    "noop: two empty tasks": (lambda: Parallel()(delayed(empty)() for _ in range(2)), 2, 0, 100),
    "400 tasks of 10 ms": (lambda: Parallel()(delayed(busy)(0.01) for _ in range(400)), 400, 0.01, 1),
    "2,000 tasks of 1 ms": (lambda: Parallel()(delayed(busy)(0.001) for _ in range(2000)), 2000, 0.001, 2),
}
KINDS = ("caller", "client's loop", "driver and others", "worker's loop", "worker's task thread", "worker's others")


def read() -> dict[str, float]:
    """Give the CPU time of this process by kind of thread, in a worker or in the client."""
    named = {"loop": 0.0, "task": 0.0, "caller": 0.0}
    in_worker = threading.main_thread().name != "benchmark"
    for thread in threading.enumerate():
        if thread.ident is None:
            continue
        try:
            seconds = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        except OSError:  # it has just ended
            continue
        if thread is threading.main_thread():
            named["loop" if in_worker else "caller"] += seconds
        elif thread.name.startswith("IO loop"):
            named["loop"] += seconds
        elif "Dask-Default-Threads" in thread.name:
            named["task"] += seconds
    return {**named, "all": time.process_time()}


def _everywhere(on: Cluster) -> dict[str, float]:
    client, workers = read(), list(on.clients["jobfleet"].run(read).values())
    total = {name: sum(worker[name] for worker in workers) for name in client}
    return {
        "caller": client["caller"],
        "client's loop": client["loop"],
        "driver and others": client["all"] - client["caller"] - client["loop"],
        "worker's loop": total["loop"],
        "worker's task thread": total["task"],
        "worker's others": total["all"] - total["loop"] - total["task"],
    }


def _between(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {kind: after[kind] - before[kind] for kind in after}


def measure(on: Cluster, subject: str, name: str, idle: dict[str, float]) -> dict[str, float]:
    """Give the CPU milliseconds of a call by kind of thread, beyond what is used when idle, and its `wall`."""
    call, n_tasks, task_s, repeats = CALLS[name]
    with on.using(subject):
        call()
        before, started = _everywhere(on), time.perf_counter()
        for _ in range(repeats):
            call()
        wall_s = time.perf_counter() - started
        used = _between(before, _everywhere(on))
    used = {kind: used[kind] - wall_s * idle[kind] for kind in KINDS}
    used["worker's task thread"] -= repeats * n_tasks * task_s
    return {"wall": 1000 * wall_s / repeats, **{kind: 1000 * used[kind] / repeats for kind in KINDS}}


@click.command()
@click.option("--subjects", default="jobfleet,builtin", show_default=True, help="Comma-separated.")
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS / "where.json", show_default=True)
def main(subjects: str, path: Path) -> None:
    """Measure in which threads CPU time is used, for three kinds of calls; the tasks' own work is taken off."""
    threading.main_thread().name = "benchmark"
    rows = [["call", "backend", "wall ms", *KINDS]]
    kept = []
    with cluster("embedded") as on:
        before, started = _everywhere(on), time.perf_counter()
        time.sleep(3)
        seconds = time.perf_counter() - started
        idle = {kind: used / seconds for kind, used in _between(before, _everywhere(on)).items()}
        rows.append(["idle, a second", "", "", *(f"{1000 * idle[kind]:.1f}" for kind in KINDS)])
        for name in CALLS:
            for subject in subjects.split(","):
                used = measure(on, subject, name, idle)
                kept.append({"call": name, "backend": subject, **used})
                rows.append([name, subject, *(f"{used[what]:.1f}" for what in ("wall", *KINDS))])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": facts(), "idle": idle, "cpu_ms_a_call": kept}, indent=1) + "\n")
    click.echo("CPU milliseconds a call, beyond the tasks' own work and what an idle cluster uses\n")
    click.echo("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
