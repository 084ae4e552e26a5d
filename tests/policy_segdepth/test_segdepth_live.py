# SPDX-License-Identifier: Apache-2.0
"""segdepth with a segmenter of its own: in training on precomputed masks, and live through `lerobot-eval`."""

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
from lerobot_processor_so101.precompute.config import PrecomputeConfig
from tests.conftest import count_pictures
from tests.tiny import save_policy, tiny_efficientvit_fpn
from tests.tiny_dataset import tiny_dataset

CHUNK = 50


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
    """Number of pictures in each call of the segmenter."""
    from lerobot_processor_so101.efficientvit_fpn import EfficientViTFPNForSemanticSegmentation as Model

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


def test_the_segmenter_looks_once_per_chunk_in_lerobot_eval(
    checkpoint, calls, tmp_path, monkeypatch, plugins
):
    from lerobot_env_so101_workbench.env import WorkbenchEnv
    from lerobot_env_so101_workbench.tasks import LiftCube

    ticks, step = [], WorkbenchEnv.step
    monkeypatch.setattr(WorkbenchEnv, "step", lambda self, action: ticks.append(1) or step(self, action))
    monkeypatch.setattr(LiftCube, "time_limit_s", 2 * CHUNK / 30)
    command = (
        f"lerobot-eval --policy.path={checkpoint} --policy.device=cpu --env.type=so101_sim --env.task=lift_cube "
        "--env.cameras=[top] --env.height=32 --env.width=32 --eval.n_episodes=2 --eval.batch_size=1 "
        f"--eval.use_async_envs=false --output_dir={tmp_path}"
    )
    monkeypatch.setattr(sys, "argv", command.split())
    lerobot_eval.main()

    assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["n_episodes"] == 2
    assert len(ticks) == 4 * CHUNK
    assert calls == [1] * 4  # once in 50 ticks


def test_the_checkpoint_names_the_segmenter_and_has_no_weights_of_it(checkpoint):
    steps = json.loads((checkpoint / "policy_preprocessor.json").read_text())["steps"]
    (config,) = [step["config"] for step in steps if step["registry_name"] == "so101_segmentation"]
    assert config["identity"]["class_names"][3] == "cube"
    assert not [path.name for path in checkpoint.glob("*.safetensors") if "segmentation" in path.name]


def test_training_resolves_in_forward(checkpoint, calls):
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


def test_a_policy_takes_pictures_or_what_was_precomputed(segmenter):
    plane = PolicyFeature(FeatureType.VISUAL, (1, 84, 84))
    stored = {"observation.seg.top": plane, "observation.disparity.top": plane}
    config = config_for(segmenter, stored)
    config.validate_features()
    # LeRobot compares these names with those of a dataset without colours and of an arm with them.
    assert set(config.used_features) == {*stored, "observation.state", "observation.images.top"}
    with pytest.raises(ValueError, match=r"'observation.disparity.top' or 'observation.images.top'"):
        config_for(segmenter, {"observation.seg.top": plane}).validate_features()


def test_a_policy_with_other_class_names_than_the_segmenter_is_refused(segmenter):
    colours = {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))}
    config = config_for(segmenter, colours, class_names=["table", "cube"], watched_classes=["cube"])
    with pytest.raises(ValueError, match=r"--policy\.class_names"):
        make_pre_post_processors(config)


def test_trained_on_squares_made_of_wide_pictures_it_takes_wide_pictures(segmenter):
    from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy

    plane = PolicyFeature(FeatureType.VISUAL, (1, 84, 84))
    config = config_for(segmenter, {"observation.seg.top": plane, "observation.disparity.top": plane})
    SegDepthPolicy(config)  # declares pictures, of a size that it has to guess
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


@pytest.mark.parametrize("whole", [True, False])
def test_stored_disparity_must_have_lost_its_fractions_as_the_policy_will(segmenter, whole):
    key = "observation.disparity.top"
    picture = {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 96, 128))}
    info = {"whole": True} if whole else {}
    meta = SimpleNamespace(fps=30, features={key: {"shape": (84, 84, 1), "info": info}})
    config = config_for(segmenter, picture, whole_disparity=not whole)
    with pytest.raises(ValueError, match=f"whole_disparity: found {whole} for '{key}'.*expected {not whole}"):
        make_pre_post_processors(config, dataset_meta=meta)


def test_precomputed_and_live_are_equal_to_the_bit_when_the_crop_comes_later(segmenter):
    from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
    from lerobot_processor_so101 import SegmentationProcessorStep
    from lerobot_processor_so101.stored import encode_disparity, encode_ids

    picture = {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 96, 128))}
    config = config_for(segmenter, picture, preset="handoff", chunk_size=1, n_action_steps=1)
    preprocessor, _ = make_pre_post_processors(config)
    frames = {"observation.images.top": torch.rand(2, 3, 96, 128)}
    whole = SegmentationProcessorStep(
        ["top"], [96, 128], segmenter=segmenter, disparity=True, whole=True, defer=False
    ).observation(frames)
    stored = {
        "observation.seg.top": encode_ids(whole["observation.seg.top"]).float(),
        "observation.disparity.top": encode_disparity(whole["observation.disparity.top"]).float(),
    }
    state = {"observation.state": torch.zeros(2, 6)}
    policy = SegDepthPolicy(config)
    seen = []
    for source in (frames, stored):
        policy.reset()
        policy.select_action(preprocessor({**source, **state}))
        seen.append(policy.model.frames(policy._history.stack()))
    assert seen[0].shape == (2, 6, 84, 84)
    assert len(seen[0].unique()) > 3, "the model should tell pixels apart, or this says little"
    assert torch.equal(*seen)


@pytest.fixture(scope="module")
def perceived(segmenter, tmp_path_factory):
    """A dataset with masks and disparity of the segmenter, made of wide pictures."""
    folder = tmp_path_factory.mktemp("data")
    root = tiny_dataset(folder / "pictures", size=(48, 64))
    settings = {"segmenter": segmenter, "depth": "segmenter", "device": "cpu", "drop_rgb": True}
    precompute(PrecomputeConfig(root=root, output=folder / "perceived", **settings))
    return folder / "perceived"


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


def test_training_tells_the_pipeline_what_the_dataset_was_made_of(perceived, segmenter, tmp_path):
    saved = train(perceived, tmp_path / "run", segmenter) / "policy_preprocessor.json"
    steps = {step["registry_name"]: step["config"] for step in json.loads(saved.read_text())["steps"]}
    assert steps["so101_check_observation"]["aspects"] == {
        f"observation.images.{camera}": pytest.approx(64 / 48) for camera in ("top", "wrist")
    }


def test_training_refuses_a_dataset_that_does_not_fit(perceived, tmp_path):
    other = tiny_efficientvit_fpn(tmp_path / "other", size=(32, 48), disparity_head=True)
    with pytest.raises(ValueError, match=r"observation\.seg\.top in the dataset expects .*input_size"):
        train(perceived, tmp_path / "a", other)


def test_training_refuses_a_dataset_of_another_rate(perceived, segmenter, tmp_path):
    with pytest.raises(ValueError, match="fps: found 30 Hz in the dataset, expected 10 Hz"):
        train(perceived, tmp_path / "a", segmenter, fps=10, stack_period=0.1)
