"""Interrupt what a thread runs, at the place where it runs Python code.

Python can raise an exception in another thread (`PyThreadState_SetAsyncExc`): it appears there as soon as the
thread runs Python code. A thread in a long call of native code gets it when that call returns.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupted(BaseException):
    """End a task that nobody waits for any more.

    Not an `Exception`, so that ``except Exception`` in the task does not stop it.
    """


class Interruptible:
    """Run code of one thread in such a way that other threads may end it.

    Notes
    -----
    `run` and `masked` belong to the thread that made this; `interrupt` to any one other thread at a time.

    An exception raised in a thread arrives some time later. If it arrived after `run`, it would hit what the
    thread does next, maybe for somebody else. So whoever raises it, or has to be safe from it, holds `_holder`.
    That is no lock: the thread may be hit between any two steps, also between getting a lock and noting that it
    has it. `dict.setdefault` gets it and says who has it in one step, and may be done again.

    - The interrupting thread gets it, raises, gives it back.
    - The thread itself gets it for good when `run` ends: from then on nothing is raised. What was raised before and
      has not arrived is taken back.
    """

    requested: bool
    """Whether `interrupt` was called."""
    on_request: set[Callable[[], None]]
    """Called, in the interrupting thread, when an interruption is first asked for."""

    def __init__(self) -> None:
        self._thread_id = threading.get_ident()
        self._holder: dict[str, str] = {"by": "own"}
        self._outer: Interruptible | None = None
        self._inner: Interruptible | None = None
        self._running = False
        self._raised = False
        self.requested = False
        self.on_request = set()

    def run(self, function: Callable[[], T]) -> T | None:
        """Call `function`; gives None if it was interrupted."""
        outer = current()
        if outer is None:
            return self._run(function)
        # What interrupts the outer one interrupts this one in its place.
        with outer.masked():
            outer._inner = self
            try:
                return self._run(function)
            finally:
                outer._inner = None

    def _run(self, function: Callable[[], T]) -> T | None:
        self._outer, _active.region = current(), self
        result: T | None = None
        try:
            self._running = True
            if not self.requested:
                self._let_go()
                result = function()
        except Interrupted:
            pass
        try:
            self._hold()
        except Interrupted:  # it came on the way out; while this one is handled no other is raised
            self._hold()
        self._running = False
        _active.region = self._outer
        return result

    @contextlib.contextmanager
    def masked(self) -> Iterator[None]:
        """Run code that must not be interrupted half-way; an interruption that was asked for comes after it.

        Not while an earlier one is handled: what handles it is let finish.
        """
        try:
            self._hold()
        except Interrupted:
            # Maybe on the way there: then it is the other thread's, or nobody's.
            if self._holder.get("by") == "own":
                self._let_go()
            raise
        try:
            yield
        finally:
            self._let_go()
        if self.requested and not _on_its_way_out(self._thread_id):
            raise Interrupted

    def interrupt(self) -> bool:
        """Raise `Interrupted` in the thread if it is in `run`; gives whether it is.

        To be called again after some time as long as it gives True: it does nothing while the thread is where an
        interruption would do harm, see `_spares`, and the task may catch everything.
        """
        first, self.requested = not self.requested, True
        if first:
            for notify in list(self.on_request):
                notify()
        inner = self._inner
        if inner is not None:
            inner.interrupt()
        elif self._holder.setdefault("by", "other") == "other":
            try:
                if not self._is_spared():
                    self._raised = True
                    _raise_in(self._thread_id)
                    # The thread may have run on between the look and the deed. Here nothing can arrive in the place of
                    # what is taken back, see `_take_back`: that is made good when the thread holds.
                    if self._is_spared():
                        _set_exception(self._thread_id, ctypes.py_object())
            finally:
                del self._holder["by"]
        return self._running

    def _is_spared(self) -> bool:
        return _spares(self._thread_id) or (self._raised and _on_its_way_out(self._thread_id))

    def _hold(self) -> None:
        """Be safe from now on."""
        while self._holder.setdefault("by", "own") != "own":
            time.sleep(0)  # the other thread is about to give it back
        if self._raised:
            _take_back()

    def _let_go(self) -> None:
        del self._holder["by"]


class _Active(threading.local):
    region: Interruptible | None = None


_active = _Active()


def current() -> Interruptible | None:
    """Give what this thread runs in, if that may be interrupted."""
    return _active.region


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Run code of ours, called by a task, that must not be interrupted half-way."""
    region = current()
    if region is None:
        yield
        return
    with region.masked():
        yield


#: Imports, and callbacks of weak references.
_SPARED_FILES = frozenset(
    {
        "<frozen importlib._bootstrap>",
        weakref.finalize.__call__.__code__.co_filename,
        weakref.WeakSet.add.__code__.co_filename,
    }
)

_THIS_FILE = current.__code__.co_filename

_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_exception.restype = ctypes.c_int


def _raise_in(thread_id: int) -> None:
    _set_exception(thread_id, Interrupted)


class _Nothing(BaseException):
    """Takes the place of what is taken back."""


def _take_back() -> None:
    """Have nothing arrive any more of what was raised in this thread.

    Something else is raised in its place, and arrives here. If nothing were, Python 3.11 and 3.12 would look for it at
    every call and every turn of a loop from then on; and 3.11, where a function is traced or profiled, for ever.
    """
    try:
        _set_exception(threading.get_ident(), _Nothing)
        for _ in range(100):  # it arrives at the first turn
            pass
    except _Nothing:
        pass


def _spares(thread_id: int) -> bool:
    """Whether the thread is where an interruption would do harm, or not get through.

    It imports a module: many extension modules cannot be loaded a second time. It is in a finalizer or a callback of
    the garbage collector: Python swallows what these raise, prints it, and their work is left undone. Or in code of
    this file, which has its own way of ending.
    """
    frame = sys._current_frames().get(thread_id)
    if frame is not None and frame.f_code.co_filename == _THIS_FILE:
        return True
    callbacks = [getattr(callback, "func", callback) for callback in (*gc.callbacks, sys.unraisablehook)]
    swallowing = {callback.__code__ for callback in callbacks if hasattr(callback, "__code__")}
    while frame is not None:
        code = frame.f_code
        if code.co_filename in _SPARED_FILES or code.co_name == "__del__" or code in swallowing:
            return True
        frame = frame.f_back
    return False


def _on_its_way_out(thread_id: int) -> bool:
    """Whether the thread is in an ``except``, ``finally`` or ``__exit__`` because of an interruption."""
    handled: Any = sys._current_exceptions().get(thread_id)
    error: BaseException | None = handled[1] if isinstance(handled, tuple) else handled  # a tuple in Python 3.11
    for _ in range(100):
        if error is None or isinstance(error, Interrupted):
            break
        error = error.__context__
    return isinstance(error, Interrupted)


#: A task that has not ended this long after it was first interrupted is in native code, or does not let itself be
#: interrupted.
REPORT_AFTER_S = 1.0

_AGAIN_AFTER_S = 0.1
_SELDOM_S = 1.0


def insist(
    region: Interruptible,
    call_later: Callable[[float, Callable[[], object]], object],
    report: Callable[[], None],
    now: Callable[[], float] = time.monotonic,
    report_after_s: float = REPORT_AFTER_S,
) -> None:
    """Interrupt until it is over.

    Parameters
    ----------
    region
        What to interrupt.
    call_later
        Calls a function after some seconds, on the thread that calls this.
    report
        Called once if it is not over after `report_after_s`.
    """
    began_s = now()
    reported = False

    def again() -> None:
        nonlocal reported
        if not region.interrupt():
            return
        late = now() - began_s >= report_after_s
        if late and not reported:
            reported = True
            report()
        call_later(_SELDOM_S if late else _AGAIN_AFTER_S, again)

    again()
