"""Repeat in the client what its tasks printed and warned."""

from __future__ import annotations

import logging
import pickle
import sys
import warnings
from typing import TYPE_CHECKING, Any

from .._filters import ClassName, find_class, forget_shown
from .._sink import Event, Registry, Sink, reissued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)


def emit(
    events: Iterable[Event],
    sink: Sink,
    loads: Callable[[bytes], Any] = pickle.loads,
) -> None:
    """Print and warn as the tasks did, to where the caller of the call would have.

    Parameters
    ----------
    events
        What one task printed and warned, in order.
    sink
        The caller's, see `current_sink`.
    loads
        Unpickles a warning.

    Raises
    ------
    Warning
        The first warning that the caller's filters turn into an error. All other events
        are emitted before it is raised: the task did print them.

    Notes
    -----
    Runs in the thread that calls it. A stream that is missing, closed or broken loses its
    text, and the call goes on.
    """
    failure = sink.run(_emit, events, sink, loads)
    if failure is not None:
        raise failure


def _emit(events: Iterable[Event], sink: Sink, loads: Callable[[bytes], Any]) -> Warning | None:
    failure: Warning | None = None
    for kind, *fields in events:
        if kind == "warn":
            error = _warn(sink, loads, *fields)
            failure = failure or error
        else:
            # Looked up for each: a warning's display may be user code that redirects.
            _write(sys.stdout if kind == "out" else sys.stderr, fields[0])
    return failure


def _write(stream: Any, text: str) -> None:
    if stream is None:
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            raw = text.encode(encoding, "backslashreplace")
            stream.write(raw.decode(encoding))
    except Exception:
        # The stream may be anybody's class. The task has its result; that the result
        # arrives matters more than that its text does.
        logger.debug("a task's output could not be written", exc_info=True)


def _warn(
    sink: Sink,
    loads: Callable[[bytes], Any],
    text: str,
    blob: bytes | None,
    names: tuple[ClassName, ...],
    filename: str,
    lineno: int,
    module: str,
    fresh: bool,
) -> Warning | None:
    """Issue the warning again; return it when the filters make it an error."""
    message = _rebuilt(text, blob, names, loads)
    registry = _registry(module, sink)
    if fresh:
        forget_shown()
    token = reissued.set((module, registry))
    try:
        warnings.warn_explicit(message, type(message), filename, lineno, module=module, registry=registry)
    except Warning as error:
        error.add_note(f"warned in a task, at {filename}:{lineno}")
        return error
    except Exception:
        # Only showing it can fail otherwise: a closed stream, somebody's own showwarning.
        logger.debug("a task's warning could not be shown", exc_info=True)
    finally:
        reissued.reset(token)
    return None


def _registry(module: str, sink: Sink) -> Registry:
    """Return where `warnings` remembers what this module has warned of."""
    loaded = getattr(sys.modules.get(module), "__dict__", None)
    if loaded is None:
        return sink.registries.setdefault(module, {})
    registry: Registry = loaded.setdefault("__warningregistry__", {})
    return registry


def _rebuilt(
    text: str,
    blob: bytes | None,
    names: tuple[ClassName, ...],
    loads: Callable[[bytes], Any],
) -> Warning:
    """Return the warning itself, or one of its nearest base class that exists here."""
    if blob is not None:
        try:
            message = loads(blob)
            if isinstance(message, Warning):
                return message
        except Exception:
            # Unpickling runs the class's own code, which may not even be installed here.
            logger.debug("a task's warning does not unpickle", exc_info=True)
    for name in names:
        category = find_class(name, load=True)
        if category is None:
            continue
        try:
            return category(text)
        except Exception:
            # A constructor that wants something else than the text.
            logger.debug("no %s of one text", category, exc_info=True)
    return UserWarning(text)
