"""Clients that a fork has left without their thread.

This module imports nothing of Dask, so that it can be loaded with the backend: the fork it must
notice may happen before anything of Dask is used through jobfleet.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import Any

_orphans: weakref.WeakSet[Any] = weakref.WeakSet()


def is_orphan(client: Any) -> bool:
    """Whether `client` was made by the process that this one was forked from."""
    return client in _orphans


def _note_fork() -> None:
    client_module = sys.modules.get("distributed.client")
    if client_module is not None:
        _orphans.update(client_module.Client._instances)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
