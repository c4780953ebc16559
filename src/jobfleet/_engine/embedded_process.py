"""The processes beside this one that make up the embedded cluster, and their files.

Each is joined to this process by a *line*, a pair of sockets that is the process's standard input at
start. Its specification comes down that line, so that no secret stands in an argument or an
environment variable; and when this process is gone, even by ``kill -9``, the line breaks, which ends
the other side.

A worker that is busy in C code and holds the interpreter's lock cannot notice a broken line. So one
more process, the *janitor*, small and idle, waits on a line of its own, kills what is left, and
removes the files.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

if sys.platform != "win32":
    import fcntl

#: First program of a worker process: keep the line, give the process an empty standard input, then
#: run the source that comes down the line. The current directory must not shadow the standard
#: library in an interpreter whose path is still to come, hence the first line.
BOOTSTRAP = """\
import sys
sys.path[:] = [p for p in sys.path if p]
import os, json
line = os.fdopen(os.dup(0), "rb")
null = os.open(os.devnull, os.O_RDONLY)
os.dup2(null, 0)
os.close(null)
first = json.loads(line.readline() or os._exit(0))
sys.path[:] = first["sys_path"]
sys.argv[:] = first["argv"]
program = {"__name__": "_jobfleet_embedded_worker"}
exec(compile(first["source"], "<jobfleet worker>", "exec"), program)
program["main"](line)
"""

#: The janitor: ``+group`` and ``-group`` come down the line; at its end, kill and remove.
JANITOR = """\
import os, shutil, signal, sys, time
groups = set()
for message in sys.stdin:
    (groups.add if message[0] == "+" else groups.discard)(int(message[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
deadline = time.monotonic() + 10
while any(map(os.path.lexists, sys.argv[1:])) and time.monotonic() < deadline:
    for directory in sys.argv[1:]:
        shutil.rmtree(directory, ignore_errors=True)
    time.sleep(0.02)
"""

#: How long a process may take to read what is sent to it.
SEND_DEADLINE_S = 30.0

_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)

_lines: weakref.WeakSet[Line] = weakref.WeakSet()


class Line:
    """Join this process to one that it starts.

    Notes
    -----
    Short messages may be sent by several threads; `close` may be called at any time.
    """

    theirs: socket.socket
    _ours: socket.socket

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._ours.settimeout(SEND_DEADLINE_S)
        _lines.add(self)

    def send(self, message: str) -> None:
        """Send one line of text; what became of a process that has gone is seen elsewhere."""
        with contextlib.suppress(OSError):
            self._ours.sendall(message.encode() + b"\n", _NO_SIGNAL)

    def last_words(self) -> str:
        """Give what the other side had written when it ended."""
        said = b""
        with contextlib.suppress(OSError):
            # Its end may still be open in a process that it has forked, so do not wait for the end.
            self._ours.setblocking(False)
            while part := self._ours.recv(65536):
                said += part
        return said.decode(errors="replace")

    def close(self) -> None:
        """Break the line, also where a fork of this process holds a copy of our end."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self.forget()

    def forget(self) -> None:
        """Close our end in this process only."""
        self._ours.close()
        self.theirs.close()


def forget_lines() -> None:
    """Let go of what a fork has copied, or the processes would outlive the one that owns them."""
    for line in list(_lines):
        line.forget()


class WorkerProcess:
    """One worker process.

    Parameters
    ----------
    name
        Name of the worker on the scheduler.
    first
        What the process is told before there is a scheduler, see `BOOTSTRAP`.
    environment
        The process's environment variables.

    Notes
    -----
    `let_go`, `kill` and `wait` may be called by any thread; `start` and `send` by one at a time.
    """

    name: str
    exit_status: int | None
    last_words: str
    _first: Mapping[str, Any]
    _environment: Mapping[str, str]
    _line: Line | None
    _popen: subprocess.Popen[bytes] | None
    _lock: threading.Lock
    _gone: threading.Event

    def __init__(self, name: str, first: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.name = name
        self.exit_status = None
        self.last_words = ""
        self._first = first
        self._environment = environment
        self._line = None
        self._popen = None
        self._lock = threading.Lock()
        self._gone = threading.Event()

    @property
    def pid(self) -> int:
        """Process id, which is the id of its process group too; 0 before the start."""
        return 0 if self._popen is None else self._popen.pid

    def start(self, on_exit: Callable[[WorkerProcess], None]) -> None:
        """Start the process; `on_exit` is called on a thread of its own when it has ended."""
        self._line = Line()
        # multiprocessing starts its interpreters with the same flags.
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        self._popen = subprocess.Popen(
            [sys.executable, *flags, "-c", BOOTSTRAP, f"jobfleet-worker-{self.name}"],
            stdin=self._line.theirs.fileno(),
            env=dict(self._environment),
            # A session of its own: Ctrl-C in the terminal reaches the client only, and the process's
            # descendants can be killed as a group.
            start_new_session=True,
        )
        self._line.theirs.close()
        self._line.send(json.dumps(self._first))
        threading.Thread(target=self._watch, args=(on_exit,), name=f"jobfleet-watch-{self.name}", daemon=True).start()

    def send(self, specification: Mapping[str, Any]) -> None:
        """Tell the process what worker to run."""
        if self._line is not None:
            self._line.send(json.dumps(specification))

    def let_go(self) -> None:
        """Break the line, which makes the process end itself."""
        if self._line is not None:
            self._line.close()

    def kill(self) -> None:
        """Kill the process and its descendants."""
        with self._lock:
            # `_watch` sets `_gone` before the process id becomes free for another process.
            if self._popen is not None and not self._gone.is_set():
                _kill_group(self._popen.pid)

    def wait(self, deadline: float) -> bool:
        """Wait until the process has ended, at most until `deadline` (monotonic); say whether it has."""
        return self._popen is None or self._gone.wait(max(deadline - time.monotonic(), 0))

    def _watch(self, on_exit: Callable[[WorkerProcess], None]) -> None:
        if self._popen is None or self._line is None:
            return
        if hasattr(os, "waitid"):
            # Leave the process a zombie, so that its id still is its own when its group is killed.
            # Someone else in this program may have waited for it: then there is nothing to wait for.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._popen.wait()
        with self._lock:
            _kill_group(self._popen.pid)
            self._gone.set()
        self.exit_status = self._popen.wait()
        self.last_words = self._line.last_words()
        self._line.close()
        on_exit(self)


class Janitor:
    """Clean up after this process if it cannot do so itself.

    Parameters
    ----------
    *directories
        What to remove.
    """

    _directories: tuple[str, ...]
    _line: Line | None
    _popen: subprocess.Popen[bytes] | None

    def __init__(self, *directories: str) -> None:
        self._directories = directories
        self._line = None
        self._popen = None

    def start(self) -> None:
        """Start the process."""
        self._line = Line()
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", JANITOR, *self._directories],
            stdin=self._line.theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self._line.theirs.close()

    def watch(self, group: int) -> None:
        """Have this process group killed when this process is gone."""
        if self._line is not None:
            self._line.send(f"+{group}")

    def unwatch(self, group: int) -> None:
        """Leave this process group alone: it has ended, and its id may be given to another."""
        if self._line is not None:
            self._line.send(f"-{group}")

    def dismiss(self, deadline: float) -> None:
        """End the process, after everything else has been cleaned up."""
        if self._line is None or self._popen is None:
            return
        self._line.close()
        try:
            self._popen.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


class PrivateDirectory:
    """A directory that only this user can open, for the files of one embedded cluster.

    Parameters
    ----------
    parent
        Where to make it; None for the system's temporary directory.
    """

    path: str
    _parent: str
    _lock: int | None

    def __init__(self, parent: str | None) -> None:
        self.path = ""
        self._parent = parent or tempfile.gettempdir()
        self._lock = None

    def create(self) -> None:
        """Make the directory, and remove those whose owner and janitor were both killed."""
        os.makedirs(self._parent, exist_ok=True)
        prefix = f"jobfleet-{os.getuid()}-"
        for directory in glob.glob(os.path.join(glob.escape(self._parent), prefix + "*")):
            if _is_abandoned(directory):
                shutil.rmtree(directory, ignore_errors=True)
        self.path = tempfile.mkdtemp(prefix=prefix, dir=self._parent)
        # A directory counts as abandoned when its lock is free. Another process may look at any
        # moment, so the lock gets its name only when it is held.
        unnamed = os.path.join(self.path, "lock-")
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(unnamed, os.path.join(self.path, "lock"))

    def remove(self) -> None:
        """Remove the directory and all that is in it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)


def _is_abandoned(directory: str) -> bool:
    try:
        if os.lstat(directory).st_uid != os.getuid():
            return False
        lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(lock)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def describe_exit(status: int | None) -> str:
    """Say how a process ended: ``"exit status 1"``, ``"signal 9 (SIGKILL)"``."""
    if status is None or status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {-status} ({signal.Signals(-status).name})"
    return f"signal {-status}"
