"""Memmaps of files that workers may see as well: these are opened there, not sent."""

from __future__ import annotations

import mmap
import os
import time
from typing import Any

import numpy as np

from .._store import FileRegion, sample_digest

#: From this size on a worker opens the file.
MIN_OPENED_NBYTES = 2**20

#: What it takes to read a file's content and store it, at least: to wait until the file may be opened can be quicker.
_READ_S_PER_BYTE = 3e-10


class MappedFiles:
    """Tell which part of which file a buffer shows.

    Only read-only memmaps are followed to their file. What others show is this process's to change, at any moment
    until a task looks at it, or is not in the file at all; so is a file that has changed since an earlier task.

    Notes
    -----
    One thread at a time.
    """

    _known: dict[tuple[int, int], tuple[mmap.mmap, FileRegion]]
    """By address and size, with what keeps the memory from being another's."""
    _changing: set[str]

    def __init__(self) -> None:
        self._known = {}
        self._changing = set()

    def region(self, view: memoryview) -> FileRegion | None:
        """Give what a buffer shows, None if it is not to be opened elsewhere."""
        if view.nbytes < MIN_OPENED_NBYTES:
            return None
        owner: Any = view.obj
        while owner is not None and not isinstance(owner, np.memmap):
            owner = getattr(owner, "base", None)
        mapped = getattr(owner, "_mmap", None)
        if not isinstance(owner, np.memmap) or owner.mode != "r" or not owner.filename or mapped is None:
            return None
        key = (_address(view), view.nbytes)
        known = self._known.get(key)
        if known is None:
            region = _region(view, os.fspath(owner.filename), owner.offset, mapped)
            if region is None:
                return None
            known = self._known[key] = mapped, region
        region = known[1]
        if not region.is_current():
            self._changing.add(region.path)
        return None if region.path in self._changing else region

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()
        self._changing.clear()


def _region(view: memoryview, filename: str, array_offset: int, mapped: mmap.mmap) -> FileRegion | None:
    """Describe what a buffer shows if its file can still be found under its name."""
    address, start = _address(view), _address(memoryview(mapped))
    offset = array_offset - array_offset % mmap.ALLOCATIONGRANULARITY + address - start
    path = os.path.realpath(filename)
    try:
        status = os.stat(path)
        left_s = _settled_in_s(status)
        if 0 < left_s < view.nbytes * _READ_S_PER_BYTE:
            time.sleep(left_s)
            status = os.stat(path)
    except OSError:
        return None
    if not start <= address <= address + view.nbytes <= start + len(mapped) or offset + view.nbytes > status.st_size:
        return None
    if _settled_in_s(status) > 0 or not _is_only_read(address, path, status.st_ino):
        return None
    region = FileRegion(
        path, offset, view.nbytes, status.st_ino, status.st_size, status.st_mtime_ns, sample_digest(view)
    )
    return region if region.is_current() else None


def _settled_in_s(status: os.stat_result) -> float:
    """Give in how many seconds a further write would show.

    File systems tell time in steps of some milliseconds, a few in seconds.
    """
    step_ns = 2 * 10**9 if status.st_mtime_ns % 10**9 == 0 else 5 * 10**7
    return max(0, status.st_mtime_ns + step_ns - time.time_ns()) / 1e9


def _is_only_read(address: int, path: str, inode: int) -> bool:
    """Whether this file is what is mapped at the address, and nobody in this process writes to it.

    Another file may have taken its name. What is written to a mapping need not change the time of the file.
    """
    found = False
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                span, access, _, _, number, *name = line.rstrip("\n").split(maxsplit=5)
                if int(number) != inode or name != [path]:
                    continue
                if "w" in access and "s" in access:
                    return False
                first, last = (int(end, 16) for end in span.split("-"))
                found |= first <= address < last
    except OSError:  # not Linux
        pass
    return found


def _address(view: memoryview) -> int:
    address: int = np.frombuffer(view, dtype=np.uint8).__array_interface__["data"][0]
    return address
