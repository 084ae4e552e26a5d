# SPDX-License-Identifier: Apache-2.0
"""The golden files of the guard; see `make.py`."""

import json
from typing import Any

import numpy as np
import torch
from lerobot.processor import PolicyProcessorPipeline
from safetensors.torch import save_file

from lerobot_processor_so101 import GuardProcessorStep
from tests.golden import replay

HOME = [0.0, -80.0, 30.0, 85.0, -90.0, 50.0]
BATCH = 2
# Limits, the measured pose a part begins at, the pose its commands stay around, and their steps [deg].
PARTS: list[dict[str, Any]] = [
    {"limits": {}, "start": HOME, "around": HOME, "step": 2.0},
    {
        "limits": {"velocity": 40.0, "acceleration": 200.0, "gripper_velocity": 60.0},
        "start": HOME,
        "around": HOME,
        "step": 0.2,
    },
    {
        "limits": {"workspace": [0.1, -0.1, -0.2, 0.3, 0.1, 0.25], "table": 0.01},
        "start": [0, -30, 30, 60, 0, 0],
        "around": [15, -8, 20, 60, 0, 20],
        "step": 3.0,
    },
    {
        "limits": {
            "lower": [-60, -90, -50, -60, -100, 5],
            "upper": [60, 50, 70, 90, 100, 80],
            "joint_offsets": [2, -3, 1.5, 0, 4],
            "max_age": 0.1,
            "timeout": 0.2,
        },
        "start": [0, -95, 30, 85, -90, 90],  # outside of the range
        "around": [10, -60, 20, 60, -50, 50],
        "step": 1.0,
    },
]
PART = 128  # commands


def guard() -> None:
    """A log of usual and adversarial commands, with times that jitter, stop and run backwards."""
    folder = replay.DATA / "guard"
    folder.mkdir()
    rng = np.random.default_rng(1)
    commands = np.zeros((PART * len(PARTS), 6), dtype=np.float64)
    times, observed = np.zeros(len(commands)), np.full(len(commands), np.nan)
    odd: dict[int, Any] = {}
    now, parts = 100.0, []
    for number, part in enumerate(PARTS):
        log = {"limits": part["limits"], "start": part["start"], "start_time": now}
        parts.append({**log, "first": number * PART, "count": PART})
        around = near = np.array(part["around"], dtype=float)
        for index in range(number * PART, (number + 1) * PART):
            now += rng.choice([1 / 30, 1 / 50, 0.07, 0.3, 1.0, 0.0], p=[0.8, 0.1, 0.04, 0.02, 0.02, 0.02])
            times[index] = now - 0.5 * (rng.random() < 0.01)
            if rng.random() < 0.3:
                observed[index] = now - rng.choice([0.01, 0.05, 0.15, 0.6], p=[0.6, 0.2, 0.1, 0.1])
            near = around + 0.95 * (near - around) + rng.normal(0, part["step"], 6)
            commands[index] = near
            _disturb(commands, odd, index, rng)
    save_file(
        {
            "commands": torch.from_numpy(commands).float(),
            "times": torch.from_numpy(times),
            "observed": torch.from_numpy(observed),
        },
        folder / "commands.safetensors",
    )
    (folder / "log.json").write_text(json.dumps({"parts": parts, "odd_commands": odd}) + "\n")
    tensors, verdicts = replay.guard_results(folder)
    save_file(tensors, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(verdicts, indent=1) + "\n")


def _disturb(commands: np.ndarray, odd: dict[int, Any], index: int, rng: np.random.Generator) -> None:
    """Replace some commands by one of the kinds that policies, teleoperators and faults produce."""
    if rng.random() > 0.2:
        return
    match rng.integers(7):
        case 0:
            commands[index, rng.integers(6)] = rng.choice([np.nan, np.inf, -np.inf])
        case 1:
            commands[index] = rng.normal(0, 10.0 ** rng.uniform(1, 30), 6)
        case 2:
            commands[index] = np.where(rng.random(6) < 0.5, 170.0, -170.0)
        case 3:
            odd[index] = commands[index, : rng.integers(6)].tolist()
        case 4:
            commands[index] = np.array(HOME) + [0, 150, 0, 0, 0, 0]  # into the table
        case 5:
            odd[index] = [None, "left", [[0.0] * 6], [0.0] * 7, {"shoulder_pan.pos": 0.0}][rng.integers(5)]
        case 6:
            commands[index] = rng.uniform(-200, 200, 6)


def guard_step() -> None:
    """The same guard as the last step of a postprocessor."""
    folder = replay.DATA / "guard_step"
    limits = {"velocity": 60.0, "acceleration": 600.0, "table": 0.0}
    pipeline: Any = PolicyProcessorPipeline(
        [GuardProcessorStep(limits=limits, fps=25.0)], name="policy_postprocessor"
    )
    pipeline.save_pretrained(folder, config_filename="policy_postprocessor.json")
    generator = torch.Generator().manual_seed(4)
    single = torch.tensor(HOME) + 4 * torch.randn(60, BATCH, 6, generator=generator).cumsum(0)
    single[10, 0, 2], single[20, 1], single[30, 0] = float("nan"), float("inf"), 1e30
    chunks = torch.tensor(HOME) + 4 * torch.randn(4, BATCH, 8, 6, generator=generator).cumsum(2)
    chunks[1, 0, 3, 1], chunks[2, 1, 4:] = float("nan"), 170.0
    save_file({"actions": single, "chunks": chunks}, folder / "step_inputs.safetensors")
    save_file(replay.guard_step_results(folder), folder / "expected.safetensors")
