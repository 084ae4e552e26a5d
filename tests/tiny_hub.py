# SPDX-License-Identifier: Apache-2.0
"""The Hub's models that the documentation names, tiny and with random weights, as a cache of the Hub.

HF_HOME=<new folder> HF_HUB_OFFLINE=1 python -m tests.tiny_hub
"""

import os
from pathlib import Path

import torch
import transformers as hf
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from lerobot_policy_segvla.small_vlm import save_small_vlm
from tests.tiny import robot_features, save_policy, tiny_clipseg, tiny_depth_anything, tiny_siglip

VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"


def tiny_vlm(folder: Path) -> None:
    """Save SmolVLM with its weights."""
    save_small_vlm(folder, ["Lift the cube."])
    config = hf.AutoConfig.from_pretrained(folder)
    hf.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)


def tiny_smolvla_base(folder: Path) -> None:
    """Save SmolVLA with the features of the published checkpoint."""
    features = robot_features((256, 256), ("camera1", "camera2", "camera3"))
    policy = SmolVLAPolicy(SmolVLAConfig(**features, vlm_model_name=VLM, device="cpu"))
    statistics = {
        key: {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("observation.state", "action")
    }
    save_policy(policy, folder, statistics)


MODELS = {  # the first is a part of the second
    VLM: tiny_vlm,
    "lerobot/smolvla_base": tiny_smolvla_base,
    "google/siglip2-base-patch16-256": lambda folder: tiny_siglip(folder, size=256),
    "CIDAS/clipseg-rd64-refined": tiny_clipseg,
    "depth-anything/Depth-Anything-V2-Small-hf": tiny_depth_anything,
}


def main() -> None:
    for name, make in MODELS.items():
        folder = Path(os.environ["HF_HOME"], "hub", f"models--{name.replace('/', '--')}")
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("tiny")
        make(folder / "snapshots" / "tiny")


if __name__ == "__main__":
    main()
