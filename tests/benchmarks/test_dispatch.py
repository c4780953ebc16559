"""The benchmark runs; its numbers are none of a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUBJECTS = {"jobfleet", "builtin", "loky", "threading"}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_runs_rows_in_turns_checks_them_and_keeps_what_it_measured(tmp_path):
    kept = tmp_path / "kept.json"
    command = [sys.executable, "-m", "benchmarks.dispatch", "--quick", "--rows", "noop,mixedup", "--json", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    rows = json.loads(kept.read_text())["rows"]
    assert {name: set(row["samples"]) for name, row in rows.items()} == {
        "noop": SUBJECTS,
        "mixedup": SUBJECTS | {"machine"},
    }
    assert all(sample["wall_s"] > 0 for row in rows.values() for some in row["samples"].values() for sample in some)
    for (counts,) in rows["noop"]["counts"].values():
        assert counts["chunks"] >= 1
        assert counts["writes_per_chunk"] > 0
    for text in ("noop", "mixedup", "<= 1.3 of loky's time", "comm writes a chunk"):
        assert text in done.stdout


#: Prints, for each subject in its turn, whose processes ran its tasks, and whose stood still meanwhile.
TURNS = """
import json, os
import psutil
from joblib import Parallel, delayed, parallel_config
from benchmarks.dispatch.subjects import cluster

with cluster("own") as on:
    clients = {name: on.clients[name] for name in ("jobfleet", "builtin")}
    of_cluster = {
        name: {client.run_on_scheduler(os.getpid), *client.run(os.getpid).values()} - {os.getpid()}
        for name, client in clients.items()
    }
    assert [len(pids) for pids in of_cluster.values()] == [on.slots, on.slots + 1], "the built-in's scheduler is apart"
    for subject in ("jobfleet", "builtin", "loky"):
        with on.alone(subject), parallel_config("loky", n_jobs=2) if subject == "loky" else on.using(subject):
            ran = set(Parallel()(delayed(os.getpid)() for _ in range(4)))
            still = {pid for pids in of_cluster.values() for pid in pids if psutil.Process(pid).status() == "stopped"}
        of = [name for name, pids in of_cluster.items() if ran <= pids]
        stopped = [name for name, pids in of_cluster.items() if pids <= still]
        print(json.dumps([subject, of, stopped]))
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_processes_of_other_clusters_stand_still_while_one_is_measured():
    command = [sys.executable, "-c", TURNS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert list(map(json.loads, done.stdout.splitlines())) == [
        ["jobfleet", ["jobfleet"], ["builtin"]],
        ["builtin", ["builtin"], ["jobfleet"]],
        ["loky", [], ["jobfleet", "builtin"]],
    ]


#: Prints what is loaded where loky and threading run.
WITHOUT_DASK = """
from benchmarks.dispatch import plain
import sys
print("distributed" in sys.modules)
"""


@pytest.mark.timeout(60)
def test_loky_is_measured_in_a_process_without_dasks_client():
    command = [sys.executable, "-c", WITHOUT_DASK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL)
    assert done.stdout == "False\n", done.stderr
