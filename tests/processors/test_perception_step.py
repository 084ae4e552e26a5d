# SPDX-License-Identifier: Apache-2.0
"""The step between recorded images and the policy."""

import json

import pytest
import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.processor import PolicyProcessorPipeline, ProcessorStepRegistry

from lerobot_processor_so101 import MasksAndDisparityProcessorStep, depth_to_disparity


def observation(batch=(2,), size=(84, 84), cameras=("top", "wrist"), dtype=torch.float32):
    frames = {"observation.state": torch.zeros(*batch, 6)}
    for camera in cameras:
        frames[f"observation.images.{camera}"] = torch.rand(*batch, 3, *size)
        frames[f"observation.images.{camera}_seg"] = torch.randint(0, 6, (*batch, 1, *size)).to(dtype)
        frames[f"observation.images.{camera}_depth"] = torch.randint(100, 900, (*batch, 1, *size)).to(dtype)
    return frames


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16, torch.int32])
def test_masks_and_depth_become_ids_and_disparity(dtype):
    frames = observation(dtype=dtype)
    seg, depth = frames["observation.images.top_seg"], frames["observation.images.top_depth"]

    result = MasksAndDisparityProcessorStep(["top", "wrist"]).observation(frames)

    assert set(result) == {
        "observation.state",
        *(
            f"observation.{kind}.{camera}"
            for kind in ("images", "seg", "disparity")
            for camera in ("top", "wrist")
        ),
    }
    ids = result["observation.seg.top"]
    assert ids.dtype == torch.uint8
    torch.testing.assert_close(ids.int(), seg[:, 0].int())
    torch.testing.assert_close(result["observation.disparity.top"], depth_to_disparity(depth[:, 0]))
    assert result["observation.images.top"] is frames["observation.images.top"]


def test_resizes_to_image_size():
    result = MasksAndDisparityProcessorStep(["top"], [42, 21]).observation(observation(size=(84, 84)))
    assert result["observation.seg.top"].shape == (2, 42, 21)
    assert result["observation.disparity.top"].shape == (2, 42, 21)
    assert result["observation.seg.top"].max() <= 5


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_leading_dimensions_are_kept(batch):
    result = MasksAndDisparityProcessorStep(["top"]).observation(observation(batch))
    assert result["observation.seg.top"].shape == (*batch, 84, 84)


def test_the_callers_observation_is_not_changed():
    frames = observation()
    keys = set(frames)
    MasksAndDisparityProcessorStep(["top"]).observation(frames)
    assert set(frames) == keys


def test_missing_key_names_the_key_what_was_found_and_the_fix():
    frames = observation(cameras=("top",))
    with pytest.raises(ValueError, match="wrist_seg") as error:
        MasksAndDisparityProcessorStep(["top", "wrist"]).observation(frames)
    assert "observation.images.top_seg" in str(error.value)
    assert "so101-demos --seg=true --depth=true" in str(error.value)


def test_ids_in_metres_are_refused():
    frames = observation()
    frames["observation.images.wrist_seg"] /= 1000
    with pytest.raises(ValueError, match=r"wrist_seg.*depth_output_unit=mm"):
        MasksAndDisparityProcessorStep(["top", "wrist"]).observation(frames)


def test_ids_that_do_not_fit_are_refused():
    frames = observation()
    frames["observation.images.top_seg"] += 255
    with pytest.raises(ValueError, match=r"top_seg: found class ids from 255"):
        MasksAndDisparityProcessorStep(["top"]).observation(frames)


def test_three_channels_are_refused():
    frames = observation()
    frames["observation.images.top_seg"] = torch.zeros(2, 3, 84, 84)
    with pytest.raises(ValueError, match="one channel"):
        MasksAndDisparityProcessorStep(["top"]).observation(frames)


def test_rebuilt_from_json(tmp_path):
    step = MasksAndDisparityProcessorStep(["top"], [42, 42])
    PolicyProcessorPipeline([step], name="policy_preprocessor").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "policy_preprocessor.json").read_text())
    assert saved["steps"] == [{"registry_name": "so101_masks_and_disparity", "config": step.get_config()}]
    loaded = PolicyProcessorPipeline.from_pretrained(tmp_path, config_filename="policy_preprocessor.json")
    assert loaded.steps == [step]
    assert ProcessorStepRegistry.get("so101_masks_and_disparity") is MasksAndDisparityProcessorStep


def test_declared_features_are_swapped_like_the_values():
    step = MasksAndDisparityProcessorStep(["top", "wrist"])
    frames = observation()
    declared = {
        key: PolicyFeature(FeatureType.VISUAL, tuple(value.shape[1:])) for key, value in frames.items()
    }
    swapped = step.transform_features(
        {PipelineFeatureType.OBSERVATION: declared, PipelineFeatureType.ACTION: {}}
    )
    result = step.observation(frames)
    assert {key: feature.shape for key, feature in swapped[PipelineFeatureType.OBSERVATION].items()} == {
        key: tuple(value.shape[1:]) for key, value in result.items()
    }
    assert len(declared) == len(frames)


def test_no_gradient_is_recorded():
    frames = observation()
    frames["observation.images.top_depth"].requires_grad_()
    result = MasksAndDisparityProcessorStep(["top"]).observation(frames)
    assert not result["observation.disparity.top"].requires_grad
