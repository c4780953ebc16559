"""All settings of the backend, checked when they are given."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

import dask.config
import dask.utils

from .errors import OptionTypeError, OptionValueError

#: Those of which one at most says what runs the tasks.
CLUSTER_OPTIONS = ("client", "address", "scheduler_host", "scheduler_file", "engine")

#: Keywords of `distributed.Client.submit` that are handed to it with every chunk.
SUBMIT_KEYWORDS = ("allow_other_workers", "fifo_timeout", "priority", "resources", "workers")

#: Defaults of the section ``jobfleet`` of Dask's configuration.
DEFAULTS = {
    # Long enough for a batch queue or a cloud autoscaler to bring the first worker.
    "wait-for-workers-timeout": 300.0,
    "max-nesting-depth": 16,
    "task-timeout": None,
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
        have no retries if this is given. Of jobfleet's own errors only `TaskTimeoutError` is retried, also where a call
        that the task makes has raised them.
    return_exceptions
        Give the exception of a task that fails, or kills its workers, in place of its result, and go on; as
        `asyncio.gather` does. Not for calls that tasks make.
    speculation
        Whether the last tasks of a call run a second time on slots that are idle, if they take three times as long
        as others did. The first answer counts, and the other one is interrupted, so their side effects may happen
        twice. Not for calls that tasks make.
    task_timeout
        Seconds that each task may take; None: any time. A task that takes longer is interrupted where it runs Python
        code. If that does not end it, its worker's process is replaced, and what else ran there runs again. Its
        error is a `TaskTimeoutError`, for which `retries` are, too. The calls that a task makes are part of it.
    worker_ttl
        Seconds after which the tasks of a worker that gives no sign of life run on another one too; None: never.
        Whichever answers first counts. At least two and a half times as long as Dask has workers wait between two
        signs: 0.5 s with up to ten workers, 2 s with a hundred and on the cluster that jobfleet starts itself, 6 s
        with a thousand.
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
    `wait_for_workers_timeout`, `max_nesting_depth`, `task_timeout` and `worker_ttl` default to Dask's configuration
    (``jobfleet.wait-for-workers-timeout``, ``jobfleet.max-nesting-depth``, ``jobfleet.task-timeout``,
    ``jobfleet.worker-ttl``).
    """

    client: Any = None
    address: str | None = None
    scheduler_host: str | None = None
    scheduler_file: str | None = None
    engine: Any = None
    scatter: tuple[Any, ...] = ()
    wait_for_workers_timeout: float = field(default_factory=lambda: _configured("wait-for-workers-timeout"))
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    return_exceptions: bool = False
    speculation: bool = False
    task_timeout: float | None = field(default_factory=lambda: _configured("task-timeout"))
    worker_ttl: float | None = field(default_factory=lambda: _configured("worker-ttl"))
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    workers: Any = None
    allow_other_workers: bool = False
    resources: Mapping[str, float] | None = None
    priority: float = 0
    fifo_timeout: Any = None
    max_nesting_depth: int = field(default_factory=lambda: _configured("max-nesting-depth"))
    pure: Any = None
    loop: Any = None
    idle_worker_timeout: Any = None
    context: Any = None
    temp_folder: Any = None

    def __post_init__(self) -> None:
        _check_client(self.client)
        _check_address("address", self.address)
        _check_address("scheduler_host", self.scheduler_host)
        self._set("scheduler_file", _file(self.scheduler_file))
        _check_engine(self.engine)
        self._set("scatter", _scatter_tuple(self.scatter))
        for name, check in _CONFIGURABLE.items():
            check(name, getattr(self, name))
        check_integer("retries", self.retries, 0)
        self._set("retry_on", _exceptions("retry_on", self.retry_on))
        for name in ("allow_other_workers", "return_exceptions", "speculation"):
            if not isinstance(getattr(self, name), bool):
                raise OptionTypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.initializer is not None and not callable(self.initializer):
            raise OptionTypeError(f"initializer must be a function or None, {_got(self.initializer)}")
        if not isinstance(self.initargs, (tuple, list)):
            raise OptionTypeError(f"initargs must be a tuple of arguments, {_got(self.initargs)}")
        self._set("initargs", tuple(self.initargs))
        self._check_placement()
        check_configuration()
        chosen = [n for n in CLUSTER_OPTIONS if getattr(self, n)]
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
        # What a task takes includes what its own calls take: those need no limit, whatever a worker's settings say.
        inherited = {"task_timeout": None, **{n: getattr(self, n) for n in names}, **self.submit_keywords()}
        if self.retry_on != (BaseException,):
            # A class of the caller's script need not be importable where the inner call is made.
            inherited["retries"] = 0
        if "resources" in inherited:
            inherited["resources"] = dict(inherited["resources"])
        return tuple(inherited.items())

    def _check_placement(self) -> None:
        """Check what Dask is handed with every chunk, which would find fault with it later."""
        self._set("workers", _worker_list(self.workers))
        if self.allow_other_workers and self.workers is None:
            raise OptionValueError("allow_other_workers says that workers= is only a wish: give workers=, too")
        resources = self.resources or {}
        if not isinstance(resources, Mapping):
            raise OptionTypeError(f"resources must be a mapping such as {{'GPU': 1}}, or None, {_got(resources)}")
        for name, amount in resources.items():
            if not isinstance(name, str):
                raise OptionTypeError(f"resources must have names as keys, {_got(name)}")
            _number(f"resources[{name!r}]", amount, 0)
        _number("priority", self.priority, None)
        if self.fifo_timeout is not None:
            _check_interval("fifo_timeout", self.fifo_timeout)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def configured(name: str) -> Any:
    """Give a setting of Dask's configuration.

    Its defaults may have been thrown out: Dask's own test helpers do so with all that came after them.
    """
    return dask.config.get(f"jobfleet.{name}", DEFAULTS[name])


def _configured(name: str) -> Any:
    """Give a setting of Dask's configuration, checked: nobody would look for it behind the option's name."""
    value = configured(name)
    check = _CONFIGURABLE[name.replace("-", "_")]
    check(f"jobfleet.{name} in Dask's configuration (or {_variable(name)})", value)
    return value


def _variable(name: str) -> str:
    return f"DASK_JOBFLEET__{name.upper().replace('-', '_')}"


def check_configuration() -> None:
    """Check the settings that are no options."""
    directory, share, host = map(configured, _ONLY_CONFIGURED)
    names = [f"jobfleet.{name} in Dask's configuration (or {_variable(name)})" for name in _ONLY_CONFIGURED]
    if not isinstance(directory, str) or not directory:
        raise OptionTypeError(f"{names[0]} must be the path of a directory, {_got(directory)}")
    _number(names[1], share, 0)
    if not 0 < share <= 1:
        raise OptionValueError(f"{names[1]} must be more than 0 and at most 1, got {share!r}")
    # The environment variable of a number gives a number.
    if not isinstance(host, (str, int, type(None))):
        raise OptionTypeError(f"{names[2]} must be a name or None, {_got(host)}")


def _refuse_unknown(keywords: Mapping[str, Any]) -> None:
    known = sorted(f.name for f in fields(Options))
    for name in keywords:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise OptionTypeError(
                f"the jobfleet backend has no option {name!r}.{hint} Its options are: {', '.join(known)}"
            )


def _got(value: Any) -> str:
    return f"got {value!r} of type {type(value).__name__}"


def _number(name: str, value: Any, least: float | None, accepted: str = "a number") -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise OptionTypeError(f"{name} must be {accepted}, {_got(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise OptionValueError(f"{name} must be {accepted}, and finite, got {value!r}")
    if least is not None and number < least:
        raise OptionValueError(f"{name} must be at least {least}, got {value!r}")


def check_integer(name: str, value: Any, least: int) -> None:
    """Refuse what is no integer, or too small."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionTypeError(f"{name} must be an integer, {_got(value)}")
    if int(value) < least:
        raise OptionValueError(f"{name} must be at least {least}, got {value!r}")


def _check_wait(name: str, value: Any) -> None:
    _number(name, value, 0, "a number of seconds")


def _check_ttl(name: str, value: Any) -> None:
    if value is not None:
        _number(name, value, 1, "a number of seconds, or None for no limit")


def _check_limit(name: str, value: Any) -> None:
    if value is None:
        return
    _number(name, value, 0, "a number of seconds, or None for no limit")
    if not value:
        raise OptionValueError(f"{name} must be more than 0, or None for no limit, got {value!r}")


#: Options that Dask's configuration gives the defaults of, and their checks.
_CONFIGURABLE: dict[str, Callable[[str, Any], None]] = {
    "wait_for_workers_timeout": _check_wait,
    "max_nesting_depth": lambda name, value: check_integer(name, value, 1),
    "task_timeout": _check_limit,
    "worker_ttl": _check_ttl,
}

_ONLY_CONFIGURED = ("shared-memory", "shared-memory-share", "host")


def _check_interval(name: str, value: Any) -> None:
    try:
        seconds = dask.utils.parse_timedelta(value)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        kind = OptionValueError if isinstance(value, (str, Real)) else OptionTypeError
        raise kind(f"{name} must be a time as Dask takes it ('100 ms', 0.1...), {_got(value)}") from error
    _number(name, seconds, 0, "a time as Dask takes it ('100 ms', 0.1...)")


def _check_client(value: Any) -> None:
    """Refuse what is neither a client nor a cluster; where nobody has imported distributed nothing is a client."""
    distributed = sys.modules.get("distributed")
    is_client = distributed is not None and isinstance(value, distributed.Client)
    # As Dask's own `Client` recognises them: dask-gateway's have no base class in common with the others.
    is_cluster = isinstance(getattr(value, "scheduler_address", None), str) and not isinstance(value, type)
    if value is not None and not (is_client or is_cluster):
        raise OptionTypeError(
            "client must be a distributed.Client or a cluster object (LocalCluster, SLURMCluster...), or None; for an "
            f"address there is address=; {_got(value)}"
        )


#: Of transports whose addresses are made up of a host and a port; others have forms of their own.
_HOST_AND_PORT = ("", "tcp", "tls", "ucx", "ws", "wss")


def _check_address(name: str, value: Any) -> None:
    if value is None:
        return
    accepted = "the address of a scheduler, such as 'tcp://host:8786'"
    if not isinstance(value, str):
        raise OptionTypeError(f"{name} must be {accepted}, a str, or None, {_got(value)}")
    scheme, _, location = value.rpartition("://")
    port = re.fullmatch(r"(?:\[[^\]/]+\]|[^:/\s\[\]]+):(\d+)(?:/.*)?", location)
    well_formed = re.fullmatch(r"[A-Za-z0-9+.-]*", scheme) and re.fullmatch(r"\S+", location)
    if not well_formed or (scheme in _HOST_AND_PORT and not (port and 0 < int(port[1]) < 2**16)):
        raise OptionValueError(f"{name} must be {accepted}: a host and a port, got {value!r}")


def _file(value: Any) -> str | None:
    """Refuse a file that is not there, which Dask's `Client` would wait for, without end."""
    if value is None:
        return None
    accepted = "the path of the file that a scheduler has written (dask scheduler --scheduler-file=...)"
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise OptionTypeError(f"scheduler_file must be {accepted}, or None, {_got(value)}")
    path: str = os.fspath(value)
    try:
        with open(path, encoding="utf-8") as file:
            json.load(file)["address"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OptionValueError(
            f"scheduler_file must be {accepted}, got {value!r}: {type(error).__name__}: {error}. Has the scheduler "
            "started, and is the file on a file system that this machine sees?"
        ) from error
    return path


def _check_engine(value: Any) -> None:
    accepted = 'engine must be "local", an engine object, or None'
    if isinstance(value, str):
        if value != "local":
            raise OptionValueError(f"{accepted}, got {value!r}")
    elif value is not None and not (hasattr(value, "open") and hasattr(value, "slots")):
        raise OptionTypeError(f"{accepted}, {_got(value)}")


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
            f"workers must be the address, host or name of a worker, or a list of them, {_got(value)}"
        )
    if not workers or not all(workers):
        raise OptionValueError(
            f"workers must name at least one worker, and all by address, host or name, got {value!r}"
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
