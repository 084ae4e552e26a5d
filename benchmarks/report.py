# SPDX-License-Identifier: Apache-2.0
"""How every benchmark reports: a table on the terminal and a JSON file with hardware, versions and commit."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from scipy.stats import binomtest, bootstrap

RESULTS = Path(__file__).parent / "results"


def rate(successes: int, trials: int) -> dict:
    """A success rate with its Wilson 95 % interval."""
    low, high = binomtest(successes, trials).proportion_ci(method="wilson")
    return {
        "successes": successes,
        "n": trials,
        "rate": round(successes / trials, 4),
        "wilson95": [round(low, 4), round(high, 4)],
    }


def percent(entry: dict) -> str:
    """A `rate` for a table: 95.0 % (190/200, 91.0 to 97.3)."""
    low, high = (100 * bound for bound in entry["wilson95"])
    return f"{100 * entry['rate']:.1f} % ({entry['successes']}/{entry['n']}, {low:.1f} to {high:.1f})"


def paired_gain(first: list[list[int]], second: list[list[int]]) -> dict:
    """Mean gain of the first arm over the second per start, with a 95 % bootstrap interval over starts.

    Args:
        first, second: successes (0 or 1) at the same starts, one list per training seed.
    """
    means = [[sum(column) / len(column) for column in zip(*runs, strict=True)] for runs in (first, second)]
    gains = [a - b for a, b in zip(*means, strict=True)]
    mean = round(sum(gains) / len(gains), 4)
    if len(set(gains)) == 1:  # nothing to resample
        return {"gain": mean, "bootstrap95": [mean, mean]}
    interval = bootstrap((gains,), lambda x, axis: x.mean(axis), random_state=0).confidence_interval
    return {"gain": mean, "bootstrap95": [round(float(interval.low), 4), round(float(interval.high), 4)]}


def circumstances() -> dict:
    """What a number depends on besides the code."""
    return {
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lerobot", "mujoco", "numpy", "torch")},
    }


def save(name: str, result: dict) -> Path:
    """Write `results/<name>.json` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"circumstances": circumstances(), **result}, indent=1) + "\n")
    return path


def load(name: str) -> dict:
    """What `save` wrote; empty if there is nothing yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    cells = [header, *rows]
    widths = [max(len(str(row[i])) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _commit() -> str:
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
