"""Clusters of many workers in one process: `python -m benchmarks.scale`.

The tasks sleep, so many of them run at once on few processors and what CPU time is used is the client's, the
scheduler's and the workers' own. Threads tell them apart: the client's are the caller's and the driver's; scheduler,
workers and the client's communication share the event loop's. What that uses when nothing is done (heartbeats and
monitors of each worker) is taken off.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from distributed import Client, LocalCluster
from joblib import Parallel, delayed, parallel_config

from .columns import aligned
from .dispatch import subjects  # noqa: F401  # registers the backends' names
from .dispatch.workloads import check
from .machine import facts

RESULTS = Path(__file__).parent / "results"
#: How long the tasks of a call keep each slot busy.
PER_SLOT_S = 3.0


@dataclass(frozen=True)
class Measured:
    """Hold what one call took."""

    backend: str
    workers: int
    tasks: int
    sleep_s: float
    wall_s: float
    client_us: float
    """CPU time for each task, in the caller's and the driver's thread."""
    loop_us: float
    """The same in the event loop's thread, beyond what it uses when idle."""
    all_us: float
    """The same in all threads, the workers' included."""
    idle_loop: float
    """The part of a processor that the event loop uses when idle."""

    @property
    def used(self) -> float:
        """Give the part of the slots' time in which tasks ran."""
        return self.tasks * self.sleep_s / self.workers / self.wall_s


class ThreadTimes:
    """Sum the CPU time of some threads; those that end meanwhile count up to their last reading."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="benchmark-sampler")

    def __enter__(self) -> ThreadTimes:
        self._read(self._first)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._read(self._seen)
        self._end.set()
        self._thread.join()

    def used(self, *names: str) -> float:
        """Give the CPU time of threads whose name begins so."""
        return sum(
            seconds - self._first.get(name, 0.0) for name, seconds in self._seen.items() if name.startswith(names)
        )

    def _sample(self) -> None:
        while not self._end.wait(0.02):
            self._read(self._seen)

    @staticmethod
    def _read(into: dict[str, float]) -> None:
        for thread in threading.enumerate():
            if thread.ident is not None:
                with_ident = f"{thread.name} {thread.ident}"
                try:
                    into[with_ident] = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                except OSError:  # it has just ended
                    continue


def slept(seconds: float, value: int) -> int:
    """Sleep, and give `value`."""
    time.sleep(seconds)
    return value


@contextmanager
def in_process(workers: int) -> Iterator[Client]:
    """Start a cluster in this process."""
    with (
        # Each worker counts the memory of the process, which is that of all.
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None, memory_limit=0
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def idle_loop(seconds: float = 2.0) -> float:
    """Give the part of a processor that the event loop uses when nothing is done."""
    with ThreadTimes() as threads:
        time.sleep(seconds)
    return threads.used("IO loop") / seconds


def measure(client: Client, backend: str, workers: int, sleep_s: float, idle: float) -> Measured:
    """Run one call of sleeping tasks."""
    number = round(PER_SLOT_S / sleep_s) * workers
    with parallel_config(backend, client=client):
        Parallel()(delayed(slept)(0.0, i) for i in range(2 * workers))
        cpu_s = time.process_time()
        with ThreadTimes() as threads:
            started = time.perf_counter()
            results = Parallel()(delayed(slept)(sleep_s, i) for i in range(number))
            wall_s = time.perf_counter() - started
            cpu_s = time.process_time() - cpu_s
    check(results, list(range(number)))
    each = 1e6 / number
    return Measured(
        backend=backend,
        workers=workers,
        tasks=number,
        sleep_s=sleep_s,
        wall_s=wall_s,
        client_us=each * threads.used("MainThread", "jobfleet-driver"),
        loop_us=each * (threads.used("IO loop") - idle * wall_s),
        all_us=each * (cpu_s - threads.used("benchmark-sampler") - idle * wall_s),
        idle_loop=idle,
    )


@click.command()
@click.option("--workers", default="2,8,32,64", show_default=True, help="Comma-separated.")
@click.option("--backends", default="jobfleet,builtin", show_default=True, help="Comma-separated.")
@click.option("--sleep-ms", default="10,100", show_default=True, help="Comma-separated.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS / "scale.json", show_default=True)
def main(workers: str, backends: str, sleep_ms: str, repeats: int, path: Path) -> None:
    """Measure what a task costs in clusters of many workers."""
    measured: list[Measured] = []
    for n_workers in map(int, workers.split(",")):
        with in_process(n_workers) as client:
            idle = idle_loop()
            for _ in range(repeats):
                for ms in sleep_ms.split(","):
                    for backend in backends.split(","):
                        measured.append(measure(client, backend, n_workers, float(ms) / 1000, idle))
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(one)) for one in measured)
    path.write_text(f'{{"machine": {json.dumps(facts())},\n"measured": [\n{lines}\n]}}\n')
    click.echo(table(measured))


def table(measured: list[Measured]) -> str:
    """Lay out medians."""
    groups: dict[tuple[float, str, int], list[Measured]] = {}
    for one in measured:
        groups.setdefault((one.sleep_s, one.backend, one.workers), []).append(one)
    columns = ("used", "client_us", "loop_us", "all_us", "idle_loop")
    rows = [["tasks", "backend", "workers", "used", "client us/task", "event loop us/task", "all us/task", "idle loop"]]
    for (sleep_s, backend, workers), group in sorted(groups.items()):
        medians = [statistics.median(getattr(one, column) for one in group) for column in columns]
        used, *costs, idle = medians
        row = [f"{sleep_s * 1000:.0f} ms", backend, str(workers), f"{used:.2f}", *(f"{cost:.0f}" for cost in costs)]
        rows.append([*row, f"{idle:.2f}"])
    return "\n".join(aligned(rows))


if __name__ == "__main__":
    main()
