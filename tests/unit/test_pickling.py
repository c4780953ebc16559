"""Objects as pickles: large buffers beside them, what was sent ahead as a reference."""

import dataclasses
import io
import math
import pickle

import numpy as np
import pytest

from jobfleet._pickling import ATOMS, MIN_SHARED_NBYTES, atomic, dump

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
