"""User objects as pickles, their large buffers beside them; both ends use this."""

from __future__ import annotations

import copyreg
import io
import math
import pickle
from collections.abc import Iterable, Mapping
from types import FunctionType, WrapperDescriptorType
from typing import Any, Protocol

import cloudpickle
import numpy as np

#: Smaller buffers stay inside the pickle: a reference would cost more than the bytes.
MIN_SHARED_NBYTES = 8192

#: An array with gaps, a slice of a larger one, is sent with these if the whole takes no more than so many times its
#: size. Of a memmap the whole is in the file.
_MAX_SPAN = 1.25
_MAX_SPAN_OF_FILE = 4

#: How many reduced arrays are remembered at once; they may be copies.
_MAX_ARRAYS = 64

#: And about so many types; the user's iterable may make new ones.
_MAX_KINDS = 1024

#: Types whose values cannot change, so that tasks may share them.
ATOMS: frozenset[type] = frozenset({int, float, complex, bool, str, bytes, type(None)})


class Reference(Protocol):
    """What stands in a pickle for an object that was sent ahead."""

    obj: Any
    persistent_id: str


class Reducer(Protocol):
    """Says how to reduce an object, like `pickle.Pickler.reducer_override`, which it goes before."""

    kinds: frozenset[type]
    """The types of all objects that it has a word on, but for those that it raises an error for."""

    def __call__(self, obj: Any) -> Any:
        """Give how an object is reduced, or `NotImplemented`."""


class Memo(Protocol):
    """What a pickle remembers."""

    def copy(self) -> dict[int, tuple[int, Any]]:
        """Give the objects by `id`, each with its number."""


class PicklesTogether:
    """Remember, from one pickle to the next, what cannot change while nothing of the user's runs between them.

    And, for longer, what their types are like.
    """

    by_name: dict[int, Any]
    """By `id`: classes and functions that cloudpickle was found to send by name."""
    plain: tuple[set[type], set[type]]
    """Types all of whose objects were found to be left to `pickle` itself: without a `Reducer`, and with one."""
    _arrays: dict[tuple[Any, ...], tuple[np.ndarray[Any, Any], Any]]
    """By what they show: arrays with gaps, which are kept alive, and how they are reduced."""

    def __init__(self) -> None:
        self.by_name = {}
        self.plain = set(), set()
        self._arrays = {}

    def clear(self) -> None:
        """Say that something of the user's may have run."""
        self.by_name.clear()
        self._arrays.clear()
        for kinds in self.plain:
            if len(kinds) > _MAX_KINDS:
                kinds.clear()

    def reduced(self, array: np.ndarray[Any, Any], max_span: float) -> Any:
        """Reduce an array with gaps so that its buffer can leave the pickle; NumPy copies such an array into it."""
        key = array.__array_interface__["data"][0], array.shape, array.strides, array.dtype, array.flags.writeable
        known = self._arrays.get(key)
        if known is None:
            if len(self._arrays) >= _MAX_ARRAYS:
                self._arrays.clear()
            known = self._arrays[key] = array, _with_gaps(array, max_span) or _without_gaps(array)
        return known[1]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    #: Looked up for each object that nothing else is known of. cloudpickle's own is a `ChainMap`, which takes long.
    dispatch_table = copyreg.dispatch_table

    reducer: Reducer | None = None
    """See `dump_with_memo`."""
    together: PicklesTogether | None = None
    """Likewise."""
    min_nbytes: float = math.inf
    """Likewise."""

    def reducer_override(self, obj: Any) -> Any:
        # This is asked for each object that is not a container: a task of scikit-learn's has fifty.
        kind, together = type(obj), self.together
        if kind is np.ndarray or kind is np.memmap:
            return self._reduced_array(obj)
        if together is not None:
            plain = together.plain[self.reducer is not None]
            if kind in plain or id(obj) in together.by_name:
                return NotImplemented
        if self.reducer is not None and (reduced := self.reducer(obj)) is not NotImplemented:
            return reduced
        if isinstance(obj, BaseException):
            # Dask has tblib pickle exceptions in a way that skips their __init__, and some lose
            # their text by it; the traceback travels as text.
            return obj.__reduce_ex__(5)
        reduced = super().reducer_override(obj)
        if reduced is not NotImplemented:
            return reduced
        if (of_kind := super().dispatch_table.get(kind)) is not None:
            return of_kind(obj)
        if together is not None:
            if isinstance(obj, (type, FunctionType)):
                together.by_name[id(obj)] = obj
            elif _is_what_it_seems(kind) and (self.reducer is None or kind not in self.reducer.kinds):
                plain.add(kind)
        return NotImplemented

    def _reduced_array(self, obj: np.ndarray[Any, Any]) -> Any:
        array, together = np.asarray(obj), self.together
        if together is not None and array.nbytes >= self.min_nbytes and _has_gaps(array):
            return together.reduced(array, _MAX_SPAN if array is obj else _MAX_SPAN_OF_FILE)
        # A memmap's file may not exist at the other end: what it shows is sent, or opened there, as an array.
        return NotImplemented if array is obj else array.__reduce_ex__(5)


def _is_what_it_seems(kind: type) -> bool:
    """Whether its objects can say nothing else of their class: all that is done here goes by that alone."""
    if type(kind.__getattribute__) is not WrapperDescriptorType:  # written in Python
        return False
    return all("__class__" not in vars(base) for base in kind.__mro__ if base is not object)


def _has_gaps(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array's bytes do not lie in one piece; objects have no bytes."""
    return bool(array.nbytes) and not array.flags.forc and not array.dtype.hasobject


def _without_gaps(array: np.ndarray[Any, Any]) -> Any:
    copy = np.array(array, order="C")
    copy.flags.writeable = array.flags.writeable
    return copy.__reduce_ex__(5)


def _with_gaps(array: np.ndarray[Any, Any], max_span: float) -> Any:
    """Reduce an array to the bytes from its first to its last; None if they are more than `max_span` times its own."""
    forward = array[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)]
    nbytes = sum((n - 1) * stride for n, stride in zip(forward.shape, forward.strides, strict=True)) + array.itemsize
    if nbytes > max_span * array.nbytes:
        return None
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
    reducer: Reducer | None = None,
    together: PicklesTogether | None = None,
) -> tuple[bytes, list[memoryview], list[Any], Memo]:
    """Pickle `value` as `dump` does, and give what the pickle remembers of objects: all that have an identity.

    It keeps them alive, also those that only existed for the pickle. `reducer` is asked first how to reduce
    an object that is no array. With `together`, which is for arguments, arrays with gaps leave the pickle like others:
    what is loaded has the same gaps, or none.
    """
    file, views = io.BytesIO(), _Views(min_nbytes)
    if references:
        pickler = referring = _ReferencePickler(file, references, protocol=5, buffer_callback=views.take)
    else:
        pickler, referring = _Pickler(file, protocol=5, buffer_callback=views.take), None
    pickler.reducer = reducer
    pickler.together = together
    pickler.min_nbytes = min_nbytes
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
