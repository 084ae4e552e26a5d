# SPDX-License-Identifier: Apache-2.0
"""Table and plot of success per round."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_processor_so101.success_rates import markdown_table, percent, wilson

from ..sim.outcome import FAILURES, SUCCESS
from .process import Cost


@dataclass
class Round:
    """One trained policy.

    Args:
        name: of its row, such as `round 1` or `plain 1`.
        episodes, frames: of the dataset that it was trained on.
        outcomes: of its evaluation episodes: `SUCCESS` or one of `FAILURES`.
        costs: of its steps by name.
    """

    name: str
    episodes: int = 0
    frames: int = 0
    outcomes: list[str] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)

    @property
    def successes(self) -> int:
        return self.outcomes.count(SUCCESS)


def read_outcomes(log: Path) -> list[str]:
    """Read the outcomes of an environment's episode log, in the order of the seeds."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["outcome"] for row in sorted(rows, key=lambda row: row["seed"])]


def table(rounds: Sequence[Round]) -> str:
    """Format success, failures and costs as two Markdown tables."""
    kinds = [kind for kind in FAILURES if any(kind in round.outcomes for round in rounds)]
    header = ["policy", "episodes", "frames", "success (Wilson 95 %)", *kinds]
    rows: list[list[Any]] = []
    costs = [(round.name, step, cost) for round in rounds for step, cost in round.costs.items()]
    for round in rounds:
        success = percent(round.successes, len(round.outcomes))
        failures = [round.outcomes.count(kind) for kind in kinds]
        rows.append([round.name, round.episodes, round.frames, success, *failures])
    costs.append(("all", "", sum((cost for *_, cost in costs), Cost())))
    minutes = [[name, step, f"{c.wall_s / 60:.1f}", f"{c.cpu_s / 60:.1f}"] for name, step, c in costs]
    spent = markdown_table(["policy", "step", "minutes", "processor minutes"], minutes)
    return f"{markdown_table(header, rows)}\n\n{spent}"


def plot(rounds: Sequence[Round], title: str, path: Path) -> None:
    """Plot success with its interval over the number of frames; the first round is before any takeover.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # optional, and slow to import

    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    plain = [round for round in rounds if round.name.startswith("plain")]
    series = {"takeovers": [round for round in rounds if round not in plain]}
    if plain:
        series["plain demonstrations"] = [rounds[0], *plain]
    for (label, some), colour in zip(series.items(), ("#3366aa", "#c87832"), strict=False):
        rates = np.array([100 * round.successes / len(round.outcomes) for round in some])
        bounds = 100 * np.array([wilson(round.successes, len(round.outcomes)) for round in some])
        around = np.abs(bounds.T - rates)  # (2, rounds)
        frames = [round.frames for round in some]
        axes.errorbar(frames, rates, around, marker="o", capsize=4, color=colour, label=label)
    axes.set(xlabel="frames of training data", ylabel="success [%], Wilson 95 %", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
