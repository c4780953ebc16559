"""Large objects without buffers: a dict of a million strings, a vocabulary, a tree of nodes.

Their pickles are as large as they are, and would be made and sent for each task. What many tasks reach, by whatever
route, is taken out of the tasks' pickles instead, as objects of ``scatter=`` are: its own pickle is a buffer like any
other, stored once per host, and each task loads an object of its own from it.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import is_
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from .._pickling import ATOMS, Memo, PicklesTogether, Reducer, Reference, dump_with_memo
from .buffers import Blob, BlobTable, content_digest
from .callback_contexts import CallbackMet, without_siblings
from .functions import global_names, travels_by_name
from .scatter import new_persistent_id

#: Pickles from this size on are searched for what other tasks may want too.
MIN_PART_NBYTES = 2**20

#: How deep inside of a task's function and arguments parts are looked for, and in containers of how many things.
_MAX_DEPTH = 4
_MAX_CHILDREN = 64

#: How often parts are looked for without any of them being met again: tasks may each have an object of their own.
_MAX_IDLE_SEARCHES = 4

#: How many parts are remembered; each keeps its object alive.
_MAX_PARTS = 16

_IMMUTABLE = ATOMS | {np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64}
_IMMUTABLE |= {np.float32, np.float64, np.str_, np.bytes_}
_FLAT = (dict, list, tuple, set, frozenset)

#: As `dump` gives it: a pickle, its buffers, and what was referred to.
Dumped = tuple[bytes, list[memoryview], list[Any]]

#: An object that is large, its pickle, its buffers, and what the pickle remembers.
_Large = tuple[Any, bytes, list[memoryview], Memo]


class Part:
    """Hold the pickle of an object that several tasks reach.

    Parameters
    ----------
    obj
        Kept alive, so that its identity stays its own.
    data, views, memo
        Its pickle, the buffers beside that, and what the pickle remembers.
    blobs
        Where these go.
    """

    __slots__ = ("_batch", "_blobs", "_flat", "_memo", "buffers", "head", "obj", "persistent_id")

    obj: Any
    persistent_id: str
    head: Blob
    """The pickle."""
    buffers: tuple[tuple[Blob, bool], ...]
    """Its large buffers, and whether each was writable."""
    _batch: int
    """The batch for which it was last known to be what was pickled."""
    _flat: tuple[tuple[Any, ...], ...] | None
    """What it consists of, if that can only change by being replaced."""
    _memo: Memo | None
    """What is in it, if it is not flat."""

    def __init__(
        self, obj: Any, data: bytes, views: Iterable[memoryview], memo: Memo, blobs: BlobTable, batch: int
    ) -> None:
        self.obj = obj
        self.persistent_id = new_persistent_id()
        self._blobs = blobs
        self._batch = batch
        self._flat = _elements(obj)
        self._memo = memo if self._flat is None else None
        self.head = blobs.acquire(memoryview(data), 0, content_digest(data))
        self.buffers = tuple((blobs.acquire(view, 0), not view.readonly) for view in views)

    @property
    def blobs(self) -> list[Blob]:
        """All that must be placed for it."""
        return [self.head, *(blob for blob, _ in self.buffers)]

    @property
    def is_flat(self) -> bool:
        """Whether nothing in it has an identity that could be missed."""
        return self._flat is not None

    def acquire(self, n_tasks: int) -> None:
        """Say that tasks use it; they release it together."""
        for blob in self.blobs:
            self._blobs.acquire_again(blob, n_tasks)

    def release(self) -> None:
        """Say that those who acquired it together, or who made it, are done."""
        for blob in self.blobs:
            self._blobs.release(blob)

    def refreshed(self, batch: int, min_nbytes: int, together: PicklesTogether) -> Part:
        """Give this if the object is still what was pickled, else its new form.

        Within a batch nothing of the user's runs. After that, what is made of immutable things is compared by
        identity; all else is pickled again, and if that comes out the same, nothing is sent.
        """
        if self._batch == batch or (self._flat is not None and _consists_of(self.obj, self._flat)):
            self._batch = batch
            return self
        data, views, _, memo = dump_with_memo(self.obj, None, min_nbytes, together=together)
        new = Part(self.obj, data, views, memo, self._blobs, batch)
        if [blob.digest for blob in new.blobs] == [blob.digest for blob in self.blobs] and [
            writable for _, writable in new.buffers
        ] == [writable for _, writable in self.buffers]:
            new.release()
            self._batch = batch
            self._flat, self._memo = new._flat, new._memo
            return self
        self.release()
        return new

    def inner(self) -> set[int]:
        """Give the identities of what is in it, itself included, as it was when it was last looked at."""
        return {id(self.obj), *_identities(self._memo)}


class LargeParts:
    """Pickle tasks, and take large objects out that others may want too.

    Parameters
    ----------
    blobs
        Where large pickles and buffers go.
    scattered
        Objects that were sent ahead, by `id`.
    min_nbytes
        Contiguous buffers of at least this size leave the pickles.

    Notes
    -----
    One thread at a time.
    """

    _parts: OrderedDict[int, Part]
    """By `id` of the object; the one used last is the last."""
    _references: Mapping[int, Reference]

    def __init__(self, blobs: BlobTable, scattered: Mapping[int, Reference], min_nbytes: int) -> None:
        self._blobs = blobs
        self._scattered = self._references = scattered
        self._min_nbytes = min_nbytes
        self._parts = OrderedDict()
        self._batch = 0
        self._together = PicklesTogether()
        self._searches_left = _MAX_IDLE_SEARCHES

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Say that the user's code may have run, and changed anything; within the block it does not."""
        self._batch += 1
        try:
            yield
        finally:
            self._together.clear()

    def dump(self, value: Any) -> Dumped:
        """Pickle a value, which must not be a part itself, with references to parts."""
        dumped = self._dump(value)
        if len(dumped[0]) < MIN_PART_NBYTES or not self._searches_left:
            return dumped
        self._searches_left -= 1
        for depth in (_MAX_DEPTH, 0):
            found = {id(large[0]): large for large in self._large_in(value, depth)}
            for large in found.values():
                self._remember(Part(*large, self._blobs, self._batch))
            dumped = self._dump(value)
            if len(dumped[0]) < MIN_PART_NBYTES:
                break
            # They are not met, or not all can be taken out: an object may pickle as something else than it seems to be.
            for identity in found:
                self._forget(identity)
            dumped = self._dump(value)
        return dumped

    def _dump(self, value: Any) -> Dumped:
        reducer = without_siblings(_given(value))
        if reducer is not None:
            with contextlib.suppress(CallbackMet):
                return self._dump_in(reducer, value)
        return self._dump_in(None, value)

    def _dump_in(self, reducer: Reducer | None, value: Any) -> Dumped:
        if not self._parts:
            return dump_with_memo(value, self._scattered, self._min_nbytes, reducer, self._together)[:3]
        while True:
            data, views, used, memo = dump_with_memo(value, self._references, self._min_nbytes, reducer, self._together)
            parts = [one for one in used if isinstance(one, Part)]
            if any(self._renew(part) for part in parts):
                continue
            if self._hides_identity(parts, memo, value):
                return dump_with_memo(value, self._scattered, self._min_nbytes, reducer, self._together)[:3]
            return data, views, used

    def _renew(self, part: Part) -> bool:
        """Whether a part that was met is not what was pickled any more; the next pickle refers to the new one."""
        if part._batch != self._batch:
            self._searches_left = _MAX_IDLE_SEARCHES
        try:
            new = part.refreshed(self._batch, self._min_nbytes, self._together)
        except Exception:  # user code ran: it does not pickle any more, which the task's own pickle will tell
            self._forget(id(part.obj))
            return True
        self._parts[id(part.obj)] = new
        self._parts.move_to_end(id(part.obj))
        if new is not part:
            self._refer()
        return new is not part

    def _hides_identity(self, parts: list[Part], memo: Memo, value: Any) -> bool:
        """Whether an object is in two of the pickles, so that a task would see two where there is one."""
        if all(part.is_flat for part in parts):
            return False
        own = {id(value), *map(id, value if type(value) is tuple else ())}
        seen = {identity for identity in _identities(memo) if identity not in own}
        if not seen and len(parts) == 1:
            return False
        for part in parts:
            inner = part.inner()
            if not seen.isdisjoint(inner):
                return True
            seen |= inner
        return False

    def _remember(self, part: Part) -> None:
        self._parts[id(part.obj)] = part
        while len(self._parts) > _MAX_PARTS:
            self._parts.popitem(last=False)[1].release()
        self._refer()

    def _forget(self, identity: int) -> None:
        part = self._parts.pop(identity, None)
        if part is not None:
            part.release()
        self._refer()

    def _refer(self) -> None:
        self._references = {**self._scattered, **self._parts}

    def _large_in(self, value: Any, depth: int) -> Iterator[_Large]:
        """Give large objects that a task's function and arguments reach, and their pickles."""
        for thing in _given(value):
            yield from self._large(thing, depth)

    def _large(self, obj: Any, depth: int) -> list[_Large]:
        """Give the deepest large objects that make up nearly all of this one's pickle; nothing if it is small."""
        if type(obj) in ATOMS and not (type(obj) in (str, bytes) and len(obj) >= MIN_PART_NBYTES):
            return []
        try:
            data, views, used, memo = dump_with_memo(obj, self._scattered, self._min_nbytes, together=self._together)
        except Exception:  # user code ran: it may pickle in its place only
            return []
        if len(data) < MIN_PART_NBYTES:
            return []
        if depth:
            found = [one for child in _children(obj) for one in self._large(child, depth - 1)]
            if found and sum(len(large[1]) for large in found) > len(data) - MIN_PART_NBYTES:
                return found
        return [] if used else [(obj, data, views, memo)]


def _given(value: Any) -> Iterator[Any]:
    """Give a function, or the function and the arguments of a task, whose containers are the task's own."""
    if type(value) is not tuple:
        yield value
        return
    for part in value:
        yield from part if type(part) is tuple else part.values() if type(part) is dict else (part,)


def _elements(obj: Any) -> tuple[tuple[Any, ...], ...] | None:
    """Give all that a container consists of, if that is immutable, else None."""
    kind = type(obj)
    if kind in _IMMUTABLE:
        return ()
    if kind not in _FLAT:
        return None
    columns = (tuple(obj), tuple(obj.values())) if kind is dict else (tuple(obj),)
    if not set(map(type, chain(*columns))) <= _IMMUTABLE:
        return None
    return () if kind in (tuple, frozenset) else columns


def _consists_of(obj: Any, columns: tuple[tuple[Any, ...], ...]) -> bool:
    """Whether a container still consists of these very objects, in this order."""
    if not columns:
        return True
    if len(obj) != len(columns[0]):
        return False
    try:
        now = (obj, obj.values()) if type(obj) is dict else (obj,)
        return all(all(map(is_, column, values)) for column, values in zip(columns, now, strict=True))
    except RuntimeError:  # another thread changes it just now
        return False


def _children(obj: Any) -> list[Any]:
    """Give what an object obviously consists of."""
    children: Iterable[Any]
    if isinstance(obj, functools.partial):
        children = [obj.func, *obj.args, *obj.keywords.values()]
    elif isinstance(obj, MethodType):
        children = [obj.__self__]
    elif isinstance(obj, FunctionType):
        children = _parts_of_function(obj)
    elif isinstance(obj, (dict, list, tuple, set, frozenset)):
        if len(obj) > _MAX_CHILDREN:
            return []
        children = obj.values() if isinstance(obj, dict) else obj
    elif isinstance(obj, (type, ModuleType)):
        return []
    else:
        children = getattr(obj, "__dict__", {}).values()
    children = list(children)
    return children if len(children) <= _MAX_CHILDREN else []


def _parts_of_function(function: FunctionType) -> list[Any]:
    if travels_by_name(function):
        return []
    parts = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        if isinstance(cell, CellType):
            try:
                parts.append(cell.cell_contents)
            except ValueError:  # it is empty
                continue
    names = global_names(function.__code__)
    parts += [value for name, value in function.__globals__.items() if name in names]
    return [*parts, *function.__dict__.values()]


def _identities(memo: Memo | None) -> Iterator[int]:
    """Give the identities of what was pickled that a task could tell from an equal object.

    Functions that travel by value bring the globals they share.
    """
    for identity, (_, obj) in (memo.copy() if memo is not None else {}).items():
        if type(obj) in _IMMUTABLE or isinstance(
            obj, (tuple, frozenset, type, CodeType, ModuleType, BuiltinFunctionType)
        ):
            continue
        if isinstance(obj, FunctionType):
            if travels_by_name(obj):
                continue
            yield id(obj.__globals__)
        yield identity
