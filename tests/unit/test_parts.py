"""Large objects without buffers leave the pickles of tasks, stay what they were, and stay each task's own."""

import copy
import functools
import types
from typing import ClassVar

import numpy as np
import pytest
from tests.unit.chunks import Client, in_main

pytestmark = pytest.mark.timeout(30)

N = 3_000


def text(i):
    return f"value {i}".ljust(400)


def strings():
    return {f"key {i}": text(i) for i in range(N)}


class Node:
    """What no buffer holds, and nothing proves unchanged."""

    def __init__(self, number, below=()):
        self.number = number
        self.text = text(number)
        self.below = list(below)

    def total(self, extra=0):
        return self.number + extra + sum(node.total() for node in self.below)


def tree():
    return Node(1, [Node(i) for i in range(N)])


def size(thing, *_):
    """Find the thing that was sent, and tell how large it is."""
    while isinstance(thing, Holder) or (isinstance(thing, (list, tuple)) and len(thing) < 10):
        thing = thing.thing if isinstance(thing, Holder) else thing[0]
    return thing.total() if isinstance(thing, Node) else len(thing)


class Counting(list):
    pickled: ClassVar = []

    def __reduce_ex__(self, protocol):
        self.pickled.append(1)
        return super().__reduce_ex__(protocol)


class Holder:
    def __init__(self, thing, number):
        self.thing = thing
        self.number = number

    def size(self, *_):
        return size(self.thing)


def routes(thing, i):
    script, _ = in_main("def use(*_):\n    return size(THING)", THING=thing, size=size)
    return {
        "argument": (size, (thing, i)),
        "list": (size, ([thing, [i]],)),
        "keyword": (functools.partial(size, thing), ([i],)),
        "list of it and a number": (size, ([thing, i],)),
        "object": (size, (Holder(thing, i), [i])),
        "bound method": (Holder(thing, i).size, (i,)),
        "bound method with a list": (Holder(thing, i).size, ([i],)),
        "closure": (lambda *_: size(thing), ([i],)),
        "closure with numbers": (lambda *_: size(thing), (i,)),
        "global of a script": (script.use, (i,)),
        "global of a script, and a list": (script.use, ([i],)),
    }


THINGS = {
    "dict of strings": strings,
    "list of numbers": lambda: [*range(10**6, 10**6 + 100 * N)],
    "set": lambda: set(strings().values()),
    "text": lambda: "x" * 2**21,
    "bytes": lambda: b"x" * 2**21,
    "bytearray": lambda: bytearray(2**21),
    "nested": lambda: {f"{i}": [text(i), {f"{j}" for j in range(3)}] for i in range(N)},
    "tree": tree,
    "objects in an array": lambda: np.array([text(i) for i in range(N)], dtype=object),
}


def encoded_nbytes(task):
    function = getattr(task, "function", None)
    return len(getattr(task, "data", b"")) + (0 if function is None else len(function.data))


@pytest.mark.parametrize("kind", THINGS)
def test_it_leaves_the_pickle_whatever_the_route(kind):
    thing = THINGS[kind]()
    for route in routes(thing, 0):
        client = Client()
        tasks = []
        for i in range(3):
            function, arguments = routes(thing, i)[route]
            tasks.append(client.encode(function, *arguments))
        assert max(map(encoded_nbytes, tasks)) < 20_000, route
        chunk = client.pack(tasks)
        assert len([blob for blob in chunk.placed if len(blob.data) > 2**20]) == 1, route
        assert chunk.nbytes < 100_000
        assert client.run(tasks) == [size(thing)] * 3
        for task in tasks:
            client.release(task)


def test_pickled_once_for_a_batch_and_to_see_whether_it_has_changed_for_the_next():
    thing = Counting(strings().values())
    client = Client()
    client.encoder.encode([(size, (thing, [0]), {})])
    for _ in range(3):
        Counting.pickled.clear()
        client.encoder.encode([(size, (thing, [i]), {}) for i in range(20)])
        assert len(Counting.pickled) == 1


CHANGES = {
    "another value": (strings, lambda d: d.update({"key 7": "seven"})),
    "another key": (strings, lambda d: d.update(new="x")),
    "another order": (strings, lambda d: d.update({"key 7": d.pop("key 7")})),
    "an equal value of another type": (lambda: dict.fromkeys(strings(), 1), lambda d: d.update({"key 7": True})),
    "an item of a list": (lambda: [*strings().values()], lambda v: v.__setitem__(9, "nine")),
    "a set": (lambda: set(strings()), lambda s: s.discard("key 7")),
    "deep inside": (lambda: [[value] for value in strings().values()], lambda v: v[N // 2].append(1)),
    "an attribute": (lambda: [Node(i) for i in range(N)], lambda v: setattr(v[N // 2], "number", -1)),
}


def content(thing, *_):
    """Tell everything of a thing."""
    if isinstance(thing, dict):
        return [(key, value, type(value)) for key, value in thing.items()]
    if isinstance(thing, set):
        return sorted(thing)
    return [(one.number if isinstance(one, Node) else one) for one in thing]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_tasks_is_seen(change):
    make, apply = CHANGES[change]
    thing = make()
    client = Client()
    tasks, expected = [], []
    for i in range(6):
        tasks.append(client.encode(content, thing, [i]))
        expected.append(copy.deepcopy(content(thing)))
        if i == 2:
            apply(thing)
    assert expected[0] != expected[-1]
    assert client.run(tasks) == expected


def test_each_task_has_its_own():
    def change(thing, i):
        thing["new"] = thing.get("new", 0) + 1
        return thing["new"]

    thing = strings()
    client = Client()
    tasks = [client.encode(change, thing, [i]) for i in range(3)]
    assert client.run(tasks) == [1, 1, 1]
    assert "new" not in thing


def test_within_a_task_what_is_one_stays_one():
    thing = [Node(i) for i in range(N)]
    other = strings()

    def same(things, node, text, again):
        return things[3] is node, again is text, type(things)

    client = Client()
    tasks = [client.encode(same, thing, thing[3], other, other) for _ in range(3)]
    assert client.run(tasks) == [(True, True, list)] * 3
    # Two that share something inside.
    shared = [1]
    first, second = ([[text(i), shared] for i in range(N)] for _ in range(2))
    tasks = [client.encode(lambda x, y, _: x[0][1] is y[-1][1], first, second, [i]) for i in range(3)]
    assert client.run(tasks) == [True] * 3


def test_functions_of_one_script_keep_the_globals_they_share():
    source = """
def set_it(value):
    global VALUE
    VALUE = value

def get_it():
    return VALUE

VALUE = 0
"""
    script, names = in_main(source)
    thing = [types.SimpleNamespace(text=text(i), call=script.set_it) for i in range(N)]
    client = Client()

    def use(things, get, i):
        things[0].call(i[0])
        return get()

    tasks = [client.encode(use, thing, names["get_it"], [i]) for i in range(1, 4)]
    assert client.run(tasks) == [1, 2, 3]


def test_objects_of_a_single_task_are_looked_for_a_few_times_only():
    client = Client()
    things = [Counting(strings()) for _ in range(12)]
    tasks = [client.encode(size, thing, [i]) for i, thing in enumerate(things)]
    assert client.run(tasks) == [N] * 12
    Counting.pickled.clear()
    client.encode(size, Counting(strings()), [0])
    assert len(Counting.pickled) == 1


def test_it_goes_with_the_last_task_that_may_want_it():
    client = Client()
    thing = strings()
    tasks = [client.encode(size, thing, [i]) for i in range(3)]
    thing["key 7"] = "seven"
    tasks.append(client.encode(size, thing, [3]))
    for task in tasks:
        client.release(task)
    users = [blob.users for blob in client.blobs._blobs.values() if len(blob.data) > 2**20]
    assert sorted(users) == [0, 1]  # the old one is idle, the new one may be wanted by the next task
    client.blobs.clear()


def test_what_was_sent_ahead_is_left_to_that():
    ahead = strings()
    client = Client(scatter=[ahead])
    things = [ahead, [Node(i) for i in range(N)]]
    tasks = [client.encode(lambda things, _: (size(things[0]), len(things[1])), things, [i]) for i in range(3)]
    assert max(map(encoded_nbytes, tasks)) < 20_000
    assert client.run(tasks) == [(N, N)] * 3
