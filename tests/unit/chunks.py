"""Calls encoded and packed as the client does it, run as a worker does it, all in this process; threads of calls."""

import io
import pickle
import threading
import types

from jobfleet import _wire as wire
from jobfleet._backend import nested_backend
from jobfleet._data.buffers import BlobTable, InProcess
from jobfleet._data.encode import AtomCalls, Encoder
from jobfleet._data.packing import pack
from jobfleet._data.scatter import scattered_objects
from jobfleet._engine.local import LocalEngine, run_here
from jobfleet._engine.place import TaskPlace
from jobfleet._wire import CallSpec, Reply, Request, TaskFailure, process_token
from jobfleet._worker.interrupt import Interruptible


def drivers():
    """Give the threads of calls that go on."""
    return [thread for thread in threading.enumerate() if thread.name == "jobfleet-driver"]


def spec(**changes):
    """Give a `CallSpec` as bytes."""
    values = {
        "call_id": "call",
        "depth": 0,
        "origin": process_token(),
        "capture": False,
        "filters": (),
        "inner_max_num_threads": None,
        "host_slots": 1,
        "initializer": None,
        "task_timeout": None,
        "nested": (),
        "callers": (),
    }
    return CallSpec(**{**values, **changes}).to_bytes()


def here():
    """Give this process as the place where chunks run."""
    return TaskPlace(
        nested_backend,
        lambda depth, callers: LocalEngine(nested_backend, depth),
        "this process",
        cancelled=lambda: False,
        region=Interruptible(),
    )


def in_main(source, **names):
    """Define functions as a script would: they travel by value. Gives the script's names."""
    script = {"__name__": "__main__", **names}
    exec(source, script)
    return types.SimpleNamespace(**script), script


class Failed(Exception):
    """What a worker answers for a call that failed."""

    def __init__(self, failure, results):
        super().__init__(failure.type_name, failure.message)
        self.failure = failure
        self.results = results


class Client:
    """What one `Parallel` call has in the client."""

    def __init__(self, max_nbytes=2**20, scatter=()):
        self.max_nbytes = max_nbytes
        self.dropped = []
        self.blobs = BlobTable(self.dropped.append)
        self.scattered = scattered_objects(tuple(scatter), InProcess())
        self.encoder = Encoder(self.blobs, self.scattered, max_nbytes)

    def encode(self, function, *args, **kwargs):
        """Encode one call: a task, or (nothing but atoms for arguments) a stretch of one."""
        encoded = self.encoder.encode([(function, args, kwargs)])
        return encoded if isinstance(encoded, AtomCalls) else encoded[0]

    def release(self, task):
        self.encoder.release(task if isinstance(task, AtomCalls) else [task])

    def pack(self, tasks, budget_s=None, **spec_changes):
        pieces = [task if isinstance(task, AtomCalls) else [task] for task in tasks]
        return pack(pieces, spec(**spec_changes), self.max_nbytes, budget_s=budget_s)

    def run(self, tasks, **spec_changes):
        """Run tasks as one chunk; a failure raises `Failed`."""
        outcome = run_here(self.pack(tasks, **spec_changes), here())
        assert isinstance(outcome, list), outcome
        return read(outcome)

    def call(self, function, *argument_lists):
        """Encode and run one task per list of arguments, in one chunk."""
        return self.run([self.encode(function, *arguments) for arguments in argument_lists])


def read(outcome):
    """Give the results that a worker's answer holds."""
    reply, buffers = Reply.from_bytes(outcome[0]), list(outcome[1:])
    results = []
    for kind, *fields in reply.results:
        if kind == wire.MANY:
            results += pickle.loads(fields[1])
        else:
            used = [buffers.pop(0) for _ in range(fields[1])]
            results.append(pickle.loads(fields[0], buffers=used))
    assert not buffers
    if reply.failure is not None:
        raise Failed(TaskFailure(*reply.failure), results)
    return results


def request(packed):
    """Give the `Request` of a packed chunk."""
    return Request.from_bytes(packed.request)


class _Reader(pickle.Unpickler):
    def __init__(self, data):
        super().__init__(io.BytesIO(data))
        self.found = set()

    def find_class(self, module, name):
        self.found.add(module)
        return super().find_class(module, name)


def named_in(data):
    """Give the names of the modules that unpickling imports something from."""
    reader = _Reader(data)
    reader.load()
    return reader.found
