"""What is run: each workload runs once with the backend of the block, checks what came out, and times it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import psutil
from joblib import Parallel, delayed

from ..machine import CpuClock


class WrongResult(Exception):
    """A backend gave another result than the sequential run."""


class Workload(Protocol):
    """Something to run with the backend of the block."""

    def warm(self) -> None:
        """Let processes start and import what they need."""

    def once(self) -> dict[str, float]:
        """Run it, check it, give what was measured: `wall_s` at least."""


def check(results: Any, expected: Any) -> None:
    """Compare with the sequential run."""
    if results != expected:
        raise WrongResult(f"got {str(results)[:200]}, the sequential run gives {str(expected)[:200]}")


@dataclass
class Calls:
    """One call, or some in a row, of a function over a list of arguments."""

    function: Callable[..., Any]
    arguments: Sequence[tuple[Any, ...]]
    expected: list[Any]
    repeats: int = 1
    """Calls in a row."""
    batch_size: int | str = "auto"

    def warm(self) -> None:
        for _ in range(2):
            self._run(self.arguments[:50])

    def once(self) -> dict[str, float]:
        outputs = []
        clock = CpuClock()
        cpu = clock.read()
        started = time.perf_counter()
        for _ in range(self.repeats):
            outputs.append(self._run(self.arguments))
        wall_s = time.perf_counter() - started
        cpu_s = clock.between(cpu, clock.read())
        for output in outputs:
            check(output, self.expected)
        return {"wall_s": wall_s, "cpu_s": cpu_s}

    def _run(self, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        results: list[Any] = Parallel(batch_size=self.batch_size)(delayed(self.function)(*args) for args in arguments)
        return results


@dataclass
class EachCall(Calls):
    """The median time of one call among some in a row."""

    def once(self) -> dict[str, float]:
        times = []
        clock = CpuClock()
        cpu = clock.read()
        for _ in range(self.repeats):
            started = time.perf_counter()
            output = self._run(self.arguments)
            times.append(time.perf_counter() - started)
            check(output, self.expected)
        cpu_s = clock.between(cpu, clock.read()) / self.repeats
        return {"wall_s": sorted(times)[len(times) // 2], "worst_s": max(times), "cpu_s": cpu_s}


@dataclass
class Fit:
    """The fit of an estimator; what it has learned must be what it learns sequentially."""

    make: Callable[[], Any]
    data: tuple[Any, Any]
    learned: Callable[[Any], Any]
    make_warm: Callable[[], Any] | None = None
    """A smaller one, for warming up."""
    _expected: Any = None

    def warm(self) -> None:
        (self.make_warm or self.make)().fit(*self.data)

    def sequential(self) -> float:
        """Note what the sequential run learns; give its time."""
        estimator = self.make().set_params(n_jobs=1)
        started = time.perf_counter()
        estimator.fit(*self.data)
        wall_s = time.perf_counter() - started
        self._expected = self.learned(estimator)
        return wall_s

    def once(self) -> dict[str, float]:
        estimator = self.make()
        clock = CpuClock()
        cpu = clock.read()
        started = time.perf_counter()
        estimator.fit(*self.data)
        wall_s = time.perf_counter() - started
        cpu_s = clock.between(cpu, clock.read())
        check(self.learned(estimator), self._expected)
        return {"wall_s": wall_s, "cpu_s": cpu_s}


@dataclass
class Stream:
    """Results taken one by one from a generator over lazily made tasks; the client's memory is watched."""

    function: Callable[[int], Any]
    number: int

    def warm(self) -> None:
        self._consume(1000)

    def once(self) -> dict[str, float]:
        with MemoryWatch() as memory:
            clock = CpuClock()
            cpu = clock.read()
            started = time.perf_counter()
            self._consume(self.number)
            wall_s = time.perf_counter() - started
            cpu_s = clock.between(cpu, clock.read())
        return {"wall_s": wall_s, "cpu_s": cpu_s, "grown_mb": memory.grown_mb}

    def _consume(self, number: int) -> None:
        taken = 0
        for result in Parallel(return_as="generator")(delayed(self.function)(i) for i in range(number)):
            if result != self.function(taken):
                raise WrongResult(f"task {taken} of the stream gave {result!r}")
            taken += 1
        check(taken, number)


@dataclass
class MemoryWatch:
    """Watch how far this process's resident memory rises above where it was."""

    grown_mb: float = 0.0
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> MemoryWatch:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.grown_mb = max(self.grown_mb, (self._process.memory_info().rss - self._before) / 1e6)
            if self._end.wait(0.05):
                return


_SCRIPT = """\
from math import sqrt
from joblib import Parallel, delayed, parallel_config
{extra}
with parallel_config({backend!r}, n_jobs=-1):
    print(Parallel()(delayed(sqrt)(i) for i in range(10)), flush=True)
"""

_IMPORT = """\
import time
import joblib
started = time.perf_counter()
import jobfleet
print(time.perf_counter() - started)
"""


@dataclass
class Start:
    """A script of its own, from the start of its process to the first result it prints."""

    backend: str
    extra: str = ""

    def warm(self) -> None:
        self.once()

    def once(self) -> dict[str, float]:
        source = _SCRIPT.format(backend=self.backend, extra=self.extra)
        with TemporaryDirectory() as directory:
            path = Path(directory) / "script.py"
            path.write_text(source)
            started = time.perf_counter()
            with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                line = process.stdout.readline()
                wall_s = time.perf_counter() - started
                process.wait(60)
        check(line.strip(), str([i**0.5 for i in range(10)]))
        return {"wall_s": wall_s, "ended_s": time.perf_counter() - started}


@dataclass
class Import:
    """`import jobfleet` in a process that has imported joblib."""

    def warm(self) -> None:
        self.once()

    def once(self) -> dict[str, float]:
        run = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True, timeout=60)
        return {"wall_s": float(run.stdout)}
