"""A chunk refers to each function, buffer and scattered object once, by position."""

import numpy as np
import pytest
from tests.unit.chunks import Client, in_main, request, spec

from jobfleet._pickling import MIN_SHARED_NBYTES
from jobfleet._wire import MANY, ONE

pytestmark = pytest.mark.timeout(20)

SMALL, LARGE = MIN_SHARED_NBYTES, 4 * MIN_SHARED_NBYTES


def filled(content, nbytes):
    return np.full(nbytes, content, np.uint8)


def take(*args, **kwargs):
    return len(args)


def references(packed):
    """Give, for each call that has buffers, what it refers to: content, mapped, writable."""
    values = [blob.data for blob in packed.placed] + packed.inline
    return [
        [(values[position][0], mapped, writable) for position, mapped, writable in item[3]]
        for item in request(packed).items
        if item[0] == ONE
    ]


def test_the_spec_travels_as_it_is():
    client = Client()
    packed = client.pack([client.encode(take, 1)])
    assert request(packed).spec == spec()


def test_functions_are_listed_once_in_the_order_of_use():
    client = Client()
    state, _ = in_main("seen = []\ndef f(x): return seen")
    tasks = [client.encode(f, v) for f, v in [(len, ""), (abs, 1), (len, []), (state.f, 1), (abs, 2), (abs, 3)]]
    packed = request(client.pack(tasks))
    assert packed.functions == (
        (tasks[0].function.data, (), True),
        (tasks[1].function.data, (), True),
        (tasks[3].function.data, (), False),
    )
    assert [item[:2] for item in packed.items] == [(MANY, 0), (MANY, 1), (ONE, 0), (MANY, 2), (MANY, 1)]


def test_large_buffers_are_placed_and_shared_small_ones_go_along_as_copies():
    client = Client(max_nbytes=LARGE)
    packed = client.pack([client.encode(take, filled(1, SMALL), filled(2, LARGE), filled(3, LARGE - 1))])
    assert [blob.data[0] for blob in packed.placed] == [2]
    assert sorted(data[0] for data in packed.inline) == [1, 3]
    assert references(packed) == [[(1, False, True), (2, True, True), (3, False, True)]]


def test_what_several_tasks_want_is_placed_and_each_copies_it():
    client = Client(max_nbytes=LARGE)
    packed = client.pack([client.encode(take, filled(1, SMALL), filled(n, SMALL)) for n in (2, 3)])
    assert [blob.data[0] for blob in packed.placed] == [1]
    assert sorted(data[0] for data in packed.inline) == [2, 3]
    assert references(packed) == [[(1, False, True), (2, False, True)], [(1, False, True), (3, False, True)]]


def test_without_max_nbytes_nothing_is_shared():
    client = Client(max_nbytes=None)
    packed = client.pack([client.encode(take, filled(1, LARGE))])
    assert packed.placed == []
    assert references(packed) == [[(1, False, True)]]


def test_the_same_content_may_be_writable_to_one_and_not_to_another():
    client = Client()
    locked = filled(1, SMALL)
    locked.flags.writeable = False
    packed = client.pack([client.encode(take, locked), client.encode(take, filled(1, SMALL))])
    assert len(packed.placed) == 1
    assert references(packed) == [[(1, False, False)], [(1, False, True)]]


def test_scattered_objects_are_placed_unless_a_reference_would_cost_more():
    value = {"a": 1, "b": filled(1, SMALL)}
    client = Client(max_nbytes=LARGE, scatter=[value])
    packed = client.pack([client.encode(take, value), client.encode(take, [value]), client.encode(take, 1)])
    ((name, (head, buffer)),) = request(packed).scattered
    assert name == client.scattered[0].persistent_id
    assert [len(blob.data) for blob in packed.placed] == [SMALL]
    values = [*(blob.data for blob in packed.placed), *packed.inline]
    assert values[head[0]] == client.scattered[0].head.data
    assert values[buffer[0]] == value["b"].tobytes()


def test_a_chunk_of_nothing_but_short_calls_is_small():
    client = Client()
    packed = client.pack([client.encode(take, i, k=float(i)) for i in range(1000)])
    assert len(packed.request) < 30_000
    assert not packed.placed
    assert not packed.inline


def test_a_task_can_be_packed_again():
    client = Client()
    tasks = [client.encode(take, filled(1, SMALL)), client.encode(take, 1)]
    assert client.pack(tasks) == client.pack(tasks)
    assert client.run(tasks) == client.run(tasks) == client.run(tasks[:1]) * 2
