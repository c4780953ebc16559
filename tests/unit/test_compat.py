"""One test for each name of joblib that is private or has moved between its versions."""

import contextlib
import inspect
import threading

import joblib.parallel
import pytest
from joblib import Parallel, delayed, parallel_config

from jobfleet import _compat
from jobfleet._compat import (
    FallbackToBackend,
    ParallelBackendBase,
    ahead_per_slot,
    awaits_results,
    backend_for_tasks,
    batch_calls,
    dispatch_more,
    fail_call,
    forget_leftovers,
    input_ended,
    raise_early_failure,
)

pytestmark = pytest.mark.timeout(20)


class ByHand(ParallelBackendBase):
    """Keep what joblib submits until it is told what becomes of it."""

    supports_retrieve_callback = True
    uses_threads = True
    supports_sharedmem = True
    supports_return_generator = True

    def __init__(self, n_jobs=2, **keywords):
        super().__init__(**keywords)
        self.n_jobs = n_jobs
        self.submitted = []

    def effective_n_jobs(self, n_jobs):
        return self.n_jobs

    def configure(self, n_jobs=1, parallel=None, **keywords):
        self.parallel = parallel
        return self.n_jobs

    def submit(self, func, callback=None):
        self.submitted.append((func, callback))

    def retrieve_result_callback(self, out):
        return out

    def compute_batch_size(self):
        return 1

    def finish(self):
        """Let every batch that was submitted come to its end, also those that follow."""
        for func, callback in self.submitted:
            callback([function(*args, **kwargs) for function, args, kwargs in func.items])


def call(backend, tasks, **keywords):
    """Begin a call, give its generator of results."""
    return Parallel(backend=backend, return_as="generator", **keywords)(tasks)


def test_every_name_has_its_test():
    tests = {name for name in globals() if name.startswith("test_")}
    for name in _compat.__all__:
        assert any(test.startswith(f"test_{name.lower()}") for test in tests), name


def test_batch_calls_gives_functions_and_arguments():
    backend = ByHand()
    results = call(backend, [delayed(divmod)(7, 2), delayed(dict)(k=1)])
    assert [batch_calls(func) for func, _ in backend.submitted] == [[(divmod, (7, 2), {})], [(dict, (), {"k": 1})]]
    backend.finish()
    assert list(results) == [(3, 1), {"k": 1}]


def test_awaits_results_until_all_batches_are_called_back():
    backend = ByHand()
    results = call(backend, [delayed(abs)(-1)])
    (_, callback) = backend.submitted[0]
    assert awaits_results(callback.parallel)
    backend.finish()
    assert not awaits_results(callback.parallel)
    assert list(results) == [1]


def test_parallelbackendbase_has_what_we_override():
    for name in [
        "effective_n_jobs",
        "configure",
        "start_call",
        "stop_call",
        "submit",
        "compute_batch_size",
        "retrieve_result_callback",
        "retrieval_context",
        "abort_everything",
        "get_nested_backend",
        "supports_retrieve_callback",
        "supports_inner_max_num_threads",
        "supports_return_generator",
        "default_n_jobs",
    ]:
        assert hasattr(ParallelBackendBase, name), name
    assert ParallelBackendBase is joblib.parallel.ParallelBackendBase
    backend = ParallelBackendBase.__init__
    assert {"nesting_level", "inner_max_num_threads"} <= inspect.signature(backend).parameters.keys()


def test_fallbacktobackend_makes_joblib_use_another_backend():
    other = ByHand(nesting_level=0)

    class First(ByHand):
        def configure(self, **keywords):
            raise FallbackToBackend(other)

    parallel = Parallel(backend=First(), return_as="generator")
    results = parallel([delayed(abs)(-1)])
    assert parallel._backend is other
    other.finish()
    assert list(results) == [1]


@pytest.mark.parametrize(
    ("pre_dispatch", "ahead"),
    [("2*n_jobs", 2), ("n_jobs", 1), ("1.5 * n_jobs", 1.5), ("all", None), ("3", None), (5, None)],
)
def test_ahead_per_slot_says_how_far_joblib_looks_ahead(pre_dispatch, ahead):
    assert ahead_per_slot(Parallel(n_jobs=2, pre_dispatch=pre_dispatch)) == ahead


def test_dispatch_more_has_joblib_submit_more():
    backend = ByHand()
    results = call(backend, (delayed(abs)(-i) for i in range(5)), pre_dispatch=2)
    assert len(backend.submitted) == 2
    for n in (3, 4, 5, 5, 5):
        dispatch_more(backend.parallel)
        assert len(backend.submitted) == n
    backend.finish()
    assert list(results) == list(range(5))


@pytest.mark.parametrize(("smaller_at_end", "sizes"), [(True, [1] * 7), (False, [3, 3, 1])])
def test_dispatch_more_may_have_the_last_batches_as_large_as_those_before(smaller_at_end, sizes):
    backend = ByHand()
    backend.compute_batch_size = lambda: 5
    results = call(backend, (delayed(abs)(-i) for i in range(2 + 10 + 7)), pre_dispatch=2)
    while not input_ended(backend.parallel):
        dispatch_more(backend.parallel, smaller_at_end)
    assert [len(func) for func, _ in backend.submitted] == [1, 1, 5, 5, *sizes]
    backend.finish()
    assert list(results) == list(range(19))


@pytest.mark.parametrize("smaller_at_end", [True, False])
def test_dispatch_more_leaves_it_to_joblib_what_the_users_iterable_raises(smaller_at_end):
    def tasks():
        yield delayed(abs)(-1)
        yield delayed(abs)(-2)
        raise LookupError("of the user")

    backend = ByHand()
    results = call(backend, tasks(), pre_dispatch=2)
    dispatch_more(backend.parallel, smaller_at_end)
    backend.finish()
    with pytest.raises(LookupError, match="of the user"):
        list(results)


def test_input_ended_once_joblib_has_found_the_end():
    backend = ByHand()
    results = call(backend, (delayed(abs)(-i) for i in range(4)), pre_dispatch=2)
    assert not input_ended(backend.parallel)
    for _ in range(3):
        dispatch_more(backend.parallel)
    assert len(backend.submitted) == 4
    assert input_ended(backend.parallel)
    backend.finish()
    assert list(results) == list(range(4))
    everything = ByHand()
    results = call(everything, [delayed(abs)(-1)], pre_dispatch="all")
    assert input_ended(everything.parallel)
    everything.finish()
    assert list(results) == [1]


def test_dispatch_more_does_nothing_where_all_is_dispatched_or_given_up():
    backend = ByHand()
    results = call(backend, [delayed(abs)(-1)], pre_dispatch="all")
    dispatch_more(backend.parallel)
    assert len(backend.submitted) == 1
    backend.finish()
    assert list(results) == [1]

    backend = ByHand()
    results = call(backend, (delayed(abs)(-i) for i in range(10)), pre_dispatch=2)
    backend.parallel._aborting = True
    dispatch_more(backend.parallel)
    assert len(backend.submitted) == 2
    backend.parallel._aborting = False
    backend.finish()
    assert len(list(results)) == 10


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_fail_call_ends_a_call_that_waits(return_as):
    backend = ByHand()
    error = ValueError("of none of the tasks")
    submitted = threading.Event()
    backend.submit = lambda func, callback=None: submitted.set()

    def fail():
        assert submitted.wait(10)
        fail_call(backend.parallel, error)

    thread = threading.Thread(target=fail)
    thread.start()
    with pytest.raises(ValueError, match="of none") as raised:
        list(Parallel(backend=backend, return_as=return_as)([delayed(abs)(-1)]))
    assert raised.value is error
    thread.join(10)


def test_forget_leftovers_drops_what_joblib_has_cut_and_not_submitted():
    class BatchesOfFour(ByHand):
        def compute_batch_size(self):
            return 2

    backend = BatchesOfFour(n_jobs=4)
    parallel = Parallel(backend=backend, pre_dispatch=4, return_as="generator")
    results = parallel(delayed(abs)(-i) for i in range(100))
    assert parallel._ready_batches.qsize() == 0
    backend.submitted[0][1]([0])  # its end makes joblib cut four batches and submit one
    assert parallel._ready_batches.qsize() == 3
    forget_leftovers(parallel)
    assert parallel._ready_batches.qsize() == 0
    with pytest.warns(UserWarning, match="not used"):
        results.close()


def test_backend_for_tasks_makes_it_active_in_this_thread_only():
    backend = ByHand()
    before = joblib.parallel.get_active_backend()
    with backend_for_tasks(backend):
        assert joblib.parallel.get_active_backend() == (backend, -1)
        assert Parallel()._backend is backend
        seen = []
        thread = threading.Thread(target=lambda: seen.append(joblib.parallel.get_active_backend()[0]))
        thread.start()
        thread.join(10)
        assert seen[0] is not backend
    assert type(joblib.parallel.get_active_backend()[0]) is type(before[0])


def test_backend_for_tasks_renews_itself_whatever_a_task_has_left():
    backend = ByHand()
    with backend_for_tasks(backend) as active:
        parallel_config("threading", n_jobs=3, verbose=5)  # a task may set it and not take it back
        assert joblib.parallel.get_active_backend()[0] is not backend
        active.renew()
        assert joblib.parallel.get_active_backend() == (backend, -1)
        assert Parallel().verbose == 0


def test_backend_for_tasks_gives_way_to_what_was_there():
    outer, inner = ByHand(), ByHand()
    with backend_for_tasks(outer):
        with backend_for_tasks(inner) as active:
            active.renew()
        assert joblib.parallel.get_active_backend()[0] is outer


def test_raise_early_failure_raises_what_joblib_has_noted_and_nothing_else():
    backend = ByHand()
    results = call(backend, [delayed(abs)(-1)])
    (_, callback) = backend.submitted[0]
    raise_early_failure(callback.parallel)
    fail_call(callback.parallel, LookupError("the input broke"))
    with pytest.raises(LookupError, match="the input broke"):
        raise_early_failure(callback.parallel)
    with contextlib.suppress(AttributeError):  # joblib has no second use for it
        list(results)
