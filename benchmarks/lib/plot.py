# SPDX-License-Identifier: Apache-2.0
"""Figures of success rates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lerobot_processor_so101.success_rates import hierarchical_interval


def new_axes() -> Axes:
    """Return the axes of a new figure."""
    return Figure(figsize=(7, 4)).add_subplot()


def draw_success(axes: Axes, points: Sequence[tuple[float, Sequence[str]]], colour: str, label: str) -> None:
    """Draw mean success with its 95 % interval over training seeds and initial states.

    Args:
        points: x, and the outcomes of each training seed.
    """
    x, mean, low, high = np.array([(x, *hierarchical_interval(outcomes)) for x, outcomes in points]).T
    errors = 100 * np.array([mean - low, high - mean])
    axes.errorbar(x, 100 * mean, errors, marker="o", capsize=4, color=colour, label=label)


def save_figure(axes: Axes, path: Path, title: str, xlabel: str) -> None:
    """Label the axes of a figure of success, and save it."""
    axes.set(title=title, xlabel=xlabel, ylabel="success [%], 95 % over seeds and states")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
