# SPDX-License-Identifier: Apache-2.0
"""Where should the cameras of a first pick be?

    python -m benchmarks.learning.views

`lift_cube` at level `randomised`, segdepth with masks and depth of the simulator. One set of demonstrations
is rendered from three views, and every training takes some of them. `top` faces the arm from 52 cm above
the table, `front` from further away and 24 cm above it, and `wrist` is on the gripper. All trainings have
the same steps. Evaluated on validation states, because the results are for choices. Writes
results/learning/views.json.
"""

from itertools import product
from pathlib import Path

from lerobot_env_so101_workbench.sim.scene import class_names
from lerobot_env_so101_workbench.tasks import TASKS

from ..lib.report import arguments, percent, save, table
from ..lib.study import Study, environment, flags, listed

TASK, LEVEL = "lift_cube", "randomised"
CAMERAS = ("top", "wrist", "front")
SETS = ("top", "front", "wrist", "top+wrist", "front+wrist", "top+front", "top+wrist+front")
MASKS = flags(height=84, width=84, rgb=False, seg=True, depth=True)
KEYS = ("task", "level", "cameras", "seed")


class Views(Study):
    """The steps of the study."""

    def row(self, views: str, seed: int) -> dict:
        """Train on some of the views of the demonstrations, and evaluate."""
        cameras, scene = views.split("+"), {"task": TASK, "level": LEVEL}
        recorded = {**scene, "video": False, "workers": 2, "episodes": self.options.demonstrations}
        images = [*MASKS, f"--cameras={listed(CAMERAS)}"]
        root = self.demonstrate("demonstrations", [*flags(**recorded, seed=50_000), *images])
        policy = {"type": "segdepth", "cameras": cameras, "class_names": class_names(TASKS[TASK].props)}
        options = [*self.arrays(root), "--dataset.repo_id=local/views", *flags("policy.", **policy)]
        options += ["--batch_size=32", *flags(seed=seed, save_freq=self.options.steps)]
        checkpoint = self.train(f"{views} {seed}", options, self.options.steps)
        env = environment(MASKS, **scene, cameras=cameras, starts="validation")
        outcomes = self.evaluate(f"{views} {seed}", checkpoint, [*env, "--eval.batch_size=1"])
        return {**scene, "cameras": views, "seed": seed, "outcomes": outcomes}


def main() -> None:
    sizes = {"demonstrations": 50, "steps": 2000, "initial_states": 100}
    options = arguments(
        __doc__, {"sets": SETS}, out=Path("outputs/learning_views"), **sizes, seeds=1, sets=list(SETS)
    )
    study = Views(options.out, options)
    for seed, views in product(range(options.seeds), options.sets):
        rows = save("learning/views", [study.row(views, seed)], KEYS, vars(options))
    print(table([*KEYS, "success"], [[*(row[key] for key in KEYS), percent(row)] for row in rows]))


if __name__ == "__main__":
    main()
