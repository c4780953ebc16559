"""What README.md says is true: its examples run, its links lead somewhere, its versions are the declared ones."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from distributed import LocalCluster

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXAMPLE, CLUSTER, SCRIPT = [text for language, text in BLOCKS if language == "python"]

# What stands above "On an existing cluster" in README, in small.
SMALL_SEARCH = """
import os

import numpy as np
from joblib import parallel_config
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV

import jobfleet


class Where(BaseEstimator):
    def __init__(self, number=0):
        self.number = number

    def fit(self, X, y):
        return self

    def score(self, X, y):
        return os.getpid()


X, y = np.zeros((4, 1)), np.zeros(4)
search = GridSearchCV(Where(), {"number": [0, 1]}, cv=2, refit=False)
"""

YOUR_SCRIPT = """
import os
from joblib import Parallel, delayed

if __name__ == "__main__":
    print(os.getpid() in Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4)))
    print("backend:", type(Parallel()._backend).__module__.partition(".")[0])
"""


def run(program, directory):
    (directory / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=directory,
        env={name: value for name, value in os.environ.items() if name != "DASK_SCHEDULER_ADDRESS"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_the_file():
    assert (ROOT / "examples" / "random_search.py").read_text() == EXAMPLE
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 12


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_on_an_existing_cluster(tmp_path):
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(protocol="tcp", host="127.0.0.1", **options) as cluster:
        assert "tcp://scheduler:8786" in CLUSTER
        block = CLUSTER.replace("tcp://scheduler:8786", cluster.scheduler_address)
        printed = run(f"{SMALL_SEARCH}\n{block}\nprint({{*search.cv_results_['mean_test_score']}})", tmp_path)
    assert printed.strip() == f"{{{float(os.getpid())}}}" or printed.strip() == f"{{np.float64({float(os.getpid())})}}"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_unmodified_script(tmp_path):
    (tmp_path / "your_script.py").write_text(YOUR_SCRIPT)
    assert run(SCRIPT, tmp_path) == "False\nbackend: jobfleet\n"


def test_every_command_is_a_target_of_make():
    makefile = (ROOT / "Makefile").read_text()
    (commands,) = [text for language, text in BLOCKS if language == "sh"]
    for line in commands.splitlines():
        make, target, *_ = line.split()
        assert make == "make"
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def links():
    return re.findall(r"\]\(([^)]+)\)", README)


@pytest.mark.parametrize("path", sorted({link for link in links() if "://" not in link}))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_every_dependency_has_its_reason():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    table = README.partition("## Dependencies")[2]
    explained = dict(re.findall(r"^\| \[([\w-]+)\]\(\S+\) ([\d.]+) \|", table, re.MULTILINE))
    assert {name: version.removesuffix(".0") for name, _, version in (d.partition(">=") for d in declared)} == {
        name: version.removesuffix(".0") for name, version in explained.items()
    }
