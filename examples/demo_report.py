# SPDX-License-Identifier: Apache-2.0
"""Film, plot and table of the demo, from the outputs of LeRobot's commands."""

import argparse
import os
import platform
import re
from pathlib import Path

import av
import matplotlib
import numpy as np

from lerobot_env_so101_workbench.sim.initial_states import evaluation_initial_state
from lerobot_processor_so101.recording import VideoWriter
from lerobot_processor_so101.success_rates import markdown_table, percent

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_TILE = (240, 360)  # height, width of one episode in the film
_GREEN, _RED = (60, 170, 80), (200, 60, 50)
FIRST_SEED = 1000  # lerobot-eval's default; the initial-state index is the seed modulo 200


def film(videos: list[Path], successes: list[bool], path: Path, columns: int = 3) -> None:
    """Write a film of the first episodes side by side, framed green at success and red at failure."""
    videos = sorted(videos, key=lambda video: int(re.findall(r"\d+", video.stem)[-1]))[: columns * columns]
    episodes = [_read(video) for video in videos]
    longest = max(len(episode) for episode in episodes) + 15
    with VideoWriter(path, 30) as video:
        for tick in range(longest):
            tiles = [
                _framed(episode[min(tick, len(episode) - 1)], tick >= len(episode), success)
                for episode, success in zip(episodes, successes, strict=False)
            ]
            tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
            rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
            video.write(np.vstack(rows))


def _read(video: Path) -> list[np.ndarray]:
    with av.open(str(video)) as container:
        return [
            frame.to_ndarray(format="rgb24", height=_TILE[0], width=_TILE[1])
            for frame in container.decode(video=0)
        ]


def _framed(tile: np.ndarray, over: bool, success: bool) -> np.ndarray:
    if not over:
        return tile
    framed = np.empty_like(tile)
    framed[:] = _GREEN if success else _RED
    framed[5:-5, 5:-5] = tile[5:-5, 5:-5]
    return framed


def plot(train_log: Path, successes: list[bool], path: Path) -> None:
    """Plot the training loss, and the initial positions of the named cubes in the evaluation."""
    logged = re.findall(r"step:(\S+) .*?loss:([\d.]+)", train_log.read_text())
    losses = [float(loss) for _, loss in logged]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    left.plot(np.linspace(0, 1, len(losses) + 1)[1:], losses, color="#3366aa")
    left.set(xlabel="share of training", ylabel="loss", title="Training", yscale="log")
    for number, success in enumerate(successes):
        state = evaluation_initial_state("sort_cubes", "clean", FIRST_SEED + number)
        x, y, yaw = state.poses[state.goal.pick]
        colour = "#3caa50" if success else "#c83c32"
        right.plot(100 * y, 100 * x, marker=(4, 0, np.degrees(yaw) + 45), markersize=11, color=colour)
    right.plot(0, 0, marker="s", markersize=14, color="black")
    right.annotate("arm", (0, 0), xytext=(8, -3), textcoords="offset points")
    right.set(
        xlabel="left - right [cm]",
        ylabel="away from the arm [cm]",
        title="Unseen initial states of the named cube: green was sorted",
    )
    right.invert_xaxis()
    right.set_aspect("equal")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def summary(successes: list[bool], seconds: dict[str, float], args: argparse.Namespace) -> str:
    """Return the result as a Markdown table."""
    rows = [
        ["sort_cubes by sentence from RGB, clean", "result"],
        ["success on unseen initial states (Wilson 95 %)", percent(sum(successes), len(successes))],
        ["demonstrations", f"{args.episodes} in {seconds['demonstrate']:.0f} s"],
        ["training", f"{args.steps} steps of 32 in {seconds['prepare'] + seconds['train']:.0f} s"],
        ["evaluation", f"{len(successes)} episodes in {seconds['evaluate']:.0f} s"],
        ["in all", f"{sum(seconds.values()) / 60:.1f} min"],
        ["machine", f"{_cpu()}, {os.cpu_count()} cores"],
    ]
    return markdown_table(rows[0], rows[1:])


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()
