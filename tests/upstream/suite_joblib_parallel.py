"""joblib's ``test_parallel.py`` on the backend under test.

The file parametrises over lists of joblib's own backends, or names one. `PLANS` says for each of its tests how the
backend takes that place, or why the test is not about a backend; a test that is in neither is an error.
"""

import contextlib

import joblib.parallel
import pytest

from . import retarget

IMPORT_US = "import jobfleet\n"


class By:
    """Parametrised over ``backend``, which goes into ``Parallel(backend=...)``: by name, as an object, by context."""

    def apply(self, function, make_backend):
        values = ["dask", make_backend(), None]
        retarget.replace_parametrization(function, "backend", values, ids=["argument", "instance", "config"])
        retarget.add_mark(function, pytest.mark.upstream_config)


class ByName:
    """Parametrised over names that go into ``parallel_config`` or further calls: only the name will do."""

    def __init__(self, **values):
        self.values = values or {"backend": ["dask"]}

    def apply(self, function, make_backend):
        for argnames, values in self.values.items():
            retarget.replace_parametrization(function, argnames, values)


class AsDefault:
    """Names no backend: runs with ours as joblib's default backend."""

    def apply(self, function, make_backend):
        retarget.add_mark(function, pytest.mark.upstream_default)


class Renamed:
    """Names loky in its code: ours takes the name's place; and that of joblib's default backend if ``default``."""

    def __init__(self, old="loky", *, default=False, **values):
        self.old = old
        self.default = default
        self.values = values

    def apply(self, function, make_backend):
        retarget.replace_constants(function, {self.old: "dask"})
        for argnames, values in self.values.items():
            retarget.replace_parametrization(function, argnames, values)
        if self.default:
            retarget.add_mark(function, pytest.mark.upstream_default)


class NotOurs:
    """Runs the same whatever backend is under test."""

    def __init__(self, reason):
        self.reason = reason


WITH_OTHERS = ["dask", "threading", "loky", "multiprocessing", "sequential"]
OWN_BACKEND = NotOurs("is about a backend class that the test itself defines")
NESTED_IN_THREADS = NotOurs("is about nesting in threads; test_dask.py has the same test for Dask")
NO_BACKEND = NotOurs("runs on no backend, or on one that it names for a reason")

PLANS = {
    "test_cpu_count": NO_BACKEND,
    "test_effective_n_jobs": AsDefault(),
    "test_effective_n_jobs_None": NotOurs("threads come to one job when none is asked for; a cluster to all its slots"),
    "test_simple_parallel": By(),
    "test_parallel_pretty_print": By(),
    "test_main_thread_renamed_no_warning": By(),
    "test_nested_parallel_warnings": ByName(
        **{
            "parent_backend,child_backend,expected": [
                ("dask", "dask", False),
                ("dask", "threading", False),
                ("threading", "dask", False),
            ]
        }
    ),
    "test_background_thread_parallelism": AsDefault(),
    "test_nested_loop": ByName(parent_backend=WITH_OTHERS, child_backend=WITH_OTHERS),
    "test_nested_loop_with_exception_with_loky": Renamed(),
    "test_mutate_input_with_threads": NO_BACKEND,
    "test_parallel_kwargs": AsDefault(),
    "test_parallel_as_context_manager": By(),
    "test_parallel_pickling": Renamed(),
    "test_parallel_byteorder_corruption": Renamed(),
    "test_parallel_timeout_success": By(),
    "test_parallel_timeout_fail": By(),
    "test_parallel_timeout_fail_with_generator": By(),
    "test_error_capture": By(),
    "test_error_in_task_iterator": By(),
    "test_dispatch_one_job": By(),
    "test_dispatch_multiprocessing": By(),
    "test_batching_auto_threading": NO_BACKEND,
    "test_batching_auto_subprocesses": By(),
    "test_exception_dispatch": AsDefault(),
    "test_nested_exception_dispatch": By(),
    "test_invalid_backend": NO_BACKEND,
    "test_invalid_njobs": By(),
    "test_njobs_converted_to_int": By(),
    "test_register_parallel_backend": OWN_BACKEND,
    "test_overwrite_default_backend": AsDefault(),
    "test_backend_no_multiprocessing": NO_BACKEND,
    "test_backend_context_manager": ByName(),
    "test_parameterized_backend_context_manager": OWN_BACKEND,
    "test_directly_parameterized_backend_context_manager": OWN_BACKEND,
    "test_nested_backend_context_manager": NESTED_IN_THREADS,
    "test_nested_backend_in_sequential": ByName(),
    "test_backend_nesting_level": ByName(outer_backend=["dask"], inner_backend=["dask", "threading"]),
    "test_retrieval_context": OWN_BACKEND,
    "test_invalid_batch_size": NO_BACKEND,
    "test_dispatch_race_condition": AsDefault(),
    "test_default_mp_context": NO_BACKEND,
    "test_no_blas_crash_or_freeze_with_subprocesses": By(),
    "test_parallel_with_interactively_defined_functions": ByName(),
    "test_parallel_with_unpicklable_functions_in_args": ByName(),
    "test_parallel_with_interactively_defined_functions_loky": AsDefault(),  # its script is renamed below
    "test_parallel_with_interactively_defined_bound_method_loky": NotOurs("looks for loky's processes in the log"),
    "test_parallel_with_exhausted_iterator": AsDefault(),
    "test_auto_memmap_on_arrays_from_generator": By(),
    "test_memmap_with_big_offset": AsDefault(),
    "test_warning_about_timeout_not_supported_by_backend": NO_BACKEND,
    "test_parallel_return_order_with_return_as_generator_parameter": NO_BACKEND,
    "test_parallel_unordered_generator_returns_fastest_first": By(),
    "test_abort_backend": By(),
    "test_deadlock_with_generator": By(),
    "test_multiple_generator_call": By(),
    "test_multiple_generator_call_managed": By(),
    "test_multiple_generator_call_separated": By(),
    "test_multiple_generator_call_separated_gc": ByName(**{"backend,error": [("dask", False)]}),
    "test_memmapping_leaks": By(),
    "test_lambda_expression": By(),
    "test_backend_batch_statistics_reset": By(),
    "test_backend_hinting_and_constraints": Renamed(default=True),
    "test_backend_hinting_always_running": AsDefault(),
    "test_backend_hinting_and_constraints_with_custom_backends": OWN_BACKEND,
    "test_invalid_backend_hinting_and_constraints": Renamed(),
    "test_nested_parallelism_limit": NESTED_IN_THREADS,
    "test_thread_bomb_mitigation": ByName(),
    "test_parallel_thread_limit": NotOurs("needs a compiled helper that joblib does not install"),
    "test_dask_backend_when_dask_not_installed": NotOurs("runs where Dask is not installed"),
    "test_zero_worker_backend": OWN_BACKEND,
    "test_globals_update_at_each_parallel_call": AsDefault(),
    "test_threadpool_limitation_in_child_loky": Renamed(),
    "test_threadpool_limitation_in_child_context": Renamed(),
    "test_threadpool_limitation_in_child_override": Renamed(default=True),
    "test_loky_reuse_workers": NotOurs("compares loky's executor objects"),
    "test_initializer_context": ByName(),
    "test_initializer_parallel": ByName(),
    "test_initializer_reused": Renamed(n_jobs=[2]),  # as many as there are workers: it waits for all to start
    "test_initializer_not_reused": Renamed(n_jobs=[2]),
}

unclassified = []


def targets(package):
    """What pytest is to run."""
    return [str(package / "joblib/test/test_parallel.py")]


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector, name, obj):
    """Carry out a test's plan before pytest looks at what it is parametrised over."""
    if not name.startswith("test_"):
        return None
    plan = PLANS.get(name)
    if plan is None:
        unclassified.append(name)
    if plan is None or isinstance(plan, NotOurs):
        return []
    plan.apply(obj, collector.config.upstream.make_backend)
    return None


@pytest.fixture(autouse=True, scope="session")
def _prepare_module(upstream):
    """Let the scripts that tests run import jobfleet, and replace what looks at a pool from inside."""
    import joblib.test.test_parallel as module

    for name in ("UNPICKLABLE_CALLABLE_SCRIPT_TEMPLATE_NO_MAIN", "UNPICKLABLE_CALLABLE_SCRIPT_TEMPLATE_MAIN"):
        setattr(module, name, IMPORT_US + getattr(module, name))
    script = module.INTERACTIVE_DEFINED_FUNCTION_AND_CLASS_SCRIPT_CONTENT.replace('"loky"', '"dask"')
    module.INTERACTIVE_DEFINED_FUNCTION_AND_CLASS_SCRIPT_CONTENT = IMPORT_US + script
    module.LokyBackend = upstream.backend_class  # the renamed tests compare with it
    module.get_workers = WorkersOf(upstream.backend_class, module.get_workers)
    module.check_memmap = check_shared
    if upstream.patience > 1:
        module.check_subprocess_call = patient(module.check_subprocess_call, upstream.patience)


def check_shared(array):
    """An array that joblib would memmap: we promise no memmap, but what comes with it, that no task can change it."""
    if array.flags.writeable:
        raise TypeError("expected a read-only array")
    return array.copy()


def patient(check_subprocess_call, patience):
    """Give scripts more time: joblib has them killed after some seconds."""

    def check(cmd, timeout=5, **kwargs):
        return check_subprocess_call(cmd, timeout=timeout and timeout * patience, **kwargs)

    return check


class WorkersOf:
    """Stands for joblib's look-up of a pool's workers by private names, with which tests see that an error renews it.

    A backend without a pool is said to have a new one for each call in a ``with`` block, and none outside.
    """

    def __init__(self, backend_class, get_workers):
        self.backend_class = backend_class
        self.get_workers = get_workers
        self.pools = {}

    def __call__(self, backend):
        if not isinstance(backend, self.backend_class):
            return self.get_workers(backend)
        if not backend.parallel._managed_backend:
            return None
        call = (id(backend.parallel), getattr(backend.parallel, "_call_id", None))
        return self.pools.setdefault(call, object())


@pytest.fixture(autouse=True)
def _selected(request, upstream, cluster):
    """Select the backend the way the test's plan says, on the cluster of the run."""
    with contextlib.ExitStack() as stack:
        if request.node.get_closest_marker("upstream_config") and request.node.callspec.params["backend"] is None:
            stack.enter_context(joblib.parallel_config("dask"))
        if request.node.get_closest_marker("upstream_default"):
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(joblib.parallel, "DEFAULT_BACKEND", "dask")
        yield
