# SPDX-License-Identifier: Apache-2.0
"""Samples per second of `lerobot-train`, and the share of loading in a step, by the way samples are read.

    python -m benchmarks.speed.train_loading

`loader`: LeRobot's loader reads action chunks, as for its own policies. `lookup`: the policy's preprocessor
looks them up. `arrays`: it also reads masks, depth or cached features from the arrays of `so101-arrays`.
Ways take turns, each in a process of its own, on demonstrations of the workbench: two cameras of 96x96,
images in Parquet. segdepth reads masks and depth of a dataset without RGB, imf cached features (768 numbers a
view), segvla RGB and masks, hlrp RGB. segvla, hlrp and imf are the small networks of the learning studies,
the first two with chunks of 50; the share of loading is smaller with larger ones. Times are those that
LeRobot logs (`data_s`, `updt_s`), medians over the repeats. An hour on two cores; writes
results/speed/train_loading.json.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers as hf

from lerobot_env_so101_workbench.demos.command import DemosConfig, record
from lerobot_policy_hlrp import HLRPConfig
from lerobot_policy_imf.cache_vision import CacheVisionConfig
from lerobot_policy_segvla import SegVLAConfig
from lerobot_processor_so101 import DatasetLookupMixin
from lerobot_processor_so101.precompute.arrays import ArraysConfig, write_arrays
from lerobot_processor_so101.precompute.command import precompute

from ..learning.imf import SMALL
from ..lib.report import arguments, save, table
from ..lib.small_smolvla import POLICY, SIDE, small_vlm

LOADER, LOOKUP, ARRAYS = "loader", "lookup", "arrays"
BATCH = 32
LOGGED = re.compile(r"updt_s:([\d.]+) data_s:([\d.]+)")


def make_data(folder: Path, episodes: int) -> dict[str, dict[str, list[str]]]:
    """Record the datasets, and return the options of `lerobot-train` by policy and way of reading."""
    images = {"episodes": episodes, "height": SIDE, "width": SIDE, "video": False}
    masks = record_demos(folder / "masks", rgb=False, seg=True, depth=True, **images)
    both = record_demos(folder / "both", seg=True, **images)
    rgb = record_demos(folder / "rgb", **images)
    torch.manual_seed(0)
    config: Any = hf.SiglipVisionConfig  # its generated constructor confuses mypy
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
    hf.SiglipVisionModel(config(**sizes, image_size=SIDE, patch_size=8)).save_pretrained(folder / "siglip")
    encoder = {"vision_model_name": str(folder / "siglip"), "vision_grid": 4}
    cached = folder / "cached"
    precompute(CacheVisionConfig(output=cached, root=rgb, drop_rgb=True, device="cpu", **encoder))
    arrays = {root: folder / f"{root.name}_arrays" for root in (masks, cached)}
    for root, output in arrays.items():
        print(write_arrays(ArraysConfig(root, output)))
    small = [*POLICY, f"--policy.vlm_model_name={small_vlm(folder / 'vlm', ['Lift the cube.'])}"]
    small.append("--policy.chunk_size=50")
    imf = [*(f"--policy.{name}={value}" for name, value in encoder.items()), *SMALL]
    imf.append("--policy.flow_matching_steps=0")
    trainings = {
        "segdepth": (masks, []),
        "segvla": (both, [*small, "--policy.segmenter=observation"]),
        "imf": (cached, imf),
        "hlrp": (rgb, small),
    }
    return {
        policy: {
            way: [
                f"--policy.type={policy}",
                f"--dataset.root={arrays[root] if way == ARRAYS else root}",
                *options,
            ]
            for way in (LOADER, LOOKUP, *([ARRAYS] if root in arrays else []))
        }
        for policy, (root, options) in trainings.items()
    }


def record_demos(root: Path, **options: Any) -> Path:
    """Record demonstrations, and return their folder."""
    record(DemosConfig(root=root, **options))
    return root


def measure(way: str, options: Sequence[str], workers: int, steps: int) -> dict[str, float]:
    """Train, and return seconds per step of updating and loading, without the first half of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "dataset.repo_id": "local/speed",
            "policy.push_to_hub": "false",
            "policy.device": "cpu",
            "output_dir": f"{folder}/run",
            "save_checkpoint": "false",
            "batch_size": BATCH,
            "num_workers": workers,
            "steps": steps,
            "log_freq": steps // 2,
        }
        given = [*options, *(f"--{name}={value}" for name, value in common.items())]
        command = [sys.executable, "-m", "benchmarks.speed.train_loading", way, *given]
        child = subprocess.run(command, capture_output=True, text=True)
    logged = LOGGED.findall(child.stderr)
    if child.returncode != 0 or not logged:
        raise SystemExit(f"{' '.join(command)} failed:\n{child.stderr[-2000:]}")
    update, load = map(float, logged[-1])
    return {"update_s": update, "load_s": load}


def train(way: str) -> None:
    """Run `lerobot-train` with the rest of the command line, and read samples in one of the ways."""
    from lerobot.scripts import lerobot_train

    if way == LOADER:
        DatasetLookupMixin.action_delta_indices = property(lambda self: self.chunk_delta_indices)
        for config in (SegVLAConfig, HLRPConfig):  # as SmolVLA
            config.observation_delta_indices = property(lambda self: [0])
    lerobot_train.main()


def main() -> None:
    if sys.argv[1:] and sys.argv[1] in (LOADER, LOOKUP, ARRAYS):
        train(sys.argv.pop(1))
        return
    policies = ["segdepth", "segvla", "imf", "hlrp"]
    options = arguments(__doc__, episodes=6, steps=30, repeats=3, workers=[0, 2], policies=policies)
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), options.episodes)
        for policy, workers in product(options.policies, options.workers):
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in data[policy]}
            for _ in range(options.repeats):
                for way, found in runs.items():
                    found.append(measure(way, data[policy][way], workers, options.steps))
                    print(policy, workers, way, found[-1], flush=True)
            rows = [
                {"policy": policy, "workers": workers, "reads": way, **summary(found)}
                for way, found in runs.items()
            ]
            rows = save("speed/train_loading", rows, ("policy", "workers", "reads"), vars(options))
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


def summary(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return medians over runs [ms per step], samples per second, and the share of loading in a step."""
    load, update = (median(run[name] for run in found) for name in ("load_s", "update_s"))
    return {
        "load_ms": round(1000 * load),
        "update_ms": round(1000 * update),
        "samples_per_s": round(BATCH / (load + update), 1),
        "loading_share": round(load / (load + update), 2),
    }


if __name__ == "__main__":
    main()
