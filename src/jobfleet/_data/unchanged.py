"""Proof by the kernel that memory has not been written to.

To hash an array of a gigabyte for each of many tasks takes longer than all the rest. An array's flags prove
nothing: a read-only view may show memory that another view writes to. But Linux (6.7 and newer) can tell
which pages of a range were written to since it was asked to watch (userfaultfd's asynchronous write protection,
and the ioctl PAGEMAP_SCAN), whoever did it. Where that is not to be had, everything is hashed.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import struct
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

if sys.platform != "win32":
    import fcntl

#: Smaller buffers are hashed: that takes no longer than the system calls.
MIN_WATCHED_NBYTES = 2**22

#: Ranges watched at once; beyond, the oldest is given up.
_MAX_WATCHED = 64

_PAGE = mmap.PAGESIZE

# From linux/userfaultfd.h and linux/fs.h.
_SYSCALL = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_API = 0xAA
_FEATURE_WP_UNPOPULATED = 1 << 13
_FEATURE_WP_ASYNC = 1 << 15
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_UNREGISTER = 0x8010AA01
_UFFDIO_WRITEPROTECT = 0xC018AA06
_REGISTER_MODE_WP = 2
_WRITEPROTECT_MODE_WP = 1
_PAGEMAP_SCAN = 0xC0606610
_SCAN_CHECK_WPASYNC = 2
_IS_WRITTEN = 2
_IS_FILE = 4


class _Kernel:
    """Speak to the kernel; raises OSError wherever it declines."""

    def __init__(self) -> None:
        number = _SYSCALL.get(platform.machine())
        if sys.platform != "linux" or number is None:
            raise OSError("not known on this platform")
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.syscall(number, _USER_MODE_ONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        try:
            fcntl.ioctl(self.fd, _UFFDIO_API, struct.pack("QQQ", _API, _FEATURE_WP_ASYNC | _FEATURE_WP_UNPOPULATED, 0))
            self.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self.fd)
            raise
        self._found = (ctypes.c_uint64 * 3)()

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.pagemap)

    def watch(self, start: int, end: int) -> None:
        """Begin to watch, or begin anew."""
        with contextlib.suppress(OSError):
            self.unwatch(start, end)
        fcntl.ioctl(self.fd, _UFFDIO_REGISTER, bytearray(struct.pack("QQQQ", start, end - start, _REGISTER_MODE_WP, 0)))
        # What is mapped from a file or shared may be written to by others, unseen.
        if self._any(start, end, _IS_FILE):
            self.unwatch(start, end)
            raise OSError("not private memory")
        fcntl.ioctl(self.fd, _UFFDIO_WRITEPROTECT, struct.pack("QQQ", start, end - start, _WRITEPROTECT_MODE_WP))

    def unwatch(self, start: int, end: int) -> None:
        fcntl.ioctl(self.fd, _UFFDIO_UNREGISTER, struct.pack("QQ", start, end - start))

    def written(self, start: int, end: int) -> bool:
        """Whether a page was written to; raises if the range is not what was watched any more."""
        return self._any(start, end, _IS_WRITTEN)

    def _any(self, start: int, end: int, category: int) -> bool:
        found = ctypes.addressof(self._found)
        request = struct.pack("12Q", 96, _SCAN_CHECK_WPASYNC, start, end, 0, found, 1, 1, 0, category, 0, category)
        return bool(fcntl.ioctl(self.pagemap, _PAGEMAP_SCAN, bytearray(request)))


@dataclass(slots=True)
class _Watched:
    digest: bytes
    pages: tuple[int, int]
    edges: tuple[bytes, bytes]
    """The bytes before and after the whole pages, which others may share."""


class Unchanged:
    """Remember digests of memory for as long as it is proved unchanged.

    Parameters
    ----------
    digest
        Gives the digest of a buffer's content.

    Notes
    -----
    Nothing here keeps memory alive: pages that were given back and are mapped anew count as written to.
    A range that was found written to is not watched again, since each write to a watched page costs its
    writer a fault. One thread at a time.
    """

    _kernel: _Kernel | None
    _seen: dict[tuple[int, int], bytes]
    """What was hashed once, and is watched when it comes again."""
    _watched: dict[tuple[int, int], _Watched]
    _written: set[tuple[int, int]]

    def __init__(self, digest: Callable[[memoryview | bytes], bytes]) -> None:
        self._digest = digest
        self._kernel = None
        self._pid = os.getpid()
        self._seen = {}
        self._watched = {}
        self._written = set()

    def digest(self, view: memoryview) -> bytes:
        """Give the digest of what `view` holds now."""
        if view.nbytes < MIN_WATCHED_NBYTES:
            return self._digest(view)
        address = _address(view)
        key = (address, view.nbytes)
        watched = self._watched.get(key)
        if watched is not None and self._holds(watched, view, address):
            return watched.digest
        if key in self._written or (key not in self._seen and watched is None):
            return self._remember(key, view)
        if watched is not None:
            # Written to: watching it would only slow its writer down.
            self._give_up(key)
            self._written.add(key)
            return self._remember(key, view)
        return self._watch(key, view, address)

    def close(self) -> None:
        """Watch nothing any more."""
        for key in list(self._watched):
            self._give_up(key)
        if self._kernel is not None:
            _open.discard(self)
            if os.getpid() == self._pid:
                self._kernel.close()
            self._kernel = None

    def forget(self) -> None:
        """Let go of what a fork has copied, or the parent's memory stays watched."""
        self._watched.clear()
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def _remember(self, key: tuple[int, int], view: memoryview) -> bytes:
        if len(self._seen) > 1024:
            self._seen.clear()
            self._written.clear()
        digest = self._seen[key] = self._digest(view)
        return digest

    def _holds(self, watched: _Watched, view: memoryview, address: int) -> bool:
        if self._kernel is None or watched.edges != _edges(view, address, watched.pages):
            return False
        try:
            return not self._kernel.written(*watched.pages)
        except OSError:
            return False

    def _watch(self, key: tuple[int, int], view: memoryview, address: int) -> bytes:
        pages = -(-address // _PAGE) * _PAGE, (address + view.nbytes) // _PAGE * _PAGE
        try:
            if self._kernel is None:
                self._kernel = _Kernel()
                self._pid = os.getpid()
                _open.add(self)
            # To watch a range is to forget what was written to it: those that share pages with it would miss that.
            for other, its in list(self._watched.items()):
                if its.pages[0] < pages[1] and pages[0] < its.pages[1]:
                    self._give_up(other)
            # First watch, then read: what is written meanwhile shows.
            self._kernel.watch(*pages)
        except OSError:
            return self._digest(view)
        edges = _edges(view, address, pages)
        digest = self._digest(view)
        while len(self._watched) >= _MAX_WATCHED:
            self._give_up(next(iter(self._watched)))
        self._watched[key] = _Watched(digest, pages, edges)
        return digest

    def _give_up(self, key: tuple[int, int]) -> None:
        watched = self._watched.pop(key)
        if self._kernel is not None and os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                self._kernel.unwatch(*watched.pages)


def _address(view: memoryview) -> int:
    address: int = np.frombuffer(view, dtype=np.uint8).__array_interface__["data"][0]
    return address


def _edges(view: memoryview, address: int, pages: tuple[int, int]) -> tuple[bytes, bytes]:
    return bytes(view[: pages[0] - address]), bytes(view[pages[1] - address :])


_open: weakref.WeakSet[Unchanged] = weakref.WeakSet()


def _after_fork() -> None:
    for memory in list(_open):
        memory.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
