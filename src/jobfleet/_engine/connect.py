"""Which cluster a call uses."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import Any

import dask.config
import distributed
from distributed.comm.addressing import parse_address, parse_host_port

from ..errors import ClientStateError, ClusterLostError, OptionValueError
from ..options import Options
from .embedded import embedded_client
from .forks import is_orphan

_lock = threading.Lock()
_clients: dict[tuple[int, str], distributed.Client] = {}


def find_client(options: Options) -> distributed.Client:
    """Give the client of the cluster that `options` choose.

    In this order: the one given; a connection to the scheduler named by `address`, `scheduler_host` or
    `scheduler_file`; the cluster of the worker this runs in; the current default client; a connection to
    the ``scheduler-address`` of Dask's configuration; the embedded cluster of this process.

    Raises
    ------
    OptionValueError
        What is given as the address is none.
    ClusterLostError
        No scheduler answers at the address.
    EmbeddedClusterError
        The embedded cluster does not start.
    """
    if options.client is not None:
        return _given(options.client)
    address = options.address or options.scheduler_host
    if address:
        return _connection(_checked(address), address)
    if options.scheduler_file:
        return _connection(options.scheduler_file, scheduler_file=options.scheduler_file)
    current = _current()
    if current is not None:
        return _revived(current)
    address = dask.config.get("scheduler-address", None)
    if address:
        return _connection(_checked(address), address)
    return embedded_client()


def usable_client(client: distributed.Client) -> distributed.Client:
    """Give `client` back if it can be used from this thread.

    Raises
    ------
    ClientStateError
        It is closed or asynchronous.
    """
    if client.asynchronous:
        raise ClientStateError(
            f"the client {client} is asynchronous: joblib's calls wait for their results, which would "
            "block its event loop. Make one without asynchronous=True, or use it from another thread."
        )
    if client.status in ("closed", "closing"):
        raise ClientStateError(
            f"the client {client} is {client.status}. Make a new one, or call Parallel before it is closed."
        )
    return client


def _checked(address: str) -> str:
    """Refuse what is no address: a `Client` whose constructor fails waits for a minute at exit."""
    scheme, location = parse_address(address)
    try:
        if scheme in ("tcp", "tls", "ws", "wss"):
            parse_host_port(location)
    except ValueError as error:
        raise OptionValueError(
            f"{address!r} is not the address of a scheduler ({error}): it looks like 'tcp://host:8786'"
        ) from error
    return address


def _given(client: Any) -> distributed.Client:
    if isinstance(client, distributed.Client):
        return _revived(client)
    # A cluster: the option is checked.
    return _connection(f"cluster {id(client)} {client.scheduler_address}", client)


def _current() -> distributed.Client | None:
    try:
        worker = distributed.get_worker()
    except ValueError:
        pass
    else:
        return distributed.get_client(worker.scheduler.address, resolve_address=False)
    try:
        return distributed.Client.current()
    except ValueError:
        return None


def _revived(client: distributed.Client) -> distributed.Client:
    """Replace a client that a fork has left without its thread by one of this process."""
    if not is_orphan(client):
        return client
    address = client.scheduler.address
    return _connection(address, address, security=client.security)


def _connection(name: str, *args: Any, **keywords: Any) -> distributed.Client:
    """Give this process's connection to a cluster, made at first use and kept until exit."""
    with _lock:
        key = os.getpid(), name
        client = _clients.get(key)
        if client is None or client.status in ("closed", "closing"):
            client = _clients[key] = _connect(lambda: distributed.Client(*args, set_as_default=False, **keywords))
        return client


def _connect(make: Callable[[], distributed.Client]) -> distributed.Client:
    try:
        return make()
    except (OSError, ValueError) as error:
        raise ClusterLostError(
            f"no connection to the scheduler: {error}. Is it running, is the address or the "
            "scheduler file right, and is it reached from this machine (firewall, TLS settings)?"
        ) from error


@atexit.register
def _close_connections() -> None:
    for (pid, _), client in _clients.items():
        if pid == os.getpid():
            client.close(timeout=1)
