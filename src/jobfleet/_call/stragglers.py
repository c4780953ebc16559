"""Which of the last tasks run a second time on a slot that is idle: a pure policy."""

from __future__ import annotations

#: How many times as long as others like it a chunk must take.
FACTOR = 3.0

#: A chunk that has been away for less is left alone: another one would not be back much sooner.
LEAST_S = 1.0


def is_straggler(away_s: float, expected_s: float | None) -> bool:
    """Decide whether a chunk takes so long that it is worth to try it elsewhere.

    Parameters
    ----------
    away_s
        How long ago it was sent.
    expected_s
        How long it should take, by those that have come back; None: none has.
    """
    return expected_s is not None and away_s > max(LEAST_S, FACTOR * expected_s)
