"""A slot whose task was given up serves the next call, though the task cannot be interrupted."""

import multiprocessing

import pytest
from distributed import Client
from joblib import Parallel, delayed, parallel_config

from tests.cluster.conftest import Processes
from tests.witness import mark, names, open_gate, pass_gate, wait_until

LOADS_SLOWLY = """
import sys
from tests.witness import mark, pass_gate

class SlowJoblib:
    def find_spec(self, name, path=None, target=None):
        if name == "joblib":
            mark({loading!r})
            pass_gate({gate!r})

sys.meta_path.insert(0, SlowJoblib())
"""


@pytest.fixture
def fresh_client(tmp_path):
    """Give a client of one worker that has never run a chunk, and is held up when it loads what that needs."""
    processes = Processes(tmp_path)
    preload = tmp_path / "loads_slowly.py"
    preload.write_text(LOADS_SLOWLY.format(loading=str(tmp_path / "loading"), gate=str(tmp_path / "loaded")))
    try:
        processes.start_scheduler()
        processes.start_worker("--preload", str(preload))
        with Client(scheduler_file=str(processes.scheduler_file), set_as_default=False) as client:
            yield client
    finally:
        processes.stop()


def given_up(client):
    """Say whether a task that runs has been cancelled."""

    def states(dask_worker):
        return [task.state for task in dask_worker.state.tasks.values()]

    return client.run(states).popitem()[1] == ["cancelled"]


@pytest.mark.parametrize("loading", [True, False])
def test_a_task_given_up_does_not_hold_up_the_next_call(fresh_client, tmp_path, loading):
    loaded, gate, started = tmp_path / "loaded", tmp_path / "gate", tmp_path / "started"

    def task(i):
        mark(started, i)
        pass_gate(gate)

    def calls():
        for i in range(2):  # joblib reads two at a time
            yield delayed(task)(i)
        wait_until(lambda: names(tmp_path / "loading" if loading else started), "the chunk being there")
        raise InterruptedError

    if not loading:
        open_gate(loaded)
    with parallel_config("dask", client=fresh_client):
        try:
            with pytest.raises(InterruptedError):
                Parallel(pre_dispatch="all", batch_size=1)(calls())
            if loading:
                wait_until(lambda: given_up(fresh_client), "the task given up")
                open_gate(loaded)
            assert Parallel(timeout=10)(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
            assert len(names(started)) == (0 if loading else 1)
        except multiprocessing.TimeoutError:
            pytest.fail("the slot is held by a task that was given up")
        finally:
            open_gate(loaded)
            open_gate(gate)
