"""The pytest plugin of all suites: choice of the backend, the cluster, what is left out, and the counts at the end."""

import collections

import pytest

from . import counts, subject, suite_joblib_dask, suite_joblib_parallel, suite_sklearn
from .cluster import Cluster
from .exclusions import EXCLUSIONS

SUITES = {"joblib-dask": suite_joblib_dask, "joblib-parallel": suite_joblib_parallel, "sklearn": suite_sklearn}


class Run:
    """What one run of one suite knows."""

    def __init__(self, suite, against, patience):
        self.suite = suite
        self.against = against
        self.patience = patience
        self.exclusions = EXCLUSIONS[suite]
        self.backend_class = subject.load(against)
        self.client_counts = counts.count_client(self.backend_class)
        self.cluster = Cluster()
        self.partial = False
        self.left_out = collections.Counter()
        self.hung = []
        self.problems = []

    def make_backend(self):
        """Return a backend object, made as joblib's tests make theirs: without arguments, before there is a client."""
        if self.against == "builtin" and self.cluster.client is None:
            self.cluster.start()  # the built-in one asks for a client at once
        return self.backend_class()

    def proves_something(self):
        """Note what is wrong with a whole run in which all tests passed."""
        if not self.client_counts.tasks:
            self.problems.append("not one call went through the backend")
        if not counts.read_workers().outside:
            self.problems.append("not one task ran outside the client's process")
        unclassified = getattr(SUITES[self.suite], "unclassified", ())
        self.problems += [f"PLANS says nothing about {test}" for test in unclassified]


def pytest_addoption(parser):
    """Say which suite this is, and what runs it."""
    group = parser.getgroup("upstream")
    group.addoption("--upstream-suite", choices=tuple(SUITES), required=True)
    group.addoption("--against", choices=subject.NAMES, default="jobfleet")
    group.addoption("--patience", type=int, default=1)


def pytest_configure(config):
    """Set the run up before anything is collected."""
    config.addinivalue_line("markers", "upstream_config: backend=None means the one of parallel_config")
    config.addinivalue_line("markers", "upstream_default: runs with the backend under test as joblib's default")
    for name in ("thread_unsafe", "no_cover"):
        config.addinivalue_line("markers", f"{name}: joblib's own")
    run = config.upstream = Run(*map(config.getoption, ("--upstream-suite", "--against", "--patience")))
    suite = SUITES[run.suite]
    if hasattr(suite, "prepare"):
        suite.prepare(run)
    config.pluginmanager.register(suite, "upstream-suite")


def pytest_collection_finish(session):
    """Make the name known; jobfleet's import has done so before."""
    subject.register(session.config.upstream.backend_class)


@pytest.fixture(scope="session")
def upstream(request):
    """The run."""
    return request.config.upstream


@pytest.fixture(scope="session")
def cluster(upstream):
    """The run's cluster, started by the first test that needs it."""
    if upstream.cluster.client is None:
        upstream.cluster.start()
    yield upstream.cluster
    upstream.cluster.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Expect left-out tests to fail, and note exclusions that are about no test."""
    run = config.upstream
    run.partial = bool(config.option.keyword or config.option.markexpr or any("::" in arg for arg in config.args))
    matched = set()
    for item in items:
        exclusion = next((one for one in run.exclusions if one.matches(item.nodeid)), None)
        if exclusion is not None:
            item.add_marker(pytest.mark.xfail(reason=exclusion.reason, strict=True, run=exclusion.run))
            item.upstream_exclusion = exclusion
            matched.add(exclusion)
    if run.partial:
        return
    replacements = suite_joblib_dask.REPLACEMENTS.read_text()  # importing it would import test_dask.py too early
    for exclusion in run.exclusions:
        if exclusion not in matched:
            run.problems.append(f"this exclusion is about no test: {exclusion.test}")
        if exclusion.instead and f"def {exclusion.instead}(" not in replacements:
            run.problems.append(f"there is no {exclusion.instead}, which stands for {exclusion.test}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep account of what left-out tests do, and of tests that hang."""
    outcome = yield
    report = outcome.get_result()
    run = item.config.upstream
    if report.failed and "Timeout (>" in str(report.longrepr):
        run.hung.append(item.nodeid)
    if not hasattr(item, "upstream_exclusion"):
        return
    if report.when == "setup":
        run.left_out[item.upstream_exclusion.reason] += 1
    if report.failed and "[XPASS(strict)]" in str(report.longrepr):
        run.problems.append(f"left out, but it passes: {item.nodeid}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Fail a run that proves nothing, or whose list of exclusions is out of date."""
    run = session.config.upstream
    if not run.partial:
        run.proves_something()
    if run.problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    """Print what went through the backend."""
    run = config.upstream
    client, workers = run.client_counts, counts.read_workers()
    line = terminalreporter.write_line
    terminalreporter.section(f"{run.suite} on {run.backend_class.__module__}.{run.backend_class.__qualname__}")
    line(f"Parallel calls run by the backend: {client.calls}, in {client.batches} batches of {client.tasks} tasks")
    line(f"Parallel calls it left to joblib to run in the client, one job being asked for: {client.in_client}")
    line(f"Dask tasks that ran outside the client: {workers.outside}, in {workers.processes} worker processes")
    line(f"Dask tasks that ran in the client's process, on in-process clusters: {workers.inside}")
    if run.suite == "sklearn":
        line(f"single calls of scikit-learn that ran outside the client: {workers.sklearn_calls}")
    for reason, number in run.left_out.most_common():
        line(f"left out: {number:4d}  {reason}")
    for test in run.hung:
        line(f"HUNG: {test}", red=True)
    for problem in run.problems:
        line(f"PROBLEM: {problem}", red=True)
