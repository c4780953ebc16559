import math
import sys

import pytest

from jobfleet._call.tasks import TaskTable
from jobfleet._data.buffers import BlobTable
from jobfleet._data.encode import AtomCalls, Encoder


def fit(*args, **kwargs):
    raise AssertionError("nothing is called here")


#: With nothing but atoms for arguments, and with others.
BATCHES = {
    "atoms": [(fit, (1, "a"), {}), (fit, (2, "b"), {})],
    "keywords": [(fit, (1,), {"depth": 3}), (fit, (2,), {})],
    "lists": [(fit, ([1],), {"names": ["a"]}), (math.sqrt, ([2],), {})],
}


class Table:
    """A table, and the batches it was given."""

    def __init__(self, *batches):
        self.encoder = Encoder(BlobTable(lambda blob: None))
        self.tasks = TaskTable(self.encoder)
        for batch in batches:
            self.tasks.add(batch, self.encoder.encode(batch))


@pytest.fixture(params=BATCHES)
def batch(request):
    return BATCHES[request.param]


def test_a_task_is_known_by_its_index_as_what_it_was_given_as(batch):
    table = Table(batch, BATCHES["lists"], batch)
    assert [table.tasks.call(task) for task in range(6)] == batch + BATCHES["lists"] + batch


def test_the_first_call_that_is_not_done_is_told(batch):
    table = Table(batch, batch)
    assert table.tasks.progress() == (0, (0, batch[0]))
    table.tasks.forget(range(3))
    assert table.tasks.progress() == (3, (3, batch[1]))


def test_pieces_are_parts_of_batches():
    table = Table(BATCHES["atoms"], BATCHES["lists"])
    first, second = table.tasks.pieces(range(1, 4))
    assert isinstance(first, AtomCalls)
    assert first.args == [(2, "b")]
    assert len(second) == 2


def test_the_functions_of_tasks_are_those_that_are_called():
    table = Table(BATCHES["atoms"], BATCHES["lists"])
    assert list(table.tasks.functions(range(2))) == [fit]
    assert set(table.tasks.functions(range(4))) == {fit, math.sqrt}
    assert set(table.tasks.functions(range(1, 3))) == {fit}


def test_the_tuples_of_calls_with_atoms_are_let_go():
    """What the garbage collector must look at makes it look at everything in the process ever so often."""
    calls = [(fit, (position,), {}) for position in range(100)]
    before = sys.getrefcount(calls), sys.getrefcount(calls[0])
    table = Table(calls)
    after = sys.getrefcount(calls), sys.getrefcount(calls[0])
    assert after == before
    assert table.tasks.call(99) == calls[99]
