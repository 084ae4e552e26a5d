# SPDX-License-Identifier: Apache-2.0
"""The segdepth policy: errors, learning, inference, and training through LeRobot."""

import json

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from lerobot.scripts.lerobot_train import train

from lerobot_env_so101_workbench.demos.command import DemosConfig, record
from lerobot_policy_segdepth import SegDepthConfig
from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
from lerobot_processor_so101 import class_masks

SIDE, T = 24, 4


def config(**changes) -> SegDepthConfig:
    """Configuration of a small policy with one camera."""
    settings = {
        "cameras": ["top"],
        "hidden_dim": 32,
        "n_layers": 2,
        "conv_channels": 4,
        "device": "cpu",
        "image_size": SIDE,
    }
    made = SegDepthConfig(**{**settings, **changes})
    made.input_features = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
    for camera in made.cameras:
        for kind in ("seg", "depth"):
            made.input_features[f"observation.images.{camera}_{kind}"] = PolicyFeature(
                FeatureType.VISUAL, (1, SIDE, SIDE)
            )
    made.output_features = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    return made


def batch(size: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """Output of the preprocessor: a square of class "cube", and actions that depend on its position."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((size, SIDE, SIDE), 2, dtype=torch.uint8)
    corner = torch.randint(0, SIDE - 5, (size, 2), generator=generator)
    for i, (row, column) in enumerate(corner.tolist()):
        ids[i, row : row + 5, column : column + 5] = 3
    action = (corner.float() / SIDE - 0.5).repeat(1, 3)[:, None].repeat(1, T, 1)
    return {
        "observation.state": torch.randn(size, 6, generator=generator) * 0.1,
        "observation.seg.top": ids,
        "observation.disparity.top": torch.full((size, SIDE, SIDE), 100.0),
        "action": action,
        "action_is_pad": torch.zeros(size, T, dtype=torch.bool),
    }


def fit(policy: SegDepthPolicy, steps: int) -> float:
    """Train on fresh batches; return the loss on other frames in eval mode."""
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    for step in range(steps):
        policy.train()
        loss, _ = policy.forward(batch(32, seed=step + 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        policy.update()
    policy.eval()
    return policy.forward(batch(64, seed=0))[0].item()


# -- configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"watched_classes": ["cub"]}, r"watched_classes: found 'cub'.*Did you mean 'cube'"),
        ({"n_action_steps": 9}, "n_action_steps: found 9, expected 1 to chunk_size = 4"),
        ({"cameras": []}, "cameras: found"),
        ({"ema_decay": 1.0}, "ema_decay: found 1.0"),
        ({"n_obs_steps": 0}, "n_obs_steps: found 0"),
    ],
)
def test_invalid_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_dataset_without_masks_is_refused_with_the_fix():
    without = config()
    del without.input_features["observation.images.top_seg"]
    with pytest.raises(
        ValueError, match=r"'observation\.images\.top_seg'; found .*so101-demos --seg=true --depth=true"
    ):
        SegDepthPolicy(without)


def test_ids_without_a_class_name_are_refused():
    frames = batch()
    frames["observation.seg.top"][0, 0, 0] = 10
    with pytest.raises(
        ValueError, match=r"observation\.seg\.top: found class id 10.*class_names.*use_log=false"
    ):
        SegDepthPolicy(config()).predict_action_chunk(frames)


def test_ids_are_checked_at_every_prediction():
    policy = SegDepthPolicy(config())
    policy.predict_action_chunk(batch())
    late = batch()
    late["observation.seg.top"][0, 0, 0] = 10
    with pytest.raises(ValueError, match="found class id 10"):
        policy.predict_action_chunk(late)


def test_rgb_images_in_the_dataset_are_ignored():
    with_rgb = config()
    with_rgb.input_features["observation.images.top"] = PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE))
    assert "observation.images.top" not in SegDepthPolicy(with_rgb).config.input_features


# -- learning


def test_it_learns_the_position_of_the_cube_and_a_blind_policy_cannot():
    torch.manual_seed(0)
    sighted, blind = fit(SegDepthPolicy(config()), 150), fit(SegDepthPolicy(config(blind=True)), 150)
    assert sighted < 0.35 * blind


@pytest.mark.parametrize("encoder", ["geometry", "both", "drqv2"])
def test_a_blind_policy_does_not_depend_on_masks(encoder):
    torch.manual_seed(0)
    policy = SegDepthPolicy(config(blind=True, encoder=encoder))
    fit(policy, 3)
    shown, other = batch(4, seed=5), batch(4, seed=6)
    other["observation.state"] = shown["observation.state"]
    torch.testing.assert_close(
        policy.predict_action_chunk(shown), policy.predict_action_chunk(other), rtol=0, atol=0
    )


def test_padding_does_not_affect_the_loss():
    policy = SegDepthPolicy(config()).eval()
    frames = batch()
    frames["action_is_pad"][:, 2:] = True
    before = policy.forward(frames)[0]
    frames["action"][:, 2:] = 1e6
    torch.testing.assert_close(policy.forward(frames)[0], before)
    per_sample = policy.forward(frames, reduction="none")[0]
    assert per_sample.shape == (8,)
    torch.testing.assert_close(per_sample.mean(), before)


def test_an_untrained_policy_holds_its_pose():
    frames = batch()
    chunk = SegDepthPolicy(config()).predict_action_chunk(frames)
    torch.testing.assert_close(chunk, frames["observation.state"][:, None].expand(-1, T, -1))


@pytest.mark.parametrize("frames", [1, 2])
def test_masks_and_disparity_shift_together_and_only_in_training(frames, monkeypatch):
    policy = SegDepthPolicy(config(random_shift=3, state_noise=0.0, n_obs_steps=frames))
    seen, encode = [], policy.model.geometry[0].forward
    monkeypatch.setattr(policy.model.geometry[0], "forward", lambda *maps: seen.append(maps) or encode(*maps))
    sample = batch(16)
    ids = sample["observation.seg.top"][:, None].expand(-1, frames, -1, -1)
    sample["observation.seg.top"], sample["observation.disparity.top"] = ids, 255 * (ids == 3).float()
    policy.train().forward(sample)
    policy.eval().forward(sample)
    watched = policy.config.class_ids
    for masks, disparity in seen:
        assert torch.equal(disparity, masks[:, watched.index(3)])
        masks = masks.unflatten(0, (16, frames))
        assert (masks == masks[:, :1]).all()
    moved = (seen[0][0] != seen[1][0]).flatten(1).any(1)
    assert moved.float().mean() > 0.5
    assert torch.equal(seen[1][0], class_masks(ids.flatten(0, 1), watched))


def test_classes_that_are_not_watched_are_ignored():
    policy, sample = SegDepthPolicy(config()).eval(), batch(4)
    policy.model.mlp[-1].weight.data.normal_()
    before = policy.forward(sample)[0]
    ids = sample["observation.seg.top"]
    assert 2 not in policy.config.class_ids
    sample["observation.seg.top"] = torch.where(ids == 2, 0, ids)
    torch.testing.assert_close(policy.forward(sample)[0], before, rtol=0, atol=0)


# -- inference


def test_it_predicts_once_per_executed_chunk_and_after_reset(monkeypatch):
    policy = SegDepthPolicy(config(n_action_steps=3))
    calls = []
    predict = policy.model.forward
    monkeypatch.setattr(policy, "_inference_model", lambda: lambda b: calls.append(1) or predict(b))
    actions = [policy.select_action(batch(2)) for _ in range(7)]
    assert len(calls) == 3
    assert actions[0].shape == (2, 6)
    policy.reset()
    policy.select_action(batch(2))
    assert len(calls) == 4


def test_inference_uses_the_averaged_weights():
    policy = SegDepthPolicy(config(ema_decay=0.9))
    fit(policy, 5)
    frames = batch()
    averaged = policy.predict_action_chunk(frames)
    assert not torch.equal(averaged, policy.model.eval()(frames))
    torch.testing.assert_close(averaged, policy.ema.module.eval()(frames), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in policy.ema.parameters())


# -- training through LeRobot


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("segdepth") / "demos"
    record(
        DemosConfig(
            root=path, episodes=2, cameras=["top"], height=32, width=32, seg=True, depth=True, video=False
        )
    )
    return path


def train_steps(root, out, steps: int, **changes) -> TrainPipelineConfig:
    cfg = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="local/lift_cube_clean", root=str(root)),
        policy=SegDepthConfig(cameras=["top"], hidden_dim=32, image_size=32, device="cpu", push_to_hub=False),
        output_dir=out,
        steps=steps,
        batch_size=4,
        num_workers=0,
        save_freq=steps,
        log_freq=1,
        **changes,
    )
    train(cfg)
    return cfg


def test_a_checkpoint_restores_offline_to_the_same_actions(root, tmp_path, plugins):
    train_steps(root, tmp_path / "out", 3)
    folder = tmp_path / "out" / "checkpoints" / "last" / "pretrained_model"
    stored = sorted(path.name for path in folder.iterdir())
    assert not [name for name in stored if name.endswith((".pt", ".pkl", ".bin"))]
    dataset = LeRobotDataset("local/lift_cube_clean", root=root)
    frame = {key: value[None] for key, value in dataset[5].items() if key.startswith("observation.")}

    def act() -> np.ndarray:
        policy = SegDepthPolicy.from_pretrained(folder)
        pre, post = make_pre_post_processors(
            policy.config,
            pretrained_path=str(folder),
            preprocessor_overrides={"device_processor": {"device": "cpu"}},
        )
        return post(policy.select_action(pre(dict(frame)))).numpy()

    first = act()
    np.testing.assert_array_equal(act(), first)
    assert first.shape == (1, 6)
    steps = [
        s["registry_name"] for s in json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    ]
    assert (
        steps.index("device_processor")
        < steps.index("so101_segmentation")
        < steps.index("normalizer_processor")
    )
    # The degrees of a real arm: an almost untrained policy holds the pose it is in.
    np.testing.assert_allclose(first[0], frame["observation.state"][0].numpy(), atol=25.0)


def test_a_dataset_recorded_without_masks_stops_training_at_once(tmp_path, plugins):
    path = tmp_path / "rgb"
    record(DemosConfig(root=path, episodes=1, cameras=["top"], height=32, width=32, video=False))
    with pytest.raises(ValueError, match=r"segdepth reads 'observation\.images\.top_seg'"):
        train_steps(path, tmp_path / "out", 1)
