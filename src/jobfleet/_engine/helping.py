"""Short calls of a task in the task's own thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .._data.buffers import Blob, Keeper
from .._data.packing import PackedChunk
from .base import AheadProgress, HandedBack, Lost, Outcome, Session, Slots
from .local import LocalSession

#: Others would need longer than this to hear of work, do it and give it back.
HELP_S = 0.03

#: Where others have enough to do, giving work away gains nothing. It may be that they soon have not: so no call is kept
#: for longer than this.
BUSY_HELP_S = 0.5


class HelpingSession:
    """Run a call's first chunk in the thread that waits for it if that is quicker, and all else on the cluster.

    A task that makes a call of some milliseconds of work has a slot. To hand the work to others, give the slot up and
    get it back takes longer than to do it. Only a first chunk that is all of the call runs here: once anything is on
    the cluster, the thread gives its slot to that.

    Parameters
    ----------
    cluster
        Runs what does not run here.
    here
        Runs chunks in the thread that is lent.
    others_wait
        All slots are taken, and tasks wait for them.
    """

    def __init__(self, cluster: Session, here: LocalSession, others_wait: bool) -> None:
        self.keeper: Keeper = cluster.keeper
        self.callers = cluster.callers
        self.help_s = BUSY_HELP_S if others_wait else HELP_S
        self._cluster = cluster
        self._here = here
        self._changed: Callable[[Slots], None] | None = None

    def place_ahead(self, blobs: Sequence[Blob], report: Callable[[AheadProgress], None]) -> None:
        """Return when every host of the cluster has these buffers, or will get them with its tasks."""
        self._cluster.place_ahead(blobs, report)

    def submit(
        self, chunk: PackedChunk, label: str, done: Callable[[Outcome | HandedBack], None], here: bool = False
    ) -> None:
        """Run a chunk; returns at once."""
        if here:
            self._here.submit(chunk, label, done)
            return
        self._here.settle()
        self._cluster.submit(chunk, label, done)
        if self._changed is not None:
            self._cluster.watch_slots(self._changed)
            self._changed = None

    def give_up(self, chunk: PackedChunk) -> None:
        """End a chunk that was submitted."""
        self._here.give_up(chunk)
        self._cluster.give_up(chunk)

    def flush(self) -> None:
        """Send what was submitted to the cluster."""
        self._cluster.flush()

    def drop(self, digest: bytes) -> None:
        """Say that no task of the call needs a buffer any more."""
        self._cluster.drop(digest)

    def note_deaths(self, deaths: int) -> None:
        """Have it known how many workers died of one unfinished task."""
        self._cluster.note_deaths(deaths)

    def watch_slots(self, changed: Callable[[Slots], None]) -> None:
        """Have `changed` called with the slots from time to time, once anything runs on the cluster."""
        self._changed = changed

    def lend_thread(self) -> None:
        """Run what is to run here; returns when all results are there or something goes to the cluster."""
        self._here.lend_thread()

    def settle(self) -> None:
        """Say that all results are there."""
        self._here.settle()

    def lost(self) -> Lost | None:
        """Say whether the cluster has come to an end by itself."""
        return self._cluster.lost()

    def close(self) -> None:
        """End the use."""
        self._here.close()
        self._cluster.close()
