# SPDX-License-Identifier: Apache-2.0
"""Results of benchmarks: one JSON file each under results/, and tables on the terminal.

A file holds `runs` (command, commit, hardware, versions, settings) and tables of one measurement per line,
`rows` and others. Each measurement names the commit of its run. `outcomes` has a character per initial state,
1 for success: rates, intervals and comparisons are derived from it when a file is read, and never stored.
"""

import argparse
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lerobot_processor_so101 import success_rates
from lerobot_processor_so101.atomic import atomic_path

RESULTS = Path(__file__).parents[1] / "results"
UNCOMMITTED = Path("outputs/results")  # results of code that no commit holds
DERIVED = ("rate", "wilson95")
table = success_rates.markdown_table
_FOLDERS = re.compile(r"(?<![\w.-])/(?:home|root|work|Users|tmp)/(?:[^/\s\"']+/)*")  # of this machine


def rate(successes: int, n: int) -> dict[str, Any]:
    """Return a success rate with its Wilson 95 % interval."""
    interval = [round(bound, 4) for bound in success_rates.wilson(successes, n)]
    return {"successes": successes, "n": n, "rate": round(successes / n, 4), "wilson95": interval}


def percent(row: dict) -> str:
    """Format a rate: 95.0 % (190/200, 91.0 to 97.3)."""
    return success_rates.percent(row["successes"], row["n"])


def derive(row: dict) -> dict:
    """Add success rate and interval to a row that has outcomes, or counts where outcomes were not kept."""
    if "outcomes" in row:
        return {**row, **rate(row["outcomes"].count("1"), len(row["outcomes"]))}
    return {**row, **rate(row["successes"], row["n"])} if "successes" in row else row


def load(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Read what `save` wrote, with rates and intervals derived; no rows if there is no file."""
    path = (folder or RESULTS) / f"{name}.json"
    stored = json.loads(path.read_text()) if path.is_file() else {"runs": [], "rows": []}
    return {**stored, "rows": [derive(row) for row in stored["rows"]]}


def save(
    name: str, rows: Sequence[dict], keys: Sequence[str] = (), settings: dict | None = None, **tables: list
) -> list[dict]:
    """Write results, and return all rows of the file with derived rates.

    Several processes may save at the same time. Of a path outside the repository, only the name is written.

    Args:
        name: of the file below results/, such as `learning/imf`.
        rows: measurements of this run.
        keys: fields that two rows of the same measurement share. Stored rows that are not measured again
            stay; without keys, none does.
        settings: of this run; its folder is left out.
        tables: further lists of rows; each replaces the stored one of its name.
    """
    settings = {key: value for key, value in (settings or {}).items() if key not in ("out", "child")}
    run = {**circumstances(), "settings": settings}
    path = (RESULTS if run["commit"] else UNCOMMITTED) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        stored = load(path.stem, path.parent)
        measured = {tuple(row.get(key) for key in keys) for row in rows}
        kept = [row for row in stored["rows"] if keys and tuple(row.get(key) for key in keys) not in measured]
        merged = [*kept, *(derive({**row, "commit": run["commit"]}) for row in rows)]
        stamped = {key: [{**row, "commit": run["commit"]} for row in new] for key, new in tables.items()}
        others = {key: value for key, value in stored.items() if key not in ("runs", "rows")} | stamped
        commits = {row["commit"] for some in (merged, *others.values()) for row in some}
        runs = [old for old in stored["runs"] if old["commit"] in commits and old != run]
        text = dump({"runs": [*runs, run], "rows": list(map(stripped, merged)), **others})
        with atomic_path(path) as temporary:
            temporary.write_text(_FOLDERS.sub("", text))
    print("written to", path)
    return merged


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block with the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def stripped(row: dict) -> dict:
    """Remove what `derive` adds."""
    counted = ("successes", "n") if "outcomes" in row else ()
    return {key: value for key, value in row.items() if key not in (*DERIVED, *counted)}


def dump(tables: dict[str, list]) -> str:
    """Format a results file: JSON with one row per line."""
    parts = []
    for name, rows in tables.items():
        lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
        parts.append(f'"{name}": [\n{lines}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def circumstances() -> dict[str, Any]:
    """Return what a number depends on besides settings. The commit is null where the code differs from it."""
    return {
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]).replace(f"{Path.cwd()}/", ""),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lerobot", "mujoco", "numpy", "torch")},
    }


def arguments(
    description: str | None, choices: dict[str, Any] | None = None, **defaults: Any
) -> argparse.Namespace:
    """Read the command line.

    Args:
        description: docstring of the module, printed as it is.
        choices: of some options.
        defaults: of all options, which also give their types; of a list, that of its first item. None is a
            list of text.
    """
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=kind)
    for name, default in defaults.items():
        several = default is None or isinstance(default, list)
        of = type((default or [""])[0] if several else default)
        options = {"type": of, "default": default, "choices": (choices or {}).get(name)}
        parser.add_argument(
            f"--{name}", help=f"default: {default}", **options, **({"nargs": "+"} if several else {})
        )
    return parser.parse_args()


def in_child(module: str, *arguments: Any) -> Any:
    """Run a module of this package in a new process, and return the JSON that it prints last.

    Raises:
        SystemExit: if it fails.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{child.stderr[-2000:]}")
    return json.loads(child.stdout.strip().splitlines()[-1])


def _commit() -> str | None:
    """Return the commit, unless tracked files other than results and pages differ from it."""
    code = ["--", ".", ":!benchmarks/results", ":!docs", ":!*.md"]
    try:
        if _git("status", "--porcelain", "-uno", *code):
            return None
        return _git("rev-parse", "--short", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
