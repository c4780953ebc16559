"""Objects that the user sends to the workers ahead of time."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

from .._pickling import ATOMS, MIN_SHARED_NBYTES, PicklesTogether, dump_with_memo
from ..errors import OptionTypeError
from .buffers import Blob, Keeper, Kept, content_digest

_ids = itertools.count()


def new_persistent_id() -> str:
    """Give what stands for an object in pickles: no other of this process has it."""
    return f"{next(_ids)}"


class ScatteredObject:
    """Hold an object of `scatter=` and its encoded form.

    Parameters
    ----------
    obj
        Kept alive, so that its identity stays its own.
    keeper
        Copies the buffers; they are dropped with this object.
    """

    __slots__ = ("__weakref__", "_keeper", "buffers", "head", "obj", "persistent_id")

    obj: Any
    persistent_id: str
    head: Blob
    """The pickle."""
    buffers: tuple[tuple[Blob, bool], ...]
    """Its large buffers, and whether each was writable."""

    def __init__(self, obj: Any, keeper: Keeper) -> None:
        data, views = _dumped(obj)
        self.obj = obj
        self._keeper = keeper
        self.head = _pinned(memoryview(data), content_digest(data), keeper)
        self.buffers = tuple((_pinned(view, content_digest(view), keeper), not view.readonly) for view in views)
        self.persistent_id = new_persistent_id()
        for digest in [blob.digest for blob in self.blobs if blob.stored]:
            weakref.finalize(self, keeper.drop, digest, True).atexit = False

    @property
    def blobs(self) -> list[Blob]:
        """All that must be placed for it."""
        return [self.head, *(blob for blob, _ in self.buffers)]

    def acquire(self, n_tasks: int) -> None:
        """Do nothing: it stays as long as the user wants it."""

    def release(self) -> None:
        """Do nothing, for the same reason."""

    def refreshed(self) -> ScatteredObject:
        """Give this if the object is still what was sent, else its new form."""
        data, views = _dumped(self.obj)
        same = [content_digest(data), *map(content_digest, views)] == [blob.digest for blob in self.blobs]
        return self if same else ScatteredObject(self.obj, self._keeper)


def scattered_objects(objects: tuple[Any, ...], keeper: Keeper) -> list[ScatteredObject]:
    """Encode each object once; atoms travel as they are, identity means nothing for them."""
    unique = {id(obj): obj for obj in objects if type(obj) not in ATOMS}
    return [ScatteredObject(obj, keeper) for obj in unique.values()]


def _dumped(obj: Any) -> tuple[bytes, list[memoryview]]:
    try:
        data, views, *_ = dump_with_memo(obj, together=PicklesTogether())
    except Exception as error:  # user code ran; say which object it was
        raise OptionTypeError(
            f"an object of scatter=, a {type(obj).__name__}, does not pickle: {type(error).__name__}: {error}"
        ) from error
    return data, views


def _pinned(view: memoryview, digest: bytes, keeper: Keeper) -> Blob:
    small = view.nbytes < MIN_SHARED_NBYTES
    return Blob(Kept(digest, bytes(view), False) if small else keeper.keep(view, digest), pinned=True)
