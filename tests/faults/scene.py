"""Plays one row of the plan: a cluster of processes, a call on it, what strikes meanwhile, and what comes of it.

``python -m tests.faults.scene ROW SUBJECT DIRECTORY`` does so in a process of its own and prints the report. Rows
that cut the network need one, since it goes to live on another network.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import dask.config
import psutil
from distributed import Client
from joblib import Parallel, delayed, parallel_config

from tests.census import Census
from tests.cluster.conftest import START_WITHIN_S, Processes
from tests.faults import plan, stops
from tests.faults.tasks import square
from tests.netns import Network, Unavailable
from tests.witness import count, marks, names, open_gate, wait_until, wait_until_still

ROOT = Path(__file__).parents[2]

#: Workers of several rows may start at once.
WORKERS_WITHIN_S = 90

#: What a process says when its cluster is there.
READY = "ready"

#: Tasks of a call that is stopped would end by themselves then.
TASKS_END_AFTER_S = 10


@dataclass
class Report:
    """What came of a row."""

    results: list = field(default_factory=list)
    """None where an exception stands."""
    failures: dict = field(default_factory=dict)
    """Those exceptions by position, or the one that the call ended with, for -1: names of classes, and the text."""
    seconds: float = 0.0
    ran: Counter = field(default_factory=Counter)
    """How often each task has started."""
    struck: str = ""
    """What went wrong with the strike; nothing if it struck."""
    next_call: str = ""
    """What went wrong with the next call."""
    left: list = field(default_factory=list)
    """What the call has left behind."""
    told: str = ""
    """Of a call that was stopped, all of it."""

    def run_again(self):
        """Give how many tasks ran a second time."""
        return sum(self.ran.values()) - len(self.ran)


def play(row, scene):
    """Make the call of a row, have it struck, and report."""
    before = Census.take()
    report = Report()
    strike = scene.strike if row.strike else (lambda: None)

    def tasks():
        if row.at is plan.At.START:
            strike()
        yield from row.work.make(scene.directory, scene.held, row.attempts if row.strike else 0)

    began = time.monotonic()
    with ThreadPoolExecutor(1) as thread, scene.backend():
        striking = thread.submit(strike) if row.at is not plan.At.START else None
        try:
            _note(report, row, list(Parallel(batch_size=row.batch_size, return_as=row.return_as)(tasks())))
        except Exception as error:  # whatever it is, it is what is to be reported
            report.failures[-1] = _described(error)
        report.seconds = time.monotonic() - began
        try:
            if striking is not None:
                striking.result(WORKERS_WITHIN_S)
        except Exception as error:  # as above
            report.struck = str(error)
    report.ran = Counter(map(int, names(scene.directory / "ran")))
    if row.goes_on:
        try:
            with scene.backend():
                assert Parallel()(delayed(square)(i) for i in range(10)) == [i * i for i in range(10)]
        except Exception as error:  # as above
            report.next_call = " ".join(_described(error))
    scene.relieve()
    report.left = _left(before, scene)
    return report


def _note(report, row, results):
    for i, result in enumerate(results):
        if isinstance(result, BaseException):
            report.failures[i] = _described(result)
            report.results.append(None)
        else:
            report.results.append(row.work.read(result))


def _described(error):
    return [" ".join(kind.__name__ for kind in type(error).__mro__), str(error)]


def _left(before, scene):
    """Wait until the call has left nothing: threads, descriptors, and on a cluster that goes on keys and tasks."""
    left = []

    def nothing():
        # Workers may have been started, and the client keeps its store until it is closed.
        left[:] = [w for w in before.excess() if not w.startswith("process ") and not w.endswith("/owners")]
        if scene.row.goes_on:
            left.extend(f"key {key}" for key in scene.on_scheduler(_keys))
            left.extend(f"{key} on {worker}" for worker, keys in scene.on_workers(_serves).items() for key in keys)
        left.extend(f"future {key}" for key in scene.client.futures)
        return not left

    with contextlib.suppress(AssertionError):
        wait_until(nothing, "nothing is left", 10)
    return left


def by_value(function):
    """Have a function travel by value: a scheduler cannot import the tests."""
    return types.FunctionType(function.__code__, {"__name__": "_by_value"}, function.__name__, function.__defaults__)


def _keys(dask_scheduler):
    return [key for key in dask_scheduler.tasks if not key.startswith("jobfleet-lease")]


def _serves(dask_worker):
    return [key for key in dask_worker.state.tasks if not key.startswith("jobfleet-lease")]


class Scene:
    """A cluster that is to be broken.

    Attributes
    ----------
    directory
        Where tasks leave their marks.
    disk, shared
        The small file system, if there is one, and where the client keeps large buffers.
    at_the_end
        What undoes the strikes.
    """

    def __init__(self, row, directory, processes, client, subject, disk, shared):
        self.row = row
        self.directory = directory
        self.processes = processes
        self.client = client
        self.subject = subject
        self.disk = disk
        self.shared = shared
        self.at_the_end = contextlib.ExitStack()
        self.first_pid = next(iter(client.run(os.getpid).values()))
        self.held = () if row.at is plan.At.START else row.work.held
        self.victim = row.work.victim
        if row.at is plan.At.LAST:
            last = len(row.work.results) - 1
            self.held, self.victim = (last,), ("ran", last)

    @property
    def workers(self):
        """Give the processes of workers, or of their nannies."""
        return self.processes.running[1:]

    @contextlib.contextmanager
    def backend(self):
        """Select the backend for a block."""
        options = self.row.options if self.subject == "jobfleet" else {}
        with warnings.catch_warnings(), parallel_config("dask", client=self.client, **options):
            warnings.simplefilter("ignore", UserWarning)
            yield

    def start_worker(self):
        """Start a worker as the row has them."""
        start_worker(self.row, self.processes, self.disk)

    def address_of(self, pid):
        """Give a worker's address."""
        return next(address for address, its in self.client.run(os.getpid).items() if its == pid)

    def on_scheduler(self, function):
        """Run a function on the scheduler."""
        return self.client.run_on_scheduler(by_value(function))

    def on_workers(self, function):
        """Run a function on those workers that are there."""
        answers = self.client.run(by_value(function), on_error="ignore")
        return {worker: answer for worker, answer in answers.items() if answer is not None}

    def strike(self):
        """Wait for the point of the call, and strike; for each attempt."""
        for attempt in range(1, self.row.attempts + 1):
            pid = self._await(attempt)
            with self._on_its_way(attempt, pid) if self.row.at is plan.At.RESULT else contextlib.nullcontext():
                self.row.strike(self, pid)
            open_gate(self.directory / f"gate-{attempt}")

    def _await(self, attempt):
        """Wait for the point of the call; gives the process to be struck."""
        if self.row.at is plan.At.START:
            return self.first_pid
        ran, work = self.directory / "ran", self.row.work
        ready = len(work.results) if self.row.at is plan.At.LAST else work.ready
        wait_until(
            lambda: len(set(names(ran))) >= ready and all(names(ran).count(str(i)) >= attempt for i in self.held),
            f"the call is there: {self.row.at.value}, attempt {attempt}",
        )
        if self.row.at is plan.At.LAST:
            # That a task has started does not say that the result of the one before it has left the worker.
            wait_until(lambda: self.on_scheduler(_n_processing) == 1, "nothing but the last task runs")
        where, name = self.victim
        return [mark["pid"] for mark in marks(self.directory / where) if mark["name"] == str(name)][-1]

    @contextlib.contextmanager
    def _on_its_way(self, attempt, pid):
        """Let the held task end, and keep the client from hearing of it meanwhile."""
        is_held, let_go = threading.Event(), threading.Event()
        address = self.address_of(pid)
        with Client(self.client.scheduler.address, set_as_default=False) as observer:

            def hold():
                is_held.set()
                let_go.wait(START_WITHIN_S)

            self.client.loop.add_callback(hold)
            try:
                assert is_held.wait(START_WITHIN_S)
                open_gate(self.directory / f"gate-{attempt}")
                look = by_value(_has_only_results)
                wait_until(
                    lambda: observer.run_on_scheduler(look, worker=address), "its worker has nothing but results"
                )
                yield
            finally:
                let_go.set()

    def relieve(self):
        """Undo what strikes have left: wake up what is frozen, join what is cut."""
        self.at_the_end.close()


def _n_processing(dask_scheduler):
    return sum(len(worker.processing) for worker in dask_scheduler.workers.values())


def _has_only_results(dask_scheduler, worker):
    state = dask_scheduler.workers.get(worker)
    return state is None or (not state.processing and any(t.state == "memory" for t in state.has_what))


class OnHosts(Processes):
    """Starts the parts of a cluster on hosts of their own."""

    def __init__(self, directory, network):
        super().__init__(directory)
        self._network = network
        self._hosts = []
        self._client_host = network.add("client")

    def listens_on(self, role):
        """Add a host for the next part."""
        self._hosts.append(self._network.add(f"{role}-{len(self._hosts)}"))
        return self._hosts[-1].address

    def spawn(self, command, **keywords):
        """Run a part on the newest host."""
        return self._hosts[-1].start(*command, **keywords)

    def enter(self):
        """Have this process live on the client's host."""
        self._client_host.enter()

    def host_of(self, pid=None):
        """Give the host on which a process of the cluster, or the client, runs."""
        return self._client_host if pid is None else self._hosts[[part.pid for part in self.running].index(pid)]


def start_worker(row, processes, disk):
    """Start a worker as the row has them."""
    nanny = "--nanny" if row.nanny else "--no-nanny"
    processes.start_worker(nanny, *row.arguments, "--local-directory", str(disk or processes.directory))


@contextlib.contextmanager
def stage(row, directory, subject="jobfleet"):
    """Give the scene of a row, and end all of it.

    Raises
    ------
    Unavailable
        This machine has no namespaces for us.
    """
    directory = Path(directory)
    with contextlib.ExitStack() as stack:
        processes = OnHosts(directory, stack.enter_context(Network())) if row.cuts else Processes(directory)
        disk = stack.enter_context(_small_disk(directory / "disk")) if row.small_disk else None
        shared = disk or stack.enter_context(tempfile.TemporaryDirectory(prefix="jobfleet-tests-", dir="/dev/shm"))
        stack.enter_context(dask.config.set({"jobfleet.shared-memory": str(shared)}))
        if not row.cuts:  # hosts have shared memory of their own
            processes.environment = {"DASK_JOBFLEET__SHARED_MEMORY": str(shared)}
        if subject != "jobfleet":
            processes.scheduler_path = (ROOT,)  # Dask unpickles tasks there
        stack.callback(_end, processes)
        processes.start_scheduler()
        for _ in range(row.workers):
            start_worker(row, processes, disk)
        if row.cuts:
            processes.enter()
        client = stack.enter_context(Client(scheduler_file=str(processes.scheduler_file), set_as_default=False))
        client.wait_for_workers(row.workers, timeout=WORKERS_WITHIN_S)
        scene = Scene(row, directory, processes, client, subject, disk, Path(shared))
        stack.callback(scene.relieve)
        print(READY, flush=True)
        yield scene


@contextlib.contextmanager
def _small_disk(path):
    path.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"no file system can be mounted here: {error}") from error
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def _end(processes):
    # With a nanny's end its worker ends, at once.
    for process in processes.running:
        process.kill()
    processes.stop()


def perform(row, directory, subject="jobfleet"):
    """Play a row on a stage of its own; the report also says which shared files outlive the client."""
    with stage(row, directory, subject) as scene:
        report = play(row, scene)
        scene.client.close()

        def files():
            return list(scene.shared.glob("jobfleet-store*"))

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not files(), "no shared file is left", 10)
        report.left += [f"shared file {file.name}" for file in files()]
    return report


def perform_stop(name, directory, subject):
    """Stop a call in one of the ways of `stops`; the report tells what came of it."""
    directory = Path(directory)
    began = time.monotonic()
    row = plan.Scenario(name=name)
    over = threading.Timer(TASKS_END_AFTER_S, (directory / "over").touch)
    with stage(row, directory, subject) as scene, scene.backend():
        Parallel()(delayed(square)(i) for i in range(10))  # what starts for the first time takes its time
        stop = stops.STOPS.get(name) or partial(_let_client_die, scene.client.scheduler.address, subject)
        over.start()
        told = []
        try:
            stop(directory)
        except AssertionError as error:
            told.append("its error says nothing" if "Regex" in str(error) else f"not stopped: {error}")
        began = time.monotonic()
        Parallel()(delayed(square)(i) for i in range(10))
        report = Report(seconds=time.monotonic() - began)
        over.join()
        wait_until_still(lambda: count(directory / "started"), window_s=2)
        n_late = sum(mark["at"] > began + 1 for mark in marks(directory / "started"))
    told.append(f"{n_late} of {stops.N_TASKS} tasks started later")
    told.append(f"the next call took {report.seconds:.1f} s")
    report.told = "; ".join(told)
    return report


def _let_client_die(address, subject, directory):
    source = stops.DYING_CLIENT if subject == "builtin" else f"import jobfleet\n{stops.DYING_CLIENT}"
    client = subprocess.Popen([sys.executable, "-c", source, address, str(directory)], cwd=ROOT)
    try:
        wait_until(lambda: count(directory / "started") or client.poll() is not None, "a task runs")
    finally:
        client.kill()
        client.wait()


def perform_apart(name, directory, subject="jobfleet", timeout_s=None):
    """Play the row, or stop, of this name in a process of its own, which is killed when its time is over.

    The time for the start of the cluster does not count.

    Raises
    ------
    Unavailable
        As `stage`.
    subprocess.TimeoutExpired
        It hangs.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.scene", name, subject, str(directory)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("DASK_")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        first = process.stdout.readline()
        out, _ = process.communicate(timeout=timeout_s)
    finally:
        _end_tree(process)
    if process.returncode:
        raise RuntimeError(f"{name} of {subject} did not come to a report: exit status {process.returncode}")
    answer = json.loads((first + out).splitlines()[-1])
    if "unavailable" in answer:
        raise Unavailable(answer["unavailable"])
    report = Report(**answer)
    report.ran = Counter({int(name): n for name, n in report.ran.items()})
    report.failures = {int(position): error for position, error in report.failures.items()}
    return report


def _end_tree(process):
    """Kill a process of ours, if it still runs, with all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()


def main():
    """Play what has this name for this subject in this directory."""
    name, subject, directory = sys.argv[1:]
    if subject == "jobfleet":
        import jobfleet  # noqa: F401 - registers the backend, and the other subject must not have it
    row = next((row for row in plan.PLAN + plan.EVERY if plan.row_id(row) == name), None)
    try:
        answer = vars(perform(row, directory, subject) if row else perform_stop(name, directory, subject))
    except Unavailable as reason:
        answer = {"unavailable": str(reason)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
