"""A task that takes longer than `task_timeout` ends, however it spends its time, and nobody else pays for it."""

import os
from collections import Counter

import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet._engine.embedded import close_embedded
from jobfleet.errors import TaskTimeoutError
from tests.faults.conftest import assert_nothing_is_left
from tests.faults.tasks import half_done_if_slow, sit_if_slow, spin_if_slow, spin_in_own_call_if_slow
from tests.witness import count, marks, names, wait_until

N_TASKS = 8
SLOW = 3
LIMIT_S = 1.0


def assert_others_have_their_results(results, slow=SLOW, limit_s=LIMIT_S):
    error = results[slow]
    assert isinstance(error, TaskTimeoutError)
    assert isinstance(error, TimeoutError)
    assert error.index == slow
    assert f"call {slow}, " in str(error)
    assert f"took longer than {limit_s:g} s, the task_timeout" in str(error)
    assert [r for i, r in enumerate(results) if i != slow] == [i * i for i in range(N_TASKS) if i != slow]
    return error


@pytest.fixture
def directory(tmp_path):
    yield tmp_path
    (tmp_path / "over").touch()


def test_it_is_interrupted_where_it_runs_python_code(backend, directory):
    """All tasks are in one chunk."""
    with backend(return_exceptions=True, task_timeout=LIMIT_S):
        tasks = [delayed(spin_if_slow)(directory, SLOW, i) for i in range(N_TASKS)]
        error = assert_others_have_their_results(Parallel(batch_size=N_TASKS)(tasks))
    assert "It was interrupted on" in str(error)
    assert "spin_if_slow" in str(error.__cause__), "it tells where the time went"
    assert Counter(map(int, names(directory / "ran"))) == Counter(range(N_TASKS)), "each has run once"


def test_what_it_returns_when_it_is_interrupted_is_no_result(backend, directory):
    with backend(return_exceptions=True, task_timeout=LIMIT_S):
        tasks = [delayed(half_done_if_slow)(directory, SLOW, i) for i in range(N_TASKS)]
        assert_others_have_their_results(Parallel(batch_size=N_TASKS)(tasks))
    assert Counter(map(int, names(directory / "ran"))) == Counter(range(N_TASKS)), "each has run once"


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_the_call_ends_with_it(backend, directory, return_as):
    with backend(task_timeout=LIMIT_S):
        tasks = [delayed(spin_if_slow)(directory, SLOW, i) for i in range(N_TASKS)]
        with pytest.raises(TaskTimeoutError, match=f"call {SLOW}, spin_if_slow"):
            list(Parallel(return_as=return_as)(tasks))
        assert Parallel()(delayed(spin_if_slow)(directory, None, i) for i in range(4)) == [0, 1, 4, 9]


@pytest.mark.engines("scripted", "dask-processes")
def test_retries_are_for_it_too(backend, directory):
    with backend(task_timeout=LIMIT_S, retries=1, return_exceptions=True):
        tasks = [delayed(spin_if_slow)(directory, SLOW, i) for i in range(N_TASKS)]
        assert_others_have_their_results(Parallel(batch_size=4)(tasks))
    assert Counter(map(int, names(directory / "ran")))[SLOW] == 2
    with backend(task_timeout=LIMIT_S, retries=1, retry_on=ValueError, return_exceptions=True):
        tasks = [delayed(spin_if_slow)(directory / "named", SLOW, i) for i in range(N_TASKS)]
        (directory / "named").mkdir()
        assert_others_have_their_results(Parallel(batch_size=4)(tasks))
    assert Counter(map(int, names(directory / "named" / "ran")))[SLOW] == 1
    (directory / "named" / "over").touch()


@pytest.mark.engines("dask-inprocess", "dask-processes")  # the others have no cluster for inner calls
def test_its_own_calls_end_with_it(backend, directory):
    with backend(return_exceptions=True, task_timeout=2 * LIMIT_S):
        tasks = [delayed(spin_in_own_call_if_slow)(directory, SLOW, i) for i in range(N_TASKS)]
        assert_others_have_their_results(Parallel(batch_size=1)(tasks), limit_s=2 * LIMIT_S)
        assert Parallel()(delayed(spin_if_slow)(directory, None, i) for i in range(4)) == [0, 1, 4, 9]
    assert_nothing_is_left(backend.client)


@pytest.mark.slow
def test_its_process_is_replaced_where_it_cannot_be_interrupted(cluster, directory):
    """The other tasks of its chunk, and of its worker, run again and are not blamed."""
    client = cluster("--nthreads", "2", n_workers=1, nanny=True)
    (before,) = client.run(os.getpid).values()
    with parallel_config("dask", client=client, return_exceptions=True, task_timeout=LIMIT_S):
        tasks = [delayed(sit_if_slow)(directory, SLOW, i) for i in range(N_TASKS)]
        error = assert_others_have_their_results(Parallel(batch_size=N_TASKS)(tasks))
    assert "its worker process was replaced" in str(error)
    ran = Counter(map(int, names(directory / "ran")))
    assert ran.pop(SLOW) == 1
    assert set(ran.values()) <= {1, 2}
    wait_until(lambda: set(client.run(os.getpid).values()) not in ({before}, set()), "another process is there")
    assert count(directory / "sat") == 0
    assert_nothing_is_left(client)


@pytest.mark.slow
def test_without_a_nanny_it_is_left_to_itself(cluster, directory):
    client = cluster()
    before = set(client.run(os.getpid).values())
    with parallel_config("dask", client=client, return_exceptions=True, task_timeout=LIMIT_S):
        tasks = [delayed(sit_if_slow)(directory, SLOW, i) for i in range(N_TASKS)]
        error = assert_others_have_their_results(Parallel(batch_size=N_TASKS)(tasks))
    assert "has no nanny" in str(error)
    assert Counter(map(int, names(directory / "ran")))[SLOW] == 1
    assert set(client.run(os.getpid).values()) == before
    assert_nothing_is_left(client)


@pytest.mark.slow
def test_on_the_cluster_of_this_process(directory):
    with parallel_config("jobfleet", return_exceptions=True, task_timeout=LIMIT_S):
        tasks = [delayed(sit_if_slow)(directory, SLOW, i) for i in range(N_TASKS)]
        error = assert_others_have_their_results(Parallel(batch_size=1)(tasks))
        stuck = next(m["pid"] for m in marks(directory / "ran") if m["name"] == str(SLOW))
        wait_until(lambda: not os.path.exists(f"/proc/{stuck}"), "its process has ended")
        assert Parallel()(delayed(spin_if_slow)(directory, None, i) for i in range(4)) == [0, 1, 4, 9]
    close_embedded()
    assert "its worker process was replaced" in str(error)
