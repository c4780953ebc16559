"""What happens to a chunk that came to no reply: a pure policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._engine.base import LostKind
from ..errors import NoWorkersError

#: Data are placed again and the chunk sent again this often.
MAX_DATA_LOSSES = 10


#: This many workers may die of one task.
MAX_DEATHS = 3

#: How often a watched chunk may be lost before any of its tasks has started: then the workers die by themselves.
MAX_UNSTARTED_LOSSES = 10


@dataclass(frozen=True, slots=True)
class Death:
    """Say what follows from the loss of a chunk whose worker died."""

    guilty: int | None
    """Position of the task that is given up."""
    suspects: range
    """Positions of the tasks one of which may have killed the worker."""
    deaths: int
    """How many workers these have seen die."""


def after_loss(kind: LostKind, losses: int) -> bool:
    """Decide whether a chunk that was lost, not by its worker's death, runs again.

    Parameters
    ----------
    kind
        Why it was lost.
    losses
        How often it was, this time included.
    """
    return kind is LostKind.DATA and losses <= MAX_DATA_LOSSES


def after_death(n_tasks: int, report_every: int, started: int | None, before: int, more: int) -> Death:
    """Decide who may have killed a worker.

    A chunk that nobody watched is suspect as a whole. It runs again watched: every so many tasks the scheduler is told
    which one starts. If it kills once more, those since the last such message are left; at the third time each one
    reports, and the one that is at fault is known for certain. What only waited on the worker has not
    started, and is not blamed.

    Parameters
    ----------
    n_tasks
        How many tasks the chunk holds.
    report_every
        How many of them there are between two that say that they start; 0: none did.
    started
        Position of the last one that said so; `n_tasks` if all had ended.
    before
        How many workers had died with these tasks before.
    more
        How many have died now.
    """
    if not report_every:
        suspects, deaths = range(n_tasks), before + more
    elif started is None:
        return Death(None, range(n_tasks), before)
    else:
        suspects, deaths = range(started, min(started + report_every, n_tasks)), before + more
    guilty = suspects[0] if len(suspects) == 1 and deaths >= MAX_DEATHS else None
    return Death(guilty, suspects, deaths)


def report_every(n_tasks: int, deaths: int) -> int:
    """Give how many tasks of a chunk there are between two that say that they start; 0: none does.

    Parameters
    ----------
    n_tasks
        How many tasks the chunk holds.
    deaths
        How many workers have died with them.
    """
    if not deaths:
        return 0
    # Of n tasks, the square root of n report, and after the next death all of those that are left do.
    return math.isqrt(n_tasks - 1) + 1 if deaths == 1 else 1


def runs_by_itself(deaths: int) -> bool:
    """Whether nothing else of the call may run beside a chunk that has seen so many workers die.

    It could be blamed for what that does: the next death is its fault, and a worker may have several threads.
    """
    return deaths > 1


def no_workers_left(timeout_s: float) -> NoWorkersError:
    """Say that the last worker is gone and none has come back."""
    return NoWorkersError(
        f"all workers are gone, or paused because their memory is nearly used up, and none has come back for "
        f"{timeout_s:g} seconds. Their logs and the scheduler's say why. To wait longer for new ones: "
        f'parallel_config("dask", wait_for_workers_timeout={2 * timeout_s:g})'
    )
