# SPDX-License-Identifier: Apache-2.0
"""The whole loop of segdepth, from two cameras to joint targets: milliseconds by phase, on this machine.

    python -m benchmarks.segdepth_loop

Cameras are recordings of the workbench in the form that webcams deliver, JPEG pictures, so that capturing costs what
decoding costs. Every tick looks (`n_action_steps=1`), as the slowest tick of a chunk does; the last column is what is
left of it with the default, a look in four ticks. Weights are random, sizes real. Writes results/segdepth_loop.json.
"""

import argparse
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.utils import prepare_observation_for_inference

from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.views import View
from lerobot_policy_segdepth import SegDepthConfig
from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
from lerobot_policy_segdepth.processor_segdepth import make_segdepth_pre_post_processors
from lerobot_processor_so101.perception_step import PerceptionStep

from .clock import Clock
from .perception_models import MODELS
from .report import save, table

CAMERAS = ("top", "wrist")
SIZES = {"84x84": (84, 84), "640x480": (480, 640)}
PHASES = ("capture", "segmentation", "depth", "network", "rest", "total")
DEPTHS = {"its own head": "segmenter", "Depth Anything V2 Small": "depth-anything-v2-small"}


def record(height: int, width: int, frames: int = 60) -> list[bytes]:
    """JPEG pictures of each camera in turn, of an arm that moves."""
    env = WorkbenchEnv("lift_cube", view=View(CAMERAS, height, width, True, False, False))
    observation, _ = env.reset(seed=0)
    pictures = []
    for _ in range(frames):
        for camera in CAMERAS:
            colours = cv2.cvtColor(observation["pixels"][camera], cv2.COLOR_RGB2BGR)
            pictures.append(cv2.imencode(".jpg", colours, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        observation, *_ = env.step(observation["agent_pos"] + np.array([0.5, 1, -1, 0.5, 0, 1]))
    env.close()
    return pictures


def build(folder: Path, size: tuple[int, int], depth: str) -> tuple[SegDepthPolicy, Any, Any]:
    """The policy as `recommended` has it, looking at every tick, and its pipelines."""
    height, width = size
    head = " + disparity" if depth == "segmenter" else ""
    names = {"segmenter": f"efficientvit_fpn {height}x{width}{head}"}
    if depth != "segmenter":
        names["depth"] = depth
    for name in names.values():
        MODELS[name].save(folder / name.replace(" ", "_"))
    found = {key: str(folder / name.replace(" ", "_")) for key, name in names.items()}
    pictures = {
        f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, height, width)) for c in CAMERAS
    }
    config = SegDepthConfig(
        **{"depth": "segmenter", **found},
        n_action_steps=1,
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **pictures},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        device="cpu",
        push_to_hub=False,
    )
    stats = {key: {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("observation.state", "action")}
    return SegDepthPolicy(config), *make_segdepth_pre_post_processors(config, stats)


def measure(folder: Path, size: tuple[int, int], depth: str, ticks: int) -> dict[str, dict[str, float]]:
    """Run the loop."""
    policy, preprocessor, postprocessor = build(folder, size, depth)
    clock = Clock(*PHASES[:4])
    for step in preprocessor.steps:
        if isinstance(step, PerceptionStep):
            name = "segmentation" if hasattr(step, "segmenter") else "depth"
            step.perceive = clock.timed(name, step.perceive)  # type: ignore[method-assign]  # to time it
    policy.model.forward = clock.timed("network", policy.model.forward)
    policy.ema = None
    pictures = cycle(record(*size))
    for _ in range(ticks + 10):
        with clock.phase("total"), torch.no_grad():
            with clock.phase("capture"):
                observation = {"observation.state": np.zeros(6, dtype=np.float32)}
                for camera in CAMERAS:
                    picture = cv2.imdecode(np.frombuffer(next(pictures), np.uint8), cv2.IMREAD_COLOR)
                    observation[f"observation.images.{camera}"] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            batch = prepare_observation_for_inference(observation, torch.device("cpu"))
            postprocessor(policy.select_action(preprocessor(batch)))
        clock.tick()
    return clock.summary(skip=10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ticks", type=int, default=200)
    options = parser.parse_args()
    rows = []
    for label, size in SIZES.items():
        for depth_label, depth in DEPTHS.items():
            count = options.ticks if depth == "segmenter" else max(20, options.ticks // 10)
            with tempfile.TemporaryDirectory() as folder:
                found = measure(Path(folder), size, depth, count)
            looking = found["segmentation"]["p50"] + found["depth"]["p50"] + found["network"]["p50"]
            mean = found["total"]["p50"] - 0.75 * looking
            rows.append({"pictures": label, "disparity": depth_label, "ticks": count, **found})
            rows[-1] |= {
                "hz_p95": round(1000 / found["total"]["p95"], 1),
                "hz_chunk_of_4": round(1000 / mean, 1),
            }
    cells = [
        [
            r["pictures"],
            r["disparity"],
            *(f"{r[p]['p50']:.1f} / {r[p]['p95']:.1f}" for p in PHASES),
            f"{r['hz_p95']:.1f}",
            f"{r['hz_chunk_of_4']:.1f}",
        ]
        for r in rows
    ]
    print(f"milliseconds, p50 / p95, {torch.get_num_threads()} threads")
    print(table(["pictures", "disparity", *PHASES, "Hz at p95", "Hz, look in 4"], cells))
    print("written to", save("segdepth_loop", {"threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
