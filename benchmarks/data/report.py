"""The tables, and what is expected."""

from ..columns import aligned
from ..dispatch.results import Expectation
from .rows import ROWS

SUBJECTS = ("jobfleet", "builtin", "loky")

#: What crosses sockets when nothing of the data does, in sizes of the data.
NEARLY_NOTHING = 0.02


def key(row, n_workers):
    """Name a row's results."""
    return f"{row.name}/{n_workers}"


def expectations(row):
    """Give what is expected of jobfleet in one row, by a short name each."""
    several = row.calls > 1
    found = {
        "of loky's time": Expectation(
            "below 1" if several else "at most 1.2",
            lambda result, _: result.ratio("jobfleet", "loky"),
            at_most=0.999 if several else 1.2,
        ),
        "of the built-in's": Expectation(
            "at most 0.5", lambda result, _: result.ratio("jobfleet", "builtin"), at_most=0.5
        ),
        "sockets": Expectation(
            "nearly nothing", lambda result, _: result.median("jobfleet", "sockets"), at_most=NEARLY_NOTHING
        ),
    }
    if row.buffers:
        found["memory"] = Expectation(
            "at most 1.15", lambda result, _: result.median("jobfleet", "memory"), at_most=1.15
        )
        found["peak"] = Expectation("at most 2.2", lambda result, _: result.median("jobfleet", "peak"), at_most=2.2)
    return found


def workers_in(results):
    """Give the numbers of workers that there are results for."""
    return sorted({int(name.split("/")[1]) for name in results})


def tables(results):
    """Lay out all that was measured."""
    return "\n\n".join(part for n in workers_in(results) for part in (_times(results, n), _expected(results, n)))


def _rows(results, n_workers):
    return [(row, results[key(row, n_workers)]) for row in ROWS if key(row, n_workers) in results]


def _times(results, n_workers):
    # What loky sends goes through pipes.
    measures = (("wall_s", "s", SUBJECTS), ("sockets", "sockets", SUBJECTS[:2]), ("memory", "memory", SUBJECTS))
    measures += (("peak", "peak", SUBJECTS),)
    lines = [["row", *(f"{s}: {title}" for _, title, subjects in measures for s in subjects), "repeats"]]
    notes = []
    size = 0.0
    for row, result in _rows(results, n_workers):
        size = result.facts["size_mb"]
        cells = []
        for what, _, subjects in measures:
            for subject in subjects:
                mark = "~" if what in ("wall_s", "sockets") and _is_reduced(row, subject) else ""
                cells.append(_number(result.median(subject, what), mark))
        times = [sum("wall_s" in sample for sample in result.samples.get(s, [])) for s in SUBJECTS]
        lines.append([row.name, *cells, ", ".join(map(str, times))])
        for subject in SUBJECTS:
            failed = sum("failed" in sample for sample in result.samples.get(subject, []))
            if failed:
                notes.append(f"{row.name}: {subject} failed {failed} times.")
            if _is_reduced(row, subject):
                notes.append(
                    f"~ {row.name}: {subject} ran {row.few} tasks only; its numbers are of these, not scaled up."
                )
    title = f"{size:.0f} MB, {n_workers} worker processes; medians; sockets, memory and its peak in sizes of the data"
    return "\n".join([title, "", *aligned(lines), *notes])


def _is_reduced(row, subject):
    return row.load(subject) != row.load("jobfleet")


def _expected(results, n_workers):
    titles = {name: e.text for row in ROWS if row.calls == 1 for name, e in expectations(row).items()}
    lines = [["row", *(f"{name} ({text})" for name, text in titles.items())]]
    for row, result in _rows(results, n_workers):
        found = expectations(row)
        lines.append([row.name, *(_verdict(found.get(name), result, results) for name in titles)])
    several = ", ".join(row.name for row in ROWS if row.calls > 1)
    notes = [f"{several}: below loky's time is expected."]
    return "\n".join([f"What is expected of jobfleet, {n_workers} worker processes", "", *aligned(lines), *notes])


def _verdict(expectation, result, results):
    value = None if expectation is None else expectation.value(result, results)
    return "" if value is None else f"{value:.2f} {'yes' if expectation.met(value) else 'NO'}"


def _number(value, mark=""):
    return "-" if value is None else f"{mark}{value:.2f}"


def summary(results, n_workers):
    """Lay out in Markdown what a user wants to know: time and memory."""
    rows = _rows(results, n_workers)
    size = rows[0][1].facts["size_mb"]
    names = {"jobfleet": "jobfleet", "builtin": "joblib's Dask backend", "loky": "loky"}
    lines = [
        f"{size:.0f} MB handed to 40 tasks on {n_workers} worker processes: seconds, and memory in sizes of the data.",
        "",
        "| | " + " | ".join(names.values()) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for row, result in rows:
        cells = [_cell(row, result, subject) for subject in SUBJECTS]
        lines.append(f"| {row.about} | {' | '.join(cells)} |")
    few = [row for row, _ in rows if row.few is not None]
    if few:
        notes = {f"{row.few} tasks": None for row in few}
        lines += ["", f"~ fewer than the others: {' or '.join(notes)}."]
    return "\n".join(lines)


def _cell(row, result, subject):
    wall_s, memory = result.median(subject), result.median(subject, "memory")
    if wall_s is None:
        return "-"
    mark = "~" if _is_reduced(row, subject) else ""
    return f"{mark}{wall_s:.2f} s" + ("" if memory is None else f", {memory:.1f}")


def progress(sample, took_s):
    """Say what a turn has given, while measuring."""
    return ", ".join(f"{what} {value:.3f}" for what, value in sample.items()) + f" (a turn of {took_s:.0f} s)"
