# SPDX-License-Identifier: Apache-2.0
"""How many demonstrations does segdepth need, with and without takeovers, beside RGB?

    python -m benchmarks.learning.few_demonstrations
    python -m benchmarks.learning.few_demonstrations --variants plain --demonstrations 2 20 --seeds 3

`place_cube` at level `clean`; the first demonstrations of one recording; the same steps for all trainings.

    plain      masks and depth of the simulator
    takeovers  the same, and 60 takeovers of the policy `plain`, trained again from random weights
    rgb        segdepth's network with convolutions on RGB images

Evaluated on the published initial states. Writes results/learning/few_demonstrations.json; `--figure` draws
all that is stored there.
"""

from itertools import product
from pathlib import Path

from ..lib.plot import draw_success, new_axes, save_figure
from ..lib.report import arguments, percent, save, table
from ..lib.study import Study, environment, flags
from .segdepth import MASKS, with_classes

TASK, LEVEL = "place_cube", "clean"
SCENE = {"task": TASK, "level": LEVEL}
RGB = flags(height=84, width=84)
VARIANTS = {"plain": "#3366aa", "takeovers": "#2f8f5b", "rgb": "#c87832"}  # with colours of the figure
KEYS = ("task", "level", "variant", "demonstrations", "seed")


class FewDemonstrations(Study):
    """The steps of the study."""

    def demonstrations(self, number: int, images: list[str], name: str) -> Path:
        """Record the first demonstrations; the same seeds give the same motions."""
        options = flags(**SCENE, video=False, episodes=number, seed=60_000)
        return self.demonstrate(f"{name} {number}", [*options, *images])

    def trained(self, variant: str, number: int, seed: int) -> Path:
        """Train a policy, and return its checkpoint."""
        name = f"{variant} {number} seed {seed}"
        if variant == "rgb":
            options = [f"--dataset.root={self.demonstrations(number, RGB, 'images')}", "--policy.encoder=rgb"]
        elif variant == "plain":
            options = self.arrays(self.demonstrations(number, MASKS, "masks"))
        else:
            policy = self.trained("plain", number, seed)
            corrections = flags(**SCENE, video=False, workers=2, episodes=self.options.takeovers)
            corrections += [*MASKS, f"--policy.path={policy}", *flags(seed=60_000 + 1_000 * seed)]
            root = self.demonstrations(number, MASKS, "masks")
            options = self.arrays(self.add(f"data of {name}", root, corrections))
        options += ["--dataset.repo_id=local/few", "--policy.type=segdepth", *with_classes(TASK)]
        options += ["--batch_size=32", *flags(seed=seed, save_freq=self.options.steps)]
        return self.train(name, options, self.options.steps)

    def row(self, variant: str, number: int, seed: int) -> dict:
        """Train a policy, and evaluate it."""
        checkpoint = self.trained(variant, number, seed)
        env = [*environment(RGB if variant == "rgb" else MASKS, **SCENE), "--eval.batch_size=1"]
        outcomes = self.evaluate(f"{variant} {number} {seed}", checkpoint, env)
        return {**SCENE, "variant": variant, "demonstrations": number, "seed": seed, "outcomes": outcomes}


def draw(rows: list[dict], path: Path) -> None:
    """Plot success over the number of demonstrations."""
    axes, ticks = new_axes(), sorted({row["demonstrations"] for row in rows})
    for variant, colour in VARIANTS.items():
        outcomes: dict[int, list[str]] = {}
        for row in rows:
            if row["variant"] == variant:
                outcomes.setdefault(row["demonstrations"], []).append(row["outcomes"])
        if outcomes:
            draw_success(axes, sorted(outcomes.items()), colour, variant)
    axes.set_xscale("log")
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    save_figure(axes, path, f"segdepth on {TASK}, {LEVEL}", "demonstrations")


def main() -> None:
    options = arguments(
        __doc__,
        {"variants": VARIANTS},
        out=Path("outputs/learning_few"),
        demonstrations=[2, 5, 20, 80, 300],
        variants=list(VARIANTS),
        takeovers=60,
        steps=2000,
        seeds=1,
        initial_states=100,
        figure=Path(""),  # draws all stored results into this image
    )
    study = FewDemonstrations(options.out, options)
    rows: list[dict] = []
    for seed, number, variant in product(range(options.seeds), options.demonstrations, options.variants):
        rows = save("learning/few_demonstrations", [study.row(variant, number, seed)], KEYS, vars(options))
    print(table([*KEYS, "success"], [[*(row[key] for key in KEYS), percent(row)] for row in rows]))
    if options.figure.name:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
