"""A task that kills its worker: at most three processes die of it, and nobody else has to pay for it."""

import re
from collections import Counter

import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet._engine.embedded import close_embedded
from jobfleet.errors import WorkerLostError
from tests.faults.conftest import assert_nothing_is_left
from tests.faults.tasks import eat, leave, segfault, square, square_unless
from tests.witness import names, wait_until

N_TASKS = 12
POISON = 5

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:joblib")]


DEATHS = [
    (segfault, [], "killed by signal 11"),
    (leave, [], "exited with status 3"),
    (eat, ["--memory-limit", "400MB"], r"it used \d+\.\d+ MiB of its memory limit of 381\.47 MiB"),
]


@pytest.mark.parametrize(("kill", "arguments", "words"), DEATHS)
def test_the_others_have_their_results_and_the_error_tells_all(cluster, tmp_path, kill, arguments, words):
    client = cluster(*arguments, nanny=True)
    with parallel_config("dask", client=client, return_exceptions=True):
        tasks = [delayed(square_unless)(tmp_path / "ran", [POISON], kill, i) for i in range(N_TASKS)]
        results = Parallel(batch_size=1)(tasks)
    error = results.pop(POISON)
    assert results == [i * i for i in range(N_TASKS) if i != POISON]
    assert isinstance(error, WorkerLostError)
    assert error.index == POISON
    text = str(error)
    assert f"call {POISON}, square_unless(" in text
    assert "3 times" in text
    assert re.search(words, text), text
    ran = Counter(map(int, names(tmp_path / "ran")))
    assert ran[POISON] == 3
    wait_until(lambda: len(client.scheduler_info()["workers"]) == 2, "the workers are replaced")
    assert_nothing_is_left(client)


def test_a_generator_goes_on_behind_it(cluster, tmp_path):
    client = cluster(nanny=True)
    with parallel_config("dask", client=client, return_exceptions=True):
        tasks = (delayed(square_unless)(tmp_path / "ran", [POISON], leave, i) for i in range(N_TASKS))
        results = list(Parallel(return_as="generator")(tasks))
    assert isinstance(results[POISON], WorkerLostError)
    assert [r for i, r in enumerate(results) if i != POISON] == [i * i for i in range(N_TASKS) if i != POISON]
    assert_nothing_is_left(client)


def test_without_the_option_the_call_ends_with_the_error(cluster, tmp_path):
    client = cluster(nanny=True)
    with parallel_config("dask", client=client):
        tasks = [delayed(square_unless)(tmp_path / "ran", [POISON], leave, i) for i in range(N_TASKS)]
        with pytest.raises(WorkerLostError, match="exited with status 3"):
            Parallel()(tasks)
        assert Parallel()(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]
    assert Counter(map(int, names(tmp_path / "ran")))[POISON] == 3
    assert_nothing_is_left(client)


def test_those_who_share_a_chunk_with_it_run_again_and_no_more(cluster, tmp_path):
    """All tasks are in one chunk of one worker with two threads: nothing else tells them apart."""
    client = cluster("--nthreads", "2", n_workers=1, nanny=True)
    with parallel_config("dask", client=client, return_exceptions=True):
        tasks = [delayed(square_unless)(tmp_path / "ran", [POISON], segfault, i) for i in range(N_TASKS)]
        results = Parallel(batch_size=N_TASKS)(tasks)
    assert isinstance(results[POISON], WorkerLostError)
    assert [r for i, r in enumerate(results) if i != POISON] == [i * i for i in range(N_TASKS) if i != POISON]
    ran = Counter(map(int, names(tmp_path / "ran")))
    assert ran[POISON] == 3
    assert max(ran.values()) <= 4  # twice in the chunk, once among those left, and once without it
    assert_nothing_is_left(client)


def test_two_of_them_are_both_found(cluster, tmp_path):
    client = cluster("--nthreads", "2", nanny=True)
    poison = [3, 4]
    with parallel_config("dask", client=client, return_exceptions=True):
        tasks = [delayed(square_unless)(tmp_path / "ran", poison, leave, i) for i in range(N_TASKS)]
        results = Parallel(batch_size=1)(tasks)
    assert [i for i, r in enumerate(results) if isinstance(r, WorkerLostError)] == poison
    assert [r for i, r in enumerate(results) if i not in poison] == [i * i for i in range(N_TASKS) if i not in poison]
    assert_nothing_is_left(client)


def test_on_the_cluster_of_this_process(tmp_path):
    """Its workers have no nannies; it watches them itself."""
    with parallel_config("jobfleet", return_exceptions=True):
        tasks = [delayed(square_unless)(tmp_path / "ran", [POISON], segfault, i) for i in range(N_TASKS)]
        results = Parallel(batch_size=1)(tasks)
    close_embedded()
    assert "ended with signal 11 (SIGSEGV)" in str(results[POISON])
    assert Counter(map(int, names(tmp_path / "ran")))[POISON] == 3
