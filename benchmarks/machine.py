"""Facts of the machine and of what is measured on it, kept beside each number."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import joblib
import psutil

PACKAGES = ("joblib", "distributed", "dask", "tornado", "cloudpickle", "numpy", "scikit-learn")


def facts() -> dict[str, Any]:
    """Give what a reader needs to judge a number."""
    return {
        "cpu": _cpu_model(),
        "cpus": joblib.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """Give the commit that is measured; a `+` says that src differs from it."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "../src") else "")


def tree() -> list[int]:
    """Give the processes of this program: itself and all that it has started."""
    me = psutil.Process()
    return [me.pid, *(child.pid for child in me.children(recursive=True))]


class CpuClock:
    """Sum the CPU time of this program's processes, to the microsecond."""

    def __init__(self) -> None:
        self._pids = tree()

    def read(self) -> dict[int, float]:
        """Give the CPU time of each process that still lives."""
        times = {}
        for pid in self._pids:
            try:
                # What clock_getcpuclockid(3) gives; psutil counts in steps of 10 ms only.
                times[pid] = time_of(pid)
            except OSError:
                continue
        return times

    @staticmethod
    def between(before: dict[int, float], after: dict[int, float]) -> float:
        """Give what the processes that are in both used."""
        return sum(after[pid] - before[pid] for pid in after if pid in before)


def time_of(pid: int) -> float:
    """Give the CPU time of a process."""
    return time.clock_gettime((~pid << 3) | 2)
