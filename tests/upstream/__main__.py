"""Run the suites, each in a pytest process of its own."""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time

from . import counts
from .plugin import SUITES
from .subject import NAMES

HERE = pathlib.Path(__file__).parent
SITE_PACKAGES = pathlib.Path(sysconfig.get_path("purelib"))
DEADLINE_S = {"joblib-dask": 600, "joblib-parallel": 1200, "sklearn": 3600}
"""A suite that takes longer than this has hung in a way that no test's own timeout ended."""
TIMEOUT_S = 120
"""The time limit of each test."""
LAST_WORDS_S = 60
"""How long it may then take to say which tests failed."""


def main():
    """Run what the command line asks for and exit with 1 if any of it failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("--suite", choices=tuple(SUITES), action="append", help="only this suite; may be repeated")
    parser.add_argument("--against", choices=NAMES, default="jobfleet", help="the backend under test")
    parser.add_argument(
        "--patience", type=int, default=1, help="on a busy machine: how many times as long everything may take"
    )
    parser.add_argument("pytest_args", nargs="*", help="after --: further arguments of pytest, such as -k EXPRESSION")
    options = parser.parse_args()
    # Shells have what they start in the background ignore it, and a suite that hangs is to say which tests failed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    results = {suite: _run(suite, options) for suite in options.suite or SUITES}
    print()
    for suite, (code, seconds) in results.items():
        print(f"{suite}: {'passed' if code == 0 else f'FAILED ({code})'} in {seconds / 60:.1f} min")
    sys.exit(any(code for code, _ in results.values()))


def _run(suite, options):
    with tempfile.TemporaryDirectory(prefix="upstream-") as directory:
        return _run_pytest(suite, options, pathlib.Path(directory))


def _run_pytest(suite, options, directory):
    command = [sys.executable, "-m", "pytest", "-p", "tests.upstream.plugin", f"--upstream-suite={suite}"]
    command += [f"--against={options.against}", f"--patience={options.patience}"]
    command += ["-o", f"timeout={TIMEOUT_S * options.patience}"]
    command += ["-c", str(HERE / "pytest.ini"), f"--rootdir={SITE_PACKAGES}"]
    if not any("::" in arg for arg in options.pytest_args):
        command += SUITES[suite].targets(SITE_PACKAGES)
    command += options.pytest_args
    # BLAS threads of the client would compete with the two workers.
    environ = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
    worker_counts = directory / "tasks"
    worker_counts.touch()
    environ |= counts.worker_environment(worker_counts, sklearn=suite == "sklearn")
    allowed_s = DEADLINE_S[suite] * options.patience
    print(f"\n{suite}, for at most {allowed_s / 60:.0f} min", flush=True)
    start = time.monotonic()
    with subprocess.Popen(command, env=environ) as process:
        for deadline_s, end in ((allowed_s, process.send_signal), (LAST_WORDS_S, lambda _: process.kill())):
            try:
                process.wait(deadline_s)
                break
            except subprocess.TimeoutExpired:
                end(signal.SIGINT)
    return process.returncode, time.monotonic() - start


if __name__ == "__main__":
    main()
