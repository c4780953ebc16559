"""Output is shown in the order of the call, whatever the order in which tasks end."""

import itertools
import random

import pytest

from jobfleet._call.output import OutputOrder

pytestmark = pytest.mark.timeout(20)


def text(task):
    return (("out", f"{task}\n"),)


def test_output_waits_for_that_of_the_tasks_before():
    order = OutputOrder(ordered=True)
    assert order.take(range(2, 3), iter([(2, text(2))])) == []
    assert order.take(range(1), iter([(0, text(0))])) == [text(0)]
    assert order.take(range(1, 2), iter([])) == [text(2)], "a task that prints nothing holds nothing back"


def test_a_chunk_that_ends_early_lets_out_what_waited_for_it():
    order = OutputOrder(ordered=True)
    assert order.take(range(4, 6), iter([(5, text(5))])) == []
    assert order.take(range(2), iter([(1, text(1))])) == [text(1)]
    assert order.take(range(0), iter([])) == [], "a chunk may answer that none of its tasks has ended"
    assert order.take(range(2, 4), iter([(3, text(3))])) == [text(3), text(5)]


def test_results_in_order_of_completion_bring_their_output_at_once():
    order = OutputOrder(ordered=False)
    assert order.take(range(3, 4), iter([(3, text(3))])) == [text(3)]


def test_at_the_end_nothing_is_held_back():
    order = OutputOrder(ordered=True)
    order.take(range(4, 6), iter([(5, text(5)), (4, text(4))]))
    assert order.take_all() == [text(4), text(5)]
    assert order.take_all() == []


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_ending_gives_the_order_of_the_call(seed):
    shuffled = random.Random(seed)
    cuts = [0, *sorted(shuffled.sample(range(1, 40), 12)), 40]
    chunks = [range(start, stop) for start, stop in itertools.pairwise(cuts)]
    shuffled.shuffle(chunks)
    order = OutputOrder(ordered=True)
    shown = []
    for chunk in chunks:
        shown += order.take(chunk, iter([(task, text(task)) for task in chunk if task % 3]))
    assert shown == [text(task) for task in range(40) if task % 3]
