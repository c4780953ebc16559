"""`jobfleet demo`: one cross-validated search, on a cluster and then sequentially, and what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .errors import JobfleetError

SPACE: dict[str, Any] = {
    "C": np.logspace(-6, 6, 13),
    "gamma": np.logspace(-8, 8, 17),
    "tol": np.logspace(-4, -1, 4),
    "class_weight": [None, "balanced"],
}
GRID_SIZE = math.prod(len(values) for values in SPACE.values())
FOLDS = 3
OWN_CLUSTER = "started on this machine"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hold what one run of the search gave."""

    params: list[dict[str, Any]]
    """The candidates, in order."""
    scores: dict[str, Any]
    """The columns of `cv_results_` that are scores: of each fold, their mean, deviation and rank."""
    best_params: dict[str, Any]
    best_score: float
    elapsed_s: float

    def same_scores(self, other: Outcome) -> bool:
        """Tell whether both runs tried the same candidates and gave every one exactly the same scores."""
        return (
            self.params == other.params
            and self.scores.keys() == other.scores.keys()
            and all(np.array_equal(self.scores[name], other.scores[name]) for name in self.scores)
        )


def run_demo(scheduler: str | None, candidates: int) -> bool:
    """Run the search twice and print the comparison.

    Returns
    -------
    Whether both runs gave the same scores.

    Raises
    ------
    click.ClickException
        The cluster cannot be used, or scikit-learn is not installed.
    """
    search, X, y = _make_search(candidates)
    fits = candidates * FOLDS
    click.echo(f'RandomizedSearchCV of SVC(kernel="rbf") on the digits: {candidates} candidates x {FOLDS} folds')
    click.echo(f"connecting to {scheduler}" if scheduler else "starting a cluster on this machine", err=True)
    started = time.monotonic()
    with _cluster(scheduler) as slots:
        ready_s = time.monotonic() - started
        with _progress("on the cluster", fits) as show:
            on_cluster = _run(search, X, y, show)
    with _progress("sequentially", fits) as show:
        sequential = _run(search.set_params(n_jobs=1), X, y, show)
    cluster = f"{scheduler or OWN_CLUSTER}, {slots} slot(s), ready after {ready_s:.1f} s"
    click.echo(_report(cluster, on_cluster, sequential))
    return on_cluster.same_scores(sequential)


def _report(cluster: str, on_cluster: Outcome, sequential: Outcome) -> str:
    best = ", ".join(f"{name}={_plain(value)}" for name, value in sorted(on_cluster.best_params.items()))
    verdict = (
        "the same scores in both runs" if on_cluster.same_scores(sequential) else "DIFFERENT SCORES in the two runs"
    )
    return f"""
cluster          {cluster}
best score       {on_cluster.best_score:.4f} (mean accuracy of {FOLDS} folds)
best parameters  {best}
on the cluster   {on_cluster.elapsed_s:.1f} s
sequentially     {sequential.elapsed_s:.1f} s (n_jobs=1, in this process): {_ratio(on_cluster, sequential)}
cv_results_      {verdict}, compared exactly"""


def _make_search(candidates: int) -> tuple[Any, Any, Any]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import RandomizedSearchCV
        from sklearn.svm import SVC
    except ImportError as error:
        raise click.ClickException(
            f"the demo needs scikit-learn, which cannot be imported here ({error}). "
            "Install it: pip install scikit-learn"
        ) from error
    X, y = load_digits(return_X_y=True)
    search = RandomizedSearchCV(SVC(kernel="rbf"), SPACE, n_iter=candidates, cv=FOLDS, random_state=0)
    return search, X, y


@contextmanager
def _cluster(scheduler: str | None) -> Iterator[int]:
    """Make the cluster the backend of the block; give its number of slots once it has answered a call."""
    options = {} if scheduler is None else {"address": scheduler}
    with ExitStack() as stack:
        try:
            stack.enter_context(parallel_config("dask", **options))
            Parallel()([delayed(int)()])
            slots = effective_n_jobs()
        except (JobfleetError, OSError, ValueError) as error:  # the last: an address that is none
            raise click.ClickException(_unusable(scheduler, error)) from error
        try:
            yield slots
        except JobfleetError as error:
            raise click.ClickException(f"the search broke off on the cluster: {error}") from error


def _unusable(scheduler: str | None, error: Exception) -> str:
    if scheduler is None:
        return f"no cluster could be started on this machine: {error}"
    return (
        f"no cluster can be used at {scheduler}: {error}\n"
        "Is this the address that `dask scheduler` printed when it started, and can this machine reach it? "
        "Without --scheduler the demo starts a cluster of its own."
    )


def _run(search: Any, X: Any, y: Any, show: Callable[[int], None]) -> Outcome:
    started = time.monotonic()
    with _completed_calls(show):
        search.fit(X, y)
    elapsed_s = time.monotonic() - started
    results = search.cv_results_
    return Outcome(
        params=results["params"],
        scores={name: column for name, column in results.items() if name.endswith("_score")},
        best_params=search.best_params_,
        best_score=float(search.best_score_),
        elapsed_s=elapsed_s,
    )


@contextmanager
def _completed_calls(show: Callable[[int], None]) -> Iterator[None]:
    """Call `show` with the number of completed calls whenever joblib counts some as completed.

    joblib has no hook for that. What it does have is `Parallel.print_progress`, which it calls in the
    client, with any backend, right after raising `n_completed_tasks`; it is wrapped for the
    length of the block. Runs on the thread that completes a batch, under joblib's lock.
    """
    original = Parallel.print_progress

    def print_progress(parallel: Any) -> None:
        show(parallel.n_completed_tasks)
        original(parallel)

    Parallel.print_progress = print_progress
    try:
        yield
    finally:
        Parallel.print_progress = original


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr: a bar in a terminal, a line for every tenth in a file."""
    console = Console(stderr=True)
    if not console.is_interactive:
        yield _tenths(what, total)
        return
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TextColumn("fits,"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _tenths(what: str, total: int) -> Callable[[int], None]:
    shown = 0

    def show(done: int) -> None:
        nonlocal shown
        if done * 10 // total > shown:
            shown = done * 10 // total
            click.echo(f"{what}: {done} of {total} fits", err=True)

    return show


def _plain(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def _ratio(on_cluster: Outcome, sequential: Outcome) -> str:
    ratio = sequential.elapsed_s / on_cluster.elapsed_s
    if ratio >= 1:
        return f"the cluster was {ratio:.2f} times as fast"
    return f"the cluster took {1 / ratio:.2f} times as long"
