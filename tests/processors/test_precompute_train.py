# SPDX-License-Identifier: Apache-2.0
"""A stock policy trains on a precomputed dataset, with the flag of docs/precompute.md."""

import re
import sys
from pathlib import Path

from lerobot.scripts import lerobot_train

from lerobot_processor_so101.precompute.command import precompute
from lerobot_processor_so101.precompute.perception import PrecomputeConfig
from tests.tiny import tiny_efficientvit_fpn
from tests.tiny_dataset import tiny_dataset

DOCS = Path(__file__).resolve().parents[2] / "docs/precompute.md"


def test_act(tmp_path, monkeypatch):
    root = tiny_dataset(tmp_path / "d", size=(32, 32))
    model = tiny_efficientvit_fpn(tmp_path / "m", disparity_head=True)
    forms = ["ids", "top_k", "logits"]
    options = {"segmenter": model, "forms": forms, "depth": "segmenter", "grid": 4, "logits_size": 8}
    precompute(PrecomputeConfig(root=root, output=tmp_path / "out", device="cpu", **options))
    flag = re.search(r"--policy\.input_features='(.*?)'", DOCS.read_text(), re.S)
    assert flag, "the flag stands in the documentation"
    inputs = flag[1].replace("480, 640", "32, 32")
    tiny = {"chunk_size": 4, "n_action_steps": 4, "dim_model": 16, "n_heads": 2, "dim_feedforward": 16}
    tiny |= {"n_encoder_layers": 1, "use_vae": "false", "pretrained_backbone_weights": "null"}
    arguments = [
        "--dataset.repo_id=local/tiny", f"--dataset.root={tmp_path / 'out'}", "--policy.type=act",
        "--policy.device=cpu", "--policy.push_to_hub=false", f"--policy.input_features={inputs}",
        *(f"--policy.{key}={value}" for key, value in tiny.items()),
        "--steps=2", "--batch_size=2", "--num_workers=0", f"--output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments])
    lerobot_train.main()
    assert (tmp_path / "run/checkpoints/last/pretrained_model/model.safetensors").is_file()
