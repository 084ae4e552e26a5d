# SPDX-License-Identifier: Apache-2.0
"""Milliseconds of segdepth's loop by phase, from two cameras to joint targets.

    python -m benchmarks.speed.segdepth

Cameras are recordings of the workbench in the form that webcams deliver, JPEG, so that capturing costs what
decoding costs. Every tick runs inference (`n_action_steps=1`), as the slowest tick of a chunk does; the last
column is the rate with the default, inference in one of four ticks. Weights are random, sizes real.
"""

import tempfile
from itertools import cycle, product
from pathlib import Path

import cv2
import numpy as np
import torch
from lerobot.policies.utils import prepare_observation_for_inference

from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.sim.cameras import CameraSetup
from lerobot_policy_segdepth import SegDepthConfig
from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
from lerobot_policy_segdepth.processor_segdepth import make_segdepth_pre_post_processors
from lerobot_processor_so101.steps.perception import PerceptionStep

from ..lib.clock import Clock
from ..lib.published_models import MODELS
from ..lib.report import arguments, save, table
from ..lib.untrained import robot_features

CAMERAS = ("top", "wrist")
SIZES = {"84x84": (84, 84), "640x480": (480, 640)}
PHASES = ("capture", "segmentation", "depth", "network", "rest", "total")
DEPTHS = {"its own head": "segmenter", "Depth Anything V2 Small": "depth-anything-v2-small"}


def record(height: int, width: int, frames: int = 60) -> list[bytes]:
    """Return JPEG images of each camera in turn, of a moving arm."""
    env = WorkbenchEnv("lift_cube", cameras=CameraSetup(CAMERAS, height, width))
    observation, _ = env.reset(seed=0)
    images = []
    for _ in range(frames):
        for camera in CAMERAS:
            bgr = cv2.cvtColor(observation["pixels"][camera], cv2.COLOR_RGB2BGR)
            images.append(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        observation, *_ = env.step(observation["agent_pos"] + np.array([0.5, 1, -1, 0.5, 0, 1]))
    env.close()
    return images


def measure(folder: Path, size: tuple[int, int], depth: str, ticks: int) -> dict[str, dict[str, float]]:
    """Run the loop of the policy with its preset `recommended`."""
    # 1. the policy with its pipelines
    own_head = depth == "segmenter"
    segmenter = MODELS[f"efficientvit_fpn {size[0]}x{size[1]}{' + disparity' * own_head}"]
    models = {"segmenter": segmenter.save(folder / "segmenter")}
    models["depth"] = depth if own_head else MODELS[depth].save(folder / "depth")
    options = {"n_action_steps": 1, "device": "cpu", "push_to_hub": False}
    config = SegDepthConfig(**robot_features(size), **models, **options)
    stats = {key: {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("observation.state", "action")}
    policy = SegDepthPolicy(config)
    preprocessor, postprocessor = make_segdepth_pre_post_processors(config, stats)
    # 2. the loop
    clock = Clock(*PHASES[:4])
    for step in preprocessor.steps:
        if isinstance(step, PerceptionStep):
            name = "segmentation" if hasattr(step, "segmenter") else "depth"
            clock.watch(name, step.live, "run_perception")
    clock.watch("network", policy.model)
    images = cycle(record(*size))
    for _ in range(ticks + 10):
        with clock.phase("total"), torch.no_grad():
            with clock.phase("capture"):
                observation = {"observation.state": np.zeros(6, dtype=np.float32)}
                for camera in CAMERAS:
                    image = cv2.imdecode(np.frombuffer(next(images), np.uint8), cv2.IMREAD_COLOR)
                    observation[f"observation.images.{camera}"] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            batch = prepare_observation_for_inference(observation, torch.device("cpu"))
            postprocessor(policy.select_action(preprocessor(batch)))
        clock.tick()
    return clock.summary(skip=10)


def main() -> None:
    options = arguments(__doc__, ticks=200)
    rows = []
    for (images, size), (disparity, depth) in product(SIZES.items(), DEPTHS.items()):
        ticks = options.ticks if depth == "segmenter" else max(20, options.ticks // 10)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), size, depth, ticks)
        rows.append({"images": images, "disparity": disparity, "ticks": ticks, **found})
    save("speed/segdepth", rows, (), {"threads": torch.get_num_threads()})
    cells = []
    for row in rows:
        texts = [f"{row[phase]['p50']:.1f} / {row[phase]['p95']:.1f}" for phase in PHASES]
        inference = sum(row[phase]["p50"] for phase in ("segmentation", "depth", "network"))
        rates = [round(1000 / ms, 1) for ms in (row["total"]["p95"], row["total"]["p50"] - 0.75 * inference)]
        cells.append([row["images"], row["disparity"], *texts, *rates])
    print(f"milliseconds, p50 / p95, {torch.get_num_threads()} threads")
    print(table(["images", "disparity", *PHASES, "Hz at p95", "Hz, inference in 1 of 4"], cells))


if __name__ == "__main__":
    main()
