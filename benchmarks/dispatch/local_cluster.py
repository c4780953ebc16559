"""Dask's `LocalCluster` in a process of its own, so that all of it can be stopped.

`python -m` this, and how many workers: writes its address, and ends when its input does.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from distributed import LocalCluster


@contextlib.contextmanager
def local_cluster(n_workers: int) -> Iterator[str]:
    """Start one with single-thread worker processes; gives its address."""
    command = [sys.executable, "-m", __name__, str(n_workers)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError("the LocalCluster has not started; it says why above")
        yield address
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def main() -> None:
    """Run until the input ends."""
    settings = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(n_workers=int(sys.argv[1]), **settings) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
