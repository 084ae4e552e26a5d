# SPDX-License-Identifier: Apache-2.0
"""Samples per second of `lerobot-train`, and the share of loading in a step, by the way samples are read.

    python -m benchmarks.speed.train_loading

`loader`: LeRobot's loader reads action chunks, as for its own policies. `lookup`: the policy's preprocessor
looks them up. `arrays`: it also reads masks, depth or cached features from the arrays of `so101-arrays`.
Ways take turns, each in a process of its own, on demonstrations with two cameras of 96x96, images in Parquet.
Networks are those of the learning studies, segvla's and hlrp's with chunks of 50; the share of loading is
smaller with larger ones. Times are those that LeRobot logs (`data_s`, `updt_s`), medians over the repeats.
"""

import re
import subprocess
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch

from lerobot_env_so101_workbench.demos.command import DemosConfig, record
from lerobot_policy_hlrp import HLRPConfig
from lerobot_policy_imf.cache_vision import CacheVisionConfig
from lerobot_policy_segvla import SegVLAConfig
from lerobot_processor_so101 import DatasetLookupMixin
from lerobot_processor_so101.precompute.arrays import ArraysConfig, write_arrays
from lerobot_processor_so101.precompute.command import precompute

from ..learning.imf import SMALL
from ..lib.clock import take_turns
from ..lib.report import arguments, save, show
from ..lib.small_siglip import siglip
from ..lib.study import flags
from ..lib.untrained import POLICY, SIDE, small_vlm

LOADER, LOOKUP, ARRAYS = "loader", "lookup", "arrays"
BATCH = 32
LOGGED = re.compile(r"updt_s:([\d.]+) data_s:([\d.]+)")


def make_data(folder: Path, episodes: int) -> dict[str, dict[str, list[str]]]:
    """Record the datasets, and return the options of `lerobot-train` by policy and way of reading."""
    # 1. demonstrations, and cached features of some
    names = ("masks", "both", "rgb", "cached")
    masks, both, rgb, cached = (folder / name for name in names)
    kinds = {masks: {"rgb": False, "seg": True, "depth": True}, both: {"seg": True}, rgb: {}}
    for root, images in kinds.items():
        size = {"height": SIDE, "width": SIDE, "video": False}
        record(DemosConfig(root=root, episodes=episodes, **size, **images))
    torch.manual_seed(0)
    siglip().save_pretrained(folder / "siglip")
    encoder = {"vision_model_name": str(folder / "siglip"), "vision_grid": 4}
    precompute(CacheVisionConfig(output=cached, root=rgb, drop_rgb=True, device="cpu", **encoder))
    # 2. arrays
    arrays = {root: folder / f"{root.name}_arrays" for root in (masks, cached)}
    for root, output in arrays.items():
        print(write_arrays(ArraysConfig(root, output)))
    # 3. options
    vlm = small_vlm(folder / "vlm", ["Lift the cube."])
    small = [*POLICY, *flags("policy.", vlm_model_name=vlm, chunk_size=50)]
    trainings = {
        "segdepth": (masks, []),
        "segvla": (both, [*small, "--policy.segmenter=observation"]),
        "imf": (cached, flags("policy.", **encoder, **SMALL, flow_matching_steps=0)),
        "hlrp": (rgb, small),
    }
    return {
        policy: {
            way: [*options, *flags(**{"policy.type": policy, "dataset.root": used})]
            for way, used in ((LOADER, root), (LOOKUP, root), (ARRAYS, arrays.get(root)))
            if used
        }
        for policy, (root, options) in trainings.items()
    }


def measure(ways: dict[str, list[str]], way: str, workers: int, steps: int) -> tuple[float, ...]:
    """Train, and return seconds per step of updating and loading, without the first half of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        policy = flags("policy.", push_to_hub=False, device="cpu")
        own = {"output_dir": f"{folder}/run", "save_checkpoint": False, "batch_size": BATCH}
        own |= {"num_workers": workers, "steps": steps, "log_freq": steps // 2}
        given = [*ways[way], *policy, *flags(**own), "--dataset.repo_id=local/speed"]
        command = [sys.executable, "-m", "benchmarks.speed.train_loading", way, *given]
        child = subprocess.run(command, capture_output=True, text=True)
    logged = LOGGED.findall(child.stderr)
    if child.returncode != 0 or not logged:
        raise SystemExit(f"{' '.join(command)} failed:\n{child.stderr[-2000:]}")
    print(way, workers, "update and loading [s]:", *logged[-1], flush=True)
    return tuple(map(float, logged[-1]))


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
            ways, case = data[policy], {"policy": policy, "workers": workers}
            run = partial(measure, ways, workers=workers, steps=options.steps)
            runs = take_turns(ways, options.repeats, run)
            rows = []
            for way, found in runs.items():
                update, load = map(median, zip(*found, strict=True))
                row = {**case, "reads": way, "load_ms": round(1000 * load), "update_ms": round(1000 * update)}
                row["samples_per_s"] = round(BATCH / (load + update), 1)
                rows.append({**row, "loading_share": round(load / (load + update), 2)})
            rows = save("speed/train_loading", rows, ("policy", "workers", "reads"), vars(options))
    show(rows)


if __name__ == "__main__":
    main()
