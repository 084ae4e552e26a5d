# SPDX-License-Identifier: Apache-2.0
"""segdepth with a segmenter: training on precomputed masks, and live inference through `lerobot-eval`."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies import make_pre_post_processors
from lerobot.scripts import lerobot_eval, lerobot_train

from lerobot_policy_segdepth import SegDepthConfig
from lerobot_processor_so101 import PERCEPTION
from lerobot_processor_so101.precompute.command import precompute
from lerobot_processor_so101.precompute.perception import PrecomputeConfig
from tests.conftest import count_pictures
from tests.tiny import save_policy, tiny_efficientvit_fpn
from tests.tiny_dataset import tiny_dataset

CHUNK = 10


def config_for(segmenter, images, **options) -> SegDepthConfig:
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **images}
    return SegDepthConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        cameras=["top"],
        segmenter=segmenter,
        depth="segmenter",
        device="cpu",
        push_to_hub=False,
        **{"chunk_size": CHUNK, "n_action_steps": CHUNK, **options},
    )


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return tiny_efficientvit_fpn(tmp_path_factory.mktemp("segmenter"), disparity_head=True)


@pytest.fixture
def calls(monkeypatch):
    """Number of images in each call of the segmenter."""
    from lerobot_processor_so101.models.efficientvit_fpn import (
        EfficientViTFPNForSemanticSegmentation as Model,
    )

    return count_pictures(monkeypatch, Model)


@pytest.fixture(scope="module")
def checkpoint(segmenter, tmp_path_factory):
    """An untrained policy, saved as LeRobot saves it."""
    from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy

    torch.manual_seed(0)
    config = config_for(segmenter, {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))})
    folder = tmp_path_factory.mktemp("checkpoint")
    save_policy(SegDepthPolicy(config), folder)
    return folder


def test_the_segmenter_runs_once_per_chunk_in_lerobot_eval(checkpoint, calls, tmp_path, monkeypatch, plugins):
    from lerobot_env_so101_workbench.env import WorkbenchEnv
    from lerobot_env_so101_workbench.tasks import LiftCube

    ticks, step = [], WorkbenchEnv.step
    monkeypatch.setattr(WorkbenchEnv, "step", lambda self, action: ticks.append(1) or step(self, action))
    monkeypatch.setattr(LiftCube, "time_limit_s", 2 * CHUNK / 30)
    command = (
        f"lerobot-eval --policy.path={checkpoint} --policy.device=cpu --env.type=so101_sim "
        "--env.task=lift_cube --env.cameras=[top] --env.height=32 --env.width=32 --eval.n_episodes=2 "
        f"--eval.batch_size=1 --eval.use_async_envs=false --output_dir={tmp_path}"
    )
    monkeypatch.setattr(sys, "argv", command.split())
    lerobot_eval.main()

    assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["n_episodes"] == 2
    assert len(ticks) == 4 * CHUNK
    assert calls == [1] * 4  # once in CHUNK ticks


def test_the_checkpoint_has_the_identity_of_the_segmenter_without_its_weights(checkpoint):
    steps = json.loads((checkpoint / "policy_preprocessor.json").read_text())["steps"]
    (config,) = [step["config"] for step in steps if step["registry_name"] == "so101_segmentation"]
    assert config["identity"]["class_names"][3] == "cube"
    assert not [path.name for path in checkpoint.glob("*.safetensors") if "segmentation" in path.name]


def test_training_runs_deferred_perception_in_forward(checkpoint, calls):
    from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy

    policy = SegDepthPolicy.from_pretrained(checkpoint)
    preprocessor, _ = make_pre_post_processors(policy.config, pretrained_path=checkpoint)
    batch = preprocessor(
        {
            "observation.images.top": torch.rand(3, 3, 32, 32),
            "observation.state": torch.zeros(3, 6),
            "action": torch.zeros(3, CHUNK, 6),
        }
    )
    assert PERCEPTION in batch
    assert not calls
    loss, _ = policy.train()(batch)
    loss.backward()
    policy.eval()(batch)
    assert calls == [3]


def test_a_policy_takes_images_or_precomputed_perception(segmenter):
    plane = PolicyFeature(FeatureType.VISUAL, (1, 84, 84))
    stored = {"observation.seg.top": plane, "observation.disparity.top": plane}
    config = config_for(segmenter, stored)
    config.validate_features()
    # LeRobot compares these names with those of a dataset without RGB and of an arm with RGB.
    assert set(config.used_features) == {*stored, "observation.state", "observation.images.top"}
    with pytest.raises(ValueError, match=r"'observation.disparity.top' or 'observation.images.top'"):
        config_for(segmenter, {"observation.seg.top": plane}).validate_features()


def test_a_policy_with_other_class_names_than_the_segmenter_is_refused(segmenter):
    images = {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))}
    config = config_for(segmenter, images, class_names=["table", "cube"], watched_classes=["cube"])
    with pytest.raises(ValueError, match=r"--policy\.class_names"):
        make_pre_post_processors(config)


def test_perception_precomputed_from_wide_images_needs_wide_images_later(segmenter):
    from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy

    plane = PolicyFeature(FeatureType.VISUAL, (1, 84, 84))
    config = config_for(segmenter, {"observation.seg.top": plane, "observation.disparity.top": plane})
    SegDepthPolicy(config)  # declares images of an assumed size
    info = {"pictures": [120, 160]}
    features = {
        f"observation.{kind}.top": {"shape": (84, 84, 1), "info": info} for kind in ("seg", "disparity")
    }
    preprocessor, _ = make_pre_post_processors(
        config, dataset_meta=SimpleNamespace(fps=30, features=features)
    )
    state = {"observation.state": torch.zeros(1, 6)}
    preprocessor({"observation.images.top": torch.rand(1, 3, 60, 80), **state})
    with pytest.raises(
        ValueError, match=r"observation\.images\.top: found 84x84 pixels, expected a width of 1.33"
    ):
        preprocessor({"observation.images.top": torch.rand(1, 3, 84, 84), **state})


@pytest.mark.parametrize("floored", [True, False])
def test_stored_disparity_must_be_floored_as_the_policys(segmenter, floored):
    key = "observation.disparity.top"
    image = {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 96, 128))}
    info = {"whole": True} if floored else {}
    meta = SimpleNamespace(fps=30, features={key: {"shape": (84, 84, 1), "info": info}})
    config = config_for(segmenter, image, whole_disparity=not floored)
    with pytest.raises(
        ValueError, match=f"whole_disparity: found {floored} for '{key}'.*expected {not floored}"
    ):
        make_pre_post_processors(config, dataset_meta=meta)


def test_precomputed_and_live_are_equal_to_the_bit_when_the_crop_comes_later(segmenter):
    from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
    from lerobot_processor_so101 import SegmentationProcessorStep
    from lerobot_processor_so101.perception.stored import encode_disparity, encode_ids

    image = {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 96, 128))}
    config = config_for(segmenter, image, preset="handoff", chunk_size=1, n_action_steps=1)
    preprocessor, _ = make_pre_post_processors(config)
    frames = {"observation.images.top": torch.rand(2, 3, 96, 128)}
    uncropped = SegmentationProcessorStep(
        ["top"], [96, 128], segmenter=segmenter, disparity=True, whole=True, defer=False
    ).observation(frames)
    stored = {
        "observation.seg.top": encode_ids(uncropped["observation.seg.top"]).float(),
        "observation.disparity.top": encode_disparity(uncropped["observation.disparity.top"]).float(),
    }
    state = {"observation.state": torch.zeros(2, 6)}
    policy = SegDepthPolicy(config)
    inputs = []
    for source in (frames, stored):
        policy.reset()
        policy.select_action(preprocessor({**source, **state}))
        inputs.append(policy.model.frames(policy._history.stack()))
    assert inputs[0].shape == (2, 6, 84, 84)
    assert len(inputs[0].unique()) > 3, "the model should give different pixels different values"
    assert torch.equal(*inputs)


@pytest.fixture(scope="module")
def precomputed(segmenter, tmp_path_factory):
    """A dataset with the segmenter's masks and disparity, precomputed from wide images."""
    folder = tmp_path_factory.mktemp("data")
    root = tiny_dataset(folder / "images", size=(48, 64))
    settings = {"segmenter": segmenter, "depth": "segmenter", "device": "cpu", "drop_rgb": True}
    precompute(PrecomputeConfig(root=root, output=folder / "precomputed", **settings))
    return folder / "precomputed"


def train(root, out, segmenter, **changes):
    policy = SegDepthConfig(
        segmenter=segmenter, depth="segmenter", device="cpu", push_to_hub=False, **changes
    )
    lerobot_train.train(
        TrainPipelineConfig(
            dataset=DatasetConfig(repo_id="local/tiny", root=str(root)),
            policy=policy,
            output_dir=out,
            steps=1,
            batch_size=2,
            num_workers=0,
        )
    )
    return out / "checkpoints" / "last" / "pretrained_model"


def test_a_checkpoint_has_the_aspect_ratio_of_the_datasets_images(precomputed, segmenter, tmp_path):
    saved = train(precomputed, tmp_path / "run", segmenter) / "policy_preprocessor.json"
    steps = {step["registry_name"]: step["config"] for step in json.loads(saved.read_text())["steps"]}
    assert steps["so101_check_observation"]["aspects"] == {
        f"observation.images.{camera}": pytest.approx(64 / 48) for camera in ("top", "wrist")
    }


def test_training_refuses_a_dataset_of_another_segmenter(precomputed, tmp_path):
    other = tiny_efficientvit_fpn(tmp_path / "other", size=(32, 48), disparity_head=True)
    with pytest.raises(ValueError, match=r"observation\.seg\.top in the dataset expects .*input_size"):
        train(precomputed, tmp_path / "a", other)


def test_training_refuses_a_dataset_of_another_rate(precomputed, segmenter, tmp_path):
    with pytest.raises(ValueError, match="fps: found 30 Hz in the dataset, expected 10 Hz"):
        train(precomputed, tmp_path / "a", segmenter, fps=10, stack_period=0.1)
