"""What waits in a chunk behind a task that takes long is done elsewhere meanwhile."""

import queue
import threading
from collections import Counter

import pytest
from distributed import Client, LocalCluster
from joblib import Parallel, delayed, parallel_config

from jobfleet._engine.handing_back import TOPIC, Lookout
from tests.witness import mark, names, open_gate, pass_gate, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

N_TASKS = 40


def square(i, directory=None, last=None):
    """Give a square; in a directory where tasks leave marks, one of them ends last."""
    if directory is not None:
        mark(directory, str(i))
    if i == last:
        wait_until(lambda: len(set(names(directory))) == N_TASKS, "all others have started")
    return i * i


def square_behind_gate(i, gate, last):
    if i == last:
        pass_gate(gate)
    return i * i


@pytest.mark.parametrize("last", [0, 7])
def test_the_others_of_its_chunk_do_not_wait_for_a_task_that_takes_long(process_client, tmp_path, last):
    with parallel_config("dask", client=process_client):
        Parallel()(delayed(square)(i) for i in range(1000))  # so they are known to be short
        results = Parallel()(delayed(square)(i, tmp_path, last) for i in range(N_TASKS))
    assert results == [i * i for i in range(N_TASKS)]
    assert Counter(map(int, names(tmp_path))) == Counter(range(N_TASKS)), "each has run once"


def test_a_generator_gives_the_others_results_meanwhile(process_client, tmp_path):
    with parallel_config("dask", client=process_client):
        Parallel()(delayed(square_behind_gate)(i, None, None) for i in range(1000))
        results = Parallel(return_as="generator_unordered")(
            delayed(square_behind_gate)(i, tmp_path / "gate", last=1) for i in range(N_TASKS)
        )
        others = [next(results) for _ in range(N_TASKS - 1)]
        open_gate(tmp_path / "gate")
        assert sorted([*others, *results]) == [i * i for i in range(N_TASKS)]


@pytest.fixture
def looks():
    """Give what looks at the chunks of a worker, and what the client hears of it."""
    heard, subscribed = queue.Queue(), threading.Event()

    def hear(event):
        if event[1]["key"] == "probe":
            subscribed.set()
        else:
            heard.put((event[1]["key"], event[1]["kept"]))

    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.subscribe_topic(TOPIC, hear)
        while not subscribed.wait(0.05):  # nobody says when the scheduler knows of it
            client.log_event(TOPIC, {"key": "probe"})
        yield Lookout(cluster.workers[0]), heard


def test_a_chunk_is_looked_at_when_its_own_time_is_over(looks):
    lookout, heard = looks
    with lookout.watch("slow", lambda: None, 3600.0), lookout.watch("quick", lambda: 3, 0.01):
        assert heard.get(timeout=20) == ("quick", 3)
    with lookout.watch("next", lambda: 1, 0.0):
        assert heard.get(timeout=20) == ("next", 1)
    assert heard.empty()


def test_a_chunk_that_began_late_is_looked_at_again(looks):
    lookout, heard = looks
    answers = [2, None, None]
    with lookout.watch("late", answers.pop, 0.0):
        assert heard.get(timeout=20) == ("late", 2)
    assert answers == []


def test_a_chunk_that_has_ended_gives_nothing_back(looks):
    lookout, heard = looks
    with lookout.watch("ended", lambda: 1, 0.3):
        pass
    with lookout.watch("running", lambda: 2, 0.6):
        assert heard.get(timeout=20) == ("running", 2)
