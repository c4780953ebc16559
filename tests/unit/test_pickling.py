"""Objects as pickles: large buffers beside them, what was sent ahead as a reference."""

import copyreg
import dataclasses
import io
import math
import pickle
import types

import numpy as np
import pytest

from jobfleet._pickling import ATOMS, MIN_SHARED_NBYTES, PicklesTogether, atomic, dump, dump_with_memo

pytestmark = pytest.mark.timeout(20)


@dataclasses.dataclass
class Reference:
    obj: object
    persistent_id: str


class Loader(pickle.Unpickler):
    def persistent_load(self, pid):
        return f"sent ahead as {pid}"


def load(data, views=()):
    return Loader(io.BytesIO(data), buffers=views).load()


def test_buffers_leave_the_pickle_from_the_given_size_on():
    sizes = [1, 99, 100, 101, 5000]
    data, views, used = dump([np.zeros(n, np.uint8) for n in sizes], min_nbytes=100)
    assert [view.nbytes for view in views] == [100, 101, 5000]
    assert used == []
    assert [len(a) for a in load(data, views)] == sizes


def test_by_default_small_buffers_stay():
    data, views, _ = dump([np.zeros(MIN_SHARED_NBYTES - 1, np.uint8), np.zeros(MIN_SHARED_NBYTES, np.uint8)])
    assert [view.nbytes for view in views] == [MIN_SHARED_NBYTES]
    assert len(data) > MIN_SHARED_NBYTES


def test_no_buffer_leaves_where_none_may():
    data, views, _ = dump(np.zeros(10**6), min_nbytes=math.inf)
    assert views == []
    assert len(pickle.loads(data)) == 10**6


def test_views_show_the_owners_memory_and_whether_it_is_writable():
    owner, locked = np.zeros(10_000, np.uint8), np.zeros(10_000, np.uint8)
    locked.flags.writeable = False
    _, (first, second), _ = dump([owner, locked])
    owner[5] = 7
    assert first[5] == 7
    assert (first.readonly, second.readonly) == (False, True)
    assert (first.format, first.ndim) == ("B", 1)


def test_an_array_that_occurs_twice_is_one_buffer():
    a = np.zeros(10_000)
    data, views, _ = dump([a, {"k": a}])
    assert len(views) == 1
    first, second = load(data, views)
    assert first is second["k"]


def test_lambdas_and_local_classes_travel():
    class Local:
        k = 3

    data, _, _ = dump((lambda x: x + Local.k, Local))
    function, cls = pickle.loads(data)
    assert function(1) == 4
    assert cls().k == 3


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_memmap_travels_as_the_array_it_shows(tmp_path, mode):
    np.arange(5000.0).tofile(tmp_path / "data")
    mapped = np.memmap(tmp_path / "data", mode=mode)
    data, views, _ = dump({"whole": mapped, "part": mapped[8:16]})
    assert b"memmap" not in data
    (tmp_path / "data").unlink()
    loaded = load(data, views)
    assert type(loaded["whole"]) is type(loaded["part"]) is np.ndarray
    np.testing.assert_array_equal(loaded["whole"].view(float), np.arange(5000.0))
    np.testing.assert_array_equal(loaded["part"].view(float), [1.0])


WIDE = np.arange(400_000.0).reshape(1000, 400)

WITH_GAPS = {
    "columns": WIDE[:, 1:-1],
    "few columns": WIDE[:, 3:9],
    "every other row": WIDE[::2],
    "backwards": WIDE[::-1, ::-1],
    "three axes": WIDE.reshape(10, 100, 400).transpose(1, 0, 2)[:, 1:, 5:],
    "F order": WIDE.T[2:, 3:],
    "a field": WIDE.view([("a", "f8"), ("b", "f8")])["b"],
    "fields": WIDE[:, :-2].view(np.dtype((np.void, 16)))[:, 1:],
    "dates": WIDE.astype("M8[s]")[:, 1:],
    "the same for all rows": np.broadcast_to(WIDE[0], (3000, 400)),
    "read-only": WIDE[:, :-1],
    "read-only, wide": WIDE[:, :9],
}
for name in ("read-only", "read-only, wide"):
    WITH_GAPS[name].flags.writeable = False


def dump_arguments(value, together):
    data, views, *_ = dump_with_memo(value, together=together)
    return data, views


@pytest.mark.parametrize("name", WITH_GAPS)
def test_arrays_with_gaps_leave_the_pickles_of_arguments(name):
    array = WITH_GAPS[name]
    assert not array.flags.forc
    data, views = dump_arguments([array, {"again": array}], PicklesTogether())
    assert len(data) < 4000
    assert sum(view.nbytes for view in views) <= 1.25 * array.nbytes
    assert all(view.readonly is not array.flags.writeable for view in views)
    first, second = load(data, [bytearray(view) if array.flags.writeable else bytes(view) for view in views])
    assert first is second["again"]
    assert (type(first), first.dtype, first.flags.writeable) == (np.ndarray, array.dtype, array.flags.writeable)
    assert first.tobytes() == array.tobytes()
    assert first.shape == array.shape


def test_the_gaps_of_an_array_are_sent_if_they_are_narrow_and_else_taken_out_once():
    together = PicklesTogether()
    narrow, wide = WIDE[:, :350], WIDE[:, :300]
    _, (first, third) = dump_arguments([narrow, wide], together)
    _, (second, fourth) = dump_arguments([narrow, wide], together)
    assert np.shares_memory(np.asarray(first), narrow)
    assert np.shares_memory(np.asarray(second), narrow)
    assert not np.shares_memory(np.asarray(third), wide)
    assert np.shares_memory(np.asarray(third), np.asarray(fourth))
    together.clear()
    _, (_, fifth) = dump_arguments([narrow, wide], together)
    assert not np.shares_memory(np.asarray(third), np.asarray(fifth))


def test_a_slice_of_a_memmap_brings_wider_gaps_since_they_are_in_the_file(tmp_path):
    WIDE.tofile(tmp_path / "data")
    mapped = np.memmap(tmp_path / "data", dtype=float, mode="r", shape=WIDE.shape)
    together = PicklesTogether()
    for columns, shares in ((slice(110), True), (slice(50), False)):
        data, (view,) = dump_arguments(mapped[:, columns], together)
        assert np.shares_memory(np.asarray(view), mapped) is shares
        np.testing.assert_array_equal(load(data, [view]), WIDE[:, columns])


def test_many_arrays_with_gaps_are_not_all_remembered():
    together = PicklesTogether()
    for n in range(2, 300):
        dump_arguments(WIDE[:, :n], together)
    assert len(together._arrays) <= 64


@pytest.mark.parametrize(
    "array", [WIDE[:30, :30], WIDE.astype(object)[:, :300], np.ma.masked_array(WIDE[:, :300], WIDE[:, :300] > 5)]
)
def test_small_arrays_with_gaps_and_other_kinds_are_pickled_as_ever(array):
    data, views = dump_arguments(array, PicklesTogether())
    assert views == []
    assert len(data) > 900
    np.testing.assert_array_equal(load(data), array)


def test_results_with_gaps_take_no_gaps_along():
    data, views, _ = dump(WIDE[:, :350])
    assert views == []
    assert load(data).flags.c_contiguous


def test_references_are_by_identity_wherever_they_are_met():
    sent, other = [1, 2], [1, 2]
    reference = Reference(sent, "7")
    data, _, used = dump({"a": sent, "b": [sent, other], "c": lambda: sent}, {id(sent): reference})
    assert used == [reference]
    loaded = load(data)
    assert loaded["a"] == "sent ahead as 7"
    assert loaded["b"] == ["sent ahead as 7", [1, 2]]
    assert loaded["c"]() == "sent ahead as 7"


def test_an_object_that_has_another_ones_old_address_is_no_reference():
    data, _, used = dump([1, 2], {id(object()): Reference("gone", "7")})
    assert (load(data), used) == ([1, 2], [])
    value = [3]
    data, _, used = dump(value, {id(value): Reference([3], "7")})
    assert (load(data), used) == ([3], [])


def test_without_references_an_ordinary_unpickler_reads_it():
    data, views, _ = dump([np.zeros(10_000), 1], {})
    assert len(pickle.loads(data, buffers=views)[0]) == 10_000


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), True),
        ((1, 1.5, 1j, True, "a", b"a", None, 2**200, math.nan), True),
        (("x" * MIN_SHARED_NBYTES, b"x" * MIN_SHARED_NBYTES), True),
        (("x" * (MIN_SHARED_NBYTES + 1),), False),
        ((b"x" * (MIN_SHARED_NBYTES + 1),), False),
        ((1, ()), False),
        (([],), False),
        ((np.float64(1),), False),
        ((bytearray(b"a"),), False),
        ((type("Text", (str,), {})("a"),), False),
    ],
)
def test_atoms_are_short_and_cannot_change(values, expected):
    assert atomic(values) is expected


def test_no_atom_can_be_changed():
    for kind in ATOMS:
        with pytest.raises((AttributeError, TypeError)):
            kind().attribute = 1
        assert kind().__hash__ is not None


class Plain:
    """Be pickled by `pickle` itself, until somebody registers another way."""

    def __init__(self, value):
        self.value = value


class Proxy:
    """Stand for something else, and say so."""

    def __init__(self, wrapped):
        self._wrapped = wrapped

    @property
    def __class__(self):
        return type(self._wrapped)

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "_wrapped"), name)

    def __reduce_ex__(self, protocol):
        if isinstance(self._wrapped, int):
            return int, (self._wrapped,)
        raise NotImplementedError


class Disguised:
    """Do the same without a property."""

    def __init__(self, wrapped):
        object.__setattr__(self, "_wrapped", wrapped)

    def __getattribute__(self, name):
        wrapped = object.__getattribute__(self, "_wrapped")
        if name == "__reduce_ex__" and isinstance(wrapped, int):
            return lambda protocol: (int, (wrapped,))
        return type(wrapped) if name == "__class__" else getattr(wrapped, name)


@pytest.mark.parametrize("kind", [Proxy, Disguised])
def test_each_object_is_asked_what_it_is_where_its_type_does_not_tell(kind):
    together = PicklesTogether()
    for value in (5, 6):
        data, _ = dump_arguments([kind(value), kind(lambda value=value: value)], together)
        number, function = load(data)
        assert (number, function()) == (value, value)


def test_a_way_to_pickle_that_is_registered_meanwhile_counts(monkeypatch):
    together = PicklesTogether()
    data, _ = dump_arguments([Plain(1), Plain(2)], together)
    assert [one.value for one in load(data)] == [1, 2]
    monkeypatch.setitem(copyreg.dispatch_table, Plain, lambda plain: (Plain, (2 * plain.value,)))
    data, _ = dump_arguments([Plain(1), Plain(2)], together)
    assert [one.value for one in load(data)] == [2, 4]


def test_what_only_cloudpickle_can_pickle_does_each_time():
    together = PicklesTogether()
    things = {"mapping": types.MappingProxyType({1: 2}), "keys": {3: 4}.keys(), "module": math, "code": load.__code__}
    for _ in range(2):
        data, _ = dump_arguments(things, together)
        loaded = load(data)
        assert loaded["mapping"] == {1: 2}
        assert list(loaded["keys"]) == [3]
        assert loaded["module"] is math
        assert loaded["code"] == load.__code__


def test_many_types_are_not_all_remembered():
    together = PicklesTogether()
    for i in range(3000):
        made = type(f"Made{i}", (Plain,), {"__reduce__": lambda self: (Plain, (1,))})
        dump_arguments([made(i)], together)
        together.clear()
    assert sum(map(len, together.plain)) <= 1025
