"""Rows that run in a process of their own, so that a backend has what its users have and nothing of the others'.

Such a process reads what to do from its input, a JSON array a line, answers each with a line of JSON, and ends when its
input does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from .rows import ROWS, Prepared


class Runner:
    """Do in such a process what it is asked for.

    Parameters
    ----------
    slots
        The number of jobs.
    quick
        Make everything small.
    """

    def __init__(self, slots: int, quick: bool) -> None:
        self.slots = slots
        rows = {row.name: row for row in ROWS}

        @functools.lru_cache(maxsize=1)
        def prepared(row: str) -> Prepared:
            return rows[row].prepare(slots, quick)

        self.prepared = prepared

    def using(self, subject: str) -> AbstractContextManager[Any]:
        """Make a backend that of a block."""
        raise NotImplementedError

    def warm(self, row: str, subject: str) -> None:
        """Let the subject's processes start, and import what a row needs."""
        with self.using(subject):
            self.prepared(row).workloads[subject].warm()

    def once(self, row: str, subject: str) -> dict[str, float]:
        """Run a row, check it, give what was measured."""
        with self.using(subject):
            return self.prepared(row).workloads[subject].once()

    def serve(self) -> None:
        """Do what is asked until the input ends."""
        for line in sys.stdin:
            what, *arguments = json.loads(line)
            print(json.dumps(getattr(self, what)(*arguments)), flush=True)


class Apart:
    """Hold such a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have its runner do something; gives what that gives."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([what, *arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} has ended; it says why above")
        return json.loads(answer)


@dataclass
class Elsewhere:
    """What a subject runs of a row in such a process."""

    process: Apart
    row: str
    subject: str

    def warm(self) -> None:
        """Let the subject's processes start, and import what they need."""
        self.process.ask("warm", self.row, self.subject)

    def once(self) -> dict[str, float]:
        """Run it, check it, give what was measured."""
        sample: dict[str, float] = self.process.ask("once", self.row, self.subject)
        return sample


@contextlib.contextmanager
def apart(module: str, slots: int, quick: bool) -> Iterator[Apart]:
    """Start a module of this package with a `Runner` of so many jobs."""
    command = [sys.executable, "-m", f"{__package__}.{module}", json.dumps([slots, quick])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Apart(process)
