# SPDX-License-Identifier: Apache-2.0
"""Check a foreign checkpoint before anything of it is built: no code, complete weights, finite numbers.

LeRobot's pipeline loader imports and calls any class that a pipeline's JSON names, `subprocess.Popen` too,
with arguments from the file. Steps of LeRobot and of its plugins are registered and named by their registry
names, so a checkpoint needs no class names.
"""

import json
from pathlib import Path
from typing import Any

import torch
from lerobot.processor import ProcessorStepRegistry
from safetensors import safe_open
from torch import Tensor
from torch.optim.swa_utils import AveragedModel


def check_pipelines(folder: Path) -> None:
    """Refuse a checkpoint with steps that are not registered, or statistics that are not finite.

    Raises:
        ValueError: if a file names a class, is not JSON, or contains NaN; the message names the file.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: this is not valid JSON ({error}).") from error
        if isinstance(content, dict) and isinstance(content.get("steps"), list):
            for number, step in enumerate(content["steps"]):
                _check_step(path, number, step)
    for path in sorted(folder.glob("policy_*processor*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  not a mapping
                check_finite(file.get_tensor(key), f"{path}: {key}")


def _check_step(path: Path, number: int, step: Any) -> None:
    name = step.get("registry_name") if isinstance(step, dict) else None
    if name is None:
        found = step.get("class") if isinstance(step, dict) else step
        raise ValueError(
            f"{path}: step {number} is the class {found!r}, expected the registry_name of a processor step. "
            "LeRobot would import and call this class with arguments from the file, so it is not loaded. "
            "If it is your own step, register it with ProcessorStepRegistry and save the checkpoint again."
        )
    if name not in ProcessorStepRegistry.list():
        raise ValueError(
            f"{path}: step {number} is {name!r}, which no installed package registers. Install the plugin "
            "that it comes from."
        )


def check_finite(tensor: Tensor, name: str) -> None:
    """Refuse NaN and infinite numbers.

    Raises:
        ValueError: if there are any; the message begins with `name`.
    """
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(
            f"{name}: found {count} of {tensor.numel()} numbers that are NaN or infinite, expected finite "
            "ones. The training diverged or the file is damaged; take an earlier checkpoint."
        )


def check_weights(model: torch.nn.Module, path: Path) -> None:
    """Refuse a `model.safetensors` that lacks parameters of the model of its configuration.

    Raises:
        ValueError: if parameters are missing or not finite; the message names the first.
    """
    with safe_open(path, "pt") as file:
        saved = set(file.keys())
        for key in sorted(saved):
            check_finite(file.get_tensor(key), f"{path}: {key}")
    state = model.state_dict()
    # Tied parameters are saved once, under one of their names.
    stored = {_storage(state[key]) for key in saved & state.keys()}
    # A moving average that was enabled later starts as a copy of the weights.
    averages = (name for name, module in model.named_modules() if isinstance(module, AveragedModel))
    new = tuple(f"{name}." for name in averages if f"{name}.n_averaged" not in saved)
    missing = sorted(
        key for key in state.keys() - saved if _storage(state[key]) not in stored and not key.startswith(new)
    )
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(state)} tensors of {type(model).__name__} are missing, such as "
            f"{missing[0]!r}. The file is incomplete or belongs to another policy; they would stay random."
        )


def _storage(tensor: Tensor) -> tuple:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape)
