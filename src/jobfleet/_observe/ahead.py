"""Tell on stderr how far `scatter=` is, when that takes long."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress

    from .._engine.base import AheadProgress

logger = logging.getLogger(__name__)

#: What takes no longer is not told of.
SHOWN_AFTER_S = 2.0

#: Without a terminal, a line is logged so often.
_LOGGED_EVERY_S = 10.0


class ScatterProgress:
    """Show a bar on a terminal, or log a line from time to time.

    Notes
    -----
    One thread. Used as a context manager, which takes the bar away.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: Any = None
        self._logged_at = 0.0

    def __enter__(self) -> ScatterProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: AheadProgress) -> None:
        """Say how far it is."""
        if progress.elapsed_s < SHOWN_AFTER_S:
            return
        text = (
            f"scatter: {progress.sent_nbytes / 1e6:.0f} MB sent, {progress.n_ready} of {progress.n_workers} workers "
            f"that were asked have all {progress.nbytes / 1e6:.0f} MB"
        )
        if sys.stderr is not None and sys.stderr.isatty():
            self._show(text, progress)
        elif not self._logged_at or progress.elapsed_s - self._logged_at >= _LOGGED_EVERY_S:
            self._logged_at = progress.elapsed_s
            logger.info("%s", text)

    def _show(self, text: str, progress: AheadProgress) -> None:
        if self._bar is None:
            # This module is there on workers too, which have no rich; and it would slow `import jobfleet`.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            console = Console(file=sys.stderr)
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        done = max(progress.n_ready * progress.nbytes, min(progress.sent_nbytes, progress.nbytes))
        self._bar.update(
            self._task,
            description=text,
            completed=done,
            total=max(1, progress.n_workers) * progress.nbytes,
        )
