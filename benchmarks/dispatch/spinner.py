"""What the machine gives: processes that do nothing but a share of the work, without any framework."""

from __future__ import annotations

import subprocess
import sys
import time
from types import TracebackType

from .tasks import busy

#: The machine is quiet when a probe of this length gets this part of the processors.
PROBE_S = 0.1
QUIET = 0.95


class Spinners:
    """Some processes that burn CPU time when told to."""

    def __init__(self, number: int) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            for _ in range(number)
        ]

    def __enter__(self) -> Spinners:
        self.spin(0.0)  # wait until they have started
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()

    def spin(self, work_s: float) -> float:
        """Share out so much work evenly; give the time until all have done their part."""
        started = time.perf_counter()
        for process in self._processes:
            assert process.stdin is not None
            print(work_s / len(self._processes), file=process.stdin, flush=True)
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()
        return time.perf_counter() - started

    def wait_until_quiet(self, timeout_s: float) -> None:
        """Wait until these processes get nearly all of the CPU time they ask for."""
        end = time.perf_counter() + timeout_s
        work_s = PROBE_S * len(self._processes)
        while time.perf_counter() < end and PROBE_S / self.spin(work_s) < QUIET:
            time.sleep(PROBE_S)


def main() -> None:
    """Burn what each line of the input says, and answer it with a line."""
    for line in sys.stdin:
        busy(float(line))
        print("done", flush=True)


if __name__ == "__main__":
    main()
