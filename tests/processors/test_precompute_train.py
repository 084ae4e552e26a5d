# SPDX-License-Identifier: Apache-2.0
"""What trains on a precomputed dataset: a stock policy, with the flag of docs/precompute.md; a segmenter."""

import re
import sys
from pathlib import Path

import torch
from lerobot.datasets import LeRobotDataset
from lerobot.scripts import lerobot_train

from lerobot_processor_so101.models import make_segmenter
from lerobot_processor_so101.perception.stored import decode_disparity, decode_ids
from lerobot_processor_so101.precompute.command import precompute
from lerobot_processor_so101.precompute.perception import PrecomputeConfig
from lerobot_processor_so101.segmenter_training.config import TrainConfig
from lerobot_processor_so101.segmenter_training.sources import open_source
from lerobot_processor_so101.segmenter_training.train import train
from tests.tiny import tiny_clipseg, tiny_depth_anything, tiny_efficientvit_fpn
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


def test_a_small_segmenter_learns_from_an_open_vocabulary_model(tmp_path):
    """docs/segmenter.md, without annotation: ids and disparity are smaller than the images."""
    root = tiny_dataset(tmp_path / "d", size=(48, 64))
    texts = ["red cube", "gripper"]
    labels = {"segmenter": tiny_clipseg(tmp_path / "large"), "classes": texts, "height": 32, "width": 32}
    labels |= {"depth": tiny_depth_anything(tmp_path / "depth"), "device": "cpu"}
    precompute(PrecomputeConfig(root=root, output=tmp_path / "labelled", **labels))
    size = {"height": 48, "width": 64}
    result = train(
        TrainConfig([tmp_path / "labelled"], tmp_path / "small", classes=["background", *texts], **size,
                    disparity_head=True, init_from="none", epochs=2, lr=1e-2, augment="none", workers=0)
    )  # fmt: skip
    source = open_source(tmp_path / "labelled", disparity=True)
    item, frame = LeRobotDataset("local/labelled", root=tmp_path / "labelled")[0], next(source.read())
    assert torch.equal(frame.ids, decode_ids(item["observation.seg.top"]))
    assert torch.equal(frame.disparity, decode_disparity(item["observation.disparity.top"]))
    assert result["disparity_error"]["model"] < 128
    small = make_segmenter(str(tmp_path / "small" / "best"))
    assert small.class_names == ("background", *texts)
    assert small.predicts_disparity
