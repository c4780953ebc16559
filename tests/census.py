"""What this process holds: threads, child processes, file descriptors. A test module must give back what it took."""

import contextlib
import gc
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass, field

import psutil

from tests.witness import wait_until

# Started once per process by a library and kept on purpose: Dask's name-resolution and offload executors, the
# default executor of an event loop.
LASTING_THREADS = ("TCP-Executor", "Dask-Offload", "asyncio", "fsspecIO", "pytest_timeout")
# Started once per process by multiprocessing and loky, gone with it.
LASTING_CHILDREN = ("resource_tracker", "forkserver")
# A client or scheduler that lives for the session keeps a pool of connections, which grows with use.
POOLED_SOCKETS = 24
GIVE_BACK_WITHIN_S = 10.0


def _threads():
    """Count threads by kind: a pool replaces its threads, as Dask's does when a task leaves it and comes back."""
    names = (thread.name for thread in threading.enumerate())
    return Counter(re.sub(r"\d+", "#", name) for name in names if not name.startswith(LASTING_THREADS))


def _children():
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not any(name in words for name in LASTING_CHILDREN):
                found.add((child.pid, child.create_time()))
    return found


def _descriptors():
    kinds = Counter()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            kinds[os.readlink(f"/proc/self/fd/{entry}").split(":")[0]] += 1
    return kinds


@dataclass
class Census:
    """One count of what the process holds."""

    threads: Counter = field(default_factory=Counter)
    children: set = field(default_factory=set)
    descriptors: Counter = field(default_factory=Counter)

    @classmethod
    def take(cls):
        """Count now."""
        return cls(_threads(), _children(), _descriptors())

    def absorb(self, before, after):
        """Accept what appeared between two counts: it belongs to something that outlives the module."""
        self.threads += after.threads - before.threads
        self.children |= after.children - before.children
        self.descriptors += after.descriptors - before.descriptors

    def excess(self):
        """Describe what is held now beyond this count; empty when nothing is."""
        gc.collect()
        now = Census.take()
        found = [f"{number} more threads: {kind}" for kind, number in (now.threads - self.threads).items()]
        found += [f"process {pid}" for pid, _ in now.children - self.children]
        for kind, number in (now.descriptors - self.descriptors).items():
            if number > (POOLED_SOCKETS if kind == "socket" else 0):
                found.append(f"{number} more descriptors: {kind}")
        return found


class Ledger:
    """The base that each module is held against; session-wide fixtures enter what they start."""

    def __init__(self):
        self.base = Census.take()

    @contextlib.contextmanager
    def entering(self):
        """Accept what is started inside as belonging to the session."""
        before = Census.take()
        yield
        self.base.absorb(before, Census.take())

    def settle(self):
        """Wait until nothing is held beyond the base; fail with the list of what is."""
        leaks = []

        def clean():
            leaks[:] = self.base.excess()
            return not leaks

        try:
            wait_until(clean, "everything given back", GIVE_BACK_WITHIN_S)
        except AssertionError:
            raise AssertionError(f"left behind by this module: {sorted(leaks)}") from None
