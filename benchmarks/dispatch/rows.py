"""The rows of the table: what is run, by whom, and what is expected of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import joblib
import numpy as np

from ..schedule import greedy
from .results import DASK, SUBJECTS, Expectation, Results, RowResult, divided
from .tasks import busy, empty
from .workloads import Calls, EachCall, Fit, Import, Start, Stream, Workload


@dataclass(frozen=True)
class Prepared:
    """A row, ready to be measured."""

    workloads: dict[str, Workload]
    """By subject."""
    facts: dict[str, float]
    scales: dict[str, float] = field(default_factory=dict)
    """Subjects that run less than the others, and what their times are multiplied by."""


@dataclass(frozen=True)
class Row:
    """One row."""

    name: str
    about: str
    prepare: Callable[[int, bool], Prepared]
    """Called with the number of slots and whether all should be small."""
    expected: Sequence[Expectation] = ()
    spins: bool = False
    """The work is CPU time burnt: what the machine gives is measured beside it."""
    counted: bool = False
    """Messages and CPU are counted in a run of their own."""


# What is expected


def times_as_fast(subject: str, bound: float, stretch: bool = False) -> Expectation:
    """Expect jobfleet to be so many times as fast as a subject."""
    return Expectation(
        f">= {bound:g} x {subject}", lambda row, _: row.ratio(subject, "jobfleet"), at_least=bound, stretch=stretch
    )


def time_of(subject: str, bound: float) -> Expectation:
    """Expect jobfleet to take at most so many times as long as a subject."""
    return Expectation(f"<= {bound:g} of {subject}'s time", lambda row, _: row.ratio("jobfleet", subject), None, bound)


def used(bound: float) -> Expectation:
    """Expect the tasks to take that part of the cores' time."""
    return Expectation(f">= {bound:g} of the cores' time", lambda row, _: row.used("jobfleet"), bound, of_machine=True)


def of_best(bound: float) -> Expectation:
    """Expect to come near the best schedule."""
    return Expectation(
        f">= {bound:g} of the best schedule",
        lambda row, _: divided(row.facts["best_s"], row.median("jobfleet")),
        at_least=bound,
        of_machine=True,
    )


NOT_BELOW_LOKY = times_as_fast("loky", 1)


def cpu_of_work(bound: float) -> Expectation:
    """Expect the whole system to use little CPU beside the tasks."""
    return Expectation(
        f"CPU <= {bound:g} x the work",
        lambda row, _: divided(row.median("jobfleet", "cpu_s"), row.facts["work_s"]),
        at_most=bound,
    )


def per_chunk(what: str, bound: float) -> Expectation:
    """Expect little of something for each chunk, compared with the built-in's."""

    def value(row: RowResult, _: Results) -> float | None:
        one, other = (row.count(subject, f"{what}_per_chunk") for subject in DASK)
        return divided(one, other)

    return Expectation(f"{what} a chunk <= {bound:g} of builtin's", value, at_most=bound)


# Rows of many tasks


def _calls(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Calls:
    return Calls(function, arguments, [function(*args) for args in arguments])


def _busy_calls(durations: Sequence[float], batch_size: int | str = "auto") -> Calls:
    arguments = [(float(d), i) for i, d in enumerate(durations)]
    return Calls(busy, arguments, list(range(len(durations))), batch_size=batch_size)


def tiny(number: int, builtin_number: int | None = None) -> Callable[[int, bool], Prepared]:
    """Square roots; the built-in may get fewer of them."""

    def prepare(slots: int, quick: bool) -> Prepared:
        n = number // 100 if quick else number
        roots = _calls(math.sqrt, [(i,) for i in range(n)])
        workloads: dict[str, Workload] = dict.fromkeys(SUBJECTS, roots)
        scales = {}
        if builtin_number is not None and not quick:
            workloads["builtin"] = _calls(math.sqrt, [(i,) for i in range(builtin_number)])
            scales["builtin"] = n / builtin_number
        return Prepared(workloads, {"tasks": n, "slots": slots}, scales)

    return prepare


def of_durations(
    make: Callable[[], Sequence[float]], batch_size: int | str = "auto"
) -> Callable[[int, bool], Prepared]:
    """Tasks that burn so much CPU time each."""

    def prepare(slots: int, quick: bool) -> Prepared:
        durations = np.asarray(make())
        if quick:
            durations = durations[:: max(1, len(durations) // 40)] / 10
        facts = {
            "tasks": len(durations),
            "slots": slots,
            "work_s": float(durations.sum()),
            "best_s": greedy(durations, slots),
        }
        return Prepared(dict.fromkeys(SUBJECTS, _busy_calls(durations, batch_size)), facts)

    return prepare


def lognormal(number: int, mean_s: float, sigma: float) -> np.ndarray:
    """Durations with a heavy tail."""
    draws = np.random.default_rng(3).lognormal(0, sigma, number)
    return draws * (mean_s / draws.mean())


def noop(slots: int, quick: bool) -> Prepared:
    """Two empty tasks on a warm cluster."""
    workload = EachCall(empty, [(), ()], [None, None], repeats=5 if quick else 50)
    return Prepared(dict.fromkeys(SUBJECTS, workload), {"tasks": 2, "slots": slots})


def calls(slots: int, quick: bool) -> Prepared:
    """Small calls in a row; the slower subjects make a quarter of them."""
    number, duration_s = 8 if quick else 200, 0.005

    def workload(repeats: int) -> Calls:
        return Calls(busy, [(duration_s, i) for i in range(8)], list(range(8)), repeats)

    slow = ("builtin", "threading")
    workloads: dict[str, Workload] = {s: workload(number // 4 if s in slow else number) for s in SUBJECTS}
    facts = {"tasks": 8 * number, "slots": slots, "work_s": number * 8 * duration_s}
    return Prepared(workloads, facts, dict.fromkeys(slow, 4.0))


# Rows of scikit-learn


def _scores(search: Any) -> Any:
    return search.best_params_, search.cv_results_["mean_test_score"].tolist()


def _fitted(fit: Fit, slots: int, **facts: float) -> Prepared:
    sequential_s = fit.sequential()
    return Prepared(dict.fromkeys(SUBJECTS, fit), {"slots": slots, "sequential_s": sequential_s, **facts})


def digits(slots: int, quick: bool) -> Prepared:
    """The search of `jobfleet demo`."""
    from jobfleet._demo import FOLDS, _make_search

    candidates = 3 if quick else 50
    _, X, y = _make_search(candidates)
    fit = Fit(lambda: _make_search(candidates)[0], (X, y), _scores, lambda: _make_search(2)[0])
    return _fitted(fit, slots, tasks=candidates * FOLDS)


def grid(slots: int, quick: bool) -> Prepared:
    """Two thousand fits of a few milliseconds."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.tree import DecisionTreeClassifier

    X, y = load_digits(return_X_y=True)
    X, y = X[:500], y[:500]

    def make(width: int = 5 if quick else 20) -> Any:
        space = {"max_depth": range(2, 2 + width), "min_samples_leaf": range(1, 1 + width)}
        return GridSearchCV(DecisionTreeClassifier(random_state=0), space, cv=5)

    return _fitted(Fit(make, (X, y), _scores, lambda: make(2)), slots, tasks=2000 if not quick else 125)


def _trees(forest: Any) -> str:
    digest: str = joblib.hash([tree.tree_.threshold for tree in forest.estimators_])
    return digest


def forest(slots: int, quick: bool) -> Prepared:
    """A forest that takes all processors."""
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier

    n_samples, trees = (1000, 10) if quick else (20_000, 200)
    data = make_classification(n_samples, 50, n_informative=10, random_state=0)

    def make(number: int = trees) -> Any:
        return RandomForestClassifier(number, n_jobs=-1, random_state=0)

    return _fitted(Fit(make, data, _trees, lambda: make(4)), slots, tasks=trees)


def nested(slots: int, quick: bool) -> Prepared:
    """A search over forests, both with all processors."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    X, y = load_digits(return_X_y=True)
    trees, depths = (5, [3, 5]) if quick else (20, [3, 5, 7, 9])

    def make(depths: Sequence[int] = depths) -> Any:
        model = RandomForestClassifier(trees, n_jobs=-1, random_state=0)
        return GridSearchCV(model, {"max_depth": depths, "max_features": [4, 8]}, cv=3, n_jobs=-1)

    return _fitted(Fit(make, (X, y), _scores, lambda: make([3])), slots, tasks=len(depths) * 2 * 3)


# Others


def stream(slots: int, quick: bool) -> Prepared:
    """Tasks made while results are taken. Other backends have no bound to keep; loky is there to compare."""
    n = 10_000 if quick else 1_000_000
    return Prepared(dict.fromkeys(("jobfleet", "loky"), Stream(math.sqrt, n)), {"tasks": n, "slots": slots})


def start(slots: int, quick: bool) -> Prepared:
    """A script from the start of its process to its first result."""
    return Prepared(
        {"jobfleet": Start("dask", "import jobfleet"), "loky": Start("loky")}, {"tasks": 10, "slots": slots}
    )


def imported(slots: int, quick: bool) -> Prepared:
    """What `import jobfleet` adds to `import joblib`."""
    return Prepared({"jobfleet": Import()}, {"tasks": 1, "slots": slots})


def _start_difference(row: RowResult, _: Results) -> float | None:
    one, other = row.median("jobfleet"), row.median("loky")
    return None if one is None or other is None else one - other


def _rate_of_tiny(row: RowResult, results: Results) -> float | None:
    other = results.get("tiny200k")
    if other is None:
        return None
    rates = [divided(r.facts["tasks"], r.median("jobfleet")) for r in (row, other)]
    return divided(*rates)


ROWS = (
    Row(
        "tiny20k",
        "20,000 square roots",
        tiny(20_000),
        [times_as_fast("builtin", 8), NOT_BELOW_LOKY],
        counted=True,
    ),
    Row(
        "tiny200k",
        "200,000 square roots",
        tiny(200_000, 40_000),
        [times_as_fast("builtin", 10), NOT_BELOW_LOKY, times_as_fast("loky", 1.2, stretch=True)],
    ),
    Row(
        "short1",
        "2,000 tasks of 1 ms",
        of_durations(lambda: [0.001] * 2000),
        [used(0.90), NOT_BELOW_LOKY, cpu_of_work(1.3), per_chunk("writes", 0.5), per_chunk("cpu_ms", 0.5)],
        spins=True,
        counted=True,
    ),
    Row(
        "short10",
        "1,000 tasks of 10 ms",
        of_durations(lambda: [0.01] * 1000),
        [used(0.95), NOT_BELOW_LOKY],
        spins=True,
        counted=True,
    ),
    Row(
        "batches",
        "the 2,000 tasks of 1 ms with `batch_size=20`",
        of_durations(lambda: [0.001] * 2000, batch_size=20),
        [per_chunk("writes", 0.5), per_chunk("cpu_ms", 0.5)],
        spins=True,
        counted=True,
    ),
    Row("medium", "200 tasks of 50 ms", of_durations(lambda: [0.05] * 200), [used(0.97)], spins=True, counted=True),
    Row(
        "ragged",
        "300 tasks, lognormal (sigma 1.5), mean 20 ms",
        of_durations(lambda: lognormal(300, 0.02, 1.5)),
        [of_best(0.95)],
        spins=True,
    ),
    Row(
        "raggedlast",
        "40 tasks of 50 ms, the last of 1 s",
        of_durations(lambda: [0.05] * 39 + [1.0]),
        [of_best(0.95)],
        spins=True,
    ),
    Row(
        "mixedup",
        "300 tasks of 0.02 ms, then 300 of 20 ms",
        of_durations(lambda: [0.00002] * 300 + [0.02] * 300),
        [used(0.90)],
        spins=True,
    ),
    Row(
        "mixeddown",
        "300 tasks of 20 ms, then 300 of 0.02 ms",
        of_durations(lambda: [0.02] * 300 + [0.00002] * 300),
        [used(0.90)],
        spins=True,
    ),
    Row("noop", "two empty tasks, median of 50 calls", noop, [time_of("loky", 1.3)], counted=True),
    Row("calls", "200 calls of 8 tasks of 5 ms", calls, [NOT_BELOW_LOKY], spins=True),
    Row("digits", "the search of `jobfleet demo`, 150 fits", digits, [time_of("loky", 1)]),
    Row("grid", "a grid search of 2,000 fits of a few ms", grid, [time_of("loky", 1), time_of("builtin", 0.7)]),
    Row("forest", "RandomForestClassifier(200, n_jobs=-1), 20,000 x 50", forest, [time_of("loky", 1)]),
    Row("nested", "a grid search over forests, n_jobs=-1 in both", nested, [time_of("builtin", 0.8)]),
    Row(
        "stream",
        '1,000,000 square roots through return_as="generator"',
        stream,
        [
            Expectation("client grows < 100 MB", lambda row, _: row.median("jobfleet", "grown_mb"), at_most=100),
            Expectation(">= 0.8 of tiny200k's rate", _rate_of_tiny, at_least=0.8),
        ],
    ),
    Row(
        "start",
        "a script from its start to its first result",
        start,
        [Expectation("at most 2 s above loky's", _start_difference, at_most=2.0)],
    ),
    Row(
        "import",
        "`import jobfleet` after `import joblib`",
        imported,
        [Expectation("< 0.3 s", lambda row, _: row.median("jobfleet"), at_most=0.3)],
    ),
)
