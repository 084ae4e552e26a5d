# SPDX-License-Identifier: Apache-2.0
"""Tiny policies and batches for segvla and SmolVLA."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from lerobot_env_so101_workbench.demos.command import DemosConfig, record
from lerobot_policy_segvla import SegVLAConfig
from lerobot_policy_segvla.small_vlm import save_small_vlm
from tests.tiny import robot_features, tiny_mask2former, tiny_smolvla

CLASSES = ["background", "table", "red cube", "green cube", "blue bowl", "white bowl"]
CAMERAS = ("top", "wrist")
SENTENCES = (
    "Put the red cube into the blue bowl.",
    "Put the green cube into the white bowl.",
    "Lift the cube.",
)
SIZE = (48, 64)  # of the cameras
BATCH = 3


@pytest.fixture(scope="session")
def vlm(tmp_path_factory) -> str:
    return save_small_vlm(tmp_path_factory.mktemp("vlm"), SENTENCES)


@pytest.fixture(scope="session")
def settings(vlm) -> dict:
    """Fields that make SmolVLA tiny."""
    return tiny_smolvla(vlm)


@pytest.fixture
def smolvla_config(settings):
    return SmolVLAConfig(**robot_features(), **settings)


@pytest.fixture
def segvla_config(settings):
    def make(**changes) -> SegVLAConfig:
        cues = {
            "segmentation_feature_map": {
                f"observation.images.{camera}": f"observation.seg.{camera}" for camera in CAMERAS
            },
            "segmentation_class_names": CLASSES,
            "segmentation_task_classes": ["red cube", "blue bowl"],
            "segmentation_geometry_classes": ["red cube", "blue bowl"],
            "segmentation_dropout_prob": 0.0,
        }
        return SegVLAConfig(**robot_features(), **{**settings, **cues, **changes})

    return make


def make_batch(seed: int = 0, scores: bool = True, size=SIZE) -> dict:
    """Make the batch of a preprocessor, with class ids for both cameras."""
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "observation.state": torch.randn(BATCH, 6, generator=generator),
        "action": torch.randn(BATCH, 6, 6, generator=generator),
        "observation.language.tokens": torch.randint(2, 200, (BATCH, 7), generator=generator),
        "observation.language.attention_mask": torch.ones(BATCH, 7, dtype=torch.bool),
    }
    batch["observation.language.attention_mask"][1, 5:] = False
    for camera in CAMERAS:
        batch[f"observation.images.{camera}"] = torch.rand(BATCH, 3, *size, generator=generator)
        if scores:
            blocks = torch.randint(0, len(CLASSES), (BATCH, 6, 6), generator=generator)
            ids = blocks.repeat_interleave(14, 1).repeat_interleave(14, 2)  # 84 x 84
            batch[f"observation.seg.{camera}"] = ids.to(torch.uint8)
    return batch


def noise_and_time(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 6, 32, generator=generator), torch.rand(BATCH, generator=generator)


def save_demos_and_models(folder: Path, size: int) -> Path:
    """Save one demonstration of `sort_cubes` in `demos`, a Mask2Former and a small VLM; return the folder."""
    own = {"task": "sort_cubes", "cameras": ["top"], "height": size, "width": size, "video": False}
    record(DemosConfig(root=folder / "demos", episodes=1, **own))
    tiny_mask2former(folder / "mask2former")
    save_small_vlm(folder / "vlm", SENTENCES)
    return folder


def run(main: Callable[[], object], command: str) -> None:
    """Run a command of LeRobot with options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [main.__module__, *command.split()])
        main()
