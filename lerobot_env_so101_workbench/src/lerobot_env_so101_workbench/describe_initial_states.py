# SPDX-License-Identifier: Apache-2.0
"""`so101-starts`: describe frozen initial states, with images, for a person who arranges them on a table.

so101-starts --task=lift_cube --count=20 --output=outputs/starts
lerobot-eval --env.type=so101_real --env.starts=outputs/starts/starts.json ...
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from lerobot_processor_so101.cli import run_command

from .names import check_level, check_task
from .sim.initial_states import N_EVALUATION, InitialState, evaluation_initial_state
from .sim.scene import Prop
from .sim.world import World

_IMAGE_SIZE = (480, 640)  # height, width
_SYMMETRY = {"cube": 90, "brick": 180}  # deg; other shapes are round


@dataclass
class StartsConfig:
    """Options of `so101-starts`.

    Args:
        task: task of the initial states.
        level: level of the initial states; of `randomised` only the poses can be arranged.
        count: number of initial states, from the first on.
        output: folder for `starts.json` and the images.
        renderer: `auto`, `egl`, `osmesa`, `glfw` or `ray`.
    """

    task: str = "lift_cube"
    level: str = "clean"
    count: int = 20
    output: Path = Path("outputs/starts")
    renderer: str = "auto"


def describe(state: InitialState, props: tuple[Prop, ...]) -> str:
    """Describe the position and orientation of every prop as seen from behind the base."""
    parts, shapes = [], {prop.name: prop.shape for prop in props}
    for name, (x, y, yaw) in state.poses.items():
        side = "left" if y > 0 else "right"
        turned = round(np.degrees(yaw)) % _SYMMETRY.get(shapes[name], 1)
        part = f"{name} {100 * x:.0f} cm before the middle of the base, {abs(100 * y):.0f} cm to the {side}"
        parts.append(part + (f", turned {turned} deg to the left" if turned else ""))
    return "; ".join(parts) + "."


def write_descriptions(config: StartsConfig) -> Path:
    """Write images and descriptions, and return the file.

    Raises:
        ValueError: if the task, level or count is not supported.
    """
    check_task(config.task, "--task")
    check_level(config.level, "--level")
    if not 1 <= config.count <= N_EVALUATION:
        raise ValueError(f"--count: found {config.count}, expected 1 to {N_EVALUATION}.")
    config.output.mkdir(parents=True, exist_ok=True)
    world, entries = World(config.task, config.level, config.renderer), []
    try:
        for index in range(config.count):
            state = evaluation_initial_state(config.task, config.level, index)
            world.reset(state)
            name = f"{config.task}_{config.level}_{index:03d}"
            images = [np.asarray(world.render(view, *_IMAGE_SIZE).rgb) for view in ("top", "front")]
            PIL.Image.fromarray(np.hstack(images)).save(config.output / f"{name}.png")
            scene = {"description": describe(state, world.props), "instruction": world.instruction()}
            entries.append({"name": name, **scene, "picture": f"{name}.png"})
    finally:
        world.close()
    path = config.output / "starts.json"
    path.write_text(json.dumps(entries, indent=1) + "\n")
    return path


def main() -> None:
    """Run `so101-starts`."""

    def command(config: StartsConfig) -> str:
        return f"{config.count} initial states in {write_descriptions(config)}"

    run_command("so101-starts", StartsConfig, command)


if __name__ == "__main__":
    main()
