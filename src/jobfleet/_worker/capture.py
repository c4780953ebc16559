"""Capture what each task prints and warns, as a list of events for the client.

What is captured: text and bytes written to `sys.stdout` and `sys.stderr`, and warnings,
by the thread that runs the task, by `asyncio.to_thread` from it, and by inner calls whose
output is replayed into it. What is not, and goes to the worker's own streams: threads a
task starts otherwise (unless Python runs with `thread_inherit_context`; see `Sink.entered`
for those we start), its child processes, and what C code writes to the file descriptors.

Warning filters and `sys.stdout` belong to the whole process (filters until Python 3.14's
`context_aware_warnings`), so in a worker with several threads a task that changes them
changes them for its neighbours, as it does with threads anywhere. While chunks of clients
with different filters run side by side everything is delivered, and each client's own
filters decide at its end.
"""

from __future__ import annotations

import codecs
import logging
import pickle
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

from .._filters import (
    DELIVER_ALL,
    EncodedFilters,
    Filter,
    class_name,
    decode_filters,
    forget_shown,
)
from .._sink import Event, Registry, TaskSink, active, active_sink, reissued
from .streams import install, uninstall

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import FrameType, TracebackType

logger = logging.getLogger(__name__)

_IGNORE_ALL: list[Filter] = [("ignore", None, Warning, None, 0)]


class Capture:
    """Capture the tasks of one chunk: enter it around the chunk, `take` after each task.

    Parameters
    ----------
    filters
        The client's warning filters. None leaves warnings alone, where the client is this
        very process and its filters apply already.
    dumps
        Pickles a warning; what it fails on arrives as its nearest importable base class.

    Notes
    -----
    Enter, take and exit in one thread. Captures of several threads, and one inside another
    in a thread, are independent of each other. Writing to it is safe from any thread.
    """

    closed: bool
    #: What the filters are on this worker, None before entering or where they are None.
    decoded: tuple[Filter, ...] | None

    def __init__(
        self,
        filters: EncodedFilters | None,
        dumps: Callable[[Any], bytes] = pickle.dumps,
    ) -> None:
        self.closed = True
        self.filters = filters
        self.decoded = None
        self._dumps = dumps
        self._events: list[Event] = []
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self._version: int | None = None
        self._token: Token[TaskSink | None] | None = None

    def __enter__(self) -> Capture:
        if self.filters is not None:
            self.decoded = decode_filters(self.filters)
        self._version = _process.enter(self)
        self.closed = False
        self._token = active.set(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closed = True
        try:
            if self._token is not None:
                active.reset(self._token)
        finally:
            _process.leave(self)

    def take(self) -> tuple[Event, ...]:
        """Return what happened since the last time, and undo what the task left behind."""
        if self.filters is not None:
            # Called after every task, so all of it is here.
            filters, n_filters, first, stdout, stderr, hook = _process.installed
            if (
                warnings.filters is not filters
                or len(filters) != n_filters
                or filters[0] is not first
                or sys.stdout is not stdout
                or sys.stderr is not stderr
                or warnings.showwarning is not hook
            ):
                self._version = _process.tidy(self, self._version)
        if self._decoders:
            self._end_bytes()
        if not self._events:
            return ()
        events, self._events = self._events, []
        return _joined(events)

    # What follows is called by the streams and the warnings hook.

    def write(self, kind: str, text: str) -> None:
        """Take text for the stream of this kind, "out" or "err"."""
        if self._decoders:
            self._end_bytes()
        self._events.append((kind, text))

    def write_bytes(self, kind: str, data: bytes) -> None:
        """Take bytes; a character may be cut between two writes."""
        decoder = self._decoders.get(kind)
        if decoder is None:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            self._decoders[kind] = decoder
        self._events.append((kind, decoder.decode(data)))

    def _end_bytes(self) -> None:
        decoders, self._decoders = self._decoders, {}
        for kind, decoder in decoders.items():
            self._events.append((kind, decoder.decode(b"", final=True)))

    def warning(
        self,
        message: Warning,
        filename: str,
        lineno: int,
        module: str,
        registry: Registry | None = None,
    ) -> None:
        """Take a warning that the process's filters let through.

        Any change of the filters (leaving a `catch_warnings` is one) makes Python forget
        what it has shown. The event says whether that has happened since the one before,
        so that the client forgets where the sequential run would have.
        """
        version = None if registry is None else registry.get("version")
        fresh = False
        if version is not None:
            fresh = self._version is not None and version != self._version
            self._version = version
        if self._decoders:
            self._end_bytes()
        text = str(message)
        names = tuple(class_name(cls) for cls in type(message).__mro__ if issubclass(cls, Warning))
        blob = self._pickled(message, text)
        self._events.append(("warn", text, blob, names, filename, lineno, module, fresh))

    def _pickled(self, message: Warning, text: str) -> bytes | None:
        """Return the pickled warning, None where its class and text say it all."""
        plain = type(message).__module__ == "builtins" and message.args == (text,)
        if plain and not message.__dict__:
            return None
        try:
            return self._dumps(message)
        except Exception:
            # Pickling runs the class's own code. The warning still arrives, as the
            # nearest class the client can import.
            logger.debug("warning does not pickle: %r", message, exc_info=True)
            return None


def _joined(events: list[Event]) -> tuple[Event, ...]:
    """Join adjacent writes to the same stream."""
    joined: list[Event] = []
    kind, texts = "", [""]
    for event in events:
        if event[0] != kind:
            if kind and (text := "".join(texts)):
                joined.append((kind, text))
            kind, texts = event[0], []
            if kind == "warn":
                joined.append(event)
                kind = ""
                continue
        texts.append(event[1])
    if kind and (text := "".join(texts)):
        joined.append((kind, text))
    return tuple(joined)


class _Hook:
    """Show a warning to the task it comes from, or else as the process did before.

    Like a `Stream`, it keeps what is underneath for good: `catch_warnings` may put it back
    after it was removed.
    """

    def __init__(self, previous: Callable[..., None]) -> None:
        self.previous = previous

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        sink = active_sink()
        if sink is None or file is not None:
            self.previous(message, category, filename, lineno, file, line)
            return
        if not isinstance(message, Warning):
            message = category(message)
        module, registry = reissued.get() or _origin(filename, lineno)
        sink.warning(message, filename, lineno, module, registry)


def _origin(filename: str, lineno: int) -> tuple[str, Registry | None]:
    """Return the name and registry of the module that warned, found among the frames.

    `warnings` tells its hook neither, and module filters and the record of what was shown
    depend on them. With a `stacklevel` the frame is further up, but its file and line are
    those of the warning. `warn_explicit` may name a place where no frame is.
    """
    frame: FrameType | None = sys._getframe(1)
    same_file: dict[str, Any] | None = None
    while frame is not None:
        if frame.f_code.co_filename == filename:
            if frame.f_lineno == lineno:
                same_file = frame.f_globals
                break
            same_file = same_file or frame.f_globals
        frame = frame.f_back
    if same_file is None:
        for module in list(sys.modules.values()):
            known = getattr(module, "__dict__", None) or {}
            if known.get("__file__") == filename:
                same_file = known
                break
    if same_file is None:
        return filename.removesuffix(".py") or "<unknown>", None
    name = same_file.get("__name__") or "<string>"
    return str(name), same_file.get("__warningregistry__")


class _Process:
    """Hold what captures change in the process: its streams, filters and warnings hook.

    Attributes
    ----------
    installed
        What is in place if nobody has changed it: filters, their number, the first of them, streams, hook. A change
        that leaves the number of filters and the first of them alone is not noticed; no function of `warnings` makes
        one. Without filters it is of no meaning.

    Notes
    -----
    Thread-safe; the lock is held for memory operations only.
    """

    installed: tuple[Any, ...]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[Capture] = []
        self._streams: tuple[Any, Any] = (None, None)
        self._hook: _Hook | None = None
        self._saved: list[Any] = []
        self._installed: list[Filter] | None = None
        self._pristine: tuple[Filter, ...] = ()
        self._version: int | None = None

    def enter(self, capture: Capture) -> int | None:
        """Install what the capture needs; return the version of the filters."""
        with self._lock:
            self._active.append(capture)
            if len(self._active) == 1:
                self._streams = install()
            self._apply()
            self._note_installed()
            return self._version

    def leave(self, capture: Capture) -> None:
        """Put back what no remaining capture needs."""
        with self._lock:
            self._active.remove(capture)
            self._apply()
            self._note_installed()
            if not self._active:
                uninstall()

    def tidy(self, capture: Capture, version: int | None) -> int | None:
        """Undo what a task has left changed, so that the next does not depend on it.

        Only when one chunk is running: with several, the change may be a neighbour's
        `redirect_stdout` or `catch_warnings`, which is not over.
        """
        with self._lock:
            if self._active != [capture]:
                return version
            sys.stdout, sys.stderr = self._streams
            if self._hook is not None:
                warnings.showwarning = self._hook
            self._install_filters(self._pristine)
            self._note_installed()
            return self._version

    def _note_installed(self) -> None:
        first = self._pristine[0] if self._pristine else None
        self.installed = self._installed, len(self._pristine), first, *self._streams, self._hook

    def _apply(self) -> None:
        """Bring the filters in line with the captures that are active."""
        filters: tuple[Filter, ...] | None = None
        for capture in self._active:
            # Compared as decoded: an inner call sends what its outer one has installed.
            if filters is None:
                filters = capture.decoded
            elif capture.decoded is not None and capture.decoded != filters:
                filters = (DELIVER_ALL,)
        if filters is None:
            self._restore_filters()
            return
        if self._installed is None:
            self._saved = warnings.filters  # type: ignore[assignment]
        if self._installed is None or filters != self._pristine:
            self._install_filters(filters)

    def _install_filters(self, filters: tuple[Filter, ...]) -> None:
        """Set the process's filters and hook, and learn the version they have.

        The version is written only to the registries of warnings, so one is issued, which
        is ignored. Another thread's warning would be ignored with it for that moment; it
        could only be one of a chunk whose neighbour has just come with other filters.
        """
        if not getattr(sys.flags, "context_aware_warnings", False):
            registry: Registry = {}
            warnings.filters = _IGNORE_ALL
            forget_shown()
            warnings.warn_explicit("", UserWarning, "", 0, registry=registry)
            self._version = registry.get("version")
        else:
            forget_shown()
        self._installed = list(filters)
        self._pristine = filters
        warnings.filters = self._installed
        if not isinstance(warnings.showwarning, _Hook):
            warnings.showwarning = _Hook(warnings.showwarning)
        self._hook = warnings.showwarning

    def _restore_filters(self) -> None:
        """Put the process's filters and hook back, unless somebody has replaced them.

        A `catch_warnings` of another thread that began under ours puts them back when it
        ends: the hook then passes everything on, the filters only show more than before.
        """
        if self._installed is None:
            return
        if warnings.filters is self._installed:
            warnings.filters = self._saved
            forget_shown()
        if isinstance(warnings.showwarning, _Hook):
            warnings.showwarning = warnings.showwarning.previous
        self._installed = None
        self._saved = []
        self._hook = None


_process = _Process()
