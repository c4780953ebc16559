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
    assert all(counts["chunks"] >= 1 and counts["writes_per_chunk"] > 0 for counts in rows["noop"]["counts"].values())
    for text in ("noop", "mixedup", "<= 1.3 of loky's time", "comm writes a chunk"):
        assert text in done.stdout
