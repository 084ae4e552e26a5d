# SPDX-License-Identifier: Apache-2.0
"""imf in LeRobot's own training, on images and on cached features; its checkpoints."""

import json

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from lerobot.scripts import lerobot_train
from safetensors.torch import load_file
from torch.utils.data import default_collate

from lerobot_policy_imf import IMFConfig
from lerobot_policy_imf.cache_vision import CacheVisionConfig
from lerobot_policy_imf.configuration_imf import vision_key
from lerobot_policy_imf.modeling_imf import IMFPolicy
from lerobot_policy_imf.vision import VisionEncoder
from lerobot_processor_so101.precompute.command import precompute
from tests.policy_imf.conftest import SMALL, observation
from tests.tiny import tiny_siglip
from tests.tiny_dataset import tiny_dataset

REPO_ID = "local/tiny"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "recorded")


@pytest.fixture(scope="module")
def cached(recorded, siglip, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "cached"
    precompute(cache(recorded, out, siglip, drop_rgb=True))
    return out


def cache(root, output, siglip, **changes) -> CacheVisionConfig:
    return CacheVisionConfig(
        output=output, root=root, vision_model_name=siglip, device="cpu", batch_size=5, **changes
    )


def train(root, out, siglip, **changes):
    config = IMFConfig(
        vision_model_name=siglip, device="cpu", push_to_hub=False, **{**SMALL, "n_action_steps": 3, **changes}
    )
    lerobot_train.train(
        TrainPipelineConfig(
            dataset=DatasetConfig(repo_id=REPO_ID, root=str(root)),
            policy=config,
            output_dir=out,
            steps=3,
            batch_size=4,
            num_workers=0,
            save_freq=3,
            log_freq=1,
        )
    )
    return out / "checkpoints" / "000003" / "pretrained_model"


def load(folder):
    policy = IMFPolicy.from_pretrained(folder)
    return policy, *make_pre_post_processors(policy.config, pretrained_path=str(folder))


def test_cached_features_equal_those_of_the_encoder(recorded, cached, siglip):
    before, after = LeRobotDataset(REPO_ID, root=recorded), LeRobotDataset(REPO_ID, root=cached)
    assert not after.meta.camera_keys
    assert vision_key("top") not in after.meta.stats  # so nothing normalises it
    encoder = VisionEncoder(siglip)
    for index in (0, 9, 20):
        views = [before[index][f"observation.images.{camera}"][None] for camera in ("top", "wrist")]
        features = encoder(views)[0]
        for view, camera in zip(features, ("top", "wrist"), strict=True):
            torch.testing.assert_close(after[index][vision_key(camera)], view, rtol=1e-4, atol=1e-5)
    info = after.features[vision_key("top")]["info"]
    assert info["pictures"] == [48, 64]
    assert info["perception"]["input_size"] == [32, 32]


def test_a_policy_trained_on_cached_features_runs_on_images_without_other_files(
    recorded, cached, tmp_path, monkeypatch
):
    name = tiny_siglip(tmp_path / "siglip")
    folder = train(cached, tmp_path / "run", name)
    (tmp_path / "siglip").rename(tmp_path / "gone")
    policy, preprocessor, postprocessor = load(folder)
    item = {
        key: value
        for key, value in LeRobotDataset(REPO_ID, root=recorded)[4].items()
        if key.startswith("observation.")
    }
    noise = torch.randn(1, SMALL["horizon"], 6)
    action = postprocessor(policy.select_action(preprocessor(dict(item)), noise=noise))
    assert action.shape == (1, 6)
    stored = LeRobotDataset(REPO_ID, root=cached)[4]
    stored = {key: value for key, value in stored.items() if key.startswith("observation.")}
    stored = {
        key: value[None] if key.startswith("observation.vision") else value for key, value in stored.items()
    }
    policy.reset()
    again = postprocessor(policy.select_action(preprocessor(stored), noise=noise))
    torch.testing.assert_close(again, action, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_contains_the_complete_policy(recorded, siglip, tmp_path):
    folder = train(recorded, tmp_path / "run", siglip, instruction=True)
    stored = load_file(folder / "model.safetensors")
    for key, value in stored.items():
        expected = torch.bfloat16 if key.startswith(("vision.", "text.")) else torch.float32
        assert value.dtype == expected or not value.is_floating_point(), key
    policy, preprocessor, _ = load(folder)
    other = IMFPolicy.from_pretrained(folder)
    dataset = LeRobotDataset(REPO_ID, root=recorded)
    batch = preprocessor(default_collate([dataset[0], dataset[13]]))
    noise = torch.randn(2, SMALL["horizon"], 6)
    assert torch.equal(
        policy.predict_action_chunk(batch, noise=noise), other.predict_action_chunk(batch, noise=noise)
    )
    other.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(stored[key], again[key]) for key in stored)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["vision_identity"]["weights"] == policy.vision.identity("").weights


@pytest.mark.parametrize(
    "changes",
    [
        {"cameras": ["top", "front", "wrist"]},
        {"vision_grid": 2},
        {"n_head": 1},
        {"time_max_frequency": 9.0},
    ],
)
def test_options_that_change_the_meaning_of_weights_are_rejected(policy, tmp_path, changes):
    made = policy()
    made.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    (key, value), *_ = changes.items()
    setattr(config, key, value)
    with pytest.raises(ValueError, match=rf"{key}: found .*, expected .*, which the weights in"):
        IMFPolicy.from_pretrained(tmp_path, config=config)


def test_cached_features_of_another_encoder_are_rejected(cached, recorded, siglip, tmp_path):
    other = tiny_siglip(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"observation\.vision\.top in the dataset, expects .*weights"):
        train(cached, tmp_path / "run", other)
    with pytest.raises(ValueError, match=r"vision_grid: found 2, expected that of observation\.vision\.top"):
        train(cached, tmp_path / "run", siglip, vision_grid=2)
    stale = json.loads((train(cached, tmp_path / "a", siglip) / "config.json").read_text())["vision_identity"]
    with pytest.raises(ValueError, match=r"expects .*weights"):  # as an options file may contain it
        train(cached, tmp_path / "b", other, vision_identity=stale)
    precompute(cache(recorded, tmp_path / "cells", siglip, vision_grid=2, cameras=["top"]))
    train(tmp_path / "cells", tmp_path / "run", siglip, vision_grid=2, cameras=["top"])


def test_an_action_that_never_changes_keeps_its_value(policy):
    made = policy()
    low, high = -torch.ones(6), torch.ones(6)
    low[2] = high[2] = 30.0
    stats = {
        "action": {"min": low, "max": high},
        "observation.state": {"min": -torch.ones(6), "max": torch.ones(6)},
    }
    _, postprocessor = make_pre_post_processors(made.config, dataset_stats=stats)
    chunk = made.predict_action_chunk(observation())
    actions = postprocessor(chunk[:, 0])
    torch.testing.assert_close(actions[:, 2], torch.full((2,), 30.0))
    assert actions[:, 0].abs().max() <= 1
