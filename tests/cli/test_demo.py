"""The demo as a command: what it prints, where, and how it ends."""

import os
import re
import socket
import subprocess
import sys

import joblib
import numpy as np
import pytest

from jobfleet import _demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def run(*arguments, program=("-c", "from jobfleet._cli import main; main()"), **environment):
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


@pytest.fixture
def free_address():
    """An address where nothing listens: the port stays bound, and is never listened on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def scheduler_address():
    """The scheduler of a cluster that is already there, in a process of its own."""
    program = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    options = dict(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0")
    with LocalCluster(protocol="tcp", host="127.0.0.1", **options) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(30)


def check_report(done, where):
    assert done.returncode == 0, done.stderr
    assert "RandomizedSearchCV" in done.stdout
    assert re.search(rf"^cluster +{re.escape(where)}, \d+ slot\(s\), ready after [\d.]+ s$", done.stdout, re.MULTILINE)
    assert re.search(r"^best score +0\.\d{4} ", done.stdout, re.MULTILINE)
    assert re.search(r"^best parameters +C=.*, class_weight=.*, gamma=.*, tol=", done.stdout, re.MULTILINE)
    assert re.search(r"^on the cluster +[\d.]+ s$", done.stdout, re.MULTILINE)
    assert re.search(r"^sequentially +[\d.]+ s ", done.stdout, re.MULTILINE)
    assert "the same scores in both runs" in done.stdout
    assert "on the cluster: 9 of 9 fits" in done.stderr
    assert "sequentially: 9 of 9 fits" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # no terminal, no escape sequences


def test_on_a_cluster_of_its_own():
    check_report(run("demo", "--candidates", "3"), "started on this machine")


def test_on_an_existing_cluster(scheduler_address):
    check_report(run("demo", "--candidates", "3", "--scheduler", scheduler_address), scheduler_address)


def test_offered_to_the_dask_command():
    done = run("jobfleet", "demo", "--help", program=("-m", "dask"))
    assert done.returncode == 0, done.stderr
    assert "--scheduler ADDRESS" in done.stdout


def check_short_error(done):
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_no_scheduler_there(free_address):
    done = run("demo", "--scheduler", free_address, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="1")
    check_short_error(done)
    assert free_address in done.stderr
    assert "Without --scheduler" in done.stderr


def test_not_an_address():
    done = run("demo", "--scheduler", "nonsense")
    check_short_error(done)
    assert "nonsense" in done.stderr


def test_without_scikit_learn():
    program = "import sys; sys.modules['sklearn'] = None; from jobfleet._cli import main; main()"
    done = run("demo", program=("-c", program))
    check_short_error(done)
    assert "pip install scikit-learn" in done.stderr


def outcome(score, params=({"C": 1.0},)):
    scores = {"split0_test_score": np.array([score])}
    return _demo.Outcome(params=list(params), scores=scores, best_params={}, best_score=score, elapsed_s=1.0)


def test_scores_are_compared_exactly():
    assert outcome(0.5).same_scores(outcome(0.5))
    assert not outcome(0.5).same_scores(outcome(np.nextafter(0.5, 1)))
    assert not outcome(0.5).same_scores(outcome(0.5, params=({"C": 2.0},)))


def test_report_says_when_scores_differ():
    report = _demo._report("here", outcome(0.5), outcome(0.25))
    assert "DIFFERENT SCORES in the two runs" in report


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_counts_every_completed_call(n_jobs):
    before = joblib.Parallel.print_progress
    seen = []
    with _demo._completed_calls(seen.append):
        joblib.Parallel(n_jobs=n_jobs, backend="threading")(joblib.delayed(abs)(i) for i in range(20))
    assert seen == sorted(seen)
    assert seen[-1] == 20
    assert joblib.Parallel.print_progress is before
