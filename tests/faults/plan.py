"""What may go wrong with a call, as data: what strikes, at what point of it, how often, and what must come of it.

``Scenario`` says what each column means. ``tests.faults.scene`` plays a row; ``test_plan.py`` checks all that its
report says, and ``tests.faults.table`` prints the reports beside those of joblib's own Dask backend, for which this
module must not need jobfleet.
"""

import enum
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults import strikes, workloads
from tests.faults.workloads import Workload

#: Seconds without a sign of life, in the rows of workers that fall silent.
TTL_S = 1.5


class At(enum.Enum):
    """The points of a call at which something strikes."""

    START = "before the first task"
    """While the caller's own code gives the first task: nothing has been sent."""
    HALF = "while half is done"
    RESULT = "while a result is on its way"
    """It is there on the worker, and the client does not know yet."""
    LAST = "at the last task"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One row of the plan."""

    name: str
    strike: Callable[..., None] | None = None
    """A function of `tests.faults.strikes`: takes the scene and the process that runs the held task."""
    at: At = At.HALF
    attempts: int = 1
    """It strikes the first so many attempts of the held task."""
    work: Workload = workloads.SQUARES
    return_as: str = "list"
    workers: int = 2
    nanny: bool = False
    arguments: tuple[str, ...] = ()
    """Of each worker's command line."""
    options: dict[str, Any] = field(default_factory=dict)
    """jobfleet's own, of `parallel_config`."""
    batch_size: int = 1
    cuts: bool = False
    """The network is cut: the parts of the cluster are in network namespaces of their own."""
    small_disk: bool = False
    """Buffers and the workers' files are on a file system of 16 MB."""
    ends: str = ""
    """The exception that the call ends with, or those of the tasks in `fails`; nothing: all results are there."""
    words: str = ""
    """A pattern that this exception's message has."""
    fails: tuple[int, ...] = ()
    """Tasks in whose place the exception stands."""
    most: int = 2
    """The held task runs at most so often."""
    others: int = 1
    """All others together run at most so often more than once each."""
    deadline_s: float = 60.0
    goes_on: bool = True
    """The cluster is there afterwards, and the next call on it runs."""
    shown: bool = True
    """It is a row of the table of `make bench-faults`."""


def scenario(name, strike=None, at=At.HALF, **columns):
    return Scenario(name=name, strike=strike, at=at, **columns)


SILENT = {"worker_ttl": TTL_S}
KEEP = {"return_exceptions": True}
NANNY = {"nanny": True}
DIES = {"nanny": True, "ends": "WorkerLostError", "fails": (workloads.HELD,), "most": 3, "others": 6, "options": KEEP}

#: What happens to a worker, each with what the cluster and the call need for it.
TO_A_WORKER = [
    ("is killed", strikes.kill, {}),
    ("is killed and its nanny restarts it", strikes.kill, NANNY),
    ("is killed with its nanny", strikes.kill_with_nanny, NANNY),
    ("is retired", strikes.retire, {}),
    ("freezes for good", strikes.freeze, {"options": SILENT}),
    ("freezes, and is back in time", strikes.freeze_for_a_moment, {"options": {"worker_ttl": 20.0}, "most": 1}),
]
TO_A_LINK = [
    ("is cut off for good", strikes.cut_worker, {"cuts": True, "options": SILENT}),
    ("is cut off, and is back in time", strikes.cut_worker_for_a_moment, {"cuts": True, "most": 1}),
]

PLAN = [
    # A worker, at each point of the call; the full product is EVERY.
    scenario("a worker is killed", strikes.kill, return_as="generator_unordered"),
    scenario(
        "a worker is killed and its nanny restarts it",
        strikes.kill,
        nanny=True,
        work=workloads.ON_AN_ARRAY,
        shown=False,
    ),
    scenario("a worker is killed with its nanny", strikes.kill_with_nanny, nanny=True, return_as="generator"),
    scenario("a worker is killed", strikes.kill, At.START, others=0, return_as="generator", shown=False),
    scenario("a worker is killed", strikes.kill, At.RESULT, others=2),
    scenario("a worker is killed", strikes.kill, At.LAST, others=0, shown=False),
    scenario(
        "two workers die of the same task, and a third one does it", strikes.kill, **NANNY, attempts=2, most=3, others=2
    ),
    scenario(
        "an outer task's worker is killed", strikes.kill, work=workloads.OUTER, nanny=True, others=12, shown=False
    ),
    scenario("an inner task's worker is killed", strikes.kill, work=workloads.INNER, nanny=True, others=12),
    scenario("a worker is retired", strikes.retire, return_as="generator"),
    scenario("a worker is retired", strikes.retire, At.RESULT, work=workloads.ON_AN_ARRAY, others=2, shown=False),
    scenario("a worker freezes for good", strikes.freeze, options=SILENT, work=workloads.ON_AN_ARRAY),
    scenario(
        "a worker freezes for good",
        strikes.freeze,
        At.START,
        options=SILENT,
        others=0,
        return_as="generator_unordered",
        shown=False,
    ),
    scenario("a worker freezes for good", strikes.freeze, At.RESULT, options=SILENT, others=2),
    scenario(
        "a worker freezes, and is back in time",
        strikes.freeze_for_a_moment,
        options={"worker_ttl": 20.0},
        most=1,
        others=0,
    ),
    # The workers together
    scenario("all workers die, and one joins later", strikes.kill_all_and_start_one, others=3),
    scenario(
        "all workers die, and none comes",
        strikes.kill_all,
        options={"wait_for_workers_timeout": 2},
        ends="NoWorkersError",
        words="none has come back for 2 seconds",
        goes_on=False,
    ),
    scenario("a worker joins, and gets work at once", strikes.start_one, work=workloads.TWO_HELD, most=1, others=0),
    # The scheduler
    scenario("the scheduler comes back", strikes.restart_scheduler, others=3),
    scenario(
        "the scheduler goes for good",
        strikes.kill_scheduler,
        ends="ClusterLostError",
        words="scheduler was lost",
        goes_on=False,
    ),
    # Links
    scenario("a worker is cut off for good", strikes.cut_worker, cuts=True, options=SILENT),
    scenario("a worker is cut off, and is back in time", strikes.cut_worker_for_a_moment, cuts=True, most=1, others=0),
    scenario(
        "a worker is cut off for good", strikes.cut_worker, At.RESULT, cuts=True, options=SILENT, others=2, shown=False
    ),
    scenario("the client is cut off for a while", strikes.cut_client_for_a_moment, cuts=True, most=1, others=0),
    scenario(
        "the client is cut off for good",
        strikes.cut_client,
        cuts=True,
        ends="ClusterLostError",
        words="scheduler was lost",
        goes_on=False,
    ),
    # Tasks that kill their worker
    scenario("a task kills its worker by a segfault", work=workloads.SEGFAULT, **DIES, words="killed by signal 11"),
    scenario("a task ends its worker", work=workloads.LEAVE, **DIES, words="exited with status 3", shown=False),
    scenario(
        "a task takes more memory than its worker may",
        work=workloads.EAT,
        **DIES,
        arguments=("--memory-limit", "400MB"),
        words=r"it used \d+\.\d+ MiB of its memory limit of 381\.47 MiB",
    ),
    scenario(
        "a task kills its worker, in one batch with all others",
        work=workloads.SEGFAULT,
        **{**DIES, "others": 3 * (workloads.N_TASKS - 1)},  # twice in the chunk, once among those left, once without it
        batch_size=workloads.N_TASKS,
        workers=1,
        arguments=("--nthreads", "2"),
        words="killed by signal 11",
    ),
    # The disk
    scenario(
        "disk and shared memory are full",
        strikes.fill_disk,
        work=workloads.LARGE_RESULTS,
        small_disk=True,
        most=1,
        others=0,
    ),
    # What does not pickle
    scenario("an argument does not pickle", work=workloads.BAD_ARGUMENT, ends="SerializationError", words="call 3"),
    scenario("a result does not pickle", work=workloads.BAD_RESULT, ends="SerializationError", words="call 3"),
    scenario(
        "a result does not unpickle", work=workloads.UNREADABLE, ends="SerializationError", words="call 3", shown=False
    ),
    scenario(
        "an exception does not unpickle",
        work=workloads.BAD_EXCEPTION,
        ends="SerializationError",
        words="call 3.*OddError",
    ),
]

#: Everything that happens to a worker, at every point, however results are taken: `make test-faults`.
EVERY = [
    scenario(f"a worker {what}", strike, at, return_as=return_as, **{"others": 0 if at is At.LAST else 2, **columns})
    for (what, strike, columns), at, return_as in itertools.product(
        TO_A_WORKER + TO_A_LINK,
        [At.START, At.HALF, At.RESULT, At.LAST],
        ["list", "generator", "generator_unordered"],
    )
]


def row_id(row):
    return f"{row_name(row)}, {row.return_as}".replace(" ", "-").replace(",", "")


def row_name(row):
    return f"{row.name}, {row.at.value}" if row.strike else row.name


def as_expected(row, results):
    """Whether the results are those that the row has, with None where an exception stands."""
    expected = [None if i in row.fails else result for i, result in enumerate(row.work.results)]
    results = [tuple(result) if isinstance(result, list) else result for result in results]
    return sorted(results) == sorted(expected) if row.return_as == "generator_unordered" else results == expected
