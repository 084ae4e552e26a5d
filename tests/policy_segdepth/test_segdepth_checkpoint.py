# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of segdepth equals the trained policy to the last bit: restored, resumed and fine-tuned."""

import sys

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts import lerobot_train
from safetensors.torch import load_file
from torch.utils.data import default_collate

from lerobot_policy_segdepth import SegDepthConfig
from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy

REPO_ID = "local/synthetic"
STEPS = 4


@pytest.fixture(scope="module")
def run(synthetic_root, tmp_path_factory):
    """Output folder of a training saved half-way and at its end, and the chunk of the trained policy."""
    out = tmp_path_factory.mktemp("run") / "train"
    predicted = []
    save = lerobot_train.save_checkpoint

    def save_and_predict(**kwargs):
        predicted.append(
            predict(kwargs["policy"], kwargs["preprocessor"], kwargs["postprocessor"], synthetic_root)
        )
        save(**kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_train, "save_checkpoint", save_and_predict)
        lerobot_train.train(train_config(synthetic_root, out))
    return out, predicted[-1]


def train_config(root, out, **changes) -> TrainPipelineConfig:
    # Nothing random: LeRobot's loader draws a seed when a resumed training begins, which changes later draws.
    return TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=REPO_ID, root=str(root)),
        policy=SegDepthConfig(
            hidden_dim=32, conv_channels=4, state_noise=0.0, random_shift=0, device="cpu", push_to_hub=False
        ),
        output_dir=out,
        **{
            "steps": STEPS,
            "batch_size": 4,
            "num_workers": 0,
            "save_freq": STEPS // 2,
            "log_freq": 1,
            **changes,
        },
    )


def predict(policy, preprocessor, postprocessor, root) -> torch.Tensor:
    """Predict chunks for two dataset frames, in the dataset's units, and switch back to training mode."""
    dataset = LeRobotDataset(REPO_ID, root=root)
    batch = preprocessor(default_collate([dataset[0], dataset[13]]))
    chunk = postprocessor(policy.predict_action_chunk(batch))
    policy.train()
    return chunk


def checkpoint(out, step=STEPS):
    return out / "checkpoints" / f"{step:06d}" / "pretrained_model"


def resume(folder, monkeypatch, **changes) -> None:
    """Run what `lerobot-train --resume=true --config_path=...` runs."""
    monkeypatch.setattr(sys, "argv", ["lerobot-train", f"--config_path={folder / 'train_config.json'}"])
    config = TrainPipelineConfig.from_pretrained(folder)
    config.resume = True
    for name, value in changes.items():
        setattr(config, name, value)
    lerobot_train.train(config)


def test_a_restored_policy_predicts_as_the_trained_one(run, synthetic_root):
    out, trained = run
    policy = SegDepthPolicy.from_pretrained(checkpoint(out))
    # From the JSON alone, without the plugin's factory and the dataset's statistics.
    pre = PolicyProcessorPipeline.from_pretrained(checkpoint(out), config_filename="policy_preprocessor.json")
    post = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint(out)))[1]

    restored = predict(policy, pre, post, synthetic_root)

    torch.testing.assert_close(restored, trained, rtol=0, atol=0)
    assert restored.shape == (2, policy.config.chunk_size, 6)


def test_resumed_training_equals_the_uninterrupted_one(run, tmp_path, monkeypatch):
    out, _ = run
    resume(checkpoint(out, STEPS // 2), monkeypatch, output_dir=tmp_path / "resumed")

    expected = load_file(checkpoint(out) / "model.safetensors")
    resumed = load_file(checkpoint(tmp_path / "resumed") / "model.safetensors")

    assert expected.keys() == resumed.keys()
    assert resumed["ema.n_averaged"] == STEPS
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)


def test_fine_tuning_begins_with_the_weights_of_the_checkpoint(run, synthetic_root, tmp_path, monkeypatch):
    out, _ = run
    monkeypatch.setattr(sys, "argv", ["lerobot-train", f"--policy.path={checkpoint(out)}"])
    config = train_config(synthetic_root, tmp_path / "tuned", steps=2)
    config.policy = None
    lerobot_train.train(config)
    tuned = load_file(checkpoint(tmp_path / "tuned", 2) / "model.safetensors")
    assert tuned["ema.n_averaged"] == STEPS + 2


def test_the_averaged_weights_are_restored_or_left_out(run):
    out, _ = run
    folder = checkpoint(out)
    policy = SegDepthPolicy.from_pretrained(folder)
    assert policy.ema.n_averaged == STEPS
    config = PreTrainedConfig.from_pretrained(folder)
    config.ema_decay = 0.0
    without = SegDepthPolicy.from_pretrained(folder, config=config)
    assert without.ema is None
    for restored, expected in zip(without.model.parameters(), policy.model.parameters(), strict=True):
        torch.testing.assert_close(restored, expected, rtol=0, atol=0)


def test_a_checkpoint_without_averaged_weights_runs_its_own(run, tmp_path):
    config = PreTrainedConfig.from_pretrained(checkpoint(run[0]))
    config.ema_decay = 0.0
    SegDepthPolicy.from_pretrained(checkpoint(run[0]), config=config).save_pretrained(tmp_path)
    config.ema_decay = 0.9  # switched on later: the average is still empty
    policy = SegDepthPolicy.from_pretrained(tmp_path, config=config)
    assert policy._inference_model() is policy.model


def test_the_learning_rate_ends_at_zero_whatever_the_steps():
    config = SegDepthConfig(device="cpu")
    parameter = torch.nn.Parameter(torch.zeros(1))
    for steps in (30, 300):
        optimizer = config.get_optimizer_preset().build([parameter])
        scheduler = config.get_scheduler_preset().build(optimizer, steps)
        rates = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            rates.append(scheduler.get_last_lr()[0])
        assert max(rates) == pytest.approx(config.optimizer_lr, rel=0.05)
        assert rates[-1] == pytest.approx(0.0, abs=1e-9)
