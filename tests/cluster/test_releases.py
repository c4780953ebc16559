"""Two releases of jobfleet on one cluster do not get in each other's way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from joblib import Parallel, delayed, parallel_config

import jobfleet
from tests.witness import count, mark, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

OTHER_CLIENT = """
import sys, joblib, jobfleet
assert jobfleet.__file__.startswith(sys.argv[2])
with joblib.parallel_config("dask", address=sys.argv[1]):
    assert joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(50)) == list(range(50))
"""


def spin(directory):
    mark(directory / "started")
    try:
        while True:
            sum(range(1000))
    finally:
        mark(directory / "ended")


def test_what_one_has_on_the_workers_the_other_leaves_there(process_client, tmp_path):
    """Without it tasks of the first that are given up would run on for ever."""
    with parallel_config("dask", client=process_client):
        Parallel()(delayed(abs)(-i) for i in range(50))
    other = tmp_path / "other"
    shutil.copytree(Path(jobfleet.__file__).parent, other / "jobfleet")
    with open(other / "jobfleet" / "_entry.py", "a") as source:
        source.write("\n# another release\n")
    command = [sys.executable, "-c", OTHER_CLIENT, process_client.scheduler.address, str(other)]
    subprocess.run(command, check=True, timeout=40, env={**os.environ, "PYTHONPATH": str(other)})
    with parallel_config("dask", client=process_client):
        results = Parallel(return_as="generator", batch_size=1)(delayed(spin)(tmp_path) for _ in range(2))
        wait_until(lambda: count(tmp_path / "started") == 2, "both run")
        with pytest.warns(UserWarning, match="cancelled"):
            results.close()
        wait_until(lambda: count(tmp_path / "ended") == 2, "both are interrupted")
