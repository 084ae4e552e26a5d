# SPDX-License-Identifier: Apache-2.0
"""`so101-starts`: write frozen starts of the workbench for a person to lay out on a real table, with a picture of each.

so101-starts --task=lift_cube --count=20 --output=outputs/starts
lerobot-eval --env.type=so101_real --env.starts=outputs/starts/starts.json ...
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import draccus
import numpy as np
import PIL.Image

from .names import check_level, check_task
from .scene import Prop
from .start import N_EVAL_STARTS, Start, evaluation_start
from .tasks import TASKS
from .world import World

PICTURE = (480, 640)  # h, w
PICTURES_FROM = ("top", "front")
_SAME_AGAIN = {"cube": 90, "brick": 180}  # deg; other shapes are round


@dataclass
class StartsConfig:
    """Options of `so101-starts`.

    Args:
        task, level: whose starts; with `randomised` only what lies where can be laid out, not light and textures.
        count: how many, from the first on.
        output: folder for `starts.json` and the pictures.
        renderer: auto, egl, osmesa, glfw or ray.
    """

    task: str = "lift_cube"
    level: str = "clean"
    count: int = 20
    output: Path = Path("outputs/starts")
    renderer: str = "auto"


def describe(start: Start, props: tuple[Prop, ...]) -> str:
    """What lies where, seen from behind the base."""
    parts, shapes = [], {prop.name: prop.shape for prop in props}
    for name, (x, y, yaw) in start.poses.items():
        side = "left" if y > 0 else "right"
        turned = round(np.degrees(yaw)) % _SAME_AGAIN.get(shapes[name], 1)
        place = f"{100 * x:.0f} cm before the middle of the base, {abs(100 * y):.0f} cm to the {side}"
        parts.append(f"{name} {place}" + (f", turned {turned} deg to the left" if turned else ""))
    return "; ".join(parts) + "."


def write_starts(config: StartsConfig) -> Path:
    """Write pictures and descriptions, and return the file.

    Raises:
        ValueError: an unknown task or level, or a number of starts that there are not.
    """
    check_task(config.task, "--task")
    check_level(config.level, "--level")
    if not 1 <= config.count <= N_EVAL_STARTS:
        raise ValueError(f"--count: found {config.count}, expected 1 to {N_EVAL_STARTS}.")
    config.output.mkdir(parents=True, exist_ok=True)
    world, entries = World(config.task, config.level, config.renderer), []
    try:
        for number in range(config.count):
            start = evaluation_start(config.task, config.level, number)
            world.reset(start)
            name = f"{config.task}_{config.level}_{number:03d}"
            views = [np.asarray(world.render(camera, *PICTURE).rgb) for camera in PICTURES_FROM]
            PIL.Image.fromarray(np.hstack(views)).save(config.output / f"{name}.png")
            entries.append(
                {
                    "name": name,
                    "description": describe(start, world.props),
                    "instruction": TASKS[config.task].instruction(start.goal),
                    "picture": f"{name}.png",
                }
            )
    finally:
        world.close()
    path = config.output / "starts.json"
    path.write_text(json.dumps(entries, indent=1) + "\n")
    return path


def main() -> None:
    try:
        config = draccus.parse(StartsConfig)
        print(f"{config.count} starts in {write_starts(config)}")
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"so101-starts: {error}") from None


if __name__ == "__main__":
    main()
