"""Objects of ``scatter=``, brought to every host before the first task."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distributed.comm.addressing import get_address_host

from .. import _bootstrap
from .._data.buffers import MIN_STORED_NBYTES, Blob
from .._ship import NEED_CODE, bootstrap, by_value, package_code
from .._wire import NEED_DATA, Missing
from .base import AheadProgress
from .placement import Placement, while_there

if TYPE_CHECKING:
    import distributed

logger = logging.getLogger(__name__)

#: What is smaller altogether comes with the first tasks as quickly.
MIN_AHEAD_NBYTES = 2**23

#: How often a worker is asked again because it lacked something.
_MAX_TRIES = 20

#: How often the caller hears how far it is.
_REPORT_S = 0.2

#: After so long without any progress the call begins: tasks wait for what they need, and a frozen worker has none.
_STALLED_S = 30.0

#: Of machines that several workers are on, all are asked as long as they are no more than this.
_MAX_PER_ADDRESS = 8


def place_ahead(
    client: distributed.Client,
    placement: Placement,
    eligible: Callable[[], Any],
    blobs: Sequence[Blob],
    report: Callable[[AheadProgress], None],
) -> None:
    """Return when every host has the buffers that are stored; those that cannot have them get them with their tasks.

    Parameters
    ----------
    client, placement
        Whose hosts.
    eligible
        Gives the addresses of the workers that may run tasks.
    blobs
        The buffers.
    report
        Called in this thread from time to time.
    """
    stored = [b for b in blobs if b.stored and len(b.data) >= MIN_STORED_NBYTES and b.digest not in placement.ahead]
    nbytes = sum(len(blob.data) for blob in stored)
    if nbytes < MIN_AHEAD_NBYTES:
        return
    ahead = _Ahead(client, placement, stored, nbytes)
    placing = asyncio.run_coroutine_threadsafe(ahead.run(eligible), client.loop.asyncio_loop)
    started = moved_at = time.monotonic()
    last = ahead.progress()
    try:
        while not placing.done():
            concurrent.futures.wait([placing], _REPORT_S)
            now, progress = time.monotonic(), ahead.progress()
            if progress != last:
                last, moved_at = progress, now
            if now - moved_at > _STALLED_S:
                logger.warning("scatter: nothing has moved for %g s; the call begins all the same", _STALLED_S)
                return
            report(AheadProgress(progress[0], progress[1], ahead.n_workers, nbytes, now - started))
        error = placing.exception()
        if error is not None:
            logger.info("scatter: not all is there ahead of the first task: %r", error)
        else:
            placement.ahead.update(blob.digest for blob in stored)
    finally:
        placing.cancel()


class _Ahead:
    """Bring buffers to workers of every host, on the client's event loop."""

    def __init__(self, client: distributed.Client, placement: Placement, blobs: Sequence[Blob], nbytes: int) -> None:
        self._client = client
        self._placement = placement
        self._blobs = blobs
        self._nbytes = nbytes
        self._sent_before = placement.sent_nbytes
        self.n_workers = 0
        self._n_ready = 0

    def progress(self) -> tuple[int, int]:
        """Give how many bytes the client has sent, and how many workers have all."""
        return self._placement.sent_nbytes - self._sent_before, self._n_ready

    async def run(self, eligible: Callable[[], Any]) -> None:
        addresses = _one_or_some_per_host(await eligible())
        self.n_workers = len(addresses)
        answers = await asyncio.gather(*map(self._bring_to, addresses), return_exceptions=True)
        for address, answer in zip(addresses, answers, strict=True):
            if isinstance(answer, BaseException):
                logger.info("scatter: worker %s has not all ahead of the first task: %r", address, answer)

    async def _bring_to(self, address: str) -> None:
        code = None
        for _ in range(_MAX_TRIES):
            references = self._placement.references(self._blobs, ())
            placed = self._placement.store.placed(references, uuid4().hex)
            function = by_value(_bootstrap.place_ahead)
            asking = self._client._run(
                function, bootstrap(), package_code()[0], placed, code, workers=[address], on_error="raise"
            )
            answers = await while_there(self._client, address, asking)
            answer = answers[address]
            if answer is None:
                self._n_ready += 1
                return
            if answer == NEED_CODE:
                code = package_code()[1]
            elif answer[0] == NEED_DATA and await self._placement.supply(Missing(*answer[1:]), self._blobs, references):
                return  # it has no room


def _one_or_some_per_host(addresses: Sequence[str]) -> list[str]:
    """Give workers that together see every host's memory: containers of one machine may share its address."""
    per_address: dict[str, list[str]] = {}
    for address in addresses:
        per_address.setdefault(get_address_host(address), []).append(address)
    return [one for some in per_address.values() for one in (some if len(some) <= _MAX_PER_ADDRESS else some[:1])]
