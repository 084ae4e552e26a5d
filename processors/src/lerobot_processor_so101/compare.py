# SPDX-License-Identifier: Apache-2.0
"""`so101-compare`: success rates of evaluated policies, and their differences, with 95 % intervals.

so101-compare outputs/a/eval_info.json outputs/b/eval_info.json
so101-compare ours='outputs/a_*/eval_info.json' act='outputs/b_*/eval_info.json' --plot=rates.png

Each argument is what `lerobot-eval` wrote, or a quoted pattern of one such file per training seed; a name
before "=" is that of the row. All must have been evaluated at the same initial states, with the same seed: an
`eval_info.json` does not say at which.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np

from .success_rates import (
    detectable_difference,
    hierarchical_interval,
    markdown_table,
    mcnemar,
    percent,
    wilson,
    with_interval,
)

COLOURS = ("#3366aa", "#c87832", "#3caa50", "#8a5fb0", "#808080")


@dataclass
class Evaluated:
    """A policy, trained with one or several seeds."""

    name: str  # of its row
    outcomes: dict[str, list[str]]  # of every training by task; a character per episode, 1 for success

    def rate(self, task: str) -> tuple[float, float, float]:
        """Return the success rate and the ends of its interval."""
        runs = self.outcomes[task]
        if len(runs) > 1:
            return hierarchical_interval(runs)
        successes, n = runs[0].count("1"), len(runs[0])
        return successes / n, *wilson(successes, n)


def read(argument: str) -> Evaluated:
    """Read the evaluations that an argument of the command names.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if a file is no evaluation, or two trainings have other tasks or numbers of episodes.
    """
    name, equals, pattern = argument.partition("=")
    if not equals:
        name, pattern = Path(argument).parent.name, argument
    paths = sorted(glob(pattern))
    if not paths:
        raise FileNotFoundError(f"found no file {pattern}, expected the eval_info.json of a lerobot-eval.")
    runs = {path: _outcomes(Path(path)) for path in paths}
    _check_same(runs)
    return Evaluated(name, {task: [run[task] for run in runs.values()] for task in runs[paths[0]]})


def _outcomes(path: Path) -> dict[str, str]:
    try:
        tasks = json.loads(path.read_text())["per_task"]
        successes = {task["task_group"]: task["metrics"]["successes"] for task in tasks}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: found no `per_task` with successes ({error!r}), expected the "
            "eval_info.json of a lerobot-eval."
        ) from None
    return {task: "".join(str(int(success)) for success in row) for task, row in successes.items()}


def _check_same(runs: dict[str, dict[str, str]]) -> None:
    """Refuse outcomes, by source and task, whose tasks or numbers of episodes differ from the first's."""
    counts = {source: {task: len(row) for task, row in run.items()} for source, run in runs.items()}
    first, expected = next(iter(counts.items()))
    for source, found in counts.items():
        if found != expected:
            raise ValueError(
                f"{source}: found {found} episodes, expected {expected} as in {first}. Evaluate all with the "
                "same --env.task, --env.level and --eval.n_episodes."
            )


def rates(policies: Sequence[Evaluated]) -> str:
    """Format the success of every policy on every task as a Markdown table."""
    rows = []
    for policy in policies:
        for task, runs in policy.outcomes.items():
            n = len(runs[0])
            cell = percent(runs[0].count("1"), n) if len(runs) == 1 else with_interval(*policy.rate(task))
            rows.append([policy.name, task, len(runs), n, cell])
    return markdown_table(["policy", "task", "trainings", "initial states", "success (95 %)"], rows)


def differences(policies: Sequence[Evaluated]) -> str:
    """Format what each further policy gains over the first, as a Markdown table."""
    first, rows = policies[0], []
    for policy in policies[1:]:
        for task, runs in policy.outcomes.items():
            others = first.outcomes[task]
            gain = with_interval(*hierarchical_interval(runs, others), "+")
            row = [f"{policy.name} over {first.name}", task, gain]
            if len(runs) == len(others) == 1:
                only, only_first, p = mcnemar(runs[0], others[0])
                least = detectable_difference(len(runs[0]), (only + only_first) / len(runs[0]))
                row += [f"{only}, {only_first}", f"{p:.3f}", f"{100 * least:.1f} %" if least < 1 else "-"]
            rows.append(row + [""] * (6 - len(row)))
    header = ["", "task", "difference (95 %)", "only it, only the other", "McNemar p", "detectable"]
    return markdown_table(header, rows)


def plot(policies: Sequence[Evaluated], path: Path) -> None:
    """Plot success rates with their intervals.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # optional, and slow to import

    tasks = list(policies[0].outcomes)
    figure = Figure(figsize=(max(4.0, 1.2 + 0.5 * len(tasks) * (len(policies) + 1)), 4))
    axes, width = figure.add_subplot(), 0.8 / len(policies)
    for number, policy in enumerate(policies):
        heights, low, high = 100 * np.array([policy.rate(task) for task in tasks]).T
        places = np.arange(len(tasks)) + (number - (len(policies) - 1) / 2) * width
        errors, colour = (heights - low, high - heights), COLOURS[number % len(COLOURS)]
        axes.bar(places, heights, 0.9 * width, yerr=errors, capsize=3, color=colour, label=policy.name)
    axes.set(ylabel="success [%], 95 % interval", ylim=(0, 105))
    axes.set_xticks(range(len(tasks)), [task.replace("-", "\n") for task in tasks])
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run `so101-compare`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("evaluations", nargs="+", metavar="[NAME=]EVAL_INFO", help="evaluations of a policy")
    parser.add_argument("--plot", type=Path, help="also draw the rates into this image (needs matplotlib)")
    options = parser.parse_args()
    try:
        policies = [read(argument) for argument in options.evaluations]
        firsts = [{task: runs[0] for task, runs in policy.outcomes.items()} for policy in policies]
        _check_same(dict(zip(options.evaluations, firsts, strict=True)))
        print(rates(policies))
        if len(policies) > 1:
            print(f"\n{differences(policies)}")
        if options.plot:
            plot(policies, options.plot)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"so101-compare: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
