"""The engines every expectation runs over, and the check that a test module gives back what it took.

``--against builtin`` runs the Dask engines on joblib's own Dask backend instead, and ``--against loky`` runs the
process engine on loky: both tell whether an expectation can fail, and what is new here.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from distributed import Client, LocalCluster

# Tasks of these tests are imported by worker processes, which inherit this path: see `--import-mode` in pyproject.toml.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.census import Census, Ledger

ENGINES = ("scripted", "local", "dask-inprocess", "dask-processes")
DASK_ENGINES = ("dask-inprocess", "dask-processes")
SUBJECTS = {"jobfleet": ENGINES, "builtin": DASK_ENGINES, "loky": ("dask-processes",)}
SLOTS = 2


def pytest_addoption(parser):
    parser.addoption("--against", choices=tuple(SUBJECTS), default="jobfleet", help="the backend under test")


def pytest_configure(config):
    config.addinivalue_line("markers", "engines(*names): run only over these engines, with the reason beside it")
    # A task in this process that is given up may be interrupted while it leaves a mark: its draft is closed for it.
    config.addinivalue_line("filterwarnings", r"ignore:unclosed file .*/\.[0-9a-f]{32}.*:ResourceWarning")
    if config.getoption("--against") == "jobfleet":
        import jobfleet  # noqa: F401 - the import registers the backend, and the debug switch must not


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    names = SUBJECTS[metafunc.config.getoption("--against")]
    marker = metafunc.definition.get_closest_marker("engines")
    if marker is not None:
        names = tuple(name for name in names if name in marker.args)
    metafunc.parametrize("backend", names, indirect=True)


class Backend:
    """One way to reach the backend: calling it gives the context manager that selects it for a block."""

    def __init__(self, name, subject, client):
        self.name = name
        self.subject = subject
        self.client = client

    def __repr__(self):
        return self.name

    @property
    def remote(self):
        """Whether tasks run in another process than the caller's."""
        return self.name == "dask-processes"

    @contextlib.contextmanager
    def __call__(self, **options):
        with joblib.parallel_config(**self._selection(), **options) as config:
            yield config

    def _selection(self):
        if self.subject == "loky":
            return {"backend": "loky", "n_jobs": SLOTS}
        if self.client is not None:
            return {"backend": "dask", "client": self.client}
        if self.name == "scripted":
            from jobfleet.testing import ScriptedEngine  # absent under --against

            return {"backend": "jobfleet", "engine": ScriptedEngine(slots=SLOTS)}
        return {"backend": "jobfleet", "engine": "local"}


@pytest.fixture
def against(pytestconfig):
    """Name the subject: the project, or what it is compared with."""
    return pytestconfig.getoption("--against")


@pytest.fixture
def backend(request, against):
    """Give the context-manager factory of each engine in turn."""
    fixtures = {"dask-inprocess": "inprocess_client", "dask-processes": "process_client"}
    client = None
    if request.param in fixtures and against != "loky":
        client = request.getfixturevalue(fixtures[request.param])
    return Backend(request.param, against, client)


@pytest.fixture(scope="session")
def ledger():
    """Keep the books of threads, processes and descriptors."""
    return Ledger()


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind(ledger, pytestconfig):
    """Fail a module that leaves threads, child processes or descriptors; loky keeps its workers on purpose."""
    ledger.base = Census.take()
    yield
    if pytestconfig.getoption("--against") != "loky":
        ledger.settle()


@pytest.fixture(scope="session")
def inprocess_client(ledger, tmp_path_factory, pytestconfig):
    """Give a client whose one worker is two threads of this process."""
    with contextlib.ExitStack() as stack:
        with ledger.entering():
            client = stack.enter_context(
                Client(
                    processes=False,
                    n_workers=1,
                    threads_per_worker=SLOTS,
                    dashboard_address="127.0.0.1:0",
                    set_as_default=False,
                    local_directory=str(tmp_path_factory.mktemp("inprocess")),
                )
            )
            client.gather(client.map(lambda x: x, range(8), pure=False))
            open_store(client, pytestconfig)
        yield client


@pytest.fixture(scope="session")
def process_client(ledger, tmp_path_factory, pytestconfig):
    """Give a client of two single-threaded worker processes."""
    with contextlib.ExitStack() as stack:
        with ledger.entering():
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=SLOTS,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address="127.0.0.1:0",
                    local_directory=str(tmp_path_factory.mktemp("processes")),
                )
            )
            client = stack.enter_context(Client(cluster, set_as_default=False))
            client.wait_for_workers(SLOTS, timeout=30)
            client.gather(client.map(lambda x: x, range(8), pure=False))
            open_store(client, pytestconfig)
        yield client


def open_store(client, pytestconfig):
    """Have the client make the directory for its large buffers, which it keeps, and so those of inner calls."""

    def call():
        return joblib.Parallel(n_jobs=2)(joblib.delayed(len)(data) for data in [np.zeros(2**18)] * 2)

    if pytestconfig.getoption("--against") == "jobfleet":
        with joblib.parallel_config("dask", client=client):
            call()
        for worker in client.ncores():
            with joblib.parallel_config("dask", client=client, workers=[worker]):
                joblib.Parallel(n_jobs=2)(joblib.delayed(call)() for _ in range(2))


class Script:
    """Runs Python source in a fresh interpreter that can import the project and the tests."""

    def __init__(self, directory, against):
        self.directory = directory
        self.against = against

    def path(self):
        """List what the interpreter must import from."""
        root = [str(Path(__file__).parents[1])]
        if self.against == "jobfleet":
            import jobfleet  # absent under --against

            root.append(str(Path(jobfleet.__file__).parents[1]))
        return root

    def environment(self, **extra):
        """Build its environment: this one's, with the import path, and no accident of the caller's."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
        env["PYTHONPATH"] = os.pathsep.join(self.path())
        env.update(extra)
        return env

    def write(self, source):
        """Write the source, with the import that registers the backend first."""
        first = "import jobfleet\n" if self.against == "jobfleet" else ""
        file = self.directory / f"script_{len(list(self.directory.glob('script_*')))}.py"
        file.write_text(first + source)
        return file

    def start(self, source, *args, **extra_env):
        """Start it and return the process; its output is captured."""
        return subprocess.Popen(
            [sys.executable, str(self.write(source)), *map(str, args)],
            cwd=self.directory,
            env=self.environment(**extra_env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, source, *args, timeout_s=45, **extra_env):
        """Run it to its end and return what it printed; a failure shows everything it said."""
        process = self.start(source, *args, **extra_env)
        return self.finish(process, timeout_s)

    def finish(self, process, timeout_s=45):
        """Wait for a started one; kill it at the deadline."""
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"script not finished within {timeout_s} s\n{out}\n{err}") from None
        assert process.returncode == 0, f"script failed\n{out}\n{err}"
        return out


@pytest.fixture
def script(tmp_path, against):
    """Run source text as somebody's program."""
    return Script(tmp_path, against)
