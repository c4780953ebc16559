"""Programs that use the embedded cluster, run as a user would run them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SOURCE = Path(__file__).parents[2] / "src"

#: Every program starts with this; `processes()` gives what the cluster has started.
HEAD = """
import os, psutil, sys, time
from jobfleet._engine.embedded import close_embedded, embedded_client, expected_workers, is_embedded
def processes():
    return psutil.Process().children(recursive=True)
"""


def until(condition, deadline_s=10.0):
    """Wait for something outside of this process that gives no signal."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
    return value


class Program:
    """A Python program in a temporary directory of its own, with the processes it starts."""

    def __init__(self, directory):
        self.directory = directory
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.popen = None
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DASK_", "PYTEST_"))},
            "PYTHONPATH": str(SOURCE),
            "PYTHONWARNINGS": "default",
            "TMPDIR": str(self.temporary),
            # Two workers, also where the tests have one CPU or a hundred.
            "LOKY_MAX_CPU_COUNT": "2",
        }

    def write(self, body, head=HEAD):
        path = self.directory / "script.py"
        path.write_text(head + body)
        return path

    def start(self, *arguments, **kwargs):
        self.end()
        kwargs = {"stdin": subprocess.DEVNULL, **kwargs}
        self.popen = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            cwd=self.directory,
            text=True,
            start_new_session=True,
            **kwargs,
        )
        return self.popen

    def end(self):
        """End the process that was started last, and close its pipes."""
        if self.popen is None:
            return
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(10)
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                # What could not be written any more is of no interest.
                with contextlib.suppress(OSError):
                    pipe.close()

    def run(self, *arguments, stdin=None):
        """Run to the end; return what it has printed, which must be nothing on standard error."""
        kwargs = {} if stdin is None else {"stdin": subprocess.PIPE}
        out, err = self.start(*arguments, **kwargs).communicate(stdin, timeout=50)
        assert self.popen.returncode == 0, err
        assert err == ""
        return out

    def run_script(self, body, head=HEAD):
        return self.run(self.write(body, head))

    def start_script(self, body, head=HEAD):
        """Start a script, and wait for the first line it prints."""
        self.start(self.write(body, head), stdin=subprocess.PIPE)
        line = self.popen.stdout.readline()
        assert line, self.popen.stderr.read()
        return line.strip()

    def left(self):
        """Processes of this program that still run: all of them know its temporary directory."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.pid != os.getpid()
                    and process.status() != psutil.STATUS_ZOMBIE
                    and process.environ().get("TMPDIR") == str(self.temporary)
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def files(self):
        return list(self.temporary.rglob("*"))


@pytest.fixture
def program(tmp_path):
    program = Program(tmp_path)
    yield program
    program.end()
    # Whatever the test was about, nothing stays.
    try:
        until(lambda: not program.left(), 5)
    finally:
        for process in program.left():
            process.send_signal(signal.SIGKILL)
    until(lambda: not program.files(), 5)
