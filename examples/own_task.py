# SPDX-License-Identifier: Apache-2.0
"""A task of your own: lift the white cube and leave the black one. The expert performs it.

python -m examples.own_task --output=outputs/own_task.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from lerobot_env_so101_workbench import names
from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.sim.expert import Expert
from lerobot_env_so101_workbench.sim.scene import Prop
from lerobot_env_so101_workbench.tasks import TASKS, Goal, Task
from lerobot_env_so101_workbench.tasks.base import lift, reach

WHITE, BLACK = Prop("white cube", "cube", (0.9, 0.9, 0.9)), Prop("black cube", "cube", (0.1, 0.1, 0.1))


class LiftWhiteCube(Task):
    name = "lift_white_cube"
    props = (WHITE, BLACK)
    time_limit_s = 6.0

    def sample_goal(self, rng: np.random.Generator) -> Goal:
        return Goal(pick=WHITE.name)

    def instruction(self, goal: Goal) -> str:
        return f"Lift the {goal.pick}."

    def terms(self, world) -> dict[str, float]:
        return {"reach": reach(world, WHITE.name), "lift": lift(world, WHITE.name, height=0.05)}

    def is_success(self, world) -> bool:
        return self.terms(world)["lift"] == 1.0 and lift(world, BLACK.name, height=0.05) < 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/own_task.png"))
    output = parser.parse_args().output
    # A task in the package is registered in its sources instead; see CONTRIBUTING.md.
    TASKS[LiftWhiteCube.name] = LiftWhiteCube()
    names.TASK_NAMES += (LiftWhiteCube.name,)
    env = WorkbenchEnv(LiftWhiteCube.name, level="distractors", starts="train")  # no frozen initial states
    env.reset(seed=0)
    for _ in range(env.world.task.time_limit_ticks):
        *_, info = env.step(Expert(env.world).decide().action)  # the expert has no memory
    print(f"{env.task_description} success: {info['is_success']}, progress: {info['progress']:.2f}")
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(env.render()).save(output)
    env.close()


if __name__ == "__main__":
    main()
