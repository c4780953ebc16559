"""Messages, turns of event loops and Dask tasks, counted in the client, the scheduler and the workers.

Counting slows things down a little, so what is counted is not timed.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import distributed
from distributed.comm.inproc import InProc
from distributed.comm.tcp import TCP

from ..machine import CpuClock
from .workloads import Workload

T = TypeVar("T")

#: How long a cluster without work is watched: what it does then is taken off what is counted.
IDLE_S = 3.0

_counted: dict[str, int] = {}


def install() -> None:
    """Count in this process from now on."""
    if _counted:
        return
    _counted.update(writes=0, turns=0, chunks=0)
    _count(TCP, "write", "writes")
    _count(InProc, "write", "writes")
    _count(asyncio.base_events.BaseEventLoop, "_run_once", "turns")
    _count(distributed.Worker, "execute", "chunks")


def _count(owner: Any, name: str, counter: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def counting(*args: Any, **kwargs: Any) -> Any:
        _counted[counter] += 1
        return original(*args, **kwargs)

    setattr(owner, name, counting)


def read() -> dict[str, int]:
    """Give what was counted in this process."""
    return dict(_counted)


def everywhere(client: distributed.Client, function: Callable[[], T]) -> list[T]:
    """Call a function in the processes of a client's cluster, but for this one."""
    results = list(client.run(function).values())
    if client.run_on_scheduler(os.getpid) != os.getpid():
        results.append(client.run_on_scheduler(function))
    return results


class Counter:
    """Count what one run of a workload takes on a client's cluster, over all processes, while it is alone."""

    def __init__(self, client: distributed.Client) -> None:
        self._client = client
        install()
        everywhere(self._client, install)
        # What asking takes, and what goes on when nothing is done: heartbeats, ticks of the loops.
        self._of_asking = self._between(self._read(), self._read())
        clock = CpuClock()
        before, cpu, started = self._read(), clock.read(), time.perf_counter()
        time.sleep(IDLE_S)
        wall_s, cpu_s = time.perf_counter() - started, clock.between(cpu, clock.read())
        idle = self._between(before, self._read())
        self._idle = {name: (idle[name] - self._of_asking[name]) / wall_s for name in idle}
        self._idle_cpu = cpu_s / wall_s

    def count(self, workload: Workload, work_s: float) -> dict[str, float]:
        """Run once with the backend of the block."""
        clock = CpuClock()
        before, cpu, started = self._read(), clock.read(), time.perf_counter()
        workload.once()
        wall_s, cpu_s = time.perf_counter() - started, clock.between(cpu, clock.read())
        counted = self._between(before, self._read())
        counted = {name: counted[name] - self._of_asking[name] - self._idle[name] * wall_s for name in counted}
        chunks = max(1.0, round(counted.pop("chunks")))
        per_chunk = {f"{name}_per_chunk": value / chunks for name, value in counted.items()}
        cpu_ms = 1000 * (cpu_s - work_s - self._idle_cpu * wall_s)
        return {
            "chunks": chunks,
            "cpu_ms_per_chunk": cpu_ms / chunks,
            "idle_cpu": self._idle_cpu,
            **per_chunk,
        }

    def _read(self) -> dict[str, float]:
        counted = [read(), *everywhere(self._client, read)]
        return {name: float(sum(one[name] for one in counted)) for name in counted[0]}

    @staticmethod
    def _between(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
        return {name: after[name] - before[name] for name in after}
