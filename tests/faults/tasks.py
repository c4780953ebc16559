"""What the tasks of these tests do; workers import this, which have no jobfleet."""

import contextlib
import os
import signal
import sys
import threading
import time

import numpy as np
import psutil
from distributed import get_worker
from joblib import Parallel, delayed

from tests.witness import mark, marks, meet, names, pass_gate, wait_until

HELD_S = 60.0


def square(i):
    return i * i


def noted_square(directory, i):
    mark(directory, i)
    return i * i


def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def eat():
    hoard = []
    while True:  # slowly enough for the nanny, which looks ten times a second
        hoard.append(bytearray(os.urandom(1 << 20)) * 16)
        time.sleep(0.02)


class OddError(Exception):
    """Cannot be unpickled: `Exception` keeps one argument, and two are needed."""

    def __init__(self, one, other):
        super().__init__(one)


def raise_odd():
    raise OddError("one", "other")


class Unsendable:
    """Cannot be pickled."""

    def __reduce__(self):
        raise TypeError("does not pickle, on purpose")


def unsendable():
    return Unsendable()


def fail_to_load():
    raise ValueError("does not unpickle, on purpose")


class Unreadable:
    """Cannot be unpickled."""

    def __reduce__(self):
        return fail_to_load, ()


def unreadable():
    return Unreadable()


def square_unless(directory, odd, act, i):
    """Give the square, or do something else: kill this process, give what does not pickle."""
    mark(directory, i)
    return act() if i in odd else i * i


def hold(directory, held, attempts, i):
    """Leave a mark; the first attempts of those that are held wait at the gate of the attempt."""
    mark(directory / "ran", i)
    attempt = names(directory / "ran").count(str(i))
    if i in held and attempt <= attempts:
        pass_gate(directory / f"gate-{attempt}", HELD_S)


def held_square(directory, held, attempts, i):
    hold(directory, held, attempts, i)
    return i * i


def second_held_square(directory, held, attempts, i):
    """Give the square; of each process the first task goes on, the second one waits at the gate."""
    is_first = all(entry["pid"] != os.getpid() for entry in marks(directory / "ran"))
    mark(directory / "ran", i)
    if not is_first:
        pass_gate(directory / "gate-1", HELD_S)
    return i * i


def held_look(directory, held, attempts, array, i):
    """Give a number that depends on a large array."""
    hold(directory, held, attempts, i)
    return i * i + int(array[2**17])


def held_large(directory, held, attempts, i):
    hold(directory, held, attempts, i)
    return np.full(2**18, i)


def nested_sum(directory, held, attempts, i):
    """Give the sum of what inner tasks give."""
    mark(directory / "outer", i)
    tasks = [delayed(held_square)(directory, held, attempts, 10 * i + j) for j in range(4)]
    return sum(Parallel(batch_size=1)(tasks))


def count_to_gate(directory, gate, i):
    mark(directory, i)
    pass_gate(gate)
    return i


def spin_if_slow(directory, slow, i):
    """Give the square; the slow one runs Python code, catching what a task may well catch, until the test is over."""
    mark(directory / "ran", i)
    while i == slow and not (directory / "over").exists():
        with contextlib.suppress(Exception):
            sum(range(1000))
    return i * i


def half_done_if_slow(directory, slow, i):
    """Give the square; the slow one gives what it has when it is interrupted."""
    mark(directory / "ran", i)
    try:
        while i == slow:
            sum(range(1000))
    except BaseException:
        return None
    return i * i


def sit_if_slow(directory, slow, i):
    """Give the square; the slow one waits where no exception can be raised."""
    mark(directory / "ran", i)
    if i == slow:
        held = threading.Lock()
        held.acquire()
        held.acquire(timeout=20)
        mark(directory / "sat")
    return i * i


def spin_in_own_call_if_slow(directory, slow, i):
    """Give the square; the slow one makes a call whose task spins."""
    if i == slow:
        Parallel(batch_size=1)(delayed(spin_if_slow)(directory, 10 * slow, 10 * slow + j) for j in range(3))
    return i * i


def square_at_second_try(directory, slow, i):
    """Give the square; the slow one runs for ever the first time."""
    mark(directory / "tries" / str(i))
    first = len(names(directory / "tries" / str(i))) == 1
    try:
        while i == slow and first and not (directory / "over").exists():
            sum(range(1000))
    finally:
        mark(directory / "ended", i)
    return i * i


def fill_up(share):
    """Keep so much memory that this worker uses this share of what it may have."""
    limit = get_worker().memory_manager.memory_limit
    missing = int(share * limit) - psutil.Process().memory_info().rss
    sys.hoard = b"x" * max(0, missing)
    return len(sys.hoard)


def until_paused():
    """Return when this worker takes no more tasks."""
    wait_until(lambda: get_worker().status.name == "paused", "the worker is paused")


def ones_if_large(large, nbytes, i):
    """Give the square; of the large one an array of so many bytes."""
    return np.ones(nbytes, dtype=np.uint8) if i == large else i * i


def kill_as_planned(directory, plan, callers):
    """Kill a process at each attempt that the plan has one for: this one, or the last or the first of the callers."""
    mark(directory)
    attempt = len(names(directory))
    if attempt <= len(plan):
        victims = {"own": os.getpid(), "caller": callers[-1], "outermost": callers[0]}
        os.kill(victims[plan[attempt - 1]], signal.SIGKILL)
        pass_gate(directory / "never")  # it does not end before its end is heard of


def call_that_kills(directory, plan, hosts, callers=()):
    """Make a call of one task that kills, as deep as there are hosts: each caller is on another one."""
    others = [host for host in hosts if host not in get_worker().address]
    callers = (*callers, os.getpid())
    if len(others) > 1:
        task = delayed(call_that_kills)(directory, plan, others, callers)
    else:
        task = delayed(kill_as_planned)(directory, plan, callers)
    # Dask holds to a host, not to a worker's name or address, when another worker has taken the place of one that died.
    return Parallel(batch_size=1, workers=others)([task])


def die_once_elsewhere(directory, caller):
    """Meet another task in another process; the one that is not with the caller kills its process, the first time."""
    meet(directory / "met", 2)
    if os.getpid() != caller and not names(directory / "died"):
        mark(directory / "died")
        leave()


def call_twice_unlucky(directory, plan):
    """Make a call that costs a worker and recovers, then one of which a task kills."""
    mark(directory / "outer")
    Parallel(batch_size=1)(delayed(die_once_elsewhere)(directory, os.getpid()) for _ in range(2))
    Parallel(batch_size=1)([delayed(square)(1), delayed(kill_as_planned)(directory / "kills", plan, (os.getpid(),))])
    return "done"
