# SPDX-License-Identifier: Apache-2.0
"""What the learning studies share: stock commands that are not repeated, and paired comparisons.

    python -m benchmarks.lib.study learning/imf ["imf, 1 step" "diffusion, 10 steps"]

prints the stored success rates of a study, and the paired gain of one variant over another.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from .report import load, percent, table

TRAIN, EVAL = ("lerobot-train",), ("lerobot-eval",)
CASES = ("task", "trained_on", "level", "demonstrations", "policy_lr")  # what compared variants share


class Study:
    """Commands, each run once: a study that was stopped resumes when it is started again."""

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        self.out, self.options = out, options
        out.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, work: Callable[[], object], done: Path) -> Path:
        """Do some work unless it was completed before, and return the path of its result."""
        mark = self.mark(name)
        if done.exists() and mark.exists():
            print(f"{name}: exists already ({done})")
        else:
            work()
            mark.touch()
        return done

    def mark(self, name: str) -> Path:
        """Return the file that exists once the work of this name is completed."""
        return self.out / f"{file_name(name)}.done"

    def step(self, name: str, command: Sequence[str], done: Path) -> Path:
        """Run a command unless it has succeeded before, and return the path of its result.

        Raises:
            SystemExit: if the command fails, or succeeds without writing its result.
        """

        def run() -> None:
            log = self.out / f"{file_name(name)}.log"
            print(f"{name}: {' '.join(command)}\n  output in {log}", flush=True)
            # One thread for PyTorch: on two cores its threads would only compete with the data loader's.
            variables = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
            full = [str(Path(sys.executable).parent / command[0]), *command[1:]]
            with log.open("w") as file:
                code = subprocess.call(full, stdout=file, stderr=file, env={**os.environ, **variables})
            if code != 0 or not done.exists():
                raise SystemExit(f"{command[0]} failed with exit code {code}; its output is in {log}.")

        return self.once(name, run, done)

    def demonstrate(self, name: str, options: Sequence[str]) -> Path:
        """Record demonstrations, and return their folder."""
        return self.dataset(name, ["so101-demos", *options], "--root")

    def add(self, name: str, root: Path, options: Sequence[str]) -> Path:
        """Record demonstrations or takeovers into a copy of a dataset, and return its folder."""
        copy = self.out / file_name(name)
        if not self.mark(name).exists():  # what was stopped begins again
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(root, copy)
        return self.demonstrate(name, [*options, "--resume=true"])

    def dataset(self, name: str, command: Sequence[str], output: str = "--output") -> Path:
        """Run a command that writes a dataset, and return the dataset's folder."""
        root = self.out / file_name(name)
        self.step(name, [*command, f"{output}={root}"], root / "meta" / "info.json")
        return root

    def arrays(self, root: Path, segmenter: str | None = None) -> list[str]:
        """Copy masks, depth or cached features to arrays, and return the options to train on the copy.

        With a segmenter, a simulator's masks and depth are written as it would output them.
        """
        options = [f"--root={root}", *([f"--segmenter={segmenter}"] if segmenter else [])]
        out = self.dataset(f"{root.name}_arrays_{segmenter or ''}".rstrip("_"), ["so101-arrays", *options])
        return [f"--dataset.root={out}", "--num_workers=0"]

    def train(self, name: str, options: Sequence[str], steps: int, command: Sequence[str] = TRAIN) -> Path:
        """Train, or resume a training, and return the checkpoint."""
        out = self.out / file_name(name)
        done = out / "checkpoints" / f"{steps:06d}" / "pretrained_model"
        last = out / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
        if last.is_file():
            options = ["--resume=true", f"--config_path={last}"]
        else:
            # What was stopped before its first checkpoint goes: LeRobot requires a new folder.
            shutil.rmtree(out, ignore_errors=True)
            own = ["--policy.device=cpu", "--policy.push_to_hub=false", "--num_workers=1", "--log_freq=100"]
            options = [*own, *options, f"--output_dir={out}", f"--steps={steps}"]
        self.step(f"train {name}", [*command, *options], done / "model.safetensors")
        return done

    def evaluate(
        self, name: str, checkpoint: Path, options: Sequence[str], command: Sequence[str] = EVAL
    ) -> str:
        """Return the outcome at each of the frozen initial states, as `outcomes` has it."""
        out = self.out / file_name(f"eval {name}")
        own = [f"--policy.path={checkpoint}", "--policy.device=cpu", "--env.type=so101_sim"]
        own += ["--eval.use_async_envs=false", f"--eval.n_episodes={self.options.initial_states}"]
        own += [f"--output_dir={out}"]
        done = self.step(out.name, [*command, *own, *options], out / "eval_info.json")
        return as_outcomes(json.loads(done.read_text())["per_task"][0]["metrics"]["successes"])


def flags(prefix: str = "", /, **values: Any) -> list[str]:
    """Write options for the command line of a draccus configuration; their names begin with a prefix."""
    return [f"--{prefix}{k}={v if isinstance(v, str | Path) else json.dumps(v)}" for k, v in values.items()]


def environment(images: Sequence[str], **settings: Any) -> list[str]:
    """Return the options of an environment with the images of `so101-demos`' options."""
    return [f"--env.{image.removeprefix('--')}" for image in images] + flags("env.", **settings)


def file_name(name: str) -> str:
    """Turn the name of a step into one of a file."""
    return name.replace(" ", "_").replace("'", "").replace(",", "")


def as_outcomes(successes: Iterable[Any]) -> str:
    """Write successes as a string of zeros and ones."""
    return "".join(str(int(success)) for success in successes)


def listed(values: Iterable[Any]) -> str:
    """Write a list for the command line of a draccus configuration."""
    return json.dumps(list(values))


def paired_gain(first: Sequence[str], second: Sequence[str]) -> dict[str, Any]:
    """Return the mean gain of one variant over another, with a 95 % bootstrap interval over initial states.

    Args:
        first, second: outcomes at the same initial states, one string per training seed.
    """
    means = [np.mean([list(map(int, run)) for run in runs], axis=0) for runs in (first, second)]
    gains = means[0] - means[1]
    mean = round(float(gains.mean()), 4)
    if np.ptp(gains) == 0:  # nothing to resample
        return {"gain": mean, "bootstrap95": [mean, mean]}
    interval = bootstrap((gains,), np.mean, random_state=0).confidence_interval
    return {"gain": mean, "bootstrap95": [round(float(end), 4) for end in interval]}


def compare(rows: list[dict], pairs: Iterable[tuple[str, str]], all_seeds: bool = False) -> list[dict]:
    """Print the success of every row; print and return gains of variants, paired over initial states.

    Args:
        rows: with `outcomes`, `variant` and `seed`, and those of `CASES` in which compared variants agree.
        pairs: variants that are compared; those without results are left out.
        all_seeds: average over all trainings of each variant, and not over the seeds that both have.
    """
    keys = [key for key in CASES if key in rows[0]]
    cells = [[*(row[key] for key in keys), row["variant"], row["seed"], percent(row)] for row in rows]
    print(table([*keys, "variant", "seed", "success (Wilson 95 %)"], cells))
    cases: dict[tuple, dict[str, dict[int, str]]] = {}
    for row in rows:
        if "outcomes" in row:
            variants = cases.setdefault(tuple(row[key] for key in keys), {})
            variants.setdefault(row["variant"], {})[row["seed"]] = row["outcomes"]
    gains = []
    for (case, variants), (first, second) in product(cases.items(), dict.fromkeys(pairs)):
        trained = [variants.get(name, {}) for name in (first, second)]
        seeds = sorted(set(trained[0]) & set(trained[1]))
        if first != second and seeds:
            gain = paired_gain(*([runs[s] for s in (runs if all_seeds else seeds)] for runs in trained))
            named = {**dict(zip(keys, case, strict=True)), "first": first, "second": second, "seeds": seeds}
            gains.append({**named, **gain})
            print(*case, f"{first} over {second}: {gain['gain']:+.3f}, {gain['bootstrap95']}")
    return gains


def main() -> None:
    _, name, *pair = sys.argv
    compare(load(name)["rows"], [(pair[0], pair[1])] if pair else [])


if __name__ == "__main__":
    main()
