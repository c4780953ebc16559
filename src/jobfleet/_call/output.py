"""In which order what tasks printed and warned is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: What one task printed and warned, see `_sink.Event`.
Events = tuple[Any, ...]


class OutputOrder:
    """Put the output of tasks in the order of the call, as in the sequential run.

    A task's output is held back until all tasks before it have ended. Where results come in the order of
    completion, so does output.

    Parameters
    ----------
    ordered
        Whether results come in the order of the call.
    """

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._next = 0
        self._ended: dict[int, int] = {}
        """Stretches of tasks that have ended: first task, and the one after the last."""
        self._held: dict[int, Events] = {}

    def take(self, ended: range, events: Iterator[tuple[int, Events]]) -> list[Events]:
        """Note that tasks have ended, and what they have printed; gives what may be shown now."""
        if not self._ordered:
            return [one for _, one in events]
        for task, one in events:
            self._held[task] = self._held.get(task, ()) + one
        if ended:
            self._ended[ended.start] = ended.stop
        while self._next in self._ended:
            self._next = self._ended.pop(self._next)
        return self._release(task for task in sorted(self._held) if task < self._next)

    def take_all(self) -> list[Events]:
        """Give what is held back, in order: the call ends."""
        return self._release(sorted(self._held))

    def _release(self, tasks: Any) -> list[Events]:
        return [self._held.pop(task) for task in list(tasks)]
