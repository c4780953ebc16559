"""Run every file of `examples/` as a user does, and check what it prints."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
(BEST,) = re.findall(r"^```text\n(.*?)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
PRINTED = {"random_search.py": BEST, "random_search_scatter.py": BEST}


def run_example(name):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
    )


def without_types(text):
    """Write numbers as all versions of NumPy do: NumPy 2 shows the type of a scalar, NumPy 1 rounds otherwise."""
    plain = re.sub(r"np\.float64\(([^)]*)\)", r"\1", text)
    return re.sub(r"\d+\.?\d*(?:e[+-]?\d+)?", lambda number: f"{float(number[0]):.6g}", plain)


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(PRINTED)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(PRINTED))
def test_example(name):
    done = run_example(name)
    assert done.returncode == 0, done.stderr
    assert without_types(done.stdout).strip() == without_types(PRINTED[name])
    assert done.stderr == ""


def test_twins_differ_in_scatter_only():
    plain = (ROOT / "examples" / "random_search.py").read_text()
    scatter = (ROOT / "examples" / "random_search_scatter.py").read_text()
    assert scatter == plain.replace('parallel_config("dask")', 'parallel_config("dask", scatter=[X, y])')
