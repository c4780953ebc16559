"""The commands: `jobfleet ...`, and the same ones as `dask jobfleet ...`."""

from __future__ import annotations

import click

from . import __version__
from ._demo import GRID_SIZE, run_demo


@click.group(name="jobfleet")
@click.version_option(__version__, prog_name="jobfleet")
def main() -> None:
    """Run joblib and scikit-learn code on a Dask cluster."""


@main.command()
@click.option("--scheduler", metavar="ADDRESS", help="Use the cluster of this scheduler, such as tcp://host:8786.")
@click.option(
    "--candidates",
    type=click.IntRange(1, GRID_SIZE),
    default=50,
    show_default=True,
    help="How many settings to try; three fits each.",
)
@click.pass_context
def demo(context: click.Context, scheduler: str | None, candidates: int) -> None:
    """Search for the best SVC on scikit-learn's digits, on a cluster and sequentially.

    Without --scheduler the cluster is one of this machine's own, started for the
    purpose. Shows what was found, what it took, and whether both runs gave
    the same scores; fails if they did not.
    """
    if not run_demo(scheduler, candidates):
        context.exit(1)
