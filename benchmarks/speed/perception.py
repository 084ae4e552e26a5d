# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per call and peak memory of segmenters and depth models, for one and two 640x480 cameras.

    python -m benchmarks.speed.perception      (--models segformer-b0 clipseg, to measure some)

Every model has its published size and random weights. It is measured as the suite runs it (one call for all
cameras; on a GPU in bfloat16) and, in the same run, as its plain transformers pipeline does, or for the
suite's own segmenter with the decoder in the original's order. Every measurement is a process of its own, so
that its memory is known. 25 minutes on two cores; writes results/speed/perception.json after every model,
where rows that are not measured again stay.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..lib.report import arguments, in_child, save, table

KEYS = ("model", "device", "implementation", "output")
ME = "benchmarks.speed.perception"


def child(step: str, *arguments: str) -> Any:
    """Run one step: list what there is to measure, make a model, or measure one."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    from ..lib.published_models import MODELS

    if step == "plan":
        from .perception_calls import combinations

        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        return {"devices": devices, "models": {name: combinations(name) for name in MODELS}}
    if step == "make":
        torch.manual_seed(0)
        name, folder = arguments
        MODELS[name].save(Path(folder))
        return {"checkpoint": MODELS[name].checkpoint, "parameters": MODELS[name].parameters}
    from .perception_calls import measure

    *names, seconds = arguments
    return measure(*names, seconds=float(seconds))


def rows_of(name: str, pairs: list[list[str]], devices: list[str], seconds: float) -> list[dict]:
    """Make a model, and return one row per device, implementation and output."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = {"model": name, **in_child(ME, "--child", "make", name, folder)}
        for device in devices:
            for implementation, output in pairs:
                case = {"device": device, "implementation": implementation, "output": output}
                case["load_before"] = round(os.getloadavg()[0], 2)
                arguments = ("measure", name, implementation, output, folder, device, seconds)
                rows.append({**model, **case, **in_child(ME, "--child", *arguments)})
    return rows


def ratios(rows: list[dict]) -> list[list[Any]]:
    """Return how many times the suite is faster and smaller than its baseline, for the same output.

    Of the fastest calls: other load on the machine only ever adds to a call.
    """
    found = {tuple(row[key] for key in KEYS): row for row in rows}
    lines = []
    for (model, device, implementation, output), row in found.items():
        if implementation != "suite":
            pairs = [(row[c], found[model, device, "suite", output][c]) for c in ("cameras_1", "cameras_2")]
            values = [
                round(other[k] / ours[k], 2) for other, ours in pairs for k in ("ms_fastest", "memory_mb")
            ]
            lines.append([model, device, implementation, output, *values])
    return lines


def main() -> None:
    options = arguments(
        __doc__, seconds=5.0, models=None, child=None
    )  # seconds of calls in every measurement
    if options.child:
        print(json.dumps(child(*options.child)), flush=True)
        return
    plan = in_child(ME, "--child", "plan")
    unknown = set(options.models or []) - set(plan["models"])
    if unknown:
        raise SystemExit(f"--models: found {sorted(unknown)}, expected some of {list(plan['models'])}.")
    for name in options.models or plan["models"]:
        measured = rows_of(name, plan["models"][name], plan["devices"], options.seconds)
        rows = save("speed/perception", measured, KEYS, vars(options))
    sides = [(key, count) for key in ("ms", "memory_mb") for count in ("cameras_1", "cameras_2")]
    cells = [[*(row[key] for key in KEYS), *(row[count][key] for key, count in sides)] for row in rows]
    print(table([*KEYS, "ms, 1 camera", "2 cameras", "MB, 1 camera", "2 cameras"], cells))
    print("The suite over others, in times:")
    names = ["faster, 1", "smaller, 1", "faster, 2", "smaller, 2"]
    print(table(["model", "device", "over", "output", *names], ratios(rows)))


if __name__ == "__main__":
    main()
