"""What the tasks of the benchmark do; imported by worker processes."""

from __future__ import annotations

import time
from typing import Any


def busy(seconds: float, value: Any = None) -> Any:
    """Burn `seconds` of this thread's CPU time, whatever else the machine does, and give `value`."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return value


def empty() -> None:
    """Do nothing."""
