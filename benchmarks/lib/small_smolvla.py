# SPDX-License-Identifier: Apache-2.0
"""The small SmolVLA of the learning studies: random weights, nothing frozen, stock commands."""

from pathlib import Path

from lerobot_policy_segvla.small_vlm import save_small_vlm

SIDE = 96  # of all images, in pixels
IMAGES = [f"--height={SIDE}", f"--width={SIDE}", "--video=false"]
POLICY = [
    f"--policy.resize_imgs_with_padding=[{SIDE},{SIDE}]",
    "--policy.num_vlm_layers=4",
    "--policy.chunk_size=12",
    "--policy.n_action_steps=8",
    "--policy.num_steps=5",
    "--policy.train_expert_only=false",
    "--policy.freeze_vision_encoder=false",
    "--policy.tokenizer_max_length=16",
    "--policy.scheduler_warmup_steps=100",
]


def small_vlm(folder: Path, sentences: list[str]) -> Path:
    """Return a vision-language model with the words of some sentences as tokens; make it if missing."""
    if not folder.is_dir():
        save_small_vlm(folder, sentences, SIDE, 8, width=128, layers=4, vision_width=96, vision_layers=2)
    return folder


def training(vlm: Path, root: Path, steps: int, seed: int, batch: int = 32, lr: float = 1e-3) -> list[str]:
    """Return the options that all trainings of a policy on it share."""
    options = [*POLICY, f"--policy.vlm_model_name={vlm}", f"--policy.optimizer_lr={lr}", f"--seed={seed}"]
    options += [f"--policy.scheduler_decay_steps={steps}", f"--batch_size={batch}", "--save_freq=1000"]
    return [*options, "--dataset.repo_id=local/study", f"--dataset.root={root}"]
