"""What the tasks of these tests do; workers import this, which have no jobfleet."""

import os
import signal
import time

from joblib import Parallel, delayed

from tests.witness import mark, pass_gate


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


def square_unless(directory, poison, kill, i):
    """Give the square, or kill this process."""
    mark(directory, i)
    if i in poison:
        kill()
    return i * i


def square_behind_gate(directory, gate, held, i):
    """Give the square; those that are held wait at the gate."""
    mark(directory, i)
    if i in held:
        pass_gate(gate)
    return i * i


def nested_sum(directory, gate, held, i):
    """Give the sum of what inner tasks give; the inner task that is held waits at the gate."""
    mark(directory / "outer", i)
    tasks = [delayed(square_behind_gate)(directory / "ran", gate, held, 10 * i + j) for j in range(4)]
    return sum(Parallel(batch_size=1)(tasks))


def count_to_gate(directory, gate, i):
    mark(directory, i)
    pass_gate(gate)
    return i
