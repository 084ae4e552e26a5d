# SPDX-License-Identifier: Apache-2.0
"""Crop and resize: images, ids and depth stay aligned, before perception and after it."""

import cv2
import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature

from lerobot_processor_so101 import CropResizeProcessorStep, SegmentationProcessorStep, resolve_perception
from tests.tiny import tiny_efficientvit_fpn

SQUARE = [0, 0.125, 1, 0.75]


def observation(height=48, width=64):
    return {
        "observation.state": torch.zeros(2, 6),
        "observation.images.top": torch.rand(2, 3, height, width),
        "observation.images.top_seg": torch.randint(0, 6, (2, 1, height, width)).float(),
        "observation.images.top_depth": torch.rand(2, 1, height, width) * 900,
        "observation.images.front": torch.rand(2, 3, height, width),
        "observation.disparity.top": torch.rand(2, height, width) * 255,
        "observation.seg.top": torch.randint(0, 6, (2, height, width), dtype=torch.uint8),
    }


@pytest.mark.parametrize(("name", "flag"), [("area", cv2.INTER_AREA), ("linear", cv2.INTER_LINEAR)])
def test_each_kind_is_resized_as_opencv_does(name, flag):
    frames = observation()
    result = CropResizeProcessorStep(["top"], SQUARE, [21, 21], name).observation(frames)
    flags = {
        "observation.images.top": flag,
        "observation.disparity.top": flag,
        "observation.images.top_seg": cv2.INTER_NEAREST,
        "observation.images.top_depth": cv2.INTER_NEAREST,
        "observation.seg.top": cv2.INTER_NEAREST,
    }
    for key, interpolation in flags.items():
        planes = frames[key][..., :, 8:56].reshape(-1, 48, 48).numpy()
        expected = np.stack([cv2.resize(plane, (21, 21), interpolation=interpolation) for plane in planes])
        np.testing.assert_allclose(
            result[key].reshape(-1, 21, 21).numpy(), expected, rtol=1e-4, atol=1e-4, err_msg=key
        )
    assert result["observation.images.front"] is frames["observation.images.front"]


def test_a_marked_pixel_stays_under_its_mask():
    frames = observation(96, 128)
    frames["observation.images.top"] = torch.zeros(2, 3, 96, 128)
    frames["observation.images.top"][..., 40:60, 70:90] = 1
    frames["observation.images.top_seg"] = frames["observation.images.top"][:, :1].clone()
    result = CropResizeProcessorStep(["top"], [0.25, 0.5, 0.5, 0.375], [31, 23]).observation(frames)
    bright = result["observation.images.top"][:, 0] > 0.5
    ids = result["observation.images.top_seg"][:, 0] > 0
    assert ids.any()
    assert (bright ^ ids).float().mean() < 0.06  # only the rim, where averaging may go either way


def test_without_a_size_it_only_crops():
    frames = observation()
    result = CropResizeProcessorStep(["top"], SQUARE).observation(frames)
    assert torch.equal(result["observation.images.top"], frames["observation.images.top"][..., 8:56])


def test_before_a_model_it_crops_the_input_and_after_it_the_output(tmp_path):
    folder = tiny_efficientvit_fpn(tmp_path)
    images = {"observation.images.top": torch.rand(1, 3, 48, 64)}
    full_frame = SegmentationProcessorStep(["top"], [48, 64], segmenter=folder)
    square = SegmentationProcessorStep(["top"], [48, 48], segmenter=folder, identity=full_frame.identity)
    crop = CropResizeProcessorStep(["top"], SQUARE)

    after = resolve_perception(crop.observation(full_frame.observation(images)))
    before = resolve_perception(square.observation(crop.observation(images)))

    uncropped = resolve_perception(full_frame.observation(images))["observation.seg.top"]
    assert torch.equal(after["observation.seg.top"], uncropped[..., 8:56])
    expected = square.live.model(images["observation.images.top"][..., 8:56]).ids((48, 48))
    assert torch.equal(before["observation.seg.top"], expected)
    assert torch.equal(after["observation.images.top"], before["observation.images.top"])


@pytest.mark.parametrize("crop", [[0, 0, 1], [0, 0.5, 1, 0.75], [-0.1, 0, 1, 1], [0, 0, 0, 1]])
def test_a_crop_outside_the_image_is_refused(crop):
    with pytest.raises(ValueError, match="crop or region: found"):
        CropResizeProcessorStep(["top"], crop)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="cubic"):
        CropResizeProcessorStep(["top"], interpolation="cubic")


@pytest.mark.parametrize("size", [None, [20, 30]])
def test_declared_features_are_changed_like_the_values(size):
    frames = observation()
    declared = {
        key: PolicyFeature(FeatureType.VISUAL, tuple(value.shape[1:])) for key, value in frames.items()
    }
    step = CropResizeProcessorStep(["top"], SQUARE, size)
    changed = step.transform_features({PipelineFeatureType.OBSERVATION: declared})[
        PipelineFeatureType.OBSERVATION
    ]
    result = step.observation(frames)
    assert {key: feature.shape for key, feature in changed.items()} == {
        key: tuple(value.shape[1:]) for key, value in result.items()
    }
    assert CropResizeProcessorStep(**step.get_config()) == step
