"""A task that kills its worker: at most three processes die of it, and nobody else has to pay for it."""

import os
import re
import signal
import time
from collections import Counter

import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet.errors import WorkerLostError
from tests.faults.conftest import assert_nothing_is_left
from tests.witness import mark, names, wait_until

N_TASKS = 12
POISON = 5

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:joblib")]


def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def eat():
    hoard = []
    while True:  # slowly enough for the nanny, which looks ten times a second
        hoard.append(bytearray(os.urandom(1 << 20)) * 16)
        time.sleep(0.02)


def square_unless_poison(directory, kill, i):
    mark(directory, i)
    if i == POISON:
        kill()
    return i * i


DEATHS = [
    (segfault, {}, "killed by signal 11"),
    (leave, {}, "exited with status 3"),
    (eat, {"memory_limit": "400MB"}, r"it used \d+\.\d+ MiB of its memory limit of 381\.47 MiB"),
]


@pytest.mark.parametrize(("kill", "cluster", "words"), DEATHS)
def test_the_others_have_their_results_and_the_error_tells_all(nannies, tmp_path, kill, cluster, words):
    client = nannies(**cluster)
    with parallel_config("dask", client=client, return_exceptions=True):
        tasks = [delayed(square_unless_poison)(tmp_path / "ran", kill, i) for i in range(N_TASKS)]
        results = Parallel(batch_size=1)(tasks)
    error = results.pop(POISON)
    assert results == [i * i for i in range(N_TASKS) if i != POISON]
    assert isinstance(error, WorkerLostError)
    assert error.index == POISON
    text = str(error)
    assert f"call {POISON}, square_unless_poison(" in text
    assert "3 times" in text
    assert re.search(words, text), text
    ran = Counter(map(int, names(tmp_path / "ran")))
    assert ran[POISON] == 3
    wait_until(lambda: len(client.scheduler_info()["workers"]) == 2, "the workers are replaced")
    assert_nothing_is_left(client)
