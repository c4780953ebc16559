"""Let the subjects take their turns, and watch their memory.

Each has a network and a `/dev/shm` of its own where the system allows it, so that counters count what it does and
nothing else. While one has its turn the others are stopped: eight idle workers would cost it a quarter of a core.
"""

import contextlib
import functools
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from .rows import LEAVE, MEET_S

#: How long one step may take.
STEP_S = 150.0
SAMPLE_S = 0.05
#: What was used before may be let go a while later, by workers of jobfleet each 2 seconds: so long nothing must have
#: changed by more than `STILL`.
STILL_S = {"jobfleet": 2.5, "builtin": 0.5, "loky": 0.5}
STILL = 0.03
SETTLE_S = 15.0

_OWN = "ip link set lo up && mount -t tmpfs -o size=60% tmpfs /dev/shm && exec "


class Failed(Exception):
    """A subject has ended, or takes too long."""


class Subject:
    """One backend with its workers, in processes of its own."""

    def __init__(self, name, n_workers):
        self.name = name
        self.n_workers = n_workers
        self._directory = tempfile.mkdtemp(prefix="jobfleet-bench-")
        command = [sys.executable, "-m", "benchmarks.data.subject", name, str(n_workers), self._directory]
        if has_namespaces():
            inner = _OWN + shlex.join(command)
            command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", inner]
        # A group of its own, to be stopped; in the session of this process, so that the kernel ends it when that is
        # killed.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )
        try:
            self.answer()
        except BaseException:
            self.close()
            raise

    def order(self, **what):
        """Have the next step done, and give its answer."""
        self.send(**what)
        return self.answer()

    def send(self, **what):
        """Have the next step begin."""
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"{self.name} has ended") from None

    def answer(self):
        """Give what a step has given."""
        if not select.select([self._process.stdout], [], [], STEP_S)[0]:
            raise Failed(f"{self.name} has not answered for {STEP_S:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self.name} has ended")
        return json.loads(line)

    def stop(self):
        """Have its processes use no CPU time."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self):
        """Let them go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def memory(self):
        """Give what all its processes hold: memory of their own, and shared memory, each page once."""
        total = 0
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(self._process.pid)
            for process in [leader, *leader.children(recursive=True)]:
                with contextlib.suppress(OSError), open(f"/proc/{process.pid}/smaps_rollup") as lines:
                    total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
        status = os.statvfs(f"/proc/{self._process.pid}/root/dev/shm")
        return total + (status.f_blocks - status.f_bfree) * status.f_frsize

    def close(self):
        """End it, kindly if it does."""
        with contextlib.suppress(ProcessLookupError):
            self.resume()
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            os.killpg(self._process.pid, signal.SIGKILL)
        with self._process:
            pass
        shutil.rmtree(self._directory, ignore_errors=True)


class Peak:
    """Watch memory while something runs."""

    def __init__(self, memory):
        self.nbytes = 0
        self._memory = memory
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self._ended.wait(SAMPLE_S):
            self.nbytes = max(self.nbytes, self._memory())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._ended.set()
        self._thread.join()


class Turns:
    """Run rows on subjects that are started when they are first needed, one at a time.

    Parameters
    ----------
    n_workers
        Of each subject.
    nbytes
        Of the data.
    """

    def __init__(self, n_workers, nbytes):
        self.n_workers = n_workers
        self._nbytes = nbytes
        self._subjects = {}
        self._n_turns = 0

    def take(self, row, name, watch):
        """Give the sample of one turn: times, or memory with `watch`; it says so if the subject failed."""
        self._n_turns += 1
        try:
            subject = self._subjects.get(name)
            if subject is None:
                subject = self._subjects[name] = Subject(name, self.n_workers)
            else:
                subject.resume()
            sample = self._turn(subject, row, watch)
            subject.stop()
        except Failed as failure:
            print(f"{row.name}, {self.n_workers} workers: {failure}", file=sys.stderr)
            if name in self._subjects:
                self._subjects.pop(name).close()
            return {"failed": 1.0}
        return sample

    def _turn(self, subject, row, watch):
        order = {"row": row.name, "nbytes": int(row.part * self._nbytes), "seed": 2 * self._n_turns}
        order |= row.load(subject.name)
        if not watch:
            size = subject.order(**order, watch=None)["nbytes"]
            sample = subject.order()
            subject.order()
            return {"wall_s": sample["wall_s"], "sockets": sample["sockets"] / size}
        with tempfile.TemporaryDirectory(prefix="jobfleet-bench-") as meeting:
            size = subject.order(**order, watch=meeting)["nbytes"]
            before = settled(subject.memory, size, STILL_S[subject.name])
            with Peak(subject.memory) as peak:
                subject.order()
                subject.send()
                deadline = time.monotonic() + MEET_S
                while len(os.listdir(meeting)) < self.n_workers and time.monotonic() < deadline:
                    time.sleep(SAMPLE_S)
                held = subject.memory()
                Path(meeting, LEAVE).touch()
                touched = subject.answer()["touched"]
            subject.order()
        grown = {"memory": (held - before) / size, "peak": (max(peak.nbytes, held) - before) / size}
        return {**grown, "touched": float(touched)}

    def close(self):
        """End all subjects."""
        for subject in self._subjects.values():
            subject.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def settled(memory, size, still_s):
    """Give the memory that is used when nothing more is let go."""
    deadline = time.monotonic() + SETTLE_S
    last = memory()
    while True:
        time.sleep(still_s)
        now = memory()
        if abs(now - last) < STILL * size or time.monotonic() > deadline:
            return now
        last = now


@functools.cache
def has_namespaces():
    """Whether a process may be given a network and mounts of its own."""
    command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _OWN + "true"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
