# SPDX-License-Identifier: Apache-2.0
"""Draw every task at every level as its cameras see it: docs/images/tasks.png.

.venv/bin/python -m examples.contact_sheet
"""

import argparse
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np

from lerobot_env_so101_workbench.expert import Expert
from lerobot_env_so101_workbench.names import LEVELS, TASK_NAMES
from lerobot_env_so101_workbench.overlay import overlay
from lerobot_env_so101_workbench.start import evaluation_start
from lerobot_env_so101_workbench.world import World
from lerobot_processor_so101 import depth_to_disparity

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

HEIGHT, WIDTH, TICKS = 240, 320, 14
COLUMNS = ("front", "top", "wrist", "top: class ids", "wrist: class ids", "top: disparity")


def views(task: str, level: str, number: int) -> tuple[list[np.ndarray], str]:
    """Pictures of one start, some ticks into the expert's work, and its instruction."""
    world = World(task, level)
    world.reset(evaluation_start(task, level, number))
    expert = Expert(world)
    for _ in range(TICKS):
        world.step(expert.decide().action)
    front, top, wrist = (
        world.render(c, HEIGHT, WIDTH, ids=True, depth=True) for c in ("front", "top", "wrist")
    )
    disparity = depth_to_disparity(torch.from_numpy(top.depth)[None])[0].numpy().astype(np.uint8)
    pictures = [front.rgb, top.rgb, wrist.rgb, overlay(top.rgb, top.ids), overlay(wrist.rgb, wrist.ids)]
    instruction = world.instruction()
    world.close()
    return [*pictures, plt.get_cmap("viridis")(disparity)[..., :3]], instruction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/tasks.png"))
    parser.add_argument("--start", type=int, default=3, help="number of the frozen start")
    args = parser.parse_args()
    rows = list(product(TASK_NAMES, LEVELS))
    figure, axes = plt.subplots(len(rows), len(COLUMNS), figsize=(15, 2.05 * len(rows)))
    for row, (task, level) in zip(axes, rows, strict=True):
        pictures, instruction = views(task, level, args.start)
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture)
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
