"""What is sent to tasks, and what the tasks do with it."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import delayed

PAGE_ITEMS = 512  # of eight bytes: one in each page
#: Tasks that start at different items of a page give different sums.
STARTS = 7
#: How long a task waits for one on each worker.
MEET_S = 20.0
#: The name of a file that ends such a meeting.
LEAVE = "leave"
#: A file that is older than this is not being written.
SETTLED_S = 0.2


@dataclass(frozen=True)
class Row:
    """One way to hand large data to tasks."""

    name: str
    about: str
    tasks: int = 40
    calls: int = 1
    few: int | None = None
    """So many tasks for the built-in, which takes long here."""
    part: float = 1.0
    """Of the size that all rows have."""
    buffers: bool = True
    """Whether it holds buffers that processes can share; else each has objects of its own."""

    def load(self, subject: str) -> dict[str, int]:
        """Give how many calls, and tasks in each, this subject runs."""
        load = {"n_tasks": self.tasks, "n_calls": self.calls}
        if subject == "builtin" and self.few is not None:
            load["n_tasks"] = self.few
        return load


ROWS = (
    Row("array", "an array as argument"),
    Row("list", "an array in a list", few=8),
    Row("dict", "an array in a dict", few=8),
    Row("closure", "an array in a closure", few=8),
    Row("method", "an array in the object of a bound method", few=8),
    Row("estimator", "an array in a fitted estimator", few=8),
    Row("frame", "a DataFrame"),
    Row("sparse", "a sparse matrix"),
    Row("memmap", "an array that a file holds which was not written just now"),
    Row("strings", "a dict of strings, a tenth of the size, 16 tasks", tasks=16, part=0.1, buffers=False),
    Row("scatter", "an array, by `scatter=`; loky has none"),
    Row("20calls", "the same array in 20 successive calls of 4 tasks", tasks=4, calls=20),
)


class Holder:
    """An object with a large attribute, and a method that uses it."""

    def __init__(self, data):
        self.data = data

    def touch(self, i):
        """Touch every page of the data."""
        return touch(self.data, i)


def touch(thing, i):
    """Touch every page of what is in `thing`, and no more; give the process, and a sum."""
    if isinstance(thing, dict) and isinstance(next(iter(thing.values())), str):
        return os.getpid(), float(sum(map(len, thing.values())) + i % STARTS)
    starts = (array.reshape(-1, order="A")[i % STARTS :: PAGE_ITEMS] for array in arrays(thing))
    return os.getpid(), sum(float(pages.sum()) for pages in starts)


def touch_and_meet(thing, directory, n):
    """Touch everything and wait, so that each of `n` such tasks is on a worker of its own and holds what it has."""
    answer = touch(thing, 0)
    Path(directory, str(os.getpid())).touch()
    deadline = time.monotonic() + MEET_S
    while not Path(directory, LEAVE).exists():
        if len(os.listdir(directory)) < n and time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return answer


def arrays(thing):
    """Give the large arrays in anything measured here."""
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, dict):
        return [array for value in thing.values() for array in arrays(value)]
    if isinstance(thing, list):
        return [array for value in thing for array in arrays(value)]
    if hasattr(thing, "to_numpy"):
        return [thing.to_numpy(copy=False)]
    if hasattr(thing, "indptr"):
        return [thing.data, thing.indices]
    return [array for value in getattr(thing, "__dict__", {}).values() for array in arrays(value)]


def make(name, nbytes, seed, directory):
    """Give the argument of this row, of about `nbytes`; nothing else has the same content."""
    if name == "strings":
        return {f"{seed}-{i}": f"{i:090}" for i in range(nbytes // 100)}
    flat = np.random.default_rng(seed).random(nbytes // 8)
    if name == "list":
        return [flat]
    if name == "dict":
        return {"X": flat}
    if name == "estimator":
        from sklearn.linear_model import LinearRegression

        model = LinearRegression()
        model.coef_ = flat
        return model
    if name == "frame":
        import pandas as pd

        return pd.DataFrame(flat[: flat.size // 50 * 50].reshape(-1, 50))
    if name == "sparse":
        from scipy import sparse

        n = nbytes // 12
        columns = np.arange(n, dtype=np.int32) % 1000
        rows = np.arange(0, n + 1000, 1000).clip(max=n)
        return sparse.csr_matrix((flat[:n], columns, rows), shape=(rows.size - 1, 1000))
    if name == "memmap":
        path = Path(directory, f"memmap-{seed}")
        flat.tofile(path)
        time.sleep(SETTLED_S)
        return np.memmap(path, dtype=float, mode="r")
    return flat


def size_of(thing):
    """Give the bytes of what is shared, or should be."""
    if isinstance(thing, dict) and isinstance(next(iter(thing.values())), str):
        return sum(len(key) + len(value) for key, value in thing.items())
    return sum(array.nbytes for array in arrays(thing))


def calls(name, thing, n):
    """Give the calls of one `Parallel`."""
    if name == "closure":
        return [delayed(lambda i: touch(thing, i))(i) for i in range(n)]
    if name == "method":
        return [delayed(Holder(thing).touch)(i) for i in range(n)]
    return [delayed(touch)(thing, i) for i in range(n)]
