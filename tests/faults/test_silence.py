"""A worker that was silent and is heard again, beside what the plan has of silent ones."""

import os
import signal

import pytest
from joblib import Parallel, delayed, parallel_config

from tests.faults.conftest import assert_nothing_is_left, meanwhile
from tests.faults.tasks import held_square
from tests.witness import marks, meet, wait_until

pytestmark = pytest.mark.slow

TTL_S = 1.5


def test_a_worker_that_is_heard_again_gets_work_again(cluster, tmp_path):
    client = cluster(n_workers=2)
    frozen = []

    def freeze():
        frozen.append(wait_until(lambda: [m["pid"] for m in marks(tmp_path / "ran") if m["name"] == "0"], "it runs")[0])
        os.kill(frozen[0], signal.SIGSTOP)

    try:
        with parallel_config("dask", client=client, worker_ttl=TTL_S):
            with meanwhile(freeze):
                tasks = [delayed(held_square)(tmp_path, {0}, 1, i) for i in range(4)]
                assert Parallel(batch_size=1)(tasks) == [0, 1, 4, 9]
            os.kill(frozen.pop(), signal.SIGCONT)
            Parallel(batch_size=1)(delayed(meet)(tmp_path / "both", 2) for _ in range(2))
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert_nothing_is_left(client)
