"""What joblib asks of the backend, where an engine with scripted slots and faults runs the chunks."""

import contextvars
import multiprocessing
import pickle
import threading
import time
import warnings

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import ThreadingBackend
from tests.unit.chunks import drivers, here, spec

from jobfleet._backend import JobfleetBackend
from jobfleet._call import state
from jobfleet._call.durations import Known, durations
from jobfleet._data.buffers import InProcess
from jobfleet._engine.base import LostKind
from jobfleet._wire import CallSpec
from jobfleet.errors import (
    ClusterError,
    ClusterLostError,
    NestingError,
    OptionTypeError,
    OptionValueError,
    SerializationError,
    WorkerLostError,
)
from jobfleet.testing import ScriptedEngine

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def _no_driver_is_left():
    yield
    for thread in drivers():
        thread.join(10)
    assert not drivers()


def double(x):
    return 2 * x


def parallel(engine, **keywords):
    return Parallel(backend=JobfleetBackend(engine=engine), **keywords)


# n_jobs


@pytest.mark.parametrize(
    ("slots", "n_jobs", "expected"),
    [
        (4, -1, 4),
        (4, None, 4),
        (4, -2, 3),
        (4, -3, 2),
        (4, -4, 2),  # 1 would make joblib run everything in the client
        (4, -9, 2),
        (1, -1, 2),
        (1, -2, 2),
        (4, 2, 2),
        (4, 4, 4),
        (4, 9, 9),  # more may come
        (1, 3, 3),
        (4, 1, 1),
        (0, -1, 0),
        (0, 5, 0),
        (0, 1, 1),
    ],
)
def test_n_jobs_is_answered_as_joblib_means_it(slots, n_jobs, expected):
    backend = JobfleetBackend(engine=ScriptedEngine(slots))
    assert backend.effective_n_jobs(n_jobs) == expected
    with parallel_config(backend):
        assert joblib.effective_n_jobs(-1 if n_jobs is None else n_jobs) == expected


def test_n_jobs_of_0_means_nothing():
    with pytest.raises(ValueError, match="n_jobs == 0"):
        JobfleetBackend(engine=ScriptedEngine(2)).effective_n_jobs(0)
    with pytest.raises(ValueError, match="n_jobs == 0"):
        parallel(ScriptedEngine(2), n_jobs=0)([delayed(double)(1)])


class Meeting:
    """Count who is in at once; the first n wait for one another."""

    def __init__(self, n):
        self.barrier = threading.Barrier(n)
        self.lock = threading.Lock()
        self.inside = self.most = 0


MEETINGS = {}


def attend(name):
    meeting = MEETINGS[name]
    with meeting.lock:
        meeting.inside += 1
        meeting.most = max(meeting.most, meeting.inside)
    meeting.barrier.wait(10)
    with meeting.lock:
        meeting.inside -= 1


@pytest.mark.parametrize(
    ("slots", "n_jobs", "at_once"), [(3, -1, 3), (4, 2, 2), (4, -2, 3), (1, -1, 1), (1, 5, 1), (2, 8, 2)]
)
def test_n_jobs_tasks_run_at_once_and_never_more(slots, n_jobs, at_once):
    name = f"{slots} {n_jobs}"
    meeting = MEETINGS[name] = Meeting(at_once)
    parallel(ScriptedEngine(slots), n_jobs=n_jobs, batch_size=1)(delayed(attend)(name) for _ in range(4 * at_once))
    assert meeting.most == at_once


def test_one_job_runs_in_the_client_and_uses_no_engine():
    class NotThere(ScriptedEngine):
        def slots(self, options):
            raise AssertionError("asked for slots")

    thread = parallel(NotThere(), n_jobs=1)([delayed(threading.get_ident)()])
    assert thread == [threading.get_ident()]


def test_one_slot_does_the_work_not_the_client():
    engine = ScriptedEngine(1)
    (thread,) = parallel(engine)([delayed(threading.get_ident)()])
    assert thread != threading.get_ident()
    assert engine.n_sent == 1


def test_no_slot_is_an_error():
    with pytest.raises(RuntimeError, match="JobfleetBackend has no active worker"):
        parallel(ScriptedEngine(0))([delayed(double)(1)])


# The ways to choose it


@pytest.mark.parametrize("name", ["dask", "jobfleet"])
def test_both_names_choose_it(name):
    engine = ScriptedEngine(2)
    with parallel_config(name, engine=engine):
        assert Parallel()(delayed(double)(i) for i in range(5)) == [0, 2, 4, 6, 8]
    with joblib.parallel_backend(name, engine=engine):
        assert Parallel()(delayed(double)(i) for i in range(5)) == [0, 2, 4, 6, 8]
    assert Parallel(backend=name, engine=engine, n_jobs=2)(delayed(double)(i) for i in range(5)) == [0, 2, 4, 6, 8]
    assert engine.n_sent >= 6


def test_options_of_parallel_win_over_those_of_the_block():
    outer, inner = ScriptedEngine(2), ScriptedEngine(3)
    with parallel_config("jobfleet", engine=outer):
        assert Parallel(engine=inner)([delayed(double)(1)]) == [2]
        assert (outer.n_sent, inner.n_sent) == (0, 1)
        assert Parallel()([delayed(double)(1)]) == [2]
        assert (outer.n_sent, inner.n_sent) == (1, 1)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [({"adress": "x"}, OptionTypeError), ({"scatter": "x"}, OptionTypeError), ({"retries": -1}, OptionValueError)],
)
def test_a_wrong_option_is_an_error_wherever_it_is_given(keywords, error):
    with pytest.raises(error, match=next(iter(keywords))):
        parallel_config("jobfleet", **keywords)
    with pytest.raises(error, match=next(iter(keywords))):
        parallel(ScriptedEngine(), **keywords)([delayed(double)(1)])


def test_an_initializer_that_does_not_pickle_is_named():
    lock = threading.Lock()
    with pytest.raises(OptionTypeError, match="initializer or initargs cannot be sent"):
        parallel(ScriptedEngine(), initializer=double, initargs=(lock,))([delayed(double)(1)])


def test_a_scattered_object_that_does_not_pickle_is_named():
    lock = threading.Lock()
    with pytest.raises(OptionTypeError, match="scatter"):
        parallel(ScriptedEngine(), scatter=[[1], lock])([delayed(double)(1)])


def test_prefer_threads_goes_to_the_cluster_and_sharedmem_to_threads():
    engine = ScriptedEngine(2)
    with parallel_config("jobfleet", engine=engine):
        Parallel(prefer="threads")([delayed(double)(1)])
        assert engine.n_sent == 1
        shared = Parallel(require="sharedmem", n_jobs=2)
        assert isinstance(shared._backend, ThreadingBackend)
        shared([delayed(double)(1)])
        assert engine.n_sent == 1


# One instance, several Parallel objects


def test_generators_of_one_block_may_be_taken_in_turns():
    with parallel_config("jobfleet", engine=ScriptedEngine(2)):
        one = Parallel(return_as="generator")(delayed(double)(i) for i in range(20))
        other = Parallel(return_as="generator")(delayed(double)(-i) for i in range(20))
        assert list(zip(one, other, strict=True)) == [(2 * i, -2 * i) for i in range(20)]


def test_threads_may_share_one_instance():
    backend = JobfleetBackend(engine=ScriptedEngine(2))
    results = {}

    def work(n):
        for _ in range(3):
            results.setdefault(n, []).append(Parallel(backend=backend)(delayed(double)(n + i) for i in range(10)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {n: [[2 * (n + i) for i in range(10)]] * 3 for n in range(4)}


def test_the_call_of_one_is_not_ended_by_another():
    with parallel_config("jobfleet", engine=ScriptedEngine(2)):
        slow = Parallel(return_as="generator")(delayed(double)(i) for i in range(50))
        assert next(slow) == 0
        with pytest.raises(ZeroDivisionError):
            Parallel()([delayed(divmod)(1, 0)])
        assert list(slow) == [2 * i for i in range(1, 50)]


def test_one_parallel_makes_many_calls():
    engine = ScriptedEngine(2)
    with parallel(engine) as calls:
        for n in range(5):
            assert calls(delayed(double)(i) for i in range(n)) == [2 * i for i in range(n)]
        with pytest.raises(ZeroDivisionError):
            calls(delayed(divmod)(1, i) for i in [1, 1, 0, 1])
        assert calls([delayed(double)(3)]) == [6]


def test_no_task_of_a_call_that_failed_runs_in_the_next():
    with parallel(ScriptedEngine(4), batch_size=1, pre_dispatch=2) as calls:
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                calls(delayed(divmod)(1, i) for i in [1, 0, *[1] * 20])
            assert calls(delayed(double)(i) for i in range(10)) == [2 * i for i in range(10)]


def test_the_parallels_of_a_block_share_its_engine_and_its_scattered_objects():
    """Else each sends the objects of scatter= again: an engine holds what it has placed."""
    with parallel_config("jobfleet", engine="local", scatter=[[1, 2]]):
        calls = [Parallel(), Parallel(), Parallel(return_as="generator")]
        for call in calls:
            list(call(delayed(double)(i) for i in range(2)))
    engines = {id(call._backend._engine_in_use()) for call in calls}
    sent = {id(call._backend._template._sent_ahead(InProcess())[0]) for call in calls}
    assert (len(engines), len(sent)) == (1, 1)


# Where it travels


def test_it_travels_as_a_fresh_one_without_client_options_and_call():
    with parallel_config("jobfleet", engine=ScriptedEngine(2), retries=3):
        calls = Parallel()
        calls([delayed(double)(1)])
    for backend in (calls._backend, JobfleetBackend(nesting_level=2, engine="local")):
        again = pickle.loads(pickle.dumps(backend))
        assert type(again) is JobfleetBackend
        assert again._options == JobfleetBackend()._options
        assert again._engine is again.parallel is again.nesting_level is None


# Nested calls


def inner_sum(n):
    return sum(Parallel()(delayed(double)(i) for i in range(n)))


def three_levels(n):
    return Parallel()(delayed(inner_sum)(i) for i in range(n))


def without_end(n):
    return Parallel()(delayed(without_end)(n + 1) for _ in range(2))


def test_tasks_make_calls():
    assert parallel(ScriptedEngine(2))(delayed(three_levels)(i) for i in range(4)) == [[], [0], [0, 0], [0, 0, 2]]


def test_recursion_without_end_is_stopped_with_words():
    with pytest.raises(NestingError, match=r"nested 3 deep.*max_nesting_depth") as error:
        parallel(ScriptedEngine(2), max_nesting_depth=3)([delayed(without_end)(0)])
    assert isinstance(error.value, RecursionError)


def without_end_counted(n):
    RUNS.append(n)
    return Parallel()([delayed(without_end_counted)(n + 1)])


def test_recursion_without_end_is_not_tried_again():
    RUNS.clear()
    with pytest.raises(NestingError):
        parallel(ScriptedEngine(1), max_nesting_depth=4, retries=1)([delayed(without_end_counted)(0)])
    assert RUNS == [0, 1, 2, 3]


def options_in_task():
    options = joblib.parallel.get_active_backend()[0]._options
    return options.retries, options.priority, options.max_nesting_depth, options.wait_for_workers_timeout


def test_inner_calls_keep_the_options_of_the_outer_one():
    calls = parallel(ScriptedEngine(2), retries=2, priority=5, max_nesting_depth=7, wait_for_workers_timeout=9)
    assert calls([delayed(options_in_task)()]) == [(2, 5, 7, 9)]


@pytest.mark.parametrize("options", [{}, {"retries": 1}])
def test_a_call_is_told_that_its_tasks_make_calls(options):
    """It then keeps one chunk per slot, which bounds the outer tasks that have started."""
    with here().nested(CallSpec.from_bytes(spec()), 0, lambda: 0) as (renew, was_used):
        renew()
        assert not was_used()
        assert Parallel(**options)([delayed(double)(3)]) == [6]
        assert was_used()


PULLED = []


def pulled_so_far(i):
    return len(PULLED)


def slow(engine):
    """Give calls slowly, of tasks that are known to be so short that hundreds should be in a chunk."""
    parallel(engine)(delayed(pulled_so_far)(i) for i in range(100))
    PULLED.clear()
    for i in range(100):
        time.sleep(0.005)
        PULLED.append(i)
        yield delayed(pulled_so_far)(i)


def test_a_slow_iterable_is_not_pulled_far_ahead_of_idle_slots():
    engine = ScriptedEngine(2)
    ahead = [pulled - i for i, pulled in enumerate(parallel(engine)(slow(engine)))]
    assert max(ahead) < 60


def test_results_are_there_while_a_slow_iterable_is_pulled():
    engine = ScriptedEngine(2)
    results = parallel(engine, return_as="generator")(slow(engine))
    ahead = [len(PULLED) - i for i, _ in enumerate(results)]
    assert max(ahead) < 60


# Faults, as data: what becomes of the n-th chunk, and how often each task ran

RUNS = []


def note(x):
    RUNS.append(x)
    return x


@pytest.mark.parametrize(
    ("faults", "n_more"),
    [
        ({}, 0),
        ({0: LostKind.DATA}, 1),
        (dict.fromkeys(range(10), LostKind.DATA), 10),
        ({0: LostKind.WORKER}, 1),
        ({0: LostKind.WORKER, 1: LostKind.DATA, 3: LostKind.DATA}, 3),
    ],
)
def test_what_is_lost_runs_again_and_is_delivered_once(faults, n_more):
    RUNS.clear()
    engine = ScriptedEngine(1, faults)
    calls = parallel(engine, batch_size=2)
    assert calls(delayed(note)(i) for i in range(6)) == list(range(6))
    assert sorted(RUNS) == list(range(6)), "a chunk is lost before it runs, so each ran once"
    assert engine.n_sent == calls.n_dispatched_batches + n_more


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (dict.fromkeys(range(3), LostKind.WORKER), WorkerLostError),
        ({0: LostKind.SCHEDULER}, ClusterLostError),
        ({0: LostKind.ENGINE}, ClusterError),
    ],
)
def test_what_cannot_run_is_an_error_that_names_the_call(faults, error):
    with pytest.raises(error, match=r"call 0, note\(0\)") as raised:
        parallel(ScriptedEngine(1, faults), batch_size=2)(delayed(note)(i) for i in range(6))
    assert type(raised.value) is error


def test_an_argument_that_does_not_pickle_is_an_error_that_names_the_call():
    tasks = [delayed(double)(1), delayed(double)(2), delayed(double)(threading.Lock())]
    with pytest.raises(SerializationError, match="argument 0, a lock, of call 2, double") as error:
        parallel(ScriptedEngine(2))(tasks)
    assert error.value.index == 2
    assert isinstance(error.value.__cause__, TypeError)


def test_of_several_failures_the_first_in_order_is_raised():
    with pytest.raises(ZeroDivisionError, match="1"):
        parallel(ScriptedEngine(1), batch_size=4)(delayed(fail_with)(i) for i in range(1, 4))


def fail_with(n):
    raise ZeroDivisionError(n)


def fail_twice(x):
    RUNS.append(x)
    if RUNS.count(x) <= 2:
        raise LookupError(x)
    return x


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_a_task_that_raises_runs_again_as_often_as_the_user_says(batch_size):
    RUNS.clear()
    calls = parallel(ScriptedEngine(2), retries=2, batch_size=batch_size)
    assert calls(delayed(fail_twice)(i) for i in range(5)) == list(range(5))
    assert sorted(RUNS) == sorted(list(range(5)) * 3)
    RUNS.clear()
    with pytest.raises(LookupError):
        parallel(ScriptedEngine(2), retries=1, batch_size=batch_size)([delayed(fail_twice)(0)])
    assert RUNS == [0, 0]


def return_a_generator(x):
    RUNS.append(x)
    return (i for i in range(x))


def test_retries_are_for_what_tasks_raise():
    RUNS.clear()
    with pytest.raises(SerializationError):
        parallel(ScriptedEngine(1), retries=2)([delayed(return_a_generator)(1)])
    assert RUNS == [1]


class DoesNotPickle(Exception):
    def __reduce__(self):
        raise TypeError("cannot pickle this")


def fail_once_with_what_does_not_pickle(x):
    RUNS.append(x)
    if len(RUNS) == 1:
        raise DoesNotPickle
    return x


def test_an_exception_that_does_not_pickle_was_raised_all_the_same():
    RUNS.clear()
    assert parallel(ScriptedEngine(1), retries=1)([delayed(fail_once_with_what_does_not_pickle)(7)]) == [7]
    assert RUNS == [7, 7]


class DoesNotUnpickle:
    def __reduce__(self):
        return fail_with, (1,)


def give_what_does_not_unpickle_or_raise(x):
    RUNS.append(x)
    return DoesNotUnpickle() if x == 0 else fail_with(x)


def test_a_result_that_does_not_unpickle_is_not_tried_again_because_a_later_task_raised():
    RUNS.clear()
    calls = parallel(ScriptedEngine(1), retries=3, batch_size=2, pre_dispatch="all")
    with pytest.raises(SerializationError):
        calls(delayed(give_what_does_not_unpickle_or_raise)(x) for x in (0, 1, 1, 1))
    assert RUNS.count(0) == 1


def test_the_users_iterable_may_raise():
    def tasks():
        yield delayed(double)(1)
        yield delayed(double)(2)
        raise LookupError("in the iterable")

    for pre_dispatch in ("all", 1):
        with pytest.raises(LookupError, match="in the iterable"):
            parallel(ScriptedEngine(2), pre_dispatch=pre_dispatch)(tasks())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_iterable_that_ends_the_program_ends_it_from_any_thread(error):
    def tasks():
        for i in range(20):
            if i == 10:
                raise error("in the iterable")
            yield delayed(double)(i)

    with pytest.raises(error, match="in the iterable"):
        parallel(ScriptedEngine(2), pre_dispatch=2)(tasks())


# Batches, results as they come, time-outs


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100, "auto"])
@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_results_are_those_of_the_sequential_run(batch_size, return_as):
    calls = parallel(ScriptedEngine(3), batch_size=batch_size, return_as=return_as)
    results = list(calls(delayed(double)(i) for i in range(50)))
    assert (sorted(results) if "unordered" in return_as else results) == [2 * i for i in range(50)]


def test_the_users_batch_size_is_the_chunks():
    engine = ScriptedEngine(2)
    calls = parallel(engine, batch_size=5)
    calls(delayed(double)(i) for i in range(50))
    assert engine.n_sent == calls.n_dispatched_batches  # the first and the last are smaller: joblib cuts them so


def test_short_tasks_are_sent_together():
    engine = ScriptedEngine(2)
    parallel(engine)(delayed(double)(i) for i in range(5000))
    assert engine.n_sent < 500


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_tasks_wait_for_a_consumer_that_takes_its_time(return_as):
    started = []

    def tasks():
        for i in range(300):
            started.append(i)
            yield delayed(note)(i)

    calls = parallel(ScriptedEngine(2), return_as=return_as, batch_size=1, pre_dispatch=4)
    results = []
    for result in calls(tasks()):
        results.append(result)
        # 4 that joblib has dispatched, 2 batches a slot whose results lie ready, the one that was just taken.
        assert len(started) <= len(results) + 4 + 2 * 2 + 1
    assert sorted(results) == list(range(300))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("timeout", [None, 60])
def test_the_first_of_many_short_tasks_go_once_somebody_waits_for_results(monkeypatch, timeout):
    durations.note(double, Known(0.0001, nested=False))
    monkeypatch.setattr(state, "HOLD_S", 3600.0)
    results = parallel(ScriptedEngine(2), timeout=timeout)(delayed(double)(i) for i in range(100))
    assert results == [2 * i for i in range(100)]


def test_closing_a_generator_ends_the_call():
    engine = ScriptedEngine(1)
    results = parallel(engine, return_as="generator", batch_size=1, pre_dispatch="all")(
        delayed(note)(i) for i in range(500)
    )
    next(results)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib says what was not used
        results.close()
    for thread in drivers():
        thread.join(10)
    sent = engine.n_sent
    assert sent < 500
    assert parallel(engine)([delayed(double)(1)]) == [2]


HELD = threading.Event()


def hold():
    assert HELD.wait(20)


def test_a_call_that_takes_too_long_is_timed_out():
    HELD.clear()
    try:
        with pytest.raises(multiprocessing.TimeoutError):
            parallel(ScriptedEngine(1), timeout=0.1)([delayed(hold)()])
    finally:
        HELD.set()


# Large arguments, as joblib's own keywords say


def writable(a):
    return a.flags.writeable


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, False),
        ({"max_nbytes": "1M"}, False),
        ({"max_nbytes": "2M"}, True),
        ({"max_nbytes": 1}, False),
        ({"max_nbytes": None}, True),
        ({"mmap_mode": "c"}, True),
        ({"mmap_mode": None}, True),
        ({"mmap_mode": "r", "max_nbytes": 10**7}, True),
    ],
)
def test_max_nbytes_and_mmap_mode_say_which_arrays_are_read_only(keywords, expected):
    a = np.zeros(2**20, np.uint8)
    assert parallel(ScriptedEngine(2), **keywords)(delayed(writable)(a) for _ in range(3)) == [expected] * 3
    with parallel_config("jobfleet", engine=ScriptedEngine(2), **keywords):
        assert Parallel()(delayed(writable)(a) for _ in range(3)) == [expected] * 3


def test_scattered_objects_are_the_same_in_each_call_until_they_change():
    data = {"k": 1}
    with parallel_config("jobfleet", engine=ScriptedEngine(2), scatter=[data]):
        read = lambda d: d["k"]  # noqa: E731
        assert Parallel()(delayed(read)(data) for _ in range(3)) == [1] * 3
        with Parallel() as calls:
            assert calls(delayed(read)(data) for _ in range(3)) == [1] * 3
            data["k"] = 2
            assert calls(delayed(read)(data) for _ in range(3)) == [2] * 3


# joblib as its surroundings


def test_it_leaves_the_callers_settings_alone():
    before = joblib.parallel.get_active_backend()
    parallel(ScriptedEngine(2))([delayed(double)(1)])
    after = joblib.parallel.get_active_backend()
    assert type(after[0]) is type(before[0])
    assert after[1] == before[1]


def test_the_users_iterable_runs_in_the_callers_context_in_a_daemon():
    variable = contextvars.ContextVar("variable", default="of nobody")
    seen = []

    def tasks():
        for i in range(10):
            seen.append((threading.current_thread(), variable.get()))
            yield delayed(double)(i)

    token = variable.set("of the caller")
    parallel(ScriptedEngine(2), pre_dispatch=1)(tasks())
    variable.reset(token)
    driver, value = seen[-1]
    assert driver.name == "jobfleet-driver"
    assert driver.daemon
    assert value == "of the caller"


def fail_first(error):
    RUNS.append(type(error))
    if RUNS.count(type(error)) < 3:
        raise error
    return type(error).__name__


def test_retries_are_for_the_exceptions_named():
    RUNS.clear()
    calls = parallel(ScriptedEngine(1), retries=2, retry_on=(OSError, KeyError), return_exceptions=True)
    results = calls(delayed(fail_first)(error) for error in [ConnectionError("a"), ValueError("b")])
    assert results[0] == "ConnectionError"
    assert isinstance(results[1], ValueError)
    assert (RUNS.count(ConnectionError), RUNS.count(ValueError)) == (3, 1)


def test_exceptions_in_place_of_results_whatever_the_fault():
    """A task that raises, arguments that do not pickle, a result that does not, a task that kills its workers."""
    engine = ScriptedEngine(1, dict.fromkeys(range(3), LostKind.WORKER))
    tasks = [delayed(double)(0), delayed(double)(threading.Lock()), delayed(threading.Lock)(), delayed(fail_with)(1)]
    results = parallel(engine, return_exceptions=True, batch_size=4)([*tasks, delayed(double)(5)])
    assert [type(r) for r in results] == [
        WorkerLostError,
        SerializationError,
        SerializationError,
        ZeroDivisionError,
        int,
    ]
    assert results[-1] == 10
