# SPDX-License-Identifier: Apache-2.0
"""The small SmolVLA of the learning studies: random weights, nothing frozen, stock commands."""

from pathlib import Path

from lerobot_policy_segvla.small_vlm import save_small_vlm

from .study import flags

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
