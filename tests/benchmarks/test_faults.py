"""The table of faults is made; what stands in it is none of a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = "an argument does not pickle"  # the built-in backend waits for it for ever


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_runs_a_row_under_both_and_ends_what_hangs(tmp_path):
    kept = tmp_path / "kept.json"
    command = [sys.executable, "-m", "benchmarks.faults", "--rows", ROW, "--deadline", "8", "--json", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    row = json.loads(kept.read_text())["rows"][ROW]
    assert row["jobfleet"]["outcome"].startswith("SerializationError: ")
    assert row["builtin"]["outcome"] == "hangs (> 8 s)"
    assert "hangs (> 8 s)" in done.stdout
