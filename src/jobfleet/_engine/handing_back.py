"""Give back what waits in a chunk behind a task that takes long.

Chunks are cut by what tasks are expected to take. After twice that time a chunk begins no further task, but the one
that runs may take for ever, and what is behind it would wait. The worker says so, and the client sends the rest
elsewhere; the chunk keeps what it has and the task that runs.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import distributed

#: A topic of the scheduler's events.
TOPIC = "jobfleet-handed-back"

#: How often a worker looks.
_LOOK_S = 0.1

#: So many looks that find no chunk end the looking.
_IDLE_LOOKS = 10


class Lookout:
    """Watch the chunks that one worker runs.

    Notes
    -----
    `watch` is called by task threads, `_look` by the worker's event loop.
    """

    _chunks: dict[str, Callable[[], int | None]]

    def __init__(self, worker: distributed.Worker) -> None:
        # The worker is the key under which this is found: it must not be held.
        self._worker = weakref.ref(worker)
        self._chunks = {}
        self._looks = False
        self._n_idle = 0

    @contextlib.contextmanager
    def watch(self, key: str, kept: Callable[[], int | None]) -> Iterator[None]:
        """Give back tasks of a chunk as soon as `kept` gives how many of them, from the first on, it keeps."""
        self._chunks[key] = kept
        self._start()
        try:
            yield
        finally:
            self._chunks.pop(key, None)

    def _start(self) -> None:
        worker = self._worker()
        if worker is not None and not self._looks:
            self._looks = True
            worker.loop.add_callback(self._look)

    def _look(self) -> None:
        worker = self._worker()
        if worker is None:
            return
        for key, kept in list(self._chunks.items()):
            n_kept = kept()
            if n_kept is not None and self._chunks.pop(key, None) is not None:
                worker.log_event(TOPIC, {"key": key, "kept": n_kept})
        self._n_idle = 0 if self._chunks else self._n_idle + 1
        if self._n_idle < _IDLE_LOOKS:
            worker.loop.call_later(_LOOK_S, self._look)
            return
        self._looks, self._n_idle = False, 0
        if self._chunks:  # it came meanwhile, when this still looked
            self._start()


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
