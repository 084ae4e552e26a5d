# SPDX-License-Identifier: Apache-2.0
"""segvla in LeRobot's commands: training, evaluation and rollout, with live and with precomputed scores."""

import json
import shutil

import numpy as np
import pytest
import torch
from lerobot.scripts import lerobot_eval, lerobot_rollout, lerobot_train
from safetensors.torch import load_file

from lerobot_policy_segvla.explain import COLUMNS, TILE
from lerobot_policy_segvla.modeling_segvla import SegVLAFlowMatching
from lerobot_processor_so101.precompute.command import precompute
from lerobot_processor_so101.precompute.perception import PrecomputeConfig
from tests.conftest import count_pictures

from .conftest import run, save_demos_and_models

SIZE = 32
SIM = f"--env.type=so101_sim --env.task=sort_cubes --env.cameras=[top] --env.height={SIZE} --env.width={SIZE}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Demonstrations without and with precomputed scores, a small VLM and a Mask2Former."""
    folder = save_demos_and_models(tmp_path_factory.mktemp("segvla"), SIZE)
    precompute(
        PrecomputeConfig(
            root=folder / "demos",
            output=folder / "scored",
            segmenter=str(folder / "mask2former"),
            forms=["top_k"],
            top_k=4,
            grid=8,
        )
    )
    return folder


def train(folder, dataset: str, output: str, options: str = "") -> None:
    run(
        lerobot_train.main,
        f"--policy.type=segvla --policy.vlm_model_name={folder / 'vlm'} "
        "--policy.num_vlm_layers=2 --policy.resize_imgs_with_padding=[64,64] --policy.push_to_hub=false "
        f"--policy.segmenter={folder / 'mask2former'} --policy.device=cpu "
        "--policy.segmentation_kind=top_k --policy.segmentation_task_classes=[table,bottle] "
        "--policy.segmentation_geometry_classes=[plate] --policy.chunk_size=50 --policy.num_steps=2 "
        f"--dataset.repo_id=local/{dataset} --dataset.root={folder / dataset} "
        f"--output_dir={folder / output} --steps=2 --save_freq=1 --batch_size=2 --num_workers=0 {options}",
    )


def weights(checkpoint) -> dict:
    return load_file(checkpoint / "pretrained_model" / "model.safetensors")


@pytest.fixture
def calls(monkeypatch):
    from transformers import Mask2FormerForUniversalSegmentation as Model

    return count_pictures(monkeypatch, Model)


def test_resumed_training_on_precomputed_scores_equals_uninterrupted(folder, monkeypatch, calls, plugins):
    # LeRobot restores the random state and then draws from it for the data loader: the noise would differ.
    noise = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(SegVLAFlowMatching, "sample_noise", lambda *_: noise)
    monkeypatch.setattr(SegVLAFlowMatching, "sample_time", lambda *_: torch.tensor([0.3, 0.7]))
    train(folder, "scored", "train_scored", "--policy.segmentation_dropout_prob=0")
    assert not calls
    first, last = (folder / "train_scored" / "checkpoints" / f"00000{step}" for step in (1, 2))
    saved, uninterrupted = weights(first), weights(last)
    shutil.rmtree(last)
    config = first / "pretrained_model" / "train_config.json"
    run(lerobot_train.main, f"--resume=true --config_path={config}")
    torch.testing.assert_close(weights(last), uninterrupted, rtol=0, atol=0)
    # The second step changes weights of SmolVLA and of the cues, so that the comparison can fail.
    changed = {key for key, value in saved.items() if not value.equal(uninterrupted[key])}
    assert {"model.action_out_proj.weight", "model.cues.patch_gate"} <= changed


@pytest.mark.slow
def test_live_scores_and_acting(folder, monkeypatch, calls, plugins, tmp_path):
    from lerobot_env_so101_workbench.tasks import SortCubes

    train(folder, "demos", "train_live")
    assert calls == [2, 2]  # one call per step of two samples
    calls.clear()
    monkeypatch.setattr(SortCubes, "time_limit_s", 100 / 30)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(folder / "train_live" / "checkpoints" / "000002" / "pretrained_model", checkpoint)
    away = folder / "vlm_away"
    (folder / "vlm").rename(away)  # the checkpoint contains its configuration and tokenizer
    try:
        run(
            lerobot_eval.main,
            f"--policy.path={checkpoint} --policy.device=cpu {SIM} --eval.n_episodes=1 "
            f"--eval.batch_size=1 --eval.use_async_envs=false --output_dir={tmp_path / 'eval'}",
        )
        assert json.loads((tmp_path / "eval" / "eval_info.json").read_text())["overall"]["n_episodes"] == 1
        assert calls == [1, 1]  # once per chunk of 50, in 100 ticks
        calls.clear()
        for inference in ("sync", "rtc"):
            run(
                lerobot_rollout.main,
                f"--strategy.type=base --inference.type={inference} --task=Sort --duration=1 "
                f"--fps=30 --policy.path={checkpoint} --policy.device=cpu --robot.type=so101_sim "
                f"--robot.task=sort_cubes --robot.views=[top] --robot.height={SIZE} --robot.width={SIZE}",
            )
            assert calls
            calls.clear()
    finally:
        away.rename(folder / "vlm")


def test_view_draws_the_tokens(folder, plugins, tmp_path):
    from PIL import Image

    from lerobot_processor_so101.viewer.view import ViewConfig, view

    train(folder, "scored", "viewed")
    checkpoint = folder / "viewed" / "checkpoints" / "000002" / "pretrained_model"
    view(ViewConfig(root=folder / "scored", checkpoint=checkpoint, output=tmp_path / "view.png", frames=2))
    image = np.asarray(Image.open(tmp_path / "view.png"))
    assert image.shape == (2 * 3 * TILE, COLUMNS * TILE, 3)  # 17 tiles in three rows, two frames
    tiles = image[: 3 * TILE].reshape(3, TILE, COLUMNS, TILE, 3).swapaxes(1, 2)
    lower = slice(TILE // 2, None)  # below the text; only the tile of the image itself is not darkened
    assert tiles[0, 0, lower].mean() > tiles[2, 0, lower].mean()
    with pytest.raises(ValueError, match=r"--checkpoint: found no config\.json"):
        view(ViewConfig(root=folder / "scored", checkpoint=tmp_path, output=tmp_path / "other.png"))


def test_adapters_on_a_warm_start(folder, plugins):
    train(folder, "scored", "base")
    base = folder / "base" / "checkpoints" / "000002" / "pretrained_model"
    train(folder, "scored", "lora", f"--policy.init_from={base} --peft.method_type=LORA --peft.r=2")
    saved = folder / "lora" / "checkpoints" / "000002" / "pretrained_model"
    adapter = load_file(saved / "adapter_model.safetensors")
    assert any("lora_A" in key for key in adapter)
    (gate,) = (value for key, value in adapter.items() if key.endswith("cues.patch_gate"))
    assert gate.any()  # the cues are trained in full, and saved with the adapter
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)

    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    config = PreTrainedConfig.from_pretrained(saved)
    config.pretrained_path = saved
    loaded = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/scored", root=folder / "scored"))
    assert loaded.base_model.model.model.cues.patch_gate.equal(gate)
