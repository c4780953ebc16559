"""What happens to a chunk that came to no reply: a pure policy."""

from __future__ import annotations

from dataclasses import dataclass

from .._engine.base import LostKind
from ..errors import NoWorkersError

#: Data are placed again and the chunk sent again this often.
MAX_DATA_LOSSES = 10


@dataclass(frozen=True, slots=True)
class Again:
    """Run the chunk's tasks again."""

    alone: bool = False
    """Each by itself, to find the one that is at fault."""


def after_loss(kind: LostKind, losses: int, n_tasks: int) -> Again | None:
    """Decide whether a lost chunk runs again; None gives it up.

    Parameters
    ----------
    kind
        Why it was lost.
    losses
        How often it was, this time included.
    n_tasks
        How many tasks it holds.
    """
    match kind:
        case LostKind.DATA if losses <= MAX_DATA_LOSSES:
            return Again()
        # Dask has tried it on several workers already. One of the tasks kills them: find out which.
        case LostKind.WORKER if n_tasks > 1:
            return Again(alone=True)
    return None


def no_workers_left(timeout_s: float) -> NoWorkersError:
    """Say that the last worker is gone and none has come back."""
    return NoWorkersError(
        f"all workers are gone and none has come back for {timeout_s:g} seconds. Their logs and the "
        "scheduler's say why they ended. To wait longer for new ones: "
        f'parallel_config("dask", wait_for_workers_timeout={2 * timeout_s:g})'
    )
