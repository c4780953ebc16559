"""What tasks leave behind for a test to read: marks in a directory, visible to every process of the host.

Tasks import this module on the workers. Nothing here sleeps in place of synchronisation: every wait is on a
condition, with a deadline, and says what it waited for.
"""

import json
import os
import threading
import time
import uuid
from pathlib import Path

POLL_S = 0.005
DEADLINE_S = 20.0


def wait_until(condition, what, timeout_s=DEADLINE_S):
    """Return the first true value of ``condition()``, or fail naming ``what`` after ``timeout_s``."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(POLL_S)


def wait_until_still(measure, window_s=0.5, timeout_s=DEADLINE_S):
    """Return ``measure()`` once it has kept its value for ``window_s``; a growing value fails at the deadline."""
    give_up_at = time.monotonic() + timeout_s
    value, since = measure(), time.monotonic()
    while time.monotonic() - since < window_s:
        if time.monotonic() > give_up_at:
            raise AssertionError(f"still changing after {timeout_s} s: {value}")
        time.sleep(POLL_S)
        latest = measure()
        if latest != value:
            value, since = latest, time.monotonic()
    return value


def place():
    """Say where the caller runs: process and thread."""
    return os.getpid(), threading.get_ident()


def mark(directory, name="", **facts):
    """Leave one mark, whole or not at all, that ``marks`` will find."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    pid, thread = place()
    entry = {"name": str(name), "pid": pid, "thread": thread, "at": time.monotonic(), **facts}
    draft = directory / f".{uuid.uuid4().hex}"
    draft.write_text(json.dumps(entry))
    draft.rename(directory / f"{uuid.uuid4().hex}.mark")


def marks(directory):
    """Read the marks left so far, oldest first."""
    entries = [json.loads(path.read_text()) for path in Path(directory).glob("*.mark")]
    return sorted(entries, key=lambda entry: entry["at"])


def names(directory):
    """Read the names of the marks left so far, oldest first."""
    return [entry["name"] for entry in marks(directory)]


def count(directory):
    """Count the marks left so far."""
    return sum(1 for _ in Path(directory).glob("*.mark"))


def meet(directory, size, timeout_s=DEADLINE_S):
    """Wait until ``size`` callers are here at once: passes only if that many really run together."""
    mark(directory)
    wait_until(lambda: count(directory) >= size, f"{size} callers at {Path(directory).name}", timeout_s)


def open_gate(gate):
    """Let everyone waiting in ``pass_gate`` go on."""
    Path(gate).touch()


def pass_gate(gate, timeout_s=DEADLINE_S):
    """Wait until the gate is open."""
    wait_until(Path(gate).exists, f"gate {Path(gate).name} open", timeout_s)


class Presence:
    """Counts who is inside at the same time: ``with Presence(directory): ...`` in tasks, ``peak`` in the test."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.token = None

    def __enter__(self):
        inside = self.directory / "inside"
        inside.mkdir(parents=True, exist_ok=True)
        self.token = inside / uuid.uuid4().hex
        self.token.touch()
        self.look()
        return self

    def look(self):
        """Record how many are inside now."""
        mark(self.directory / "seen", len(list((self.directory / "inside").iterdir())))

    def __exit__(self, *exc_info):
        self.look()
        self.token.unlink()

    def peak(self):
        """Return the largest number ever seen inside."""
        return max((int(name) for name in names(self.directory / "seen")), default=0)
