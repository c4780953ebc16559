"""Tasks that tell how their arguments reached them."""

import os

import dask.config
import numpy as np

from tests.witness import mark, meet, pass_gate


def address(array):
    """Give where an array's data lie."""
    return array.__array_interface__["data"][0]


def mapped_file(array):
    """Give the file that an array's memory shows, empty for ordinary memory."""
    start = address(array)
    with open("/proc/self/maps") as lines:
        for line in lines:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= start < last:
                return line.split(maxsplit=5)[5].strip() if len(line.split(maxsplit=5)) > 5 else ""
    return ""


def find_arrays(thing):
    """Give the large arrays in anything the tests send."""
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, dict):
        return [array for value in thing.values() for array in find_arrays(value)]
    if isinstance(thing, (list, tuple)):
        return [array for value in thing for array in find_arrays(value)]
    if hasattr(thing, "column_names"):  # an Arrow table
        buffers = [b for column in thing.columns for chunk in column.chunks for b in chunk.buffers()]
        return [np.frombuffer(buffer, np.uint8) for buffer in buffers if buffer is not None]
    if hasattr(thing, "to_numpy"):
        return [np.asarray(block) for block in (thing.to_numpy(copy=False),)]
    if hasattr(thing, "indptr"):
        return [thing.data, thing.indices]
    return [array for value in getattr(thing, "__dict__", {}).values() for array in find_arrays(value)]


def look(thing):
    """Give the process, the files behind the large arrays of a thing, and their checksums."""
    arrays = [array for array in find_arrays(thing) if array.nbytes >= 2**20]
    return os.getpid(), [mapped_file(array) for array in arrays], [total(array) for array in arrays]


def total(array):
    """Give the sum of an array, of all fields if it has such."""
    return (
        float(array.sum()) if array.dtype.names is None else sum(float(array[name].sum()) for name in array.dtype.names)
    )


def touch_and_meet(array, directory):
    """Touch all of an array while another process does; gives its share of memory while both have it."""
    array.sum()
    meet(directory / "touched", 2)
    memory = memory_of(os.getpid())
    meet(directory / "measured", 2)
    return os.getpid(), memory


def memory_of(pid):
    """Give the proportional share of memory that a process has, in bytes."""
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def on_host(array, directory, n):
    """Give the pretended host, process and sum, once `n` tasks run at the same time."""
    meet(directory, n)
    return dask.config.get("jobfleet.host", ""), os.getpid(), float(array.sum())


def held_up(array, gate, ran, waits=True):
    """Give the sum, once the gate is open."""
    mark(ran)
    if waits:
        pass_gate(gate)
    return float(array.sum())


def on_real_host(array, directory, n, n_returned=0):
    """Give the host, the sum and so many items, once `n` tasks run at the same time."""
    meet(directory, n)
    return os.environ["HOST_OF_TEST"], float(array.sum()), array[:n_returned] + 1
