# SPDX-License-Identifier: Apache-2.0
"""Film a segdepth policy in the workbench, with what it sees: masks and disparity of every camera.

    python -m examples.segdepth_film --checkpoint=outputs/segdepth_lift_cube/checkpoints/last/pretrained_model \
        --level=randomised --output=outputs/film.mp4
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import torch

from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.views import View
from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
from lerobot_processor_so101 import OBSERVED, disparity_key, resolve_perception, seg_key
from lerobot_processor_so101.overlay import side_by_side
from lerobot_processor_so101.trained_policy import batch_of_one, load_policy

SIDE = 240
MOMENTS = 5  # of each episode on the sheet
_GREEN, _RED = (60, 170, 80), (200, 60, 50)


def frame_of(env: WorkbenchEnv, policy: SegDepthPolicy, batch: dict[str, Any]) -> np.ndarray:
    """The arm from the front; beside it each camera, its masks and its disparity, as the policy has them."""
    rows = []
    seen = resolve_perception(batch)
    for camera in policy.config.cameras:
        colours = env.world.render(camera, SIDE, SIDE).rgb
        ids, disparity = seen[seg_key(camera)][0].numpy(), seen[disparity_key(camera)][0].numpy()
        rows.append(side_by_side(colours, ids, disparity, policy.config.class_names))
    beside = np.vstack(rows)
    front = env.world.render("front", len(beside), len(beside)).rgb
    return np.hstack([front, beside])


def episode(
    env: WorkbenchEnv, policy: SegDepthPolicy, pipelines: Sequence[Any], seed: int
) -> tuple[list, bool]:
    """Frames of one start, and whether it succeeded."""
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
    parser.add_argument("--height", type=int, default=84, help="of the cameras' pictures")
    parser.add_argument("--width", type=int, default=84)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(1000, 1010)), help="start = seed modulo 200"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/segdepth_film.mp4"))
    parser.add_argument("--sheet", type=Path, help="also a picture: a row of moments for every episode")
    options = parser.parse_args()
    policy, *pipelines = load_policy(options.checkpoint)
    observed = policy.config.segmenter == OBSERVED
    view = View(tuple(policy.config.cameras), options.height, options.width, not observed, observed, observed)
    env = WorkbenchEnv(options.task, options.level, view=view)
    rows = []
    with av.open(str(options.output), "w") as container:
        stream = container.add_stream("h264", rate=30)
        for seed in options.seeds:
            frames, success = episode(env, policy, pipelines, seed)
            print(
                f"start {seed % 200}: {'success' if success else 'failure'} after {len(frames) / 30:.1f} s",
                flush=True,
            )
            ended = frames[-1].copy()
            ended[:8], ended[-8:] = (_GREEN if success else _RED,) * 2
            moments = [frames[i] for i in np.linspace(0, len(frames) - 1, MOMENTS).round().astype(int)]
            rows.append(np.hstack([*moments[:-1], ended]))
            for frame in [*frames, *[ended] * 20]:
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    env.close()
    if options.sheet:
        sheet = PIL.Image.fromarray(np.vstack(rows))
        sheet.reduce(4).quantize(128).save(options.sheet)


if __name__ == "__main__":
    main()
