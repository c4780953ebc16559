"""joblib's dispatching parameters do what joblib says."""

import itertools
import os
import re
import threading
from multiprocessing import TimeoutError as JoblibTimeoutError  # what joblib raises
from pathlib import Path

import joblib
import pytest
from joblib import Parallel, delayed

from tests.witness import Presence, count, mark, marks, meet, names, open_gate, pass_gate, place, wait_until

WITH_SLOTS = ("dask-inprocess", "dask-processes")  # engines whose slots really run at once


def square(x):
    return x * x


def leave_mark(directory, index):
    mark(directory, index)
    return index


def marked_place(directory, index):
    mark(directory, index)
    return place()


def at_gate(directory, gate, index):
    mark(directory, index)
    pass_gate(gate)
    return index


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 1000, "auto"])
def test_any_batch_size_gives_the_same_results(backend, batch_size):
    with backend():
        assert Parallel(batch_size=batch_size)(delayed(square)(i) for i in range(50)) == [i * i for i in range(50)]


def test_a_batch_stays_in_one_place(backend, tmp_path):
    size = 3
    with backend():
        places = Parallel(n_jobs=2, batch_size=size, pre_dispatch="all")(
            delayed(marked_place)(tmp_path, i) for i in range(24)
        )
    for start in range(0, 24, size):
        assert len(set(places[start : start + size])) == 1, places
    # A batch runs from its first call to its last, in order.
    for somewhere in set(places):
        order = [int(e["name"]) for e in marks(tmp_path) if (e["pid"], e["thread"]) == tuple(somewhere)]
        for start in range(0, 24, size):
            if start in order:
                at = order.index(start)
                assert order[at : at + size] == list(range(start, start + size)), order


@pytest.mark.engines(*WITH_SLOTS)
def test_batches_of_one_are_not_put_together(backend, tmp_path):
    """Two calls that wait for one another finish only if each has a slot of its own."""

    def pair(index):
        meet(tmp_path / str(index // 2), 2, timeout_s=10)
        return index

    with backend():
        assert Parallel(n_jobs=2, batch_size=1)(delayed(pair)(i) for i in range(8)) == list(range(8))


@pytest.mark.engines(*WITH_SLOTS)
def test_calls_without_timings_spread_over_the_slots(backend, tmp_path):
    """Before anything is known of the tasks, automatic chunks must not put two long calls in a row."""

    def pair(index):
        meet(tmp_path, 2, timeout_s=10)
        return index

    with backend():
        assert Parallel()(delayed(pair)(i) for i in range(2)) == [0, 1]


@pytest.mark.parametrize(
    ("pre_dispatch", "amount"), [(1, 1), (3, 3), ("n_jobs", 2), ("2*n_jobs", 4), ("1.5*n_jobs", 3), ("all", 20)]
)
def test_pre_dispatch_is_how_far_the_input_is_read(backend, tmp_path, pre_dispatch, amount):
    gate, pulled = tmp_path / "gate", []

    def calls():
        for i in range(20):
            pulled.append(i)
            yield delayed(at_gate)(tmp_path / "started", gate, i)

    with backend():
        results = Parallel(n_jobs=2, pre_dispatch=pre_dispatch, return_as="generator")(calls())
        read = len(pulled)
        open_gate(gate)
        assert list(results) == list(range(20))
    assert read == amount
    assert len(pulled) == 20


def test_the_input_is_read_as_results_arrive(backend, tmp_path):
    ahead = []

    def calls():
        for i in range(30):
            ahead.append(i - count(tmp_path))
            yield delayed(leave_mark)(tmp_path, i)

    with backend():
        Parallel(n_jobs=2, pre_dispatch=2, batch_size=1)(calls())
    # joblib looks n_jobs batches further when a batch ends.
    assert max(ahead) <= 2 + 2, ahead


def test_an_endless_input_can_be_given_up(backend):
    with backend():
        results = Parallel(n_jobs=2, return_as="generator")(delayed(square)(i) for i in itertools.count())
        assert list(itertools.islice(results, 10)) == [i * i for i in range(10)]
        with pytest.warns(UserWarning, match="adjusting the input"):
            results.close()
        assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


@pytest.mark.parametrize("pre_dispatch", ["2*n_jobs", "all"])
def test_an_error_of_the_input_is_the_callers(backend, pre_dispatch):
    def calls(good):
        for i in range(good):
            yield delayed(square)(i)
        raise LookupError("the input broke")

    with backend():
        for good in (0, 1, 3, 20):
            with pytest.raises(LookupError, match="the input broke"):
                Parallel(pre_dispatch=pre_dispatch)(calls(good))
        assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_the_input_may_take_its_time(backend, tmp_path):
    """The input waits for a task of its own call: nothing the task needs may run on the thread that reads it."""

    def calls():
        yield delayed(leave_mark)(tmp_path, 0)
        yield delayed(leave_mark)(tmp_path, 1)
        wait_until(lambda: count(tmp_path) >= 1, "a task done while the input is being read", timeout_s=10)
        yield delayed(leave_mark)(tmp_path, 2)

    with backend():
        assert Parallel(n_jobs=2, pre_dispatch=2, batch_size=1)(calls()) == [0, 1, 2]


def test_timeout_raises_timeout_error_and_leaves_a_usable_backend(backend, tmp_path):
    gate = tmp_path / "gate"
    with backend():
        with pytest.raises(JoblibTimeoutError):
            Parallel(n_jobs=2, timeout=0.2)(delayed(at_gate)(tmp_path / "s", gate, i) for i in range(4))
        open_gate(gate)
        assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_a_timeout_that_is_long_enough_changes_nothing(backend):
    with backend():
        for form in ("list", "generator", "generator_unordered"):
            assert sorted(Parallel(timeout=30, return_as=form)(delayed(square)(i) for i in range(9))) == [
                i * i for i in range(9)
            ]


@pytest.mark.parametrize(("verbose", "stream"), [(1, "err"), (10, "err"), (50, "out"), (100, "out")])
def test_verbose_prints_joblibs_lines(backend, capsys, verbose, stream):
    with backend(verbose=verbose):
        Parallel(n_jobs=2)(delayed(square)(i) for i in range(8))
    text = getattr(capsys.readouterr(), stream)
    assert re.search(r"\[Parallel\(n_jobs=2\)\]: Using backend \w+ with 2 concurrent workers\.", text)
    assert re.search(r"Done +8 out of +8 \| elapsed: .* finished", text)
    assert len(re.findall(r"\[Parallel\(n_jobs=2\)\]: Done", text)) >= (4 if verbose > 10 else 1)


def test_silent_by_default(backend, capsys):
    with backend():
        Parallel()(delayed(square)(i) for i in range(8))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_managed_parallel_serves_many_calls(backend):
    with backend(), Parallel() as parallel:
        for start in range(6):
            numbers = range(start, start + 7)
            assert parallel(delayed(square)(i) for i in numbers) == [i * i for i in numbers]


def test_a_managed_parallel_serves_after_an_error(backend):
    def fail(x):
        if x == 2:
            raise KeyError("two")
        return x

    with backend(), Parallel() as parallel:
        for _ in range(3):
            with pytest.raises(KeyError, match="two"):
                parallel(delayed(fail)(i) for i in range(6))
            assert parallel(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_one_parallel_called_again_without_a_block(backend):
    with backend():
        parallel = Parallel()
        for _ in range(3):
            assert parallel(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_one_job_runs_in_the_caller(backend):
    with backend():
        places = Parallel(n_jobs=1)(delayed(place)() for _ in range(4))
    assert set(places) == {(os.getpid(), threading.get_ident())}


def test_one_job_by_the_block_runs_in_the_caller(backend):
    with backend() as config:
        config["n_jobs"] = 1
        places = Parallel()(delayed(place)() for _ in range(4))
    assert set(places) == {(os.getpid(), threading.get_ident())}


def test_no_jobs_is_an_error(backend):
    with backend(), pytest.raises(ValueError, match="n_jobs"):
        Parallel(n_jobs=0)(delayed(square)(i) for i in range(3))


@pytest.mark.engines(*WITH_SLOTS, "scripted")
def test_all_slots_are_what_joblib_is_told(backend):
    with backend():
        assert joblib.effective_n_jobs(-1) == 2
        assert joblib.effective_n_jobs(2) == 2
        assert joblib.effective_n_jobs(1) == 1
        assert joblib.effective_n_jobs(None) == 2
        with pytest.raises(ValueError, match="n_jobs"):
            joblib.effective_n_jobs(0)


def present(directory, index):
    with Presence(directory) as presence:
        for _ in range(5):
            presence.look()
    return index


@pytest.mark.parametrize("n_jobs", [1, -2])
def test_one_at_a_time_means_one_at_a_time(backend, tmp_path, n_jobs):
    if backend.name == "local":
        pytest.skip("runs one at a time whatever is asked")
    with backend():
        assert Parallel(n_jobs=n_jobs)(delayed(present)(tmp_path, i) for i in range(12)) == list(range(12))
    assert Presence(tmp_path).peak() == 1


@pytest.mark.engines(*WITH_SLOTS)
def test_all_slots_are_used_at_once(backend, tmp_path):
    def together(index):
        meet(tmp_path / str(index // 2), 2, timeout_s=10)
        return index

    for n_jobs in (-1, None, 2):
        with backend():
            results = Parallel(n_jobs=n_jobs, batch_size=1)(delayed(together)(i) for i in range(4))
        assert results == list(range(4))
        for index in range(2):
            for path in Path(tmp_path / str(index)).iterdir():
                path.unlink()


def test_names_of_marks_are_what_tasks_left(backend, tmp_path):
    """Each call runs once."""
    with backend():
        Parallel()(delayed(leave_mark)(tmp_path, i) for i in range(40))
    assert sorted(map(int, names(tmp_path))) == list(range(40))
