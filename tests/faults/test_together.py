"""Calls of several clients on one cluster while faults strike."""

from collections import Counter

import pytest
from distributed import Client
from joblib import Parallel, delayed, parallel_config

from tests.faults.conftest import assert_nothing_is_left, meanwhile
from tests.faults.tasks import count_to_gate, leave, square_unless
from tests.witness import names, open_gate, wait_until

pytestmark = pytest.mark.slow

DYING_CLIENT = """
import sys
from pathlib import Path
from distributed import Client
from joblib import Parallel, delayed, parallel_config
from tests.faults.tasks import count_to_gate

directory = Path(sys.argv[2])
with parallel_config("dask", client=Client(sys.argv[1])):
    tasks = (delayed(count_to_gate)(directory / "theirs", directory / "never", i) for i in range(50))
    Parallel(n_jobs=2, batch_size=1)(tasks)
"""


def test_a_client_that_dies_does_not_harm_the_other(cluster, tmp_path, script):
    client = cluster("--nthreads", "2")
    gate = tmp_path / "gate"
    process = script.start(DYING_CLIENT, client.scheduler.address, tmp_path)

    def strike():
        try:
            wait_until(lambda: names(tmp_path / "ours"), "our tasks run")
        finally:
            process.kill()
            process.communicate()
        open_gate(gate)

    try:
        wait_until(lambda: names(tmp_path / "theirs") or process.poll() is not None, "their tasks run")
    except AssertionError:
        process.kill()
        raise
    with meanwhile(strike), parallel_config("dask", client=client):
        results = Parallel(n_jobs=2, batch_size=1)(delayed(count_to_gate)(tmp_path / "ours", gate, i) for i in range(8))
    assert results == list(range(8))
    assert sorted(map(int, names(tmp_path / "ours"))) == list(range(8)), "each ran once"
    assert_nothing_is_left(client)


def test_poison_of_one_client_costs_the_other_no_result(cluster, tmp_path):
    client = cluster("--nthreads", "2", nanny=True)
    gate, results = tmp_path / "gate", []

    def poison():
        wait_until(lambda: names(tmp_path / "ours"), "our tasks run")
        tasks = [delayed(square_unless)(tmp_path / "theirs", [1], leave, i) for i in range(4)]
        with (
            Client(client.scheduler.address, set_as_default=False) as other,
            parallel_config("dask", client=other, return_exceptions=True),
        ):
            results.extend(Parallel(batch_size=1)(tasks))
        open_gate(gate)

    with meanwhile(poison), parallel_config("dask", client=client):
        ours = Parallel(n_jobs=2, batch_size=1)(delayed(count_to_gate)(tmp_path / "ours", gate, i) for i in range(8))
    assert ours == list(range(8))
    assert [r for r in results if isinstance(r, int)] == [0, 4, 9]
    assert Counter(names(tmp_path / "theirs"))["1"] == 3
    assert_nothing_is_left(client)
