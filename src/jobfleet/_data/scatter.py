"""Objects that the user sends to the workers ahead of time."""

from __future__ import annotations

import itertools
from typing import Any

from .._pickling import ATOMS, dump
from ..errors import OptionTypeError
from .buffers import Blob, content_digest

_ids = itertools.count()


class ScatteredObject:
    """Hold an object of `scatter=` and its encoded form.

    Parameters
    ----------
    obj
        Kept alive, so that its identity stays its own.
    """

    __slots__ = ("buffers", "head", "obj", "persistent_id")

    obj: Any
    persistent_id: str
    head: Blob
    """The pickle."""
    buffers: tuple[tuple[Blob, bool], ...]
    """Its large buffers, and whether each was writable."""

    def __init__(self, obj: Any) -> None:
        try:
            data, views, _ = dump(obj)
        except Exception as error:  # user code ran; say which object it was
            raise OptionTypeError(
                f"an object of scatter=, a {type(obj).__name__}, does not pickle: {type(error).__name__}: {error}"
            ) from error
        self.obj = obj
        self.head = _pinned(data)
        self.buffers = tuple((_pinned(bytes(view)), not view.readonly) for view in views)
        self.persistent_id = f"{next(_ids)}"

    @property
    def blobs(self) -> list[Blob]:
        """All that must be placed for it."""
        return [self.head, *(blob for blob, _ in self.buffers)]

    def refreshed(self) -> ScatteredObject:
        """Give this if the object is still what was sent, else its new form."""
        now = ScatteredObject(self.obj)
        same = [b.digest for b in now.blobs] == [b.digest for b in self.blobs]
        return self if same else now


def scattered_objects(objects: tuple[Any, ...]) -> list[ScatteredObject]:
    """Encode each object once; atoms travel as they are, identity means nothing for them."""
    unique = {id(obj): obj for obj in objects if type(obj) not in ATOMS}
    return [ScatteredObject(obj) for obj in unique.values()]


def _pinned(data: bytes) -> Blob:
    blob = Blob(content_digest(data), data)
    blob.pinned = True
    return blob
