"""Everything jobfleet raises of its own accord.

```
JobfleetError
├── OptionTypeError (TypeError)        an option of the wrong type, or an unknown one
├── OptionValueError (ValueError)      an option whose value cannot be used
├── ClusterError                       the cluster cannot be used
│   ├── ClientStateError (ValueError)  the client is closed or asynchronous
│   ├── NoWorkersError (TimeoutError)  no worker came within the time allowed
│   ├── ClusterLostError               the scheduler or its connection is gone
│   └── EmbeddedClusterError           the cluster of this machine could not be started
├── WireVersionError                   client and worker speak different versions
├── NestingError (RecursionError)      `Parallel` calls nested too deep
└── CallError                          one call of the user's; `index` and `call` say which
    ├── SerializationError (PicklingError)  an argument, result or exception that does not travel
    ├── TaskExitError                  the task tried to end its process (`SystemExit`...)
    ├── TaskTimeoutError (TimeoutError)  the task took longer than `task_timeout`
    ├── InitializerError               `initializer=` failed in a worker
    └── WorkerLostError                the worker died with the task, more often than is allowed
```

An exception that a task raises is not in this tree: joblib's caller gets that
very exception, with the worker's traceback as its cause.
"""

from __future__ import annotations

from pickle import PicklingError

__all__ = [
    "CallError",
    "ClientStateError",
    "ClusterError",
    "ClusterLostError",
    "EmbeddedClusterError",
    "InitializerError",
    "JobfleetError",
    "NestingError",
    "NoWorkersError",
    "OptionTypeError",
    "OptionValueError",
    "RemoteTraceback",
    "SerializationError",
    "TaskExitError",
    "TaskTimeoutError",
    "WireVersionError",
    "WorkerLostError",
]


class JobfleetError(Exception):
    """Stand at the root of the tree."""


class OptionTypeError(JobfleetError, TypeError):
    """Report an option of the wrong type, or one that does not exist."""


class OptionValueError(JobfleetError, ValueError):
    """Report an option whose value cannot be used."""


class ClusterError(JobfleetError):
    """Report a cluster that cannot be used."""


class ClientStateError(ClusterError, ValueError):
    """Report a client that is closed or asynchronous."""


class NoWorkersError(ClusterError, TimeoutError):
    """Report that no worker came within the time allowed."""


class ClusterLostError(ClusterError):
    """Report that the scheduler, or the connection to it, is gone."""


class EmbeddedClusterError(ClusterError):
    """Report that the cluster of this machine could not be started."""


class WireVersionError(JobfleetError):
    """Report two ends that speak different wire versions."""


class NestingError(JobfleetError, RecursionError):
    """Report `Parallel` calls that are nested deeper than is allowed."""


class CallError(JobfleetError):
    """Report a fault of one call.

    Parameters
    ----------
    message
        What happened, to what, likely causes, what to do.
    index
        Position of the call in the iterable given to `Parallel`, from 0.
    call
        The call, shortened: ``"fit(SVC(), array([...]))"``.
    """

    index: int | None
    call: str | None

    def __init__(self, message: str, index: int | None = None, call: str | None = None) -> None:
        super().__init__(message, index, call)
        self.index = index
        self.call = call

    def __str__(self) -> str:
        return str(self.args[0])


class SerializationError(CallError, PicklingError):
    """Report an argument, a result or an exception that does not travel between processes."""


class TaskExitError(CallError):
    """Report a task that tried to end its process: `SystemExit`, `KeyboardInterrupt`."""


class TaskTimeoutError(CallError, TimeoutError):
    """Report a task that took longer than `task_timeout`."""


class InitializerError(CallError):
    """Report that `initializer=` failed in a worker."""


class WorkerLostError(CallError):
    """Report a call whose worker died more often than is allowed."""


class RemoteTraceback(Exception):
    """Carry the traceback of a worker; found as the cause of an exception raised by a task."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'
