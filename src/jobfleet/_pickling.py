"""User objects as pickles, their large buffers beside them; both ends use this."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import cloudpickle
import numpy as np

#: Smaller buffers stay inside the pickle: a reference would cost more than the bytes.
MIN_SHARED_NBYTES = 8192

#: A slice of a memmap is sent with the gaps in it if the whole takes no more than so many times its size.
_MAX_SPAN = 4

#: Types whose values cannot change, so that tasks may share them.
ATOMS: frozenset[type] = frozenset({int, float, complex, bool, str, bytes, type(None)})


class Reference(Protocol):
    """What stands in a pickle for an object that was sent ahead."""

    obj: Any
    persistent_id: str


class Memo(Protocol):
    """What a pickle remembers."""

    def copy(self) -> dict[int, tuple[int, Any]]:
        """Give the objects by `id`, each with its number."""


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    reducer: Callable[[Any], Any] | None = None
    """See `dump_with_memo`."""

    def reducer_override(self, obj: Any) -> Any:
        if self.reducer is not None and (reduced := self.reducer(obj)) is not NotImplemented:
            return reduced
        if type(obj) is np.memmap:
            # Its file may not exist at the other end: an array of what it shows is sent, or opened there as an array.
            return _reduced(np.asarray(obj))
        if isinstance(obj, BaseException):
            # Dask has tblib pickle exceptions in a way that skips their __init__, and some lose
            # their text by it; the traceback travels as text.
            return obj.__reduce_ex__(5)
        return super().reducer_override(obj)


def _reduced(array: np.ndarray[Any, Any]) -> Any:
    """Reduce an array that shows a file.

    A slice with gaps, unless they are wide, goes as the bytes from its first to its last: these are in the file.
    """
    if not array.size or array.flags.c_contiguous or array.flags.f_contiguous or array.dtype.hasobject:
        return array.__reduce_ex__(5)
    forward = array[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)]
    nbytes = sum((n - 1) * stride for n, stride in zip(forward.shape, forward.strides, strict=True)) + array.itemsize
    if nbytes > _MAX_SPAN * array.nbytes:
        return array.__reduce_ex__(5)
    first_item = forward[(slice(0, 1),) * forward.ndim].reshape(1).view(np.uint8)
    span = np.lib.stride_tricks.as_strided(first_item, (nbytes,), (1,), writeable=array.flags.writeable)
    start = array.__array_interface__["data"][0] - span.__array_interface__["data"][0]
    return np.ndarray, (array.shape, array.dtype, span, start, array.strides)


class _ReferencePickler(_Pickler):
    """Replace objects that were sent ahead, wherever they are met, by their persistent id."""

    def __init__(self, file: io.BytesIO, references: Mapping[int, Reference], **keywords: Any) -> None:
        super().__init__(file, **keywords)
        self._references = references
        self.used: dict[str, Reference] = {}

    def persistent_id(self, obj: Any) -> str | None:
        reference = self._references.get(id(obj))
        if reference is None or reference.obj is not obj:
            return None
        self.used[reference.persistent_id] = reference
        return reference.persistent_id


def dump(
    value: Any, references: Mapping[int, Reference] | None = None, min_nbytes: float = MIN_SHARED_NBYTES
) -> tuple[bytes, list[memoryview], list[Any]]:
    """Pickle `value`.

    Parameters
    ----------
    value
        Anything.
    references
        Objects not to be pickled but referred to, by `id`.
    min_nbytes
        Contiguous buffers of at least this size leave the pickle.

    Returns
    -------
    data
        The pickle.
    views
        The buffers that left it, in order.
        They show the owner's memory, not a copy.
    used
        Those of `references` that were met.
    """
    data, views, used, _ = dump_with_memo(value, references, min_nbytes)
    return data, views, used


def dump_with_memo(
    value: Any,
    references: Mapping[int, Reference] | None = None,
    min_nbytes: float = MIN_SHARED_NBYTES,
    reducer: Callable[[Any], Any] | None = None,
) -> tuple[bytes, list[memoryview], list[Any], Memo]:
    """Pickle `value` as `dump` does, and give what the pickle remembers of objects: all that have an identity.

    It keeps them alive, also those that only existed for the pickle. `reducer` is asked first how to reduce
    an object: like `pickle.Pickler.reducer_override`, which it goes before.
    """
    file, views = io.BytesIO(), _Views(min_nbytes)
    if references:
        pickler = referring = _ReferencePickler(file, references, protocol=5, buffer_callback=views.take)
    else:
        pickler, referring = _Pickler(file, protocol=5, buffer_callback=views.take), None
    pickler.reducer = reducer
    pickler.dump(value)
    return file.getvalue(), views.views, [] if referring is None else list(referring.used.values()), pickler.memo


class _Views:
    """Take large buffers out of a pickle."""

    def __init__(self, min_nbytes: float) -> None:
        self._min_nbytes = min_nbytes
        self.views: list[memoryview] = []

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Give whether a buffer stays in the pickle."""
        view = buffer.raw()
        if view.nbytes < self._min_nbytes:
            return True
        self.views.append(view)
        return False


def atomic(values: Iterable[Any]) -> bool:
    """Whether all `values` are short and cannot change."""
    for value in values:
        kind = type(value)
        if kind not in ATOMS or (kind in (str, bytes) and len(value) > MIN_SHARED_NBYTES):
            return False
    return True


def all_atomic(values: Iterable[Any]) -> bool:
    """Like `atomic`, for many values: the types are looked at together."""
    values = list(values)
    kinds = set(map(type, values))
    if not kinds <= ATOMS:
        return False
    return kinds.isdisjoint((str, bytes)) or atomic(values)
