# SPDX-License-Identifier: Apache-2.0
"""What the learning studies have in common: steps of stock commands in a folder that keeps what is done."""

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from examples.demo import run

from .report import circumstances, paired_gain, percent, rate, table

TRAIN = ("python", "-m", "benchmarks.train_in_memory")  # what lerobot-train does, sooner


class Study:
    """Commands, each run once.

    Args:
        out: the folder. Stopped and started again, a study goes on where it was.
        options: numbers from the command line.
    """

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        self.out, self.options = out, options
        out.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, command: list[str], done: Path) -> Path:
        """Run a command unless its result is there, and return that."""
        run(file_name(name), command, done, self.out)
        return done

    def demonstrate(self, name: str, options: Sequence[str]) -> Path:
        """Record demonstrations, and return their folder."""
        root = self.out / file_name(name)
        self.step(name, ["so101-demos", f"--root={root}", *options], root / "meta" / "info.json")
        return root

    def train(self, name: str, options: Sequence[str], steps: int, command: Sequence[str] = TRAIN) -> Path:
        """Train, or go on with a training that was stopped, and return the checkpoint."""
        out = self.out / file_name(name)
        done = out / "checkpoints" / f"{steps:06d}" / "pretrained_model"
        last = out / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
        if last.is_file():
            options = ["--resume=true", f"--config_path={last}"]
        else:
            if out.exists():  # stopped before its first checkpoint; LeRobot wants a new folder
                shutil.rmtree(out)
            own = ["--policy.device=cpu", "--policy.push_to_hub=false", "--num_workers=1", "--log_freq=100"]
            options = [*options, *own, f"--output_dir={out}", f"--steps={steps}"]
        self.step(f"train {name}", [*command, *options], done / "model.safetensors")
        return done

    def evaluate(
        self, name: str, checkpoint: Path, options: Sequence[str], command: Sequence[str] = ("lerobot-eval",)
    ) -> list[int]:
        """Success at each of the frozen starts."""
        out = self.out / file_name(f"eval {name}")
        own = [f"--policy.path={checkpoint}", "--policy.device=cpu", "--env.type=so101_sim"]
        own += ["--eval.use_async_envs=false", f"--output_dir={out}"]
        done = self.step(out.name, [*command, *own, *options], out / "eval_info.json")
        metrics = json.loads(done.read_text())["per_task"][0]["metrics"]
        return [int(success) for success in metrics["successes"]]


def file_name(name: str) -> str:
    """A name of an arm as that of a file."""
    return name.replace(" ", "_").replace("'", "")


def row(successes: list[int], **what: str | int) -> dict:
    """An evaluation, as it is reported."""
    return {**what, **rate(sum(successes), len(successes)), "per_start": successes}


def with_earlier(before: dict, new: list[dict], keys: Sequence[str]) -> list[dict]:
    """The rows of a result that are not made anew, then the new ones, each with the commit that made it.

    Args:
        before: what `report.load` gave; empty if there is nothing yet.
        new: rows of this run.
        keys: what two rows of the same measurement have in common.
    """
    made, commit = {tuple(r[key] for key in keys) for r in new}, circumstances()["commit"]
    new = [{**r, "commit": commit} for r in new]
    return [*(r for r in before.get("rows", []) if tuple(r[key] for key in keys) not in made), *new]


def compare(rows: list[dict], keys: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[dict]:
    """Print success of every row, and gains of arms over others, paired over starts.

    Args:
        rows: with "arm", "seed" and `keys`.
        keys: what must be alike in two arms that are compared, such as the task.
        pairs: arms that are compared; those without results are left out.

    Returns:
        The gains.
    """
    cells = [[*(r[key] for key in keys), r["arm"], str(r["seed"]), percent(r)] for r in rows]
    print(table([*keys, "arm", "seed", "success (Wilson 95 %)"], cells))
    runs: dict[tuple, dict[str, dict[int, list[int]]]] = {}
    for r in rows:
        arms = runs.setdefault(tuple(r[key] for key in keys), {})
        arms.setdefault(r["arm"], {})[r["seed"]] = r["per_start"]
    gains = []
    for (case, arms), (first, second) in product(runs.items(), dict.fromkeys(pairs)):
        # Those that both were trained with.
        seeds = sorted(arms.get(first, {}).keys() & arms.get(second, {}).keys())
        if first != second and seeds:
            gain = paired_gain([arms[first][seed] for seed in seeds], [arms[second][seed] for seed in seeds])
            named = {**dict(zip(keys, case, strict=True)), "first": first, "second": second, "seeds": seeds}
            gains.append({**named, **gain})
            print(*case, f"{first} over {second}: {gain['gain']:+.3f}, {gain['bootstrap95']}")
    return gains
