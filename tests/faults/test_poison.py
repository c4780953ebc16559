"""A task that kills its worker, beside what the plan has of it: two of them, generators, this process's own cluster."""

import sys
from collections import Counter

import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet._engine.embedded import close_embedded
from jobfleet.errors import WorkerLostError
from tests.faults.conftest import assert_nothing_is_left
from tests.faults.tasks import call_that_kills, call_twice_unlucky, leave, segfault, square, square_unless
from tests.witness import names

N_TASKS = 12
POISON = 5

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:joblib")]


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


def test_two_of_them_are_both_found(cluster, tmp_path):
    client = cluster("--nthreads", "2", nanny=True)
    poison = [3, 4]
    with parallel_config("dask", client=client, return_exceptions=True):
        tasks = [delayed(square_unless)(tmp_path / "ran", poison, leave, i) for i in range(N_TASKS)]
        results = Parallel(batch_size=1)(tasks)
    assert [i for i, r in enumerate(results) if isinstance(r, WorkerLostError)] == poison, results
    assert [r for i, r in enumerate(results) if i not in poison] == [i * i for i in range(N_TASKS) if i not in poison]
    assert_nothing_is_left(client)


on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has a network of hosts on its loopback interface"
)


@on_linux
@pytest.mark.parametrize(
    ("plan", "depth"),
    [
        (["own", "own", "own"], 1),
        (["own", "own", "caller"], 1),
        (["own", "caller", "own"], 1),
        (["caller", "own", "own"], 1),
        (["caller", "caller", "own"], 1),
        (["own", "own", "outermost"], 2),
        (["own", "caller", "outermost"], 2),
        (["caller", "outermost", "own"], 2),
    ],
)
def test_three_die_in_all_of_a_task_of_a_task(cluster, tmp_path, plan, depth):
    """Whoever dies of it, it or one of its callers."""
    hosts = [f"127.0.0.{number + 1}" for number in range(depth + 1)]
    client = cluster(nanny=True, hosts=hosts)
    with parallel_config("dask", client=client):
        with pytest.raises(WorkerLostError, match="until 3 workers had died"):
            Parallel()([delayed(call_that_kills)(tmp_path / "kills", [*plan, *plan], hosts)])
        assert Parallel()([delayed(square)(3)]) == [9]
    assert len(names(tmp_path / "kills")) == 3
    assert_nothing_is_left(client)


@on_linux
def test_retries_are_not_for_what_workers_die_of(cluster, tmp_path):
    hosts = ["127.0.0.1", "127.0.0.2"]
    client = cluster(nanny=True, hosts=hosts)
    with parallel_config("dask", client=client, retries=1), pytest.raises(WorkerLostError):
        Parallel()([delayed(call_that_kills)(tmp_path / "kills", ["own"] * 6, hosts)])
    assert len(names(tmp_path / "kills")) == 3
    assert_nothing_is_left(client)


def test_a_death_that_a_call_has_got_over_does_not_count_for_its_caller(cluster, tmp_path):
    client = cluster(nanny=True)
    with parallel_config("dask", client=client):
        assert Parallel()([delayed(call_twice_unlucky)(tmp_path, ["caller", "caller"])]) == ["done"]
    assert len(names(tmp_path / "died")) == 1
    assert len(names(tmp_path / "outer")) == 3
    assert_nothing_is_left(client)


def test_on_the_cluster_of_this_process(tmp_path):
    """Its workers have no nannies; it watches them itself."""
    with parallel_config("jobfleet", return_exceptions=True):
        tasks = [delayed(square_unless)(tmp_path / "ran", [POISON], segfault, i) for i in range(N_TASKS)]
        results = Parallel(batch_size=1)(tasks)
    close_embedded()
    assert "ended with signal 11 (SIGSEGV)" in str(results[POISON])
    assert Counter(map(int, names(tmp_path / "ran")))[POISON] == 3
