"""Output is shown in the order of the call, whatever the order in which tasks end."""

import random

import pytest

from jobfleet._call.output import OutputOrder

pytestmark = pytest.mark.timeout(20)


def text(task):
    return (("out", f"{task}\n"),)


def test_output_waits_for_that_of_the_tasks_before():
    order = OutputOrder(ordered=True)
    assert order.take([2], iter([(2, text(2))])) == []
    assert order.take([0], iter([(0, text(0))])) == [text(0)]
    assert order.take([1], iter([])) == [text(2)], "a task that prints nothing holds nothing back"


def test_a_chunk_may_hold_tasks_from_several_places():
    order = OutputOrder(ordered=True)
    assert order.take([1, 4, 5], iter([(1, text(1)), (5, text(5))])) == []
    assert order.take([0, 2], iter([])) == [text(1)]
    assert order.take([3], iter([(3, text(3))])) == [text(3), text(5)]


def test_results_in_order_of_completion_bring_their_output_at_once():
    order = OutputOrder(ordered=False)
    assert order.take([3], iter([(3, text(3))])) == [text(3)]


def test_at_the_end_nothing_is_held_back():
    order = OutputOrder(ordered=True)
    order.take([4, 5], iter([(5, text(5)), (4, text(4))]))
    assert order.take_all() == [text(4), text(5)]
    assert order.take_all() == []


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_ending_gives_the_order_of_the_call(seed):
    shuffled = random.Random(seed)
    tasks = list(range(40))
    shuffled.shuffle(tasks)
    order = OutputOrder(ordered=True)
    shown = []
    while tasks:
        chunk = sorted(tasks.pop() for _ in range(min(len(tasks), shuffled.randint(1, 6))))
        shown += order.take(chunk, iter([(task, text(task)) for task in chunk if task % 3]))
    assert shown == [text(task) for task in range(40) if task % 3]
