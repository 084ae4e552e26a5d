# SPDX-License-Identifier: Apache-2.0
"""Policies with random weights: their features, a training step, saving; a small ACT and SmolVLA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy

from lerobot_policy_segvla.small_vlm import save_small_vlm

from .study import flags

# The small SmolVLA of the learning studies: nothing frozen, stock commands.
SIDE = 96  # of all images, in pixels
SIZE = flags(height=SIDE, width=SIDE)
IMAGES = [*SIZE, "--video=false"]
POLICY = flags(
    "policy.",
    resize_imgs_with_padding=[SIDE, SIDE],
    num_vlm_layers=4,
    chunk_size=12,
    n_action_steps=8,
    num_steps=5,
    train_expert_only=False,
    freeze_vision_encoder=False,
    tokenizer_max_length=16,
    scheduler_warmup_steps=100,
)


def robot_features(size: tuple[int, int], cameras: tuple[str, ...] = ("top", "wrist")) -> dict[str, Any]:
    """Return configuration fields for a robot with six joints, and cameras of size (H, W)."""
    image = PolicyFeature(FeatureType.VISUAL, (3, *size))
    images = {f"observation.images.{camera}": image for camera in cameras}
    return {
        "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **images},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (6,))},
    }


def training_step(policy: Any, batch: dict[str, Any]) -> Callable[[], None]:
    """Return a training step with AdamW on what is trained, as LeRobot takes it; in bfloat16 on a GPU."""
    device = batch["action"].device.type
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        policy.train()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, _ = policy.forward(dict(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def save_policy(policy: Any, folder: Path, statistics: dict[str, Any] | None = None) -> Any:
    """Save a policy with its pipelines, and return its configuration, which points to the folder."""
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=statistics):
        pipeline.save_pretrained(folder)
    policy.config.pretrained_path = folder
    return policy.config


def save_act(folder: Path, size: tuple[int, int]) -> Any:
    """Save a small ACT for images of size (H, W); it commands joints near 0. Return its configuration."""
    torch.manual_seed(0)
    sizes = {"dim_model": 16, "n_heads": 2, "dim_feedforward": 16, "n_encoder_layers": 1}
    sizes |= {"chunk_size": 15, "n_action_steps": 15}
    options = {"pretrained_backbone_weights": None, "use_vae": False, "device": "cpu", "push_to_hub": False}
    return save_policy(ACTPolicy(ACTConfig(**robot_features(size), **sizes, **options)), folder)


def small_vlm(folder: Path, sentences: list[str]) -> Path:
    """Return a vision-language model with the words of some sentences as tokens; make it if missing."""
    if not folder.is_dir():
        save_small_vlm(folder, sentences, SIDE, 8, width=128, layers=4, vision_width=96, vision_layers=2)
    return folder


def training(vlm: Path, root: Path, steps: int, seed: int, batch: int = 32, lr: float = 1e-3) -> list[str]:
    """Return the options that all trainings of a policy on it share."""
    own = flags("policy.", vlm_model_name=vlm, optimizer_lr=lr, scheduler_decay_steps=steps)
    data = flags("dataset.", repo_id="local/study", root=root)
    return [*POLICY, *own, *data, *flags(seed=seed, batch_size=batch, save_freq=1000)]
