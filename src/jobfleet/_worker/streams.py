"""Stand in for sys.stdout and sys.stderr: each write goes to the task that makes it."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from .._sink import active

if TYPE_CHECKING:
    from collections.abc import Iterable

_KINDS = {"stdout": "out", "stderr": "err"}
_active_get = active.get


class Stream(io.TextIOBase):
    """Write to the sink of the current task, or else to the stream underneath.

    Parameters
    ----------
    name
        The attribute of `sys` it stands for.
    real
        The stream underneath, None where the process has none. It never changes: a
        stream that a task wraps around this one could otherwise end up underneath it.

    Notes
    -----
    Thread-safe as far as the stream underneath is. Whoever keeps a reference to it, a
    logging handler say, can go on writing after it was taken out of `sys`.
    """

    real: Any

    def __init__(self, name: str, real: Any) -> None:
        self.real = real
        self._name = name
        self._kind = _KINDS[name]
        self._bytes: Bytes | None = None

    def write(self, text: Any) -> int:
        """Write text, return its length."""
        sink = _active_get()
        if sink is None or sink.closed:
            if self.real is not None:
                self.real.write(text)
        elif isinstance(text, str):
            sink.write(self._kind, text)
        else:
            got = type(text).__name__
            raise TypeError(f"write() argument must be str, not {got}")
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream underneath; a task's text waits for the end of the task."""
        if not self._captured() and self.real is not None:
            self.real.flush()

    def isatty(self) -> bool:
        """Say whether it is a terminal: never in a task."""
        return not self._captured() and self.real is not None and self.real.isatty()

    def close(self) -> None:
        """Do nothing: the stream belongs to the process, not to a task."""

    @property
    def closed(self) -> bool:
        """Whether writing would fail."""
        return not self._captured() and bool(getattr(self.real, "closed", False))

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream underneath."""
        return getattr(self.real, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """How the stream underneath treats what it cannot encode."""
        return getattr(self.real, "errors", None) or "strict"

    @property
    def buffer(self) -> Bytes:
        """The stream of bytes, captured as well."""
        if self._bytes is None:
            self._bytes = Bytes(self)
        return self._bytes

    def fileno(self) -> int:
        """Return the descriptor of the stream underneath; what goes there is not seen."""
        if self.real is None:
            raise io.UnsupportedOperation("fileno")
        return int(self.real.fileno())

    def readable(self) -> bool:
        """Say no."""
        return False

    def writable(self) -> bool:
        """Say yes."""
        return True

    def reconfigure(self, **options: Any) -> None:
        """Change the stream underneath, in a task nothing: it is not the task's own."""
        if not self._captured() and self.real is not None:
            self.real.reconfigure(**options)

    def _captured(self) -> bool:
        sink = _active_get()
        return sink is not None and not sink.closed

    def __getattr__(self, name: str) -> Any:
        if name == "real":  # not yet set: an instance made without __init__
            raise AttributeError(name)
        return getattr(self.real, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # cloudpickle carries the standard streams by name, but knows them by their type.
        return (getattr, (sys, self._name))

    def __repr__(self) -> str:
        return f"<jobfleet Stream {self._name} over {self.real!r}>"


class Bytes(io.BufferedIOBase):
    """Write bytes to the sink of the current task, or else to the stream underneath."""

    def __init__(self, text: Stream) -> None:
        self._text = text

    def write(self, data: Any) -> int:
        """Write bytes, return their number."""
        sink = _active_get()
        raw = bytes(memoryview(data))
        if sink is not None and not sink.closed:
            sink.write_bytes(self._text._kind, raw)
        elif self._text.real is not None:
            self._text.real.buffer.write(raw)
        return len(raw)

    def flush(self) -> None:
        """Flush the stream underneath."""
        self._text.flush()

    def close(self) -> None:
        """Do nothing, as for the text."""

    @property
    def closed(self) -> bool:
        """Whether writing would fail."""
        return self._text.closed

    def writable(self) -> bool:
        """Say yes."""
        return True

    def isatty(self) -> bool:
        """Say whether it is a terminal: never in a task."""
        return self._text.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the stream underneath."""
        return self._text.fileno()


def install() -> tuple[Any, Any]:
    """Put the stand-ins in place, and return them."""
    for name in _KINDS:
        current = getattr(sys, name)
        # It is there already when a redirection began while it was installed and ended
        # after it was removed: that put it back, and `real` is still what it was.
        if not isinstance(current, Stream):
            setattr(sys, name, Stream(name, current))
    return sys.stdout, sys.stderr


def uninstall() -> None:
    """Put the process's streams back, unless somebody has replaced the stand-ins.

    A redirection that began while the stand-in was there and is not over:

    1. we install S over the stream R;
    2. a thread runs `redirect_stdout(T)`, which remembers S and sets T;
    3. we uninstall: the stream in place is T, not ours to remove, so it stays;
    4. the thread leaves its redirection, which puts S back: no task is running, so S
       writes to R, and the next `install` finds and keeps it.

    Between looking at the stream in place and replacing it another thread can do step 2;
    its redirection is then without effect. Nothing in Python can close that gap, and no
    task is running in this process at that moment.
    """
    for name in _KINDS:
        current = getattr(sys, name)
        if isinstance(current, Stream):
            setattr(sys, name, current.real)
