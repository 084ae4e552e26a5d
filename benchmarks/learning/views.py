# SPDX-License-Identifier: Apache-2.0
"""Which cameras, and how many demonstrations, does a first pick need?

    python -m benchmarks.learning.views

`lift_cube` at level `randomised`, segdepth with masks and depth of the simulator. One set of demonstrations
is rendered from three views; every training takes some of the views and some of the episodes:

    views     each set of cameras, with 50 demonstrations
    episodes  each number of demonstrations, with the cameras top and wrist

`top` faces the arm from 52 cm above the table, `front` from further away and 24 cm above it, and `wrist` is
on the gripper. All trainings have the same steps. Evaluated on validation states, because the results are for
choices. Writes results/learning/views.json.
"""

from pathlib import Path

from lerobot_env_so101_workbench.sim.scene import class_names
from lerobot_env_so101_workbench.tasks import TASKS

from ..lib.report import arguments, percent, save, table
from ..lib.study import Study, environment, flags, listed

TASK, LEVEL = "lift_cube", "randomised"
CAMERAS = ("top", "wrist", "front")
USUAL = ("top", "wrist")
SETS = (("top",), ("front",), ("wrist",), USUAL, ("front", "wrist"), ("top", "front"), CAMERAS)
EPISODES = (10, 25, 50, 100, 200)
USUAL_EPISODES = 50
MASKS = flags(height=84, width=84, rgb=False, seg=True, depth=True)
KEYS = ("task", "level", "cameras", "episodes", "seed")


class Views(Study):
    """The steps of the study."""

    def row(self, cameras: tuple[str, ...], episodes: int, seed: int) -> dict:
        """Train on some cameras of some demonstrations, and evaluate."""
        scene = {"task": TASK, "level": LEVEL}
        images = [*MASKS, f"--cameras={listed(CAMERAS)}"]
        recorded = {**scene, "video": False, "workers": 2, "episodes": max(EPISODES), "seed": 50_000}
        root = self.demonstrate("demonstrations", [*flags(**recorded), *images])
        name = f"{' '.join(cameras)} {episodes} seed {seed}"
        policy = {"type": "segdepth", "cameras": cameras, "class_names": class_names(TASKS[TASK].props)}
        options = [*self.arrays(root), "--dataset.repo_id=local/views", *flags("policy.", **policy)]
        options += [f"--dataset.episodes={listed(range(episodes))}", "--batch_size=32"]
        options += flags(seed=seed, save_freq=self.options.steps)
        checkpoint = self.train(name, options, self.options.steps)
        env = environment(MASKS, **scene, cameras=cameras, starts="validation")
        outcomes = self.evaluate(name, checkpoint, [*env, "--eval.batch_size=1"])
        case = {**scene, "cameras": "+".join(cameras), "episodes": episodes, "seed": seed}
        return {**case, "outcomes": outcomes}


def main() -> None:
    options = arguments(
        __doc__, {}, out=Path("outputs/learning_views"), steps=2000, seeds=1, initial_states=100
    )
    study = Views(options.out, options)
    cases = [(cameras, USUAL_EPISODES) for cameras in SETS] + [(USUAL, number) for number in EPISODES]
    for seed in range(options.seeds):
        for cameras, episodes in dict.fromkeys(cases):
            rows = save("learning/views", [study.row(cameras, episodes, seed)], KEYS, vars(options))
    print(table([*KEYS, "success"], [[*(row[key] for key in KEYS), percent(row)] for row in rows]))


if __name__ == "__main__":
    main()
