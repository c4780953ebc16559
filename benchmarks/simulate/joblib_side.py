"""What `joblib.Parallel` (1.6) does while a call runs: how many tasks it hands out, in batches of what size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator


class Dispatcher:
    """Cut batches as `Parallel.dispatch_one_batch` does.

    Parameters
    ----------
    n_tasks
        Length of the user's iterable.
    n_jobs
        What the backend's `configure` has answered.
    batch_size
        Gives what the backend's `compute_batch_size` answers.
    """

    def __init__(self, n_tasks: int, n_jobs: int, batch_size: Callable[[], int]) -> None:
        self.ended = False
        """It has found the end of the iterable."""
        self.made = 0
        """Tasks it has read from the iterable."""
        self._left = n_tasks
        self._n_jobs = n_jobs
        self._batch_size = batch_size
        self._ready: deque[int] = deque()

    def first(self) -> Iterator[int]:
        """Give the sizes of the batches that are dispatched at once: `pre_dispatch="2 * n_jobs"` tasks."""
        ahead = min(2 * self._n_jobs, self._left)
        after = self._left - ahead
        self._left = ahead
        while (size := self._one(at_end=False)) is not None:
            yield size
        self._left = after

    def next(self, smaller_at_end: bool) -> int | None:
        """Give the size of the batch that a completed one makes room for, or that was asked for; None at the end.

        See `jobfleet._compat.dispatch_more` for `smaller_at_end`.
        """
        size = self._one(smaller_at_end)
        self.ended = size is None
        return size

    def _one(self, at_end: bool) -> int | None:
        if not self._ready:
            wanted = self._batch_size() * self._n_jobs
            taken = min(wanted, self._left)
            if not taken:
                return None
            self._left -= taken
            self.made += taken
            parts = 10 * self._n_jobs if at_end and taken < wanted else self._n_jobs
            size = max(1, taken // parts)
            self._ready.extend(min(size, taken - start) for start in range(0, taken, size))
        return self._ready.popleft()
