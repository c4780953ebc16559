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


#: Prints, for each subject in its turn, which cluster ran its tasks, and which stood still meanwhile.
TURNS = """
import json, os, sys
import psutil
from joblib import Parallel, delayed, parallel_config
from benchmarks.dispatch.counts import everywhere
from benchmarks.dispatch.subjects import cluster

def work_of(pids):
    return sum(psutil.Process(pid).num_ctx_switches().voluntary for pid in pids)

with cluster(sys.argv[1], quick=True) as on:
    clusters = {}
    if on.kind != "local":
        clusters["embedded"] = everywhere(on.clients["jobfleet"], os.getpid)
    if on.local is not None:
        clusters["local"] = on.local.ask("pids")
    for subject in ("jobfleet", "builtin", "loky"):
        with on.alone(subject), on.using(subject):
            if subject in on.clients:
                ran = set(Parallel()(delayed(os.getpid)() for _ in range(4)))
                ran = [name for name, pids in clusters.items() if ran <= set(pids)]
            else:
                before = {name: work_of(pids) for name, pids in clusters.items()}
                on.apart(subject).ask("once", "noop", subject)
                ran = [name for name, pids in clusters.items() if work_of(pids) > before[name] + 10]
            stopped = {pid for pids in clusters.values() for pid in pids if psutil.Process(pid).status() == "stopped"}
        print(json.dumps([subject, ran, [name for name, pids in clusters.items() if set(pids) <= stopped]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("kind", "turns"),
    [
        (
            "own",
            [
                ["jobfleet", ["embedded"], ["local"]],
                ["builtin", ["local"], ["embedded"]],
                ["loky", [], ["embedded", "local"]],
            ],
        ),
        ("local", [["jobfleet", ["local"], []], ["builtin", ["local"], []], ["loky", [], ["local"]]]),
        ("embedded", [["jobfleet", ["embedded"], []], ["builtin", ["embedded"], []], ["loky", [], ["embedded"]]]),
    ],
)
def test_processes_of_other_clusters_stand_still_while_one_is_measured(kind, turns):
    command = [sys.executable, "-c", TURNS, kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert list(map(json.loads, done.stdout.splitlines())) == turns


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
