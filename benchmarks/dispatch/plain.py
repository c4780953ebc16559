"""The backends that need no cluster, in a process of its own without one, as their users have it.

In a process with a Dask client, 200,000 square roots took loky a tenth longer.

`python -m` this, the number of jobs and whether all is small, as JSON: reads what to do, a JSON array a line, answers
each with a line, and ends when its input does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from joblib import parallel_config

from .rows import ROWS, Prepared


class PlainProcess:
    """Have rows run in a process without Dask."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, *what: str) -> dict[str, float]:
        """Have it do something; gives what it measured."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process without Dask has ended; it says why above")
        sample: dict[str, float] = json.loads(answer)
        return sample


@dataclass
class Elsewhere:
    """What one of its subjects runs of a row."""

    process: PlainProcess
    row: str
    subject: str

    def warm(self) -> None:
        """Let the subject's processes start, and import what they need."""
        self.process.ask("warm", self.row, self.subject)

    def once(self) -> dict[str, float]:
        """Run it, check it, give what was measured."""
        return self.process.ask("once", self.row, self.subject)


@contextlib.contextmanager
def plain_process(slots: int, quick: bool) -> Iterator[PlainProcess]:
    """Start one whose backends get so many jobs, and whose rows are all small if they are to be quick."""
    command = [sys.executable, "-m", __name__, json.dumps([slots, quick])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield PlainProcess(process)


def main() -> None:
    """Do what is asked until the input ends."""
    slots, quick = json.loads(sys.argv[1])
    rows = {row.name: row for row in ROWS}

    @functools.lru_cache(maxsize=1)
    def prepared(name: str) -> Prepared:
        return rows[name].prepare(slots, quick)

    for line in sys.stdin:
        what, name, subject = json.loads(line)
        workload = prepared(name).workloads[subject]
        with parallel_config(subject, n_jobs=slots):
            sample = workload.once() if what == "once" else workload.warm()
        print(json.dumps(sample or {}), flush=True)


if __name__ == "__main__":
    main()
