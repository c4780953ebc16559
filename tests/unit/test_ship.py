"""The package's own source goes to workers that have nothing of it, and keeps to itself there."""

import contextlib
import importlib
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from tests.unit.chunks import Client, Failed, named_in, read

import jobfleet.errors
from jobfleet._ship import NEED_CODE, bootstrap, package_code
from jobfleet._wire import Reply, Request, TaskFailure

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]

DIGEST, CODE = package_code()
PRIVATE = f"_jobfleet_{DIGEST}"

#: A process with a Dask worker of two threads, where no jobfleet is found but what stands on its path.
WORKER = """
import sys
sys.path += sys.argv[1:]
import cloudpickle, distributed, importlib.util, struct
found = importlib.util.find_spec("jobfleet")
pipe, sys.stdout = sys.stdout.buffer, sys.stderr
def call(data):
    function, args, kwargs = cloudpickle.loads(data)
    return function(*args, **kwargs)
def answer(value):
    data = cloudpickle.dumps(value)
    pipe.write(struct.pack("!Q", len(data)) + data)
    pipe.flush()
if __name__ == "__main__":
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        answer(None if found is None else found.origin)
        while header := sys.stdin.buffer.read(9):
            size, in_task = struct.unpack("!Q?", header)
            data = sys.stdin.buffer.read(size)
            try:
                if in_task:
                    answer((True, client.submit(call, data, pure=False).result(20)))
                else:
                    function, args, kwargs = cloudpickle.loads(data)
                    answer((True, function(client, *args, **kwargs)))
            except BaseException as error:
                answer((False, f"{type(error).__name__}: {error}"))
"""


class WorkerProcess:
    """Calls functions in that process, in a Dask task."""

    def __init__(self, *paths):
        command = [sys.executable, "-I", "-S", "-c", WORKER, *map(str, paths)]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.installed = self._answer()

    def call(self, function, *args, **kwargs):
        return self._call(True, function, args, kwargs)

    def call_outside_of_tasks(self, function, *args, **kwargs):
        """The function gets the client first."""
        return self._call(False, function, args, kwargs)

    def run(self, tasks, source=None, with_code=True):
        """Run tasks of a `Client` there, as the Dask engine would; gives what it answers."""
        digest, code = source or (DIGEST, CODE)
        packed = Client().pack(tasks) if isinstance(tasks, list) else tasks
        values = [np.frombuffer(blob.data, np.uint8) for blob in packed.placed] + packed.inline
        return self.call(bootstrap(), digest, packed.request, None, *values, code=code if with_code else None)

    def _call(self, in_task, *call):
        data = cloudpickle.dumps(call)
        self.popen.stdin.write(struct.pack("!Q?", len(data), in_task) + data)
        self.popen.stdin.flush()
        good, value = self._answer()
        assert good, value
        return value

    def _answer(self):
        header = self.popen.stdout.read(8)
        assert header, self.popen.stderr.read().decode()
        return pickle.loads(self.popen.stdout.read(struct.unpack("!Q", header)[0]))

    def close(self):
        self.popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        self.popen.kill()
        self.popen.wait(10)
        self.popen.stdout.close()
        self.popen.stderr.close()


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A directory with everything that is installed here, except for jobfleet."""
    directory = tmp_path_factory.mktemp("packages")
    for path in sys.path:
        if Path(path).name in ("site-packages", "dist-packages"):
            for entry in Path(path).iterdir():
                link = directory / entry.name
                if "jobfleet" not in entry.name and not link.exists():
                    link.symlink_to(entry)
    return directory


@pytest.fixture(scope="module")
def worker(packages):
    process = WorkerProcess(packages)
    assert process.installed is None
    yield process
    process.close()


def encode(function, *args):
    return Client().encode(function, *args)


def other_release(name):
    """Give a source that differs from ours in its version only."""
    sources = pickle.loads(zlib.decompress(CODE))
    sources["__init__.py"] += f"\n__version__ = {name!r}\n"
    code = zlib.compress(pickle.dumps(sources))
    return f"{name:0<16}", code


# What is sent


def test_the_bootstrap_travels_without_a_word_of_the_package():
    function = bootstrap()
    data = cloudpickle.dumps(function)
    assert named_in(data) <= {"cloudpickle.cloudpickle", "builtins", "types", "_pickle"}
    assert b"import jobfleet" not in data
    again = pickle.loads(data).__call__
    assert again.__globals__.keys() <= {"__name__", "__builtins__"}
    assert again("0" * 16, b"") == NEED_CODE


def test_the_source_is_whole_and_without_what_only_clients_run():
    sources = pickle.loads(zlib.decompress(CODE))
    assert {"__init__.py", "_entry.py", "_worker/run.py", "_engine/dask.py", "errors.py"} <= sources.keys()
    assert not {"_cli.py", "_demo.py", "testing.py"} & sources.keys()
    root = Path(jobfleet.__file__).parent
    for name, text in sources.items():
        assert (root / name).read_text() == text
    assert len(CODE) < 200_000


def test_the_digest_is_of_the_source():
    assert package_code() == (DIGEST, CODE)
    assert bootstrap() is bootstrap()


# A worker without the package


def test_a_worker_asks_for_the_source_once(packages):
    process = WorkerProcess(packages)
    try:
        tasks = [encode(abs, -1), encode(abs, -2)]
        assert process.run(tasks, with_code=False) == NEED_CODE
        assert read(process.run(tasks)) == [1, 2]
        assert read(process.run(tasks, with_code=False)) == [1, 2]
    finally:
        process.close()


def test_it_keeps_to_a_private_name(worker):
    def look():
        import sys

        return {name.partition(".")[0] for name in sys.modules if "jobfleet" in name}

    worker.run([encode(abs, -1)])
    assert {name for name in worker.call(look) if not name.startswith("_jobfleet_")} <= {"jobfleet"}
    assert PRIVATE in worker.call(look)


def test_import_jobfleet_gives_what_was_sent(worker):
    def look(private):
        import importlib
        import sys

        import jobfleet
        import jobfleet._worker.run
        import jobfleet.errors as errors
        from jobfleet._wire import WIRE_VERSION

        same = [
            importlib.import_module(f"jobfleet{rest}") is sys.modules[private + rest]
            for rest in ("", ".errors", "._worker", "._worker.run", "._wire")
        ]
        return jobfleet.__name__, errors.__name__, errors.__spec__.name, same, WIRE_VERSION

    name, errors, spec, same, _ = read(worker.run([encode(look, PRIVATE)]))[0]
    assert (name, errors, spec) == (PRIVATE, f"{PRIVATE}.errors", f"{PRIVATE}.errors")
    assert all(same)


def test_a_process_that_uses_the_same_source_itself_has_it_once(packages):
    def look(private):
        import importlib
        import sys

        same = [
            importlib.import_module(f"jobfleet{rest}") is importlib.import_module(private + rest)
            for rest in ("", ".errors", "._worker.run", "._entry")
        ]
        return same, sys.modules["jobfleet"].__name__

    process = WorkerProcess(packages, Path(jobfleet.__file__).parents[1])
    try:
        process.call(importlib.import_module, "jobfleet")
        assert read(process.run([encode(look, PRIVATE)])) == [([True] * 4, "jobfleet")]
    finally:
        process.close()


def test_what_does_not_exist_is_not_found_under_either_name(worker):
    def look(private):
        import importlib

        found = []
        for name in (
            "jobfleet.nothing",
            "jobfleet._worker.nothing",
            f"{private}.nothing",
            "jobfleetx",
            "jobfleet.nothing.at",
        ):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                continue
            found.append(name)
        return found

    assert read(worker.run([encode(look, PRIVATE)])) == [[]]


def test_errors_raised_there_are_the_clients_own_classes_here(worker):
    def fail():
        from jobfleet.errors import CallError

        raise CallError("message", 3, "f(1)")

    with pytest.raises(Failed) as failed:
        read(worker.run([encode(fail)]))
    assert b"_jobfleet_" in failed.value.failure.exception
    error = pickle.loads(failed.value.failure.exception)
    assert type(error) is jobfleet.errors.CallError
    assert (error.index, error.call, str(error)) == (3, "f(1)", "message")


def test_errors_sent_there_are_its_own_classes_there(worker):
    def look(error):
        from jobfleet.errors import CallError

        return isinstance(error, CallError), type(error).__module__, error.index, error

    sent = jobfleet.errors.SerializationError("message", 3, "f(1)")
    known, module, index, again = read(worker.run([encode(look, sent)]))[0]
    assert (known, module, index) == (True, f"{PRIVATE}.errors", 3)
    assert type(again) is jobfleet.errors.SerializationError
    assert again.args == sent.args


def test_the_private_name_is_this_package_in_the_client():
    bootstrap()
    for rest in ("", ".errors", "._worker.run", "._wire", "._entry"):
        assert importlib.import_module(PRIVATE + rest) is importlib.import_module(f"jobfleet{rest}")
    assert importlib.import_module(f"{PRIVATE}.errors").CallError is jobfleet.errors.CallError
    assert jobfleet.errors.__spec__.name == "jobfleet.errors"


def test_it_can_send_itself_on(worker):
    def look():
        from jobfleet._ship import bootstrap, package_code

        digest, code = package_code()
        return digest, code, bootstrap()("0" * 16, b"")

    assert read(worker.run([encode(look)])) == [(DIGEST, CODE, NEED_CODE)]


def test_tracebacks_show_its_source(worker):
    def look():
        import linecache

        import jobfleet._wire

        try:
            jobfleet._wire.Reply.from_bytes(b"")
        except EOFError as error:
            frame = error.__traceback__.tb_next.tb_frame
            return linecache.getline(frame.f_code.co_filename, error.__traceback__.tb_next.tb_lineno, frame.f_globals)
        return ""

    (line,) = read(worker.run([encode(look)]))
    assert "pickle.loads(data)" in line


def test_output_and_large_buffers_come_back(worker):
    def work(a):
        print("working")
        return a * 2

    client = Client()
    packed = client.pack([client.encode(work, np.arange(1000.0))])
    answer = worker.run(packed)
    np.testing.assert_array_equal(read(answer)[0], np.arange(1000.0) * 2)
    assert Reply.from_bytes(answer[0]).events == ((0, (("out", "working\n"),)),)
    assert Request.from_bytes(packed.request)


# Several at once


def test_two_releases_live_side_by_side(worker):
    def version():
        import sys

        return sys._getframe(1).f_globals["__name__"]

    one, other = other_release("a"), other_release("b")
    assert worker.run([encode(version)], one, with_code=False) == NEED_CODE
    names = [read(worker.run([encode(version)], source))[0] for source in (one, (DIGEST, CODE), other, one)]
    assert names == [f"_jobfleet_{digest}._worker.run" for digest in (one[0], DIGEST, other[0], one[0])]
    for digest, release in [(one[0], "a"), (other[0], "b")]:
        assert worker.call(eval, f"__import__('_jobfleet_{digest}').__version__") == release


def test_two_threads_may_be_sent_the_source_at_once(worker):
    def race(client, run_chunk, digest, request, code):
        """Stop one thread inside of the first import, and run a chunk in another meanwhile."""
        import sys
        import threading

        inside, go = threading.Event(), threading.Event()

        def gate(event, args):
            if event == "import" and args[0] == f"_jobfleet_{digest}._engine.task" and not inside.is_set():
                inside.set()
                go.wait(20)

        sys.addaudithook(gate)
        first = client.submit(run_chunk, digest, request, None, code=code, pure=False)
        assert inside.wait(20)
        second = client.submit(run_chunk, digest, request, None, code=code, pure=False)
        # It either goes wrong at once, or waits for the first.
        ended = threading.Event()
        second.add_done_callback(lambda future: ended.set())
        ended.wait(0.5)
        go.set()
        return first.result(20), second.result(20)

    digest, code = other_release("race")
    packed = Client().pack([encode(abs, -1)])
    answers = worker.call_outside_of_tasks(race, bootstrap(), digest, packed.request, code)
    assert [read(list(answer)) for answer in answers] == [[1], [1]]


# A worker that has a jobfleet


def test_an_installed_jobfleet_is_neither_used_nor_hidden(packages, tmp_path):
    package = tmp_path / "jobfleet"
    package.mkdir()
    (package / "__init__.py").write_text("INSTALLED = True\n")

    def look():
        import sys

        import jobfleet

        runs_me = sys._getframe(1).f_globals["__name__"]
        return jobfleet.INSTALLED, jobfleet.__name__, runs_me

    process = WorkerProcess(tmp_path, packages)
    try:
        assert process.installed == str(package / "__init__.py")
        assert read(process.run([encode(look)])) == [(True, "jobfleet", f"{PRIVATE}._worker.run")]
    finally:
        process.close()


def test_a_worker_that_speaks_another_version_is_told_apart(worker):
    """The digest names the source, so this takes a release that was made by hand; it is checked all the same."""
    sources = pickle.loads(zlib.decompress(CODE))
    sources["_wire.py"] = sources["_wire.py"].replace("WIRE_VERSION = 1", "WIRE_VERSION = 99")
    code = zlib.compress(pickle.dumps(sources))
    with pytest.raises(AssertionError, match=r"WireVersionError: a Request of wire version 1 .* version 99"):
        worker.run([encode(abs, -1)], ("speaks99", code))


def test_a_failure_is_answered_as_any_other(worker):
    answer = worker.run([encode(divmod, 1, 0)])
    failure = TaskFailure(*Reply.from_bytes(answer[0]).failure)
    assert failure.type_name == "ZeroDivisionError"
