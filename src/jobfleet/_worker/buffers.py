"""Buffers that are stored once per host, attached to this process."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakValueDictionary

from .._store import Attached, FileRegion, StoreDirectory, directory_path
from .._wire import Placed

#: What was attached stays so for a while: to map it again, and touch all its pages, would cost each chunk some time.
_KEEP_S = 5.0
_MAX_KEPT = 128

Buffer = Attached | memoryview | bytes


class AttachedBuffers:
    """Attach each buffer once to this process.

    Notes
    -----
    Thread-safe.
    """

    _lock: threading.Lock
    _attached: WeakValueDictionary[tuple[str, str], Attached]
    _kept: OrderedDict[tuple[str, str], tuple[float, Attached]]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attached = WeakValueDictionary()
        self._kept = OrderedDict()

    def attach(self, token: str, name: str, nbytes: int, directories: Sequence[StoreDirectory]) -> Buffer | None:
        """Give a buffer from the first of the directories that has it."""
        key = (token, name)
        with self._lock:
            attached = self._attached.get(key)
            if attached is not None:
                self._keep(key, attached)
                return attached
        for directory in directories:
            buffer = directory.attach(name, nbytes)
            if isinstance(buffer, Attached):
                with self._lock:
                    buffer = self._attached.setdefault(key, buffer)
                    self._keep(key, buffer)
            if buffer is not None:
                return buffer
        return None

    def attach_file(self, region: FileRegion) -> Attached | None:
        """Give a part of a file of the user's, if it is here and as it was in the client."""
        key = ("", repr(region))
        with self._lock:
            attached = self._attached.get(key)
        if attached is None:
            attached = region.attach()
        elif not region.is_current():
            return None
        if attached is not None:
            with self._lock:
                attached = self._attached.setdefault(key, attached)
                self._keep(key, attached)
        return attached

    def _keep(self, key: tuple[str, str], attached: Attached) -> None:
        self._kept[key] = (time.monotonic(), attached)
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)

    def forget_idle(self, now: float) -> None:
        """Let go of what no task has used for a while, and of what was removed to make room."""
        with self._lock:
            for key, (used_at, attached) in list(self._kept.items()):
                if now - used_at >= _KEEP_S or attached.is_removed():
                    del self._kept[key]

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._kept.clear()

    def forget(self, token: str) -> None:
        """Let go of all buffers of a client."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == token]:
                del self._kept[key]


class HostDirectories:
    """Know the directories that a client's buffers may be in, as seen from this process.

    Parameters
    ----------
    roots
        Where this host's own directories lie, in order of preference.
    label
        Name of the host that this process pretends to be on.
    """

    def __init__(self, roots: Sequence[str], label: str) -> None:
        self.roots = tuple(roots)
        self.label = label
        self._known: dict[str, StoreDirectory] = {}

    def home(self, placed: Placed) -> list[StoreDirectory]:
        """Give the client's own directories, if this process could be on its host."""
        return [self._directory(path) for path in placed.home] if placed.label == self.label else []

    def own(self, token: str) -> list[StoreDirectory]:
        """Give those that this host has for a client that is elsewhere."""
        return [self._directory(directory_path(root, token, self.label)) for root in self.roots]

    def all(self, placed: Placed) -> list[StoreDirectory]:
        """Give all, in the order in which to look."""
        return list(dict.fromkeys([*self.home(placed), *self.own(placed.token)]))

    def forget(self, token: str) -> list[StoreDirectory]:
        """Give a client's directories for the last time."""
        directories = self.own(token)
        for directory in directories:
            self._known.pop(directory.path, None)
        return directories

    def _directory(self, path: str) -> StoreDirectory:
        return self._known.setdefault(path, StoreDirectory(path))


def attach_all(
    attached: AttachedBuffers, placed: Placed, directories: Sequence[StoreDirectory], travelling: Sequence[Buffer]
) -> list[Buffer | None]:
    """Give the values of a chunk in order, None for each that should be on this host and is not."""
    rest = iter(travelling)
    values: list[Buffer | None] = []
    for reference in placed.buffers:
        if reference is None:
            values.append(next(rest))
        else:
            name, nbytes, _, file = reference
            found = None if file is None else attached.attach_file(FileRegion(*file))
            values.append(found or attached.attach(placed.token, name, nbytes, directories))
    return [*values, *rest]
