"""The calls that are struck: their tasks, what these must give, and which of them waits to be struck."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import delayed

from tests.faults import tasks

N_TASKS = 12
HELD = 3
N_OUTER = 4


@dataclass(frozen=True)
class Workload:
    """One call.

    Tasks leave a mark in ``directory / "ran"`` when they start; those that are held wait there for the gate of
    their attempt.
    """

    make: Callable[..., Sequence[Any]]
    """Takes the directory, the held tasks and how many of their attempts are held; gives the `delayed` calls."""
    results: Sequence[Any]
    held: tuple[int, ...] = (HELD,)
    victim: tuple[str, int] = ("ran", HELD)
    """Whose process is struck: a directory of marks and the name of one."""
    ready: int = N_TASKS // 2 + 1
    """When so many tasks have started, half is done."""
    read: Callable[[Any], Any] = lambda result: result
    """Makes a result comparable."""


def _squares(directory, held, attempts):
    return [delayed(tasks.held_square)(directory, held, attempts, i) for i in range(N_TASKS)]


def _seconds_held(directory, held, attempts):
    return [delayed(tasks.second_held_square)(directory, held, attempts, i) for i in range(N_TASKS)]


def _on_an_array(directory, held, attempts):
    array = np.arange(2**18, dtype=float)
    return [delayed(tasks.held_look)(directory, held, attempts, array, i) for i in range(N_TASKS)]


def _large(directory, held, attempts):
    return [delayed(tasks.held_large)(directory, held, attempts, i) for i in range(N_TASKS)]


def _nested(directory, held, attempts):
    return [delayed(tasks.nested_sum)(directory, held, attempts, i) for i in range(N_OUTER)]


def _unless(act):
    """Make a workload of which one task does something else."""

    def make(directory, held, attempts):
        return [delayed(tasks.square_unless)(directory / "ran", held, act, i) for i in range(N_TASKS)]

    return Workload(make, [i * i for i in range(N_TASKS)])


def _bad_argument(directory, held, attempts):
    numbers = [tasks.Unsendable() if i in held else i for i in range(N_TASKS)]
    return [delayed(tasks.noted_square)(directory / "ran", i) for i in numbers]


_sums = [sum((10 * i + j) ** 2 for j in range(4)) for i in range(N_OUTER)]

SQUARES = Workload(_squares, [i * i for i in range(N_TASKS)])
ON_AN_ARRAY = Workload(_on_an_array, [i * i + 2**17 for i in range(N_TASKS)])
TWO_HELD = Workload(_seconds_held, SQUARES.results, held=(), victim=("ran", 0), ready=4)
LARGE_RESULTS = Workload(
    _large, [(2**18, i, i) for i in range(N_TASKS)], read=lambda a: (a.size, int(a.min()), int(a.max()))
)
OUTER = Workload(_nested, _sums, held=(11,), victim=("outer", 1))
INNER = Workload(_nested, _sums, held=(11,), victim=("ran", 11))
SEGFAULT, LEAVE, EAT = map(_unless, (tasks.segfault, tasks.leave, tasks.eat))
BAD_RESULT, UNREADABLE, BAD_EXCEPTION = map(_unless, (tasks.unsendable, tasks.unreadable, tasks.raise_odd))
BAD_ARGUMENT = Workload(_bad_argument, SQUARES.results)
