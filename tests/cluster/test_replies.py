"""Small replies come with the word that their task is done; all others are collected."""

from collections import Counter

import numpy as np
import pytest
from distributed import Client, LocalCluster
from joblib import Parallel, delayed, parallel_config

from jobfleet._engine import courier
from tests.faults.conftest import assert_nothing_is_left

pytestmark = pytest.mark.slow


def text(n):
    return "x" * n


@pytest.fixture(params=[True, False], ids=["plugin", "no-plugin"])
def watched(request):
    """Give a client, whether its scheduler has our plugin, and how often that was asked for results."""
    asked = Counter()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        gather = cluster.scheduler.handlers["gather"]

        async def counted(*args, **keywords):
            asked["gather"] += 1
            return await gather(*args, **keywords)

        cluster.scheduler.handlers["gather"] = counted
        with parallel_config("dask", client=client):
            Parallel()(delayed(text)(1) for _ in range(4))  # registers the plugin
        if not request.param:
            (ours,) = (name for name in cluster.scheduler.plugins if name.startswith("jobfleet"))
            client.unregister_scheduler_plugin(ours)
        asked.clear()
        yield client, request.param, asked


def test_a_small_reply_is_not_asked_for(watched):
    client, has_plugin, asked = watched
    with parallel_config("dask", client=client):
        assert Parallel(batch_size=1)(delayed(text)(n) for n in range(20)) == list(map(text, range(20)))
    assert (asked["gather"] == 0) == has_plugin
    assert_nothing_is_left(client)


def test_a_larger_reply_is_collected(watched):
    client, _, asked = watched
    sizes = [10, 300_000, 10, 600_000]
    with parallel_config("dask", client=client):
        assert Parallel(batch_size=1)(delayed(text)(n) for n in sizes) == list(map(text, sizes))
    assert asked["gather"] > 0
    assert_nothing_is_left(client)


def test_the_scheduler_keeps_no_reply(watched):
    client, has_plugin, _ = watched

    def replies_kept(dask_scheduler):
        return sum("jobfleet-reply" in (task.metadata or ()) for task in dask_scheduler.tasks.values())

    with parallel_config("dask", client=client):
        results = Parallel(batch_size=1, return_as="generator")(delayed(text)(n) for n in range(20))
        kept = [client.run_on_scheduler(replies_kept) for _ in results]
    assert not has_plugin or set(kept) == {0}


def test_a_large_chunk_is_let_go_at_once(watched, monkeypatch):
    client, _, _ = watched
    assert_nothing_is_left(client)
    monkeypatch.setattr(courier, "_LINGER_S", 3600.0)
    # None of these is so large that it would not go with its task.
    each = [[np.full(60_000, 3.0 * i + j) for j in range(3)] for i in range(4)]
    with parallel_config("dask", client=client):
        assert Parallel(batch_size=1)(delayed(len)(arrays) for arrays in each) == [3] * 4
    assert_nothing_is_left(client)
