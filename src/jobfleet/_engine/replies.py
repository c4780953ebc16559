"""Bring small replies to the client with the word that their task is done.

Dask's client hears from the scheduler that a task is done, asks the scheduler for the result, and that asks the
worker: five more messages, each a turn of an event loop. Here the worker puts a copy of a small reply into the
metadata of its message to the scheduler, whose plugin sends it on to the client just before the word that the
task is done. The result stays on the worker too until it is let go: where no copy comes (another worker's
message, no plugin, a connection lost) it is collected in Dask's way.

A result that was sent on is not computed again if its worker dies before it is let go.
"""

from __future__ import annotations

import weakref
from typing import Any

import distributed
from distributed.utils import thread_state

#: Under this name a copy of a reply stands in a task's metadata, and as a topic of the client's events.
TOPIC = "jobfleet-reply"

#: A larger reply is collected: it would hold up the scheduler's other messages. The largest chunk's results are 90 kB
#: if each is a number.
MAX_NBYTES = 2**18


def enclose(reply: list[Any]) -> None:
    """Have the message that says that the task is done, the one this thread runs, bring its reply."""
    if len(reply) == 1 and len(reply[0]) <= MAX_NBYTES:
        task = distributed.get_worker().state.tasks.get(thread_state.key)
        if task is not None:
            task.metadata[TOPIC] = reply[0]


def start(self: Any, scheduler: Any) -> None:
    """Remember the scheduler; method of the scheduler's plugin, so it can use nothing but its arguments."""
    self.scheduler = scheduler


def transition(self: Any, key: Any, start: str, finish: str, *args: Any, metadata: Any = None, **kwargs: Any) -> None:
    """Send a reply on; method of the scheduler's plugin."""
    if not metadata or "jobfleet-reply" not in metadata:
        return
    task = self.scheduler.tasks.get(key)
    if task is None:
        return
    if task.metadata:
        task.metadata.pop("jobfleet-reply", None)
    if finish == "memory":
        message = {"op": "event", "topic": "jobfleet-reply", "event": (0.0, (key, metadata["jobfleet-reply"]))}
        comms = [self.scheduler.client_comms.get(client.client_key) for client in task.who_wants or ()]
        reached = [comm for comm in comms if comm is not None and not comm.closed()]
        for comm in reached:
            comm.send(dict(message))
        if len(reached) == len(comms):
            task.has_lost_dependencies = True  # in Dask's words: it cannot be computed any more


class Replies:
    """Replies that have come to a client, by key, for those who expect them.

    Notes
    -----
    All of it runs on the client's event loop.
    """

    _expected: set[str]
    _arrived: dict[str, bytes]

    def __init__(self, client: distributed.Client) -> None:
        self._expected = set()
        self._arrived = {}
        mine = weakref.ref(self)

        def arrived(event: tuple[float, tuple[str, bytes]]) -> None:
            replies, (key, reply) = mine(), event[1]
            if replies is not None and key in replies._expected:
                replies._arrived[key] = reply

        client.subscribe_topic(TOPIC, arrived)

    def expect(self, key: str) -> None:
        """Keep the reply of a task when it comes."""
        self._expected.add(key)

    def take(self, key: str) -> list[bytes] | None:
        """Give the reply of a task if it has come; it is not kept any longer."""
        self._expected.discard(key)
        reply = self._arrived.pop(key, None)
        return None if reply is None else [reply]
