"""What the benchmark runs notices a wrong result, and knows how it compares."""

import math

import pytest
from joblib import parallel_config

from benchmarks.dispatch.results import RowResult
from benchmarks.dispatch.workloads import Calls, Stream, WrongResult
from benchmarks.schedule import greedy

pytestmark = pytest.mark.timeout(20)


def test_right_results_are_timed():
    with parallel_config("threading", n_jobs=2):
        sample = Calls(math.sqrt, [(4,), (9,)], [2.0, 3.0]).once()
        stream = Stream(math.sqrt, 10).once()
    assert sample["wall_s"] > 0
    assert stream["grown_mb"] >= 0


def test_a_wrong_result_ends_the_measurement():
    with parallel_config("threading", n_jobs=2), pytest.raises(WrongResult, match="sequential run gives"):
        Calls(math.sqrt, [(4,), (9,)], [2.0, 4.0]).once()


def test_part_of_the_cores_time():
    row = RowResult({"work_s": 3.0, "slots": 2}, {"loky": [{"wall_s": 1.0}, {"wall_s": 2.0}, {"wall_s": 3.0}]})
    assert row.used("loky") == pytest.approx(3 / (2 * 2))
    assert row.used("threading") is None


def test_the_schedule_that_does_not_know_the_times():
    assert greedy([1, 1, 1, 5], 2) == 6
    assert greedy([5, 1, 1, 1], 2) == 5
    assert greedy([1, 1], 2, started=[0.5, 2]) == 2.5
    assert greedy([1, 1], 2, made_each_s=3) == 7
