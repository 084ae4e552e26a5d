# SPDX-License-Identifier: Apache-2.0
"""Segmenters and depth models: milliseconds per call and peak memory, for one and two 640x480 cameras.

    python -m benchmarks.perception      (--models segformer-b0 clipseg, to measure some)

Every model has its published size and random weights. It is measured as the suite runs it (one call for all
cameras; on a GPU in bfloat16) and, in the same run, as its plain transformers pipeline does, or for the suite's own
segmenter with the decoder in the original's order. Every measurement is a process of its own, so that its memory is
known. About 25 minutes on two cores; writes results/perception.json, line by line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .report import RESULTS, save, table

CHILD = "--child"


def run_child(*arguments: str) -> Any:
    """Run one step in a fresh process, and return what it printed last, as JSON."""
    command = [sys.executable, "-m", "benchmarks.perception", CHILD, *arguments]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{child.stderr[-2000:]}")
    return json.loads(child.stdout.strip().splitlines()[-1])


def child(step: str, *arguments: str) -> Any:
    """One step: list what there is to do, make a model, or measure one."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    from .perception_models import MODELS

    if step == "plan":
        from .perception_ways import combinations

        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        return {"devices": devices, "models": {name: combinations(name) for name in MODELS}}
    if step == "make":
        torch.manual_seed(0)
        name, folder = arguments
        MODELS[name].save(Path(folder))
        return {"checkpoint": MODELS[name].checkpoint, "parameters": MODELS[name].parameters}
    from .perception_ways import measure

    name, way, product, folder, device, seconds = arguments
    found = measure(name, way, product, folder, device, float(seconds))
    return {"threads": torch.get_num_threads(), **found}


def rows_of(name: str, ways: list[list[str]], devices: list[str], seconds: float) -> Any:
    """Make a model and yield one row per device, way and product."""
    with tempfile.TemporaryDirectory() as folder:
        made = run_child("make", name, folder)
        for device in devices:
            for way, product in ways:
                load = round(os.getloadavg()[0], 2)
                found = run_child("measure", name, way, product, folder, device, str(seconds))
                yield {
                    "model": name,
                    **made,
                    "device": device,
                    "way": way,
                    "product": product,
                    "load_before": load,
                    **found,
                }


def saved_rows() -> list[dict]:
    """What the file holds from earlier runs."""
    path = RESULTS / "perception.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def cells(row: dict) -> list[str]:
    """A row for the table."""
    one, two = row["cameras_1"], row["cameras_2"]
    return [
        row["model"],
        row["device"],
        row["way"],
        row["product"],
        *(f"{camera['ms']:,.1f}" for camera in (one, two)),
        *(f"{camera['memory_mb']:,.0f}" for camera in (one, two)),
    ]


def ratios(rows: list[dict]) -> list[dict]:
    """How many times the suite is ahead of what it is compared with, for the same product.

    Of the fastest calls: whatever else a machine does only ever adds to a call.
    """
    found = {(row["model"], row["device"], row["way"], row["product"]): row for row in rows}
    return [
        {
            "model": model,
            "device": device,
            "beside": way,
            "product": product,
            **{
                f"{kind}_{count}": round(
                    row[f"cameras_{count}"][kind]
                    / found[model, device, "suite", product][f"cameras_{count}"][kind],
                    2,
                )
                for count in (1, 2)
                for kind in ("ms_fastest", "memory_mb")
            },
        }
        for (model, device, way, product), row in found.items()
        if way != "suite"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of calls in every measurement")
    parser.add_argument("--models", nargs="+", help="measure these (again), and keep the file's other rows")
    parser.add_argument(CHILD, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child)), flush=True)
        return
    plan = run_child("plan")
    unknown = set(args.models or []) - set(plan["models"])
    if unknown:
        parser.error(f"--models: found {sorted(unknown)}, expected some of {list(plan['models'])}.")
    rows = [row for row in saved_rows() if args.models and row["model"] not in args.models]
    for name in args.models or plan["models"]:
        for row in rows_of(name, plan["models"][name], plan["devices"], args.seconds):
            rows.append(row)
            print(" | ".join(cells(row)), flush=True)
            path = save("perception", {"rows": rows, "ahead": ratios(rows)})
    header = ["model", "device", "way", "product", "ms, 1 camera", "ms, 2 cameras", "MB, 1", "MB, 2"]
    print(table(header, [cells(row) for row in rows]))
    header = [
        "model",
        "device",
        "beside",
        "product",
        "faster, 1",
        "less memory, 1",
        "faster, 2",
        "less memory, 2",
    ]
    print(table(header, [[str(value) for value in entry.values()] for entry in ratios(rows)]))
    print("written to", path)


if __name__ == "__main__":
    main()
