# SPDX-License-Identifier: Apache-2.0
"""`so101-benchmark`: evaluate a policy on the workbench's tasks and levels, for a table of policies.

    so101-benchmark --policy.path=outputs/train/checkpoints/last/pretrained_model --root=outputs/benchmark

Each task and level is one `lerobot-eval` on the frozen evaluation states, printed before it runs. The same
command continues what was interrupted. `so101-compare` compares the evaluations of several policies.
"""

import json
import math
import shutil
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lerobot_processor_so101.atomic import write_json
from lerobot_processor_so101.cli import run_command
from lerobot_processor_so101.config_checks import check_choices, check_device
from lerobot_processor_so101.lock import owning
from lerobot_processor_so101.success_rates import markdown_table, percent

from .demos.takeovers import PolicyOptions
from .improve.process import Job, eval_command, run_jobs
from .names import LEVELS, STARTS, TASK_NAMES, check_level, check_task
from .policy_check import fingerprint, needed_images, read_config
from .sim.initial_states import N_EVALUATION

_FIRST_SEED = 1000  # as in lerobot-eval; the initial-state index is the seed modulo 200


@dataclass
class BenchmarkConfig:
    """Options of `so101-benchmark`.

    Args:
        root: folder of the evaluations and the table. The same command continues there.
        policy: the policy, any that LeRobot loads; it is given the images that it was trained on.
        name: name of the policy's row; by default its type.
        tasks: tasks to evaluate, each at each level.
        levels: levels to evaluate.
        episodes: initial states per task and level.
        starts: `eval` for published numbers, `validation` for choices.
    """

    root: Path
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    name: str | None = None
    tasks: list[str] = field(default_factory=lambda: list(TASK_NAMES))
    levels: list[str] = field(default_factory=lambda: list(LEVELS))
    episodes: int = N_EVALUATION
    starts: str = "eval"

    def check(self) -> None:
        """Raise ValueError if an option is not supported."""
        if self.policy.path is None:
            raise ValueError("--policy.path: found none, expected the `pretrained_model` folder of a policy.")
        check_device(self.policy.device, "--policy.device")
        for task in self.tasks:
            check_task(task, "--tasks")
        for level in self.levels:
            check_level(level, "--levels")
        check_choices(self, {"starts": STARTS}, "--")
        if not 1 <= self.episodes <= N_EVALUATION:
            raise ValueError(f"--episodes: found {self.episodes}, expected 1 to {N_EVALUATION}.")


def benchmark(config: BenchmarkConfig) -> str:
    """Evaluate a policy, and write `benchmark.json` and `benchmark.md` into `root`.

    Returns:
        The table.

    Raises:
        ValueError: if an option is not supported, the policy does not fit, or `root` is of another policy.
        RuntimeError: if an evaluation fails.
    """
    config.check()
    path = config.policy.path
    assert path is not None
    policy = read_config(path)
    images = needed_images(policy, path)
    config.root.mkdir(parents=True, exist_ok=True)
    with owning(config.root):
        row = _describe(config, path, policy.type)
        for task, level in product(config.tasks, config.levels):
            out = config.root / f"{task}_{level}"
            if not (out / "eval_info.json").is_file():
                shutil.rmtree(out, ignore_errors=True)  # of an evaluation that was cut
                options: dict[str, object] = {"env.task": task, "env.level": level, "seed": _FIRST_SEED}
                options |= {"policy.device": config.policy.device, "env.starts": config.starts}
                command = eval_command(path, images, config.episodes, out, options)
                log = config.root / f"{out.name}.log"
                run_jobs([Job(f"{task}, {level}", command, log, lambda *_: None)])
            info = json.loads((out / "eval_info.json").read_text())
            successes = info["per_task"][0]["metrics"]["successes"]
            row["success"][f"{task}-{level}"] = "".join(str(int(success)) for success in successes)
            write_json(config.root / "benchmark.json", row)
        text = _table(row)
        (config.root / "benchmark.md").write_text(text + "\n")
    return f"\n{text}\n\nwritten to {config.root / 'benchmark.md'}"


def _describe(config: BenchmarkConfig, path: Path, kind: str) -> dict[str, Any]:
    """Return the row without its rates, or that of the run in `root`."""
    with safe_open(path / "model.safetensors", framework="pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    row: dict[str, Any] = {
        "policy": config.name or kind,
        "type": kind,
        "weights": fingerprint(path),
        "parameters": sum(map(math.prod, shapes)),
        "training": _training(path),
        "episodes": config.episodes,
        "starts": config.starts,
        "success": {},
    }
    stored = config.root / "benchmark.json"
    if stored.is_file():
        found = json.loads(stored.read_text())
        for key in ("weights", "episodes", "starts"):
            if found[key] != row[key]:
                raise ValueError(
                    f"--root: {config.root} contains a benchmark with {key} {found[key]!r}, the command has "
                    f"{row[key]!r}. Give another --root."
                )
        row["success"] = found["success"]
    return row


def _training(path: Path) -> str:
    """Say what LeRobot trained a checkpoint on, as far as it is stored beside it."""
    file = path / "train_config.json"
    if not file.is_file():
        return "unknown"
    stored = json.loads(file.read_text())
    return f"{stored['dataset']['repo_id']}, {stored['steps']} steps of {stored['batch_size']}"


def _table(row: dict[str, Any]) -> str:
    """Format the row as Markdown, with a line per task and level."""
    success = f"success on {row['starts']} states (95 %)"
    policy = [row["policy"], f"{row['parameters'] / 1e6:.2f} M", row["training"]]
    cells = [[*policy, case, percent(o.count("1"), len(o))] for case, o in row["success"].items()]
    return markdown_table(["policy", "parameters", "training", "task and level", success], cells)


def main() -> None:
    """Run `so101-benchmark`."""
    stopped = "stopped. The same command resumes at the evaluation that was cut."
    run_command("so101-benchmark", BenchmarkConfig, benchmark, stopped, log="lerobot_env_so101_workbench")


if __name__ == "__main__":
    main()
