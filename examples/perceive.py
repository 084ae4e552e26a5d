# SPDX-License-Identifier: Apache-2.0
"""Perception in a loop: class ids and disparity of a simulated camera, by the segmenter in the package.

Prints the share of every class in the images, the range of disparity, and frames per second.

    python -m examples.perceive --frames=60
"""

import argparse
import time

import torch

from lerobot_env_so101_workbench import CameraSetup
from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.sim.expert import Expert
from lerobot_processor_so101.models import make_segmenter

SIZE = (84, 84)  # (h, w) of the results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--segmenter", default="workbench", help="also a folder, or a Hub id")
    parser.add_argument("--frames", type=int, default=60)
    options = parser.parse_args()

    # 1. a model, and a camera
    segmenter = make_segmenter(options.segmenter)
    env = WorkbenchEnv("lift_cube", "randomised", cameras=CameraSetup(("top",), height=240, width=320))
    observation, _ = env.reset(seed=1000)
    expert = Expert(env.world)

    # 2. the loop: image -> scores -> class ids and disparity
    pixels, seconds = torch.zeros(len(segmenter.class_names)), 0.0
    for _ in range(options.frames):
        image = torch.from_numpy(observation["pixels"]["top"]).permute(2, 0, 1)[None] / 255  # (1, 3, H, W)
        begin = time.perf_counter()
        scores = segmenter(image)
        ids = scores.ids(SIZE)  # (1, h, w) uint8
        seconds += time.perf_counter() - begin
        pixels += torch.bincount(ids.flatten().int(), minlength=len(pixels))
        observation, *_ = env.step(expert.decide().action)
    env.close()

    # 3. the result
    for name, share in zip(segmenter.class_names, pixels / pixels.sum(), strict=True):
        print(f"{name:<15}{100 * share:6.2f} %")
    if segmenter.predicts_disparity:
        disparity = scores.disparity_map(SIZE)  # (1, h, w) float32, 0 to 255, near = 255
        print(f"disparity of the last frame: {disparity.min():.0f} to {disparity.max():.0f}")
    print(f"{options.frames / seconds:.0f} frames per second")


if __name__ == "__main__":
    main()
