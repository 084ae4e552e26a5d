# SPDX-License-Identifier: Apache-2.0
"""Compute again what the golden files expect: `make.py` writes the results, `test_golden.py` compares them.

Only public APIs and plain arguments, so that the files outlive a move of modules. What has no public path yet
is imported here, in one place.
"""

import json
import lzma
import math
import shutil
import sys
import tarfile
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.import_utils import register_third_party_plugins
from safetensors.torch import load_file
from torch import Tensor

# Paths that may move: adapt them here.
from lerobot_processor_so101.guard import Guard, GuardLimits

DATA = Path(__file__).parent / "data"
CAMERAS = ("top", "wrist")
SEED = 7


def unpack(name: str, root: Path) -> Path:
    """Copy a golden folder to `root` and unpack what is stored compressed in it."""
    folder = Path(shutil.copytree(DATA / name, root / name))
    for packed in folder.rglob("*.xz"):
        if packed.suffixes[-2] == ".tar":
            with tarfile.open(packed) as archive:
                archive.extractall(packed.parent, filter="data")
        else:
            packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    return folder


def load_inputs(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The observations of some control periods, a training batch, and other options of a golden checkpoint.

    Images are stored as bytes, masks and depth as int16.
    """
    options = json.loads((folder / "inputs.json").read_text())
    values = {key: decoded(value) for key, value in load_file(folder / "inputs.safetensors").items()}
    ticks = {key.removeprefix("tick/"): value for key, value in values.items() if key.startswith("tick/")}
    training = {
        key.removeprefix("training/"): value for key, value in values.items() if key.startswith("training/")
    }
    count = max(map(len, ticks.values()), default=0)
    task = {"task": options["task"]} if "task" in options else {}
    observations = [{key: value[tick] for key, value in ticks.items()} | task for tick in range(count)]
    return observations, training | task, options


def decoded(value: Tensor) -> Tensor:
    """Floats of a stored tensor: images in [0, 1], and ids and millimetres as they are."""
    if value.dtype == torch.uint8:
        return value.float() / 255
    return value.float() if value.dtype == torch.int16 else value


def policy_results(folder: Path) -> dict[str, Tensor]:
    """Load a checkpoint as LeRobot's commands do: actions, a chunk, latent actions, a training loss."""
    observations, training, options = load_inputs(folder)
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(folder)
    policy: Any = get_policy_class(config.type).from_pretrained(folder, config=config)
    preprocessor, postprocessor = make_pre_post_processors(config, pretrained_path=str(folder))
    results = {}

    torch.manual_seed(SEED)
    policy.eval().reset()
    actions = [postprocessor(policy.select_action(preprocessor(dict(tick)))) for tick in observations]
    if actions:
        results["actions"] = torch.stack(actions)
    if actions and "single" not in options:
        torch.manual_seed(SEED)
        policy.reset()
        results["chunk"] = postprocessor(policy.predict_action_chunk(preprocessor(dict(observations[0]))))
    if hasattr(policy, "label"):
        latents, valid = policy.label(preprocessor(dict(training)))
        results |= {"codes": latents.codes, "latents": latents.vectors, "valid": valid}
    if hasattr(policy, "predict_latents"):
        torch.manual_seed(SEED)
        results["latents"] = policy.predict_latents(preprocessor(dict(observations[0])))
    if "laq" in options:
        policy.config.laq = str(folder.parent / options["laq"])  # only training reads it
    if training:
        torch.manual_seed(SEED)
        results["loss"] = policy.train()(preprocessor(dict(training)))[0].detach()
    return {name: value.detach().clone().contiguous() for name, value in results.items()}


def command(name: str, *arguments: str) -> None:
    """Run a console command in this process."""
    (script,) = entry_points(group="console_scripts", name=name)
    with patch.object(sys, "argv", [name, *arguments]):
        script.load()()


def precompute(source: Path, output: Path) -> None:
    """Masks and disparity of the packaged segmenter for a dataset."""
    command(
        "so101-precompute",
        f"--root={source}",
        f"--output={output}",
        "--segmenter=workbench",
        "--depth=segmenter",
        "--height=24",
        "--width=32",
        "--device=cpu",
        "--batch_size=2",
    )


def planes(root: Path) -> dict[str, Tensor]:
    """Stored class ids and disparity of all frames, (N, h, w); a unit of disparity is 16 steps."""
    dataset = LeRobotDataset("local/tiny", root=root)
    frames = [dataset[index] for index in range(len(dataset))]
    found = {}
    for camera in CAMERAS:
        ids = torch.stack([frame[f"observation.seg.{camera}"] for frame in frames])
        disparity = torch.stack([frame[f"observation.disparity.{camera}"] for frame in frames])
        found[f"ids.{camera}"] = ids.squeeze(1).to(torch.uint8)
        found[f"disparity.{camera}"] = disparity.squeeze(1).to(torch.int16)
    return found


def perception_features(root: Path) -> dict[str, Any]:
    """The entries of masks and disparity in a dataset's metadata, with the identity of the model."""
    features = json.loads((root / "meta" / "info.json").read_text())["features"]
    return {key: value for key, value in features.items() if ".seg." in key or ".disparity." in key}


def guard_results(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Replay a log of commands: what the arm is sent, and the reasons for each change."""
    log = json.loads((folder / "log.json").read_text())
    stored = load_file(folder / "commands.safetensors")
    odd = {int(index): value for index, value in log["odd_commands"].items()}
    sent, verdicts, reports = [], [], []
    clock = SimpleNamespace(now=0.0)
    for part in log["parts"]:
        clock.now = part["start_time"]
        guard = Guard(GuardLimits(**part["limits"]), lambda: clock.now)
        guard.initialise(part["start"])
        for index in range(part["first"], part["first"] + part["count"]):
            clock.now = float(stored["observed"][index])
            if math.isfinite(clock.now):
                guard.observe()
            clock.now, before = float(stored["times"][index]), guard.counts.copy()
            sent.append(guard.check(odd.get(index, stored["commands"][index].numpy())).tolist())
            verdicts.append(" + ".join(sorted(guard.counts - before)))
        reports.append(guard.report())
    names = sorted(set(verdicts))
    tensors = {
        "sent": torch.tensor(sent, dtype=torch.float64),
        "verdicts": torch.tensor([names.index(verdict) for verdict in verdicts], dtype=torch.uint8),
    }
    return tensors, {"verdicts": names, "reports": reports}


def guard_step_results(folder: Path) -> dict[str, Tensor]:
    """Run the guard step, rebuilt from JSON: single actions of two environments, and then chunks."""
    register_third_party_plugins()
    stored = load_file(folder / "step_inputs.safetensors")
    pipeline: Any = PolicyProcessorPipeline.from_pretrained(
        folder,
        config_filename="policy_postprocessor.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    actions = torch.stack([pipeline(action) for action in stored["actions"]])
    pipeline.reset()
    return {"actions": actions, "chunks": torch.stack([pipeline(chunk) for chunk in stored["chunks"]])}


def import_snapshot(snapshot: Path, output: Path) -> None:
    """Turn a snapshot of the original project's DrQ-v2 into a checkpoint."""
    command("so101-import-drqv2", f"--snapshot={snapshot}", f"--output={output}", "--frame=mujoco")
