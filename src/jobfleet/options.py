"""All settings of the backend, checked when they are given."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any

import dask.config

from .errors import OptionTypeError, OptionValueError

#: Keywords of `distributed.Client.submit` that are handed to it with every chunk.
SUBMIT_KEYWORDS = ("allow_other_workers", "fifo_timeout", "priority", "resources", "workers")

#: Defaults of the section ``jobfleet`` of Dask's configuration.
DEFAULTS = {
    # Long enough for a batch queue or a cloud autoscaler to bring the first worker.
    "wait-for-workers-timeout": 300.0,
    "max-nesting-depth": 16,
    "worker-ttl": 30.0,
    # Large buffers are kept here, once per host, as long as they take no more than this share of it.
    "shared-memory": "/dev/shm",
    "shared-memory-share": 0.5,
    # Workers (and clients) with different names here behave as if they were on different machines.
    "host": None,
}
dask.config.update_defaults({"jobfleet": DEFAULTS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Hold what a user may say beside the name of the backend.

    Parameters
    ----------
    client
        The cluster to use: a `distributed.Client`, or a cluster object such as `LocalCluster`.
    address
        Address of a scheduler to connect to, ``"tcp://host:8786"``. `scheduler_host` is its older name.
    scheduler_file
        Path of a file that a scheduler wrote, to connect to that scheduler.
    engine
        ``"local"`` runs the tasks in this process, one after the other, on the way they would take
        to a cluster, for debugging. An engine object is used as it is.
    scatter
        Objects to send to the workers ahead of time.
    wait_for_workers_timeout
        Seconds to wait for a first worker; 0 does not wait.
    retries
        How often a call that raises is run again before its exception is given to the caller.
    retry_on
        The exceptions that `retries` are for, a class or a tuple of them; all by default. Calls that tasks make
        have no retries if this is given.
    return_exceptions
        Give the exception of a task that fails, or kills its workers, in place of its result, and go on; as
        `asyncio.gather` does. Not for calls that tasks make.
    worker_ttl
        Seconds after which the tasks of a worker that gives no sign of life run on another one too; None: never.
        Whichever answers first counts.
    initializer, initargs
        Called as ``initializer(*initargs)`` once in each worker process.
    workers, allow_other_workers, resources, priority, fifo_timeout
        As in `distributed.Client.submit`, for every task.
    max_nesting_depth
        How deep `Parallel` calls may be nested.
    pure, loop, idle_worker_timeout, context, temp_folder
        Accepted because other backends of joblib take them; without effect.

    Raises
    ------
    OptionTypeError, OptionValueError
        The message names the option and what is accepted.

    Notes
    -----
    `wait_for_workers_timeout`, `max_nesting_depth` and `worker_ttl` default to Dask's configuration
    (``jobfleet.wait-for-workers-timeout``, ``jobfleet.max-nesting-depth``, ``jobfleet.worker-ttl``).
    """

    client: Any = None
    address: str | None = None
    scheduler_host: str | None = None
    scheduler_file: str | None = None
    engine: Any = None
    scatter: tuple[Any, ...] = ()
    wait_for_workers_timeout: float = field(default_factory=lambda: configured("wait-for-workers-timeout"))
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    return_exceptions: bool = False
    worker_ttl: float | None = field(default_factory=lambda: configured("worker-ttl"))
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    workers: Any = None
    allow_other_workers: bool = False
    resources: Mapping[str, float] | None = None
    priority: float = 0
    fifo_timeout: Any = None
    max_nesting_depth: int = field(default_factory=lambda: configured("max-nesting-depth"))
    pure: Any = None
    loop: Any = None
    idle_worker_timeout: Any = None
    context: Any = None
    temp_folder: Any = None

    def __post_init__(self) -> None:
        self._check("address", str)
        self._check("scheduler_host", str)
        self._check("scheduler_file", str)
        self._check("initializer", Callable)
        self._check("resources", Mapping)
        _number("wait_for_workers_timeout", self.wait_for_workers_timeout, 0)
        if self.worker_ttl is not None:
            _number("worker_ttl", self.worker_ttl, 1)
        _number("priority", self.priority, None)
        _integer("retries", self.retries, 0)
        object.__setattr__(self, "retry_on", _exceptions("retry_on", self.retry_on))
        _integer("max_nesting_depth", self.max_nesting_depth, 1)
        object.__setattr__(self, "scatter", _scatter_tuple(self.scatter))
        if not isinstance(self.initargs, (tuple, list)):
            raise OptionTypeError(f"initargs must be a tuple of arguments, got {self.initargs!r}")
        object.__setattr__(self, "initargs", tuple(self.initargs))
        for name in ("allow_other_workers", "return_exceptions"):
            if not isinstance(getattr(self, name), bool):
                raise OptionTypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        object.__setattr__(self, "workers", _worker_list(self.workers))
        for name, amount in (self.resources or {}).items():
            _number(f"resources[{name!r}]", amount, 0)
        chosen = [n for n in ("client", "address", "scheduler_host", "scheduler_file", "engine") if getattr(self, n)]
        if len(chosen) > 1:
            raise OptionValueError(f"{' and '.join(chosen)} each choose what runs the tasks: give one of them only")

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> Options:
        """Build from keyword arguments of `joblib.parallel_config` or `joblib.Parallel`.

        Raises
        ------
        OptionTypeError
            An unknown name; the message lists the known ones.
        """
        _refuse_unknown(keywords)
        return cls(**keywords)

    def merged(self, keywords: Mapping[str, Any]) -> Options:
        """Give these options with some replaced."""
        if not keywords:
            return self
        _refuse_unknown(keywords)
        return replace(self, **keywords)

    def submit_keywords(self) -> dict[str, Any]:
        """Give what is handed to `distributed.Client.submit`."""
        values = {name: getattr(self, name) for name in SUBMIT_KEYWORDS}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    def inherited(self) -> tuple[tuple[str, Any], ...]:
        """Give what calls made inside a task take over, as plain values."""
        names = ("wait_for_workers_timeout", "retries", "max_nesting_depth", "worker_ttl")
        inherited = {**{n: getattr(self, n) for n in names}, **self.submit_keywords()}
        if self.retry_on != (BaseException,):
            # A class of the caller's script need not be importable where the inner call is made.
            inherited["retries"] = 0
        if "resources" in inherited:
            inherited["resources"] = dict(inherited["resources"])
        return tuple(inherited.items())

    def _check(self, name: str, kind: Any) -> None:
        value = getattr(self, name)
        if value is not None and not isinstance(value, kind):
            raise OptionTypeError(
                f"{name} must be a {getattr(kind, '__name__', kind)} or None, got {value!r} "
                f"of type {type(value).__name__}"
            )


def configured(name: str) -> Any:
    """Give a setting of Dask's configuration.

    Its defaults may have been thrown out: Dask's own test helpers do so with all that came after them.
    """
    return dask.config.get(f"jobfleet.{name}", DEFAULTS[name])


def _refuse_unknown(keywords: Mapping[str, Any]) -> None:
    known = sorted(f.name for f in fields(Options))
    for name in keywords:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise OptionTypeError(
                f"the jobfleet backend has no option {name!r}.{hint} Its options are: {', '.join(known)}"
            )


def _number(name: str, value: Any, least: float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise OptionTypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if least is not None and not float(value) >= least:
        raise OptionValueError(f"{name} must be at least {least}, got {value!r}")


def _integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < least:
        raise OptionValueError(f"{name} must be at least {least}, got {value!r}")


def _exceptions(name: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, (tuple, list)) else (value,)
    if not classes or not all(isinstance(one, type) and issubclass(one, BaseException) for one in classes):
        raise OptionTypeError(f"{name} must be a class of exceptions, or a tuple of them, got {value!r}")
    return tuple(classes)


def _worker_list(value: Any) -> list[str] | None:
    workers = [value] if isinstance(value, str) else value
    if workers is None:
        return None
    if not isinstance(workers, (list, tuple, set, frozenset)) or not all(isinstance(w, str) for w in workers):
        raise OptionTypeError(
            f"workers must be the address, host or name of a worker, or a list of them, got {value!r}"
        )
    return list(workers)


def _scatter_tuple(value: Any) -> tuple[Any, ...]:
    """Accept an iterable of objects, but none that is itself data: that is nearly always a slip."""
    accepted = "an iterable (list, tuple...) of the objects to send, as in scatter=[X, y]"
    if value is None:
        return ()
    data_like = isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or hasattr(value, "__array__")
    # Sparse matrices have neither, and would be taken row by row.
    data_like = data_like or (hasattr(value, "shape") and hasattr(value, "dtype"))
    if data_like or not isinstance(value, Iterable):
        raise OptionTypeError(f"scatter must be {accepted}; got one {type(value).__name__}: write scatter=[...]")
    return tuple(value)
