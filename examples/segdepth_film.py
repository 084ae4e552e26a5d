# SPDX-License-Identifier: Apache-2.0
"""Film a segdepth policy in the workbench, with its inputs: masks and disparity of every camera.

    python -m examples.segdepth_film --level=randomised --output=outputs/film.mp4 \
        --checkpoint=outputs/segdepth_lift_cube/checkpoints/last/pretrained_model
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.sim.cameras import CameraSetup
from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
from lerobot_processor_so101 import OBSERVED, disparity_key, resolve_perception, seg_key
from lerobot_processor_so101.perception.overlay import side_by_side
from lerobot_processor_so101.policy.trained_policy import batch_of_one, load_policy
from lerobot_processor_so101.recording import VideoWriter

SIDE = 240
FRAMES = 5  # of each episode on the sheet
_GREEN, _RED = (60, 170, 80), (200, 60, 50)


def frame_of(env: WorkbenchEnv, policy: SegDepthPolicy, batch: dict[str, Any]) -> np.ndarray:
    """Draw the arm from the front; beside it each camera with the policy's input, masks and disparity."""
    rows = []
    inputs = resolve_perception(batch)
    for camera in policy.config.cameras:
        rgb = env.world.render(camera, SIDE, SIDE).rgb
        ids, disparity = inputs[seg_key(camera)][0].numpy(), inputs[disparity_key(camera)][0].numpy()
        rows.append(side_by_side(rgb, ids, disparity, policy.config.class_names))
    beside = np.vstack(rows)
    front = env.world.render("front", len(beside), len(beside)).rgb
    return np.hstack([front, beside])


def episode(
    env: WorkbenchEnv, policy: SegDepthPolicy, pipelines: Sequence[Any], seed: int
) -> tuple[list, bool]:
    """Return the frames of one episode, and whether it succeeded."""
    preprocessor, postprocessor = pipelines
    policy.reset()
    observation, info = env.reset(seed=seed)
    frames, over = [], False
    while not over:
        with torch.no_grad():
            batch = preprocessor(batch_of_one(observation))
            frames.append(frame_of(env, policy, batch))
            action = postprocessor(policy.select_action(batch))[0].numpy()
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    return frames, bool(info["is_success"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--task", default="lift_cube")
    parser.add_argument("--level", default="clean")
    parser.add_argument("--height", type=int, default=84, help="of the cameras' images")
    parser.add_argument("--width", type=int, default=84)
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=list(range(1000, 1010)),
        help="initial-state index = seed modulo 200",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/segdepth_film.mp4"))
    parser.add_argument("--sheet", type=Path, help="also an image: a row of frames for every episode")
    options = parser.parse_args()
    policy, *pipelines = load_policy(options.checkpoint)
    observed = policy.config.segmenter == OBSERVED
    size = (options.height, options.width)
    setup = CameraSetup(tuple(policy.config.cameras), *size, not observed, observed, observed)
    env = WorkbenchEnv(options.task, options.level, cameras=setup)
    rows = []
    with VideoWriter(options.output, 30) as video:
        for seed in options.seeds:
            frames, success = episode(env, policy, pipelines, seed)
            result, seconds = "success" if success else "failure", len(frames) / 30
            print(f"initial state {seed % 200}: {result} after {seconds:.1f} s", flush=True)
            ended = frames[-1].copy()
            ended[:8], ended[-8:] = (_GREEN if success else _RED,) * 2
            row = [frames[i] for i in np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
            rows.append(np.hstack([*row[:-1], ended]))
            for frame in [*frames, *[ended] * 20]:
                video.write(frame)
    env.close()
    if options.sheet:
        sheet = PIL.Image.fromarray(np.vstack(rows))
        sheet.reduce(4).quantize(128).save(options.sheet)


if __name__ == "__main__":
    main()
