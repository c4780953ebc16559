"""The pytest plugin of all suites: choice of the backend, the cluster, what is left out, and the counts at the end."""

import collections
import json
import pathlib
import sys
import tempfile

import pytest

from . import counts, replacements, subject, suite_joblib_dask, suite_joblib_parallel, suite_sklearn
from .cluster import Cluster
from .exclusions import EXCLUSIONS

SUITES = {"joblib-dask": suite_joblib_dask, "joblib-parallel": suite_joblib_parallel, "sklearn": suite_sklearn}


class Run:
    """What one run of one suite knows."""

    def __init__(self, suite, against):
        self.suite = suite
        self.against = against
        self.backend_class = subject.load(against)
        self.client_counts = counts.count_client(self.backend_class)
        self.worker_file = pathlib.Path(tempfile.mkdtemp(prefix="upstream-")) / "tasks"
        self.cluster = Cluster()
        self.left_out = collections.Counter()
        self.unmatched = []
        self.partial = False
        self.outcomes = collections.Counter()
        self.stale = []
        self.hung = []
        counts.prepare_workers(self.worker_file, sklearn=suite == "sklearn")

    def make_backend(self):
        """Return a backend object, made as joblib's tests make theirs: without arguments, before there is a client."""
        if self.against == "builtin" and self.cluster.client is None:
            self.cluster.start()  # the built-in one asks for a client at once
        return self.backend_class()


def pytest_addoption(parser):
    """Say which suite this is, and what runs it."""
    group = parser.getgroup("upstream")
    group.addoption("--upstream-suite", choices=tuple(SUITES), required=True)
    group.addoption("--against", choices=subject.NAMES, default="jobfleet")
    group.addoption("--upstream-summary", type=pathlib.Path, help="write the counts to this file too")


def pytest_configure(config):
    """Set the run up before anything is collected."""
    config.addinivalue_line("markers", "upstream_config: backend=None means the one of parallel_config")
    config.addinivalue_line("markers", "upstream_default: runs with the backend under test as joblib's default")
    for name in ("thread_unsafe", "no_cover"):
        config.addinivalue_line("markers", f"{name}: joblib's own")
    config.upstream = Run(config.getoption("--upstream-suite"), config.getoption("--against"))
    suite = SUITES[config.upstream.suite]
    if hasattr(suite, "prepare"):
        suite.prepare(config.upstream)
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
        for exclusion in EXCLUSIONS[run.suite]:
            if exclusion.matches(item.nodeid):
                item.add_marker(pytest.mark.xfail(reason=exclusion.reason, strict=True, run=exclusion.run))
                item.user_properties.append(("left out", exclusion.reason))
                matched.add(exclusion)
                break
    if not run.partial:
        for exclusion in EXCLUSIONS[run.suite]:
            if exclusion not in matched:
                run.unmatched.append(exclusion.test)
            if exclusion.instead and not hasattr(replacements, exclusion.instead):
                run.unmatched.append(f"{exclusion.test}, instead of which {exclusion.instead}")


def pytest_runtest_logreport(report):
    """Keep account of what left-out tests did, and of tests that hung."""
    if report.failed and "Timeout (>" in str(report.longrepr):
        _run.hung.append(report.nodeid)


def pytest_sessionstart(session):
    """Reports come without the configuration."""
    global _run
    _run = session.config.upstream


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Tell a stale exclusion from a failure."""
    outcome = yield
    report = outcome.get_result()
    run = item.config.upstream
    reasons = [value for name, value in item.user_properties if name == "left out"]
    if report.when == "call" and reasons:
        if report.failed and str(report.longrepr).startswith("[XPASS(strict)]"):
            run.stale.append(item.nodeid)
    if report.when == "setup" and reasons:
        run.left_out[reasons[0]] += 1


def pytest_sessionfinish(session, exitstatus):
    """Fail a run that proves nothing: no call went through the backend, or the list of exclusions is out of date."""
    run = session.config.upstream
    run.workers = counts.read_workers(run.worker_file)
    run.problems = []
    if not run.partial:
        if not run.client_counts.tasks:
            run.problems.append("not one call went through the backend")
        if not run.workers.outside:
            run.problems.append("not one task ran outside the client's process")
        run.problems += [f"this exclusion is about no test: {test}" for test in run.unmatched]
        if unclassified := getattr(SUITES[run.suite], "unclassified", ()):
            run.problems += [f"PLANS says nothing about {test}" for test in unclassified]
    run.problems += [f"left out, but it passes: {test}" for test in run.stale]
    if run.problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    """Print what went through the backend."""
    run = config.upstream
    client, workers = run.client_counts, run.workers
    line = terminalreporter.write_line
    terminalreporter.section(f"{run.suite} on {run.backend_class.__module__}.{run.backend_class.__qualname__}")
    line(f"Parallel calls run by the backend: {client.calls}; their batches: {client.batches}; tasks in them: {client.tasks}")
    line(f"calls it left to joblib in the client, one job being asked for: {client.in_client}")
    line(f"Dask tasks that ran outside the client: {workers.outside}, in {workers.processes} processes; inside: {workers.inside}")
    if run.suite == "sklearn":
        line(f"scikit-learn calls that ran outside the client: {workers.sklearn_calls}")
    line(f"workers killed between tests, asleep in a task: {run.cluster.kills}; new clusters: {run.cluster.renewals}")
    for reason, number in run.left_out.most_common():
        line(f"left out: {number:4d}  {reason}")
    for test in run.hung:
        line(f"HUNG: {test}", red=True)
    for problem in run.problems:
        line(f"PROBLEM: {problem}", red=True)
