"""The picture of the README: how much longer each way takes than the fastest of them."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from .results import Results
from .rows import ROWS

COLOURS = {"jobfleet": "#0b6e99", "loky": "#9aa5ad", "builtin": "#e08e45"}
NAMES = {"jobfleet": "jobfleet", "loky": "loky", "builtin": "joblib's own Dask backend"}


def draw(results: Results, path: Path) -> None:
    """Draw the rows that were measured for all three, each relative to loky.

    Parameters
    ----------
    results
        What was measured.
    path
        Where the picture goes; its ending says in what format.
    """
    rows = [row for row in ROWS if row.name in results and results[row.name].ratio("jobfleet", "loky") is not None]
    mpl.rcParams["svg.hashsalt"] = "jobfleet"  # the same numbers give the same file
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(9, 0.55 * len(rows) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    height = 0.27
    for offset, (subject, colour) in enumerate(COLOURS.items()):
        ratios = [results[row.name].ratio(subject, "loky") for row in rows]
        shown = [(index, ratio) for index, ratio in enumerate(ratios) if ratio is not None]
        places = [index + (offset - 1) * height for index, _ in shown]
        bars = axes.barh(places, [r for _, r in shown], height, color=colour, label=NAMES[subject])
        axes.bar_label(bars, [f"{r:.2f}" for _, r in shown], padding=3, fontsize=7, color="#333333")
    axes.axvline(1, color="#555555", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.about for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("time, relative to loky on the same number of processes (shorter is faster)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
