"""Give back what waits in a chunk behind a task that takes long.

Chunks are cut by what tasks are expected to take. After twice that time a chunk begins no further task, but the one
that runs may take for ever, and what is behind it would wait. The worker says so, and the client sends the rest
elsewhere; the chunk keeps what it has and the task that runs.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import distributed

#: A topic of the scheduler's events.
TOPIC = "jobfleet-handed-back"

#: How often a worker looks at a chunk whose time is over, or nearly so.
_LOOK_S = 0.1


class Lookout:
    """Watch the chunks that one worker runs.

    Notes
    -----
    `watch` is called by task threads, `_look` by the worker's event loop. That is woken no more often than it must be:
    while a task computes, each time it takes the interpreter from it.
    """

    _chunks: dict[str, tuple[Callable[[], int | None], float]]
    """What says how many tasks a chunk keeps, and when it is to be asked."""
    _next_s: float
    """When `_look` is due."""

    def __init__(self, worker: distributed.Worker) -> None:
        # The worker is the key under which this is found: it must not be held.
        self._worker = weakref.ref(worker)
        self._lock = threading.Lock()
        self._chunks = {}
        self._next_s = math.inf

    @contextlib.contextmanager
    def watch(self, key: str, kept: Callable[[], int | None], over_after_s: float) -> Iterator[None]:
        """Give back tasks of a chunk as soon as `kept` gives how many of them, from the first on, it keeps.

        That is when it has run for `over_after_s`, or somewhat later.
        """
        self._add(key, kept, time.monotonic() + over_after_s)
        try:
            yield
        finally:
            with self._lock:
                self._chunks.pop(key, None)

    def _add(self, key: str, kept: Callable[[], int | None], due_s: float) -> None:
        worker = self._worker()
        if worker is None:
            return
        with self._lock:
            self._chunks[key] = kept, due_s
            is_first = due_s < self._next_s
            self._next_s = min(due_s, self._next_s)
        if is_first:
            worker.loop.add_callback(self._look_at, due_s)

    def _look_at(self, due_s: float) -> None:
        worker = self._worker()
        if worker is not None:
            worker.loop.call_later(max(0.0, due_s - time.monotonic()), self._look, due_s)

    def _look(self, due_s: float) -> None:
        """Look at the chunks whose time has come, unless a look was due before."""
        worker, now_s = self._worker(), time.monotonic()
        with self._lock:
            if worker is None or due_s != self._next_s:
                return
            for key, (kept, over_s) in list(self._chunks.items()):
                if over_s > now_s:
                    continue
                n_kept = kept()
                if n_kept is None:
                    self._chunks[key] = kept, now_s + _LOOK_S
                else:
                    del self._chunks[key]
                    worker.log_event(TOPIC, {"key": key, "kept": n_kept})
            self._next_s = min((over_s for _, over_s in self._chunks.values()), default=math.inf)
            next_s = self._next_s
        if next_s < math.inf:
            self._look_at(next_s)


_lookouts: weakref.WeakKeyDictionary[distributed.Worker, Lookout] = weakref.WeakKeyDictionary()


def lookout_of(worker: distributed.Worker) -> Lookout:
    """Give the one that all chunks of a worker use."""
    return _lookouts.setdefault(worker, Lookout(worker))


class HandBacks:
    """Hear, in a client, of chunks that keep only some of their tasks.

    Notes
    -----
    All of it runs on the client's event loop.
    """

    _told: dict[str, Callable[[int], None]]

    def __init__(self, client: distributed.Client) -> None:
        self._told = {}
        mine = weakref.ref(self)

        def arrived(event: tuple[float, dict[str, str | int]]) -> None:
            hand_backs, message = mine(), event[1]
            told = None if hand_backs is None else hand_backs._told.get(str(message["key"]))
            if told is not None:
                told(int(message["kept"]))

        client.subscribe_topic(TOPIC, arrived)

    @contextlib.contextmanager
    def listen(self, key: str, told: Callable[[int], None]) -> Iterator[None]:
        """Call `told` with how many tasks the chunk of this key keeps, if it gives some back."""
        self._told[key] = told
        try:
            yield
        finally:
            del self._told[key]
