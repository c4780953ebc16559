"""The benchmark of large arguments runs, and knows what is expected."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.report import expectations, summary, tables
from benchmarks.data.rows import ROWS, make, size_of, touch
from benchmarks.dispatch.results import RowResult
from benchmarks.readme import put_between_markers

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_runs_a_row_in_turns_and_keeps_what_it_measured(tmp_path):
    kept = tmp_path / "kept.json"
    command = [sys.executable, "-m", "benchmarks.data", "--quick", "--rows", "list", "--subjects", "jobfleet,loky"]
    command += ["--json", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=140, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    samples = json.loads(kept.read_text())["rows"]["list/2"]["samples"]
    assert set(samples) == {"jobfleet", "loky"}, done.stderr
    for timed, watched in samples.values():
        assert timed["wall_s"] > 0
        assert watched["touched"] == 2
    # The array is mapped: what the two processes hold of it together is one copy, not none and not two.
    assert 0.5 < samples["jobfleet"][1]["memory"] < 1.5
    for text in ("8 MB, 2 worker processes", "of loky's time (at most 1.2)"):
        assert text in done.stdout


def test_every_row_is_as_large_as_it_says_and_its_pages_are_touched(tmp_path):
    for row in ROWS:
        thing = make(row.name, 1_000_000, 1, tmp_path)
        assert size_of(thing) == pytest.approx(1_000_000, rel=0.05), row.name
        assert touch(thing, 1)[1] != touch(thing, 2)[1], row.name
    array = make("array", 80_000, 2, tmp_path)
    before = touch(array, 0)[1]
    array[512] += 1
    assert touch(array, 0)[1] == pytest.approx(before + 1)
    assert not np.array_equal(array, make("array", 80_000, 3, tmp_path))


def test_what_is_expected_and_what_is_said(tmp_path):
    row = next(row for row in ROWS if row.name == "list")
    result = RowResult(
        {"size_mb": 200},
        {
            "jobfleet": [{"wall_s": 1.0, "sockets": 0.0}, {"memory": 1.2, "peak": 1.3, "touched": 2.0}],
            "builtin": [{"failed": 1.0}, {"wall_s": 3.0, "sockets": 16.0}],
            "loky": [{"wall_s": 2.0, "sockets": 0.0}],
        },
    )
    met = {name: e.met(e.value(result, {})) for name, e in expectations(row).items()}
    assert met == {"of loky's time": True, "of the built-in's": True, "sockets": True, "memory": False, "peak": True}
    text = tables({"list/2": result})
    for said in ("0.50 yes", "0.33 yes", "1.20 NO", "~3.00", "builtin ran 8 tasks only", "builtin failed 1 times"):
        assert said in text
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- data -->\nold\n<!-- end -->\nafter\n")
    put_between_markers(readme, "data", summary({"list/2": result}, 2))
    assert "| an array in a list | 1.00 s, 1.2 | ~3.00 s | 2.00 s |" in readme.read_text()
    assert readme.read_text().endswith("<!-- end -->\nafter\n")
    with pytest.raises(ValueError, match="no place for scale"):
        put_between_markers(readme, "scale", "")
