# SPDX-License-Identifier: Apache-2.0
"""Results of benchmarks: one JSON file each under results/, and tables on the terminal.

A file holds `runs` (command, commit, hardware, versions, settings) and tables of one measurement per line,
`rows` and others. Each measurement names the commit of its run. `outcomes` has a character per initial state,
1 for success: rates, intervals and comparisons are derived from it when a file is read, and never stored.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from lerobot_processor_so101 import success_rates
from lerobot_processor_so101.atomic import atomic_path

RESULTS = Path(__file__).parents[1] / "results"
UNCOMMITTED = Path("outputs/results")  # results of code that no commit holds
FULL = os.environ.get("BENCH") == "full"
table = success_rates.markdown_table
_FOLDERS = re.compile(r"(?<![\w.-])/(?:home|root|work|Users|tmp)/(?:[^/\s\"']+/)*")  # of this machine


def percent(row: dict) -> str:
    """Format a rate: 95.0 % (190/200, 91.0 to 97.3)."""
    return success_rates.percent(row["successes"], row["n"])


def derive(row: dict) -> dict:
    """Add success rate and interval to a row that has outcomes, or counts where outcomes were not kept."""
    if "outcomes" in row:
        row = {**row, "successes": row["outcomes"].count("1"), "n": len(row["outcomes"])}
    elif "successes" not in row:
        return row
    interval = [round(bound, 4) for bound in success_rates.wilson(row["successes"], row["n"])]
    return {**row, "rate": round(row["successes"] / row["n"], 4), "wilson95": interval}


def load(name: str) -> dict[str, Any]:
    """Read what `save` wrote, with rates and intervals derived; no rows if there is no file."""
    stored = _read(RESULTS / f"{name}.json")
    return {**stored, "rows": list(map(derive, stored["rows"]))}


def save(
    name: str, rows: Sequence[dict], keys: Sequence[str] = (), settings: dict | None = None, **tables: list
) -> list[dict]:
    """Write results, and return all rows of the file with derived rates.

    Several processes may save at the same time. Of a path outside the repository, only the name is written.

    Args:
        name: of the file below results/, such as `learning/imf`.
        rows: measurements of this run.
        keys: fields that are equal in two rows of the same measurement. Stored rows that are not measured
            again stay; without keys, none does.
        settings: of this run; paths, which say where and not what, are left out.
        tables: further lists of rows; each replaces the stored one of its name.
    """
    settings = {key: value for key, value in (settings or {}).items() if not isinstance(value, Path)}
    run = {**circumstances(), "settings": settings}
    path = (RESULTS if run["commit"] else UNCOMMITTED) / f"{name}.json"
    with FileLock(Path(tempfile.gettempdir()) / f"so101-results-{os.getuid()}.lock"):
        found = _read(path)
        measured = {tuple(row.get(key) for key in keys) for row in rows}
        kept = [row for row in found["rows"] if keys and tuple(row.get(key) for key in keys) not in measured]
        for key, new in {**tables, "rows": rows}.items():
            found[key] = [{**row, "commit": run["commit"]} for row in new]
        found["rows"] = [*kept, *found["rows"]]
        runs = found.pop("runs")
        commits = {row["commit"] for some in found.values() for row in some}
        found = {"runs": [*(old for old in runs if old["commit"] in commits and old != run), run], **found}
        with atomic_path(path) as temporary:
            temporary.write_text(_FOLDERS.sub("", dump(found)))
    print("written to", path)
    return list(map(derive, found["rows"]))


def dump(tables: dict[str, list]) -> str:
    """Format a results file: JSON with one row per line."""
    parts = []
    for name, rows in tables.items():
        lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
        parts.append(f'"{name}": [\n{lines}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def show(rows: Sequence[dict], *columns: str) -> None:
    """Print rows as a table, with these columns or those of the first row; what a row lacks is left empty."""
    header = columns or list(rows[0])
    print(table(header, [[row.get(column, "") for column in header] for row in rows]), flush=True)


def circumstances() -> dict[str, Any]:
    """Return what a number depends on besides settings. The commit is null where the code differs from it."""
    info = Path("/proc/cpuinfo")
    cpu = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return {
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]).replace(f"{Path.cwd()}/", ""),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu[0] if cpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lerobot", "mujoco", "numpy", "torch")},
    }


def arguments(description: str | None, choices: dict | None = None, **defaults: Any) -> argparse.Namespace:
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
        options |= {"nargs": "+" if several else None, "help": f"default: {default}"}
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


def in_child[Result](function: Callable[..., Result], *given: Any, context: str = "spawn") -> Result:
    """Call a function in a new process, and return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(context)) as pool:
        return pool.submit(function, *given).result()


def run_missing(
    path: Path, keys: Sequence[str], cases: Iterable[tuple], run: Callable[..., dict], parallel: int = 1
) -> list[dict]:
    """Run the cases that a JSON Lines file lacks, adding each result to it, and return all its results.

    Args:
        path: of the file.
        keys: fields of a result that are its case, the arguments of `run`.
        cases, run, parallel: called in so many threads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {tuple(result[key] for key in keys) for result in results}
    missing = [case for case in cases if case not in done]
    with ThreadPoolExecutor(parallel) as pool, path.open("a", buffering=1) as file:
        for result in tqdm(pool.map(lambda case: run(*case), missing), total=len(missing)):
            results.append(result)
            file.write(json.dumps(result) + "\n")
    return results


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {"runs": [], "rows": []}


def _commit() -> str | None:
    """Return the commit, unless tracked files other than results and pages differ from it."""
    code = ["--", ".", ":!benchmarks/results", ":!docs", ":!*.md"]
    git = partial(subprocess.check_output, text=True, stderr=subprocess.DEVNULL)
    try:
        if git(["git", "status", "--porcelain", "-uno", *code]):
            return None
        return git(["git", "rev-parse", "--short", "HEAD"]).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
