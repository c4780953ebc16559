"""The picture of the README: how long each way takes, relative to loky."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .results import Results
from .rows import ROWS

#: Of each subject: its name, colour and marker.
SHOWN = {
    "loky": ("loky", "#7d8a93", "|"),
    "builtin": ("joblib's own Dask backend", "#d9822b", "D"),
    "jobfleet": ("jobfleet", "#0b6e99", "o"),
}
TICKS = [0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30]


def draw(results: Results, path: Path) -> None:
    """Draw the rows that were measured for loky as well, each time relative to loky's.

    Parameters
    ----------
    results
        What was measured.
    path
        Where the picture goes; its ending says in what format.
    """
    rows = [row for row in ROWS if row.name in results and results[row.name].ratio("jobfleet", "loky") is not None]
    mpl.rcParams["svg.hashsalt"] = "jobfleet"  # the same numbers give the same file
    figure = Figure(figsize=(9, 0.32 * len(rows) + 1.2), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for subject, (name, colour, marker) in SHOWN.items():
        ratios = [results[row.name].ratio(subject, "loky") for row in rows]
        points = [(ratio, index) for index, ratio in enumerate(ratios) if ratio is not None]
        size = 14 if marker == "|" else 7
        axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=size, label=name, linestyle="none")
        if subject == "jobfleet":
            for ratio, index in points:
                above = {"textcoords": "offset points", "xytext": (0, 5), "ha": "center"}
                axes.annotate(f"{ratio:.2f}", (ratio, index), fontsize=7, color=colour, **above)
    axes.axvline(1, color="#7d8a93", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), [row.about for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time, relative to loky on the same number of processes (left is faster)", fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
