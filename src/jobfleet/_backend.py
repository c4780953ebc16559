"""The joblib backend: translates between joblib and a call, decides nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import cloudpickle
import dask.config
from joblib.disk import memstr_to_bytes

from ._call.call import CallSetup, Outputs, ParallelCall
from ._call.state import CallLimits
from ._compat import (
    FallbackToBackend,
    ParallelBackendBase,
    ahead_per_slot,
    batch_calls,
    forget_leftovers,
    raise_early_failure,
)
from ._data.buffers import Keeper
from ._data.scatter import ScatteredObject, scattered_objects
from ._engine import forks  # noqa: F401  # must see a fork that happens before the first call
from ._engine.base import Engine, Slots
from ._engine.embedded import embedded_client
from ._engine.local import LocalEngine
from ._filters import encode_filters
from ._observe.ahead import ScatterProgress
from ._sink import current_sink
from ._wire import CallSpec, process_token
from .errors import NestingError, OptionTypeError, OptionValueError
from .options import CLUSTER_OPTIONS, Options, check_integer

#: As joblib defines them.
_MMAP_MODES = (None, "r+", "r", "w+", "c")


class JobfleetBackend(ParallelBackendBase):
    """Run joblib's tasks on a Dask cluster.

    joblib makes one instance for a ``with parallel_config("dask", ...)`` block, and may use it for several
    `Parallel` objects at once. Each of these is therefore given a copy of its own, by the same means
    with which a backend tells joblib to fall back to another.

    Parameters
    ----------
    nesting_level, inner_max_num_threads
        As joblib gives them.
    **options
        See `jobfleet.options.Options`.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False

    was_used: bool
    """Whether a `Parallel` call was made with it."""

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._options = Options.from_keywords(options)
        self._engine: Engine | None = None
        self._scattered: list[ScatteredObject] | None = None
        self.was_used = False
        self.parallel: Any = None
        self._template: JobfleetBackend = self
        self._slots = Slots(0, 0)
        self._max_nbytes: int | None = None
        self._copy_on_write = False
        self._call: ParallelCall | None = None

    def __reduce__(self) -> Any:
        """Travel as a fresh backend: clients and options belong to the process they were given in."""
        return JobfleetBackend, ()

    # What joblib asks before a call

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Give how many tasks joblib should count on running at once.

        At least 2 unless `n_jobs` is 1: at 1 joblib would run the tasks in the client.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs == 1:
            return 1
        self._slots = self._engine_in_use().slots(self._options)
        if not self._slots.total:
            return 0
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        return max(2, self._slots.total + 1 + (-1 if n_jobs is None else n_jobs))

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        verbose: int = 0,
        max_nbytes: int | str | None = "1M",
        mmap_mode: str | None = "r",
        temp_folder: str | None = None,
        context: Any = None,
        **options: Any,
    ) -> int:
        """Prepare for the calls of one `Parallel` object.

        joblib passes the named parameters always; `options` are what the user gave to `Parallel`.
        """
        if self.parallel is not parallel:
            self._template.was_used = True
            raise FallbackToBackend(self._for(parallel, options))
        if self.inner_max_num_threads is not None:  # joblib sets it
            check_integer("inner_max_num_threads", self.inner_max_num_threads, 1)
        if mmap_mode not in _MMAP_MODES:
            raise OptionValueError(f"mmap_mode must be one of {', '.join(map(repr, _MMAP_MODES))}, got {mmap_mode!r}")
        threshold = memstr_to_bytes(max_nbytes) if isinstance(max_nbytes, str) else max_nbytes
        # These modes mean that tasks share what they get; all others mean an own copy.
        self._max_nbytes = threshold if mmap_mode in ("r", "c") else None
        self._copy_on_write = mmap_mode == "c"
        return self.effective_n_jobs(n_jobs)

    def _for(self, parallel: Any, options: dict[str, Any]) -> JobfleetBackend:
        copy = JobfleetBackend(self.nesting_level, self.inner_max_num_threads)
        copy._options = self._options.merged(options)
        if not options:
            # The engine and the objects sent ahead are those of the block.
            copy._template = self._template
        elif options.keys().isdisjoint(CLUSTER_OPTIONS):
            # That of a task's calls knows the task.
            copy._engine = self._template._engine
        copy.parallel = parallel
        return copy

    def _engine_in_use(self) -> Engine:
        template = self._template
        if template._engine is None:
            template._engine = _make_engine(template._options)
        engine = template._engine
        if engine.depth >= self._options.max_nesting_depth:
            raise NestingError(
                f"Parallel calls are nested {engine.depth} deep: does a function call itself through Parallel "
                'without end? If not, allow more: parallel_config("dask", max_nesting_depth=...)'
            )
        return engine

    def _sent_ahead(self, keeper: Keeper) -> list[ScatteredObject]:
        """Give the objects of `scatter`, encoded anew where they have changed since the last call."""
        if self._scattered is None:
            self._scattered = scattered_objects(self._options.scatter, keeper)
        else:
            self._scattered = [one.refreshed() for one in self._scattered]
        return self._scattered

    # One call

    def start_call(self) -> None:
        """Prepare for a call, which begins with its first batch: should it end before, joblib does not tell."""
        forget_leftovers(self.parallel)
        engine = self._engine_in_use()
        options = self._options
        sink = current_sink()
        fixed_batches = self.parallel.batch_size != "auto"
        session = engine.open(options, self._slots, lends_thread=self._lends_thread())
        spec = CallSpec(
            call_id=uuid4().hex,
            depth=engine.depth,
            origin=process_token(),
            capture=sink.captured,
            filters=encode_filters(),
            inner_max_num_threads=self.inner_max_num_threads,
            host_slots=self._slots.per_host,
            initializer=_pickled_initializer(options),
            task_timeout=options.task_timeout,
            nested=options.inherited(),
            callers=session.callers.tasks,
        )
        limits = CallLimits(
            n_jobs=self.parallel.n_jobs,
            fixed_batches=fixed_batches,
            streamed=self.parallel.return_generator,
            ordered=self.parallel.return_ordered,
            retries=options.retries,
            ahead_per_slot=_ahead_per_slot(self.parallel),
            most_slots=self._slots.most,
            queued=self._slots.queued,
            no_workers_timeout_s=options.wait_for_workers_timeout,
            return_exceptions=options.return_exceptions,
            help_s=session.help_s,
            speculation=options.speculation,
            deaths=session.callers.deaths,
            timeout_s=self.parallel.timeout,
        )
        scattered = self._template._sent_ahead(session.keeper)
        if scattered:
            with ScatterProgress() as progress:
                session.place_ahead([blob for one in scattered for blob in one.blobs], progress)
        self._call = ParallelCall(
            CallSetup(
                parallel=self.parallel,
                session=session,
                spec=spec.to_bytes(),
                limits=limits,
                slots=self._slots.total,
                retry_on=options.retry_on,
                max_nbytes=self._max_nbytes,
                copy_on_write=self._copy_on_write,
                scattered=scattered,
                sink=sink,
            )
        )

    def compute_batch_size(self) -> int:
        """Answer how many tasks joblib's next batch should have."""
        return 1 if self._call is None else self._call.batch_size()

    def submit(self, func: Any, callback: Any = None) -> None:
        """Take a batch from joblib."""
        if self._call is not None:
            self._call.submit(batch_calls(func), callback)

    def retrieve_result_callback(self, out: Outputs) -> Any:
        """Give joblib the results of a batch, or raise its error."""
        return out.get()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Let other tasks have this thread's slot while it waits, in a task that makes a call."""
        raise_early_failure(self.parallel)
        if self._call is not None:
            self._call.pause()
        call = self._call if self._lends_thread() else None
        if call is not None and not call.help():
            yield
            return
        with self._engine_in_use().waiting():
            if call is not None:
                call.wait()
            yield

    def _lends_thread(self) -> bool:
        """Whether the caller's thread has nothing to do but wait for all results."""
        return self.parallel.timeout is None and not self.parallel.return_generator

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Give up the tasks that are queued or run."""
        if self._call is not None:
            self._call.explain_timeout(sys.exc_info()[1])
            self._call.abort()

    def stop_call(self) -> None:
        """End the call."""
        if self._call is not None:
            self._call.finish()
            self._call = None

    def get_nested_backend(self) -> tuple[JobfleetBackend, int]:
        """Name a backend for inner calls; the worker in fact makes one of its own."""
        return self, -1


def nested_backend(spec: CallSpec, engine: Engine) -> JobfleetBackend:
    """Make the backend of calls that the tasks of a call make."""
    # Levels start afresh in a task, as with joblib's own Dask backend: threads may be used below it.
    backend = JobfleetBackend(nesting_level=0, **dict(spec.nested))
    backend.inner_max_num_threads = spec.inner_max_num_threads
    backend._engine = engine
    return backend


def _ahead_per_slot(parallel: Any) -> float | None:
    """Give how many batches are dispatched ahead for each slot.

    Two is what joblib and scikit-learn do when the user has said nothing. Both of them may be on their way to a slot:
    two more let the end of the input be seen before the queue is empty, so that what is left can be shared out.
    """
    ahead = ahead_per_slot(parallel)
    return 4.0 if ahead == 2.0 else ahead


def _make_engine(options: Options) -> Engine:
    if options.engine is None:
        if "distributed" not in sys.modules and _chooses_nothing(options):
            # There can be no client yet: the cluster of this process starts its workers first, and
            # imports distributed while they do.
            embedded_client()
        # Importing it takes longer than all the rest; `import jobfleet` must be quick.
        from ._engine.connect import find_client
        from ._engine.dask import DaskEngine

        return DaskEngine(find_client)
    if options.engine == "local":
        return LocalEngine(nested_backend)
    engine: Engine = options.engine
    return engine


def _chooses_nothing(options: Options) -> bool:
    """Whether neither the user nor Dask's configuration names a cluster."""
    chosen = options.client or options.address or options.scheduler_host or options.scheduler_file
    return chosen is None and dask.config.get("scheduler-address", None) is None


def _pickled_initializer(options: Options) -> bytes | None:
    if options.initializer is None:
        return None
    try:
        data: bytes = cloudpickle.dumps((options.initializer, options.initargs), protocol=5)
    except Exception as error:  # user code ran; say which option it was
        raise OptionTypeError(
            f"initializer or initargs cannot be sent to the workers: {type(error).__name__}: {error}"
        ) from error
    return data
