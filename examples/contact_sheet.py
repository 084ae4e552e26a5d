# SPDX-License-Identifier: Apache-2.0
"""Draw the camera images of every task at every level: docs/images/tasks.png.

.venv/bin/python -m examples.contact_sheet
"""

import argparse
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np

from lerobot_env_so101_workbench.names import LEVELS, TASK_NAMES
from lerobot_env_so101_workbench.sim.expert import Expert
from lerobot_env_so101_workbench.sim.initial_states import evaluation_initial_state
from lerobot_env_so101_workbench.sim.world import World
from lerobot_processor_so101 import depth_to_disparity
from lerobot_processor_so101.perception.overlay import overlay

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

HEIGHT, WIDTH, TICKS = 240, 320, 14
COLUMNS = ("front", "top", "wrist", "top: class ids", "wrist: class ids", "top: disparity")


def views(task: str, level: str, number: int) -> tuple[list[np.ndarray], str]:
    """Return images of one initial state, some ticks into the expert's motion, and its instruction."""
    world = World(task, level)
    world.reset(evaluation_initial_state(task, level, number))
    expert = Expert(world)
    for _ in range(TICKS):
        world.step(expert.decide().action)
    front, top, wrist = (
        world.render(c, HEIGHT, WIDTH, ids=True, depth=True) for c in ("front", "top", "wrist")
    )
    disparity = depth_to_disparity(torch.from_numpy(top.depth)[None])[0].numpy().astype(np.uint8)
    masks = [overlay(frame.rgb, frame.ids, world.class_names) for frame in (top, wrist)]
    images = [front.rgb, top.rgb, wrist.rgb, *masks]
    instruction = world.instruction()
    world.close()
    return [*images, plt.get_cmap("viridis")(disparity)[..., :3]], instruction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/tasks.png"))
    parser.add_argument("--initial_state", type=int, default=3, help="index of the frozen initial state")
    args = parser.parse_args()
    rows = list(product(TASK_NAMES, LEVELS))
    figure, axes = plt.subplots(len(rows), len(COLUMNS), figsize=(15, 2.05 * len(rows)))
    for row, (task, level) in zip(axes, rows, strict=True):
        images, instruction = views(task, level, args.initial_state)
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{task}\n{level}", fontsize=9)
        row[1].set_title(instruction, fontsize=8, loc="left", pad=2)
    for axis, name in zip(axes[-1], COLUMNS, strict=True):
        axis.set_xlabel(name, fontsize=9)
    figure.tight_layout(pad=0.4)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=75)
    print("written to", args.out)


if __name__ == "__main__":
    main()
