"""Measure all rows on all subjects, interleaved: ``python -m benchmarks.data``, or ``make bench-data``."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

SUBJECTS = ("jobfleet", "builtin", "loky")
ROWS = ("array", "list", "dict", "closure", "method", "estimator", "frame", "sparse", "scatter", "20 calls")
RESULTS = Path(__file__).parents[1] / "results"
TIMEOUT_S = 150


def has_namespaces():
    """Whether a process may be given a network of its own."""
    command = ["unshare", "--net", "ip", "link", "set", "lo", "up"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def run(options, watch, namespaces, prefix):
    """Run one measurement; None if it took too long or failed."""
    inner = [sys.executable, "-m", "benchmarks.data.subject", json.dumps(options)]
    if namespaces:
        inner = ["unshare", "--net", "sh", "-c", f"ip link set lo up && exec {shlex.join(inner)}"]
    command = [*prefix, "timeout", "-k", "5", str(TIMEOUT_S), *inner]
    done = subprocess.run(command, env={**os.environ, "WATCH": str(int(watch))}, capture_output=True, text=True)
    if done.returncode:
        print(f"failed ({done.returncode}): {options} {done.stderr[-400:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def facts():
    """Describe the machine and what runs on it."""
    names = ("joblib", "distributed", "numpy", "scipy", "pandas", "scikit-learn", "xxhash")
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def table(runs, n_workers, nbytes):
    """Lay out the medians as Markdown."""
    lines = [
        f"{nbytes / 1e6:.0f} MB, {n_workers} worker processes",
        "",
        "| | " + " | ".join(f"{s}: s | sockets | memory | peak" for s in SUBJECTS) + " |",
        "|---" + "|--:" * (4 * len(SUBJECTS)) + "|",
    ]
    for row in ROWS:
        cells = [row]
        for subject in SUBJECTS:
            its = [r for r in runs if (r["row"], r["subject"], r["n_workers"]) == (row, subject, n_workers)]
            for key, watched, scale, form in (
                ("seconds", False, 1, "{:.2f}"),
                ("sockets", False, nbytes, "{:.2f}x"),
                ("after", True, 1, "{:.2f}x"),
                ("peak", True, 1, "{:.2f}x"),
            ):
                values = [r["result"][key] for r in its if r["watch"] == watched and r["result"]]
                cells.append(form.format(statistics.median(values) / scale) if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    """Measure, write the raw numbers, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--prefix", type=shlex.split, default=[], help="command to run each measurement under")
    parser.add_argument("--output", type=Path, default=RESULTS / "data.json")
    arguments = parser.parse_args()
    namespaces, runs = has_namespaces(), []
    report = {"facts": facts(), "network_namespaces": namespaces, "runs": runs}
    for n_workers in arguments.workers:
        for round_number in range(arguments.rounds + 1):
            watch = round_number == arguments.rounds
            for row in arguments.rows:
                for subject in arguments.subjects:
                    n_calls = 20 if row == "20 calls" else 1
                    if (row == "scatter" and subject == "loky") or (watch and n_calls > 1):
                        continue
                    options = {
                        "subject": subject,
                        "row": "array" if row == "20 calls" else row,
                        "n_workers": n_workers,
                        "nbytes": arguments.megabytes * 10**6,
                        "n_tasks": arguments.tasks,
                        "n_calls": n_calls,
                    }
                    result = run(options, watch, namespaces, arguments.prefix)
                    runs.append({**options, "row": row, "watch": watch, "result": result})
                    print(n_workers, row, subject, "memory" if watch else "time", result, file=sys.stderr, flush=True)
                    arguments.output.parent.mkdir(exist_ok=True)
                    arguments.output.write_text(json.dumps(report, indent=1))
    for n_workers in arguments.workers:
        print(table(runs, n_workers, arguments.megabytes * 10**6), end="\n\n")


if __name__ == "__main__":
    main()
