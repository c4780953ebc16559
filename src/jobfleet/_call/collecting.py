"""The interpreter's garbage collector, while a call makes short tasks."""

from __future__ import annotations

import gc
import os
import threading

#: joblib makes some thousand tasks at a time, of a few objects each, which go as soon as they are pickled. The
#: interpreter would look through them after each 700 new objects (`gc.get_threshold`), and now and then through all of
#: the process, where imported modules alone have a hundred thousand: a sixth of the time of such a call.
RARE_THRESHOLD = 10_000

_lock = threading.Lock()
_n_holders = 0
_usual: int | None = None
"""The threshold to be set again; None: it was left alone."""


class RareCollection:
    """Have the garbage collector look at young objects more rarely, from `begin` to `end`.

    Notes
    -----
    The threshold is the process's: several calls share the change, and the last one undoes it. One that is higher, or
    none at all, is left alone, and so is one that somebody else sets meanwhile. Thread-safe but for the calls of one
    object.
    """

    _holds: bool

    def __init__(self) -> None:
        self._holds = False

    def begin(self) -> None:
        """Look more rarely; nothing changes if it has begun."""
        global _n_holders, _usual
        if self._holds:
            return
        self._holds = True
        with _lock:
            _n_holders += 1
            young, *older = gc.get_threshold()
            if _n_holders == 1 and 0 < young < RARE_THRESHOLD:
                _usual = young
                gc.set_threshold(RARE_THRESHOLD, *older)

    def end(self) -> None:
        """Look as often as before; nothing changes if it has not begun."""
        global _n_holders
        if not self._holds:
            return
        self._holds = False
        with _lock:
            _n_holders -= 1
            if not _n_holders:
                _undo()


def _undo() -> None:
    global _usual
    usual, _usual = _usual, None
    young, *older = gc.get_threshold()
    if usual is not None and young == RARE_THRESHOLD:
        gc.set_threshold(usual, *older)


def _after_fork() -> None:
    """Forget calls whose threads are in the process that this one was forked from; one may have held the lock."""
    global _lock, _n_holders
    _lock = threading.Lock()
    _n_holders = 0
    _undo()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
