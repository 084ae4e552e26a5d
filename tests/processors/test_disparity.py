# SPDX-License-Identifier: Apache-2.0
"""Depth to disparity: near is 255, and unmeasured pixels are far."""

import cv2
import numpy as np
import pytest
import torch

from lerobot_processor_so101 import depth_to_disparity
from lerobot_processor_so101.perception.disparity import inverse_to_disparity
from lerobot_processor_so101.perception.stored import decode_disparity, encode_disparity


def test_near_is_255_and_far_is_0_in_every_frame():
    depth = torch.tensor([[[100.0, 200.0], [400.0, 400.0]], [[1.0, 2.0], [4.0, 4.0]]])
    expected = torch.tensor([[255.0, 85.0], [0.0, 0.0]]).expand(2, 2, 2)
    torch.testing.assert_close(depth_to_disparity(depth), expected, atol=1e-3, rtol=0)


def test_the_unit_does_not_matter():
    millimetres = torch.randint(1, 5000, (2, 16, 16))
    torch.testing.assert_close(
        depth_to_disparity(millimetres), depth_to_disparity(millimetres / 1000), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("hole", [0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-42])
def test_a_hole_is_far_and_does_not_change_the_rest(hole):
    depth = torch.linspace(100, 900, 64).reshape(8, 8)
    holed = depth.clone()
    holed[3, 3] = hole
    expected = depth_to_disparity(depth)
    expected[3, 3] = 0
    torch.testing.assert_close(depth_to_disparity(holed), expected)


def test_beyond_valid_max_is_not_measured():
    depth = torch.tensor([[100.0, 200.0], [400.0, 9000.0]])
    expected = torch.tensor([[255.0, 85.0], [0.0, 0.0]])
    torch.testing.assert_close(depth_to_disparity(depth, valid_max=1000), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("value", [0.0, 250.0, float("nan")])
def test_a_frame_without_contrast_is_zeros(value):
    assert not depth_to_disparity(torch.full((2, 4, 4), value)).any()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.float64])
def test_any_dtype_gives_float32_in_range(dtype):
    depth = torch.randint(0, 60000, (3, 1, 8, 8)).to(dtype)
    disparity = depth_to_disparity(depth)
    assert disparity.dtype == torch.float32
    assert disparity.shape == depth.shape
    assert disparity.amin() == 0
    assert disparity.amax() <= 255


def test_numpy_in_numpy_out():
    depth = np.random.default_rng(0).integers(1, 4000, (2, 8, 8), dtype=np.uint16)
    disparity = depth_to_disparity(depth[:, ::-1])
    assert isinstance(disparity, np.ndarray)
    np.testing.assert_array_equal(
        disparity, depth_to_disparity(torch.from_numpy(depth[:, ::-1].copy())).numpy()
    )


# Region, size and interpolation, for depth and for the output of depth models


def plane(size=(480, 640)):
    """Metres to a tilted table: inverse depth is linear over the image."""
    row, column = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    return 1 / (1.0 + 1.5 * row + 0.3 * column)


REGION = (0.0, 0.125, 1.0, 0.75)  # the central square of 480 x 640


@pytest.mark.parametrize("region", [None, REGION, (0.25, 0.1, 0.5, 0.3)])
@pytest.mark.parametrize("interpolation", ["area", "linear"])
@pytest.mark.parametrize("size", [(84, 84), (60, 80)])
def test_estimated_and_recorded_depth_of_a_scene_agree(size, interpolation, region):
    """The model's grid differs from the camera's, and it has its own scale and offset."""
    recorded = depth_to_disparity((plane() * 1000).to(torch.uint16), None, size, region, interpolation)
    estimated = inverse_to_disparity(
        7 * plane((392, 518)).reciprocal()[None] + 3, size, region, interpolation
    )
    assert (recorded - estimated[0]).abs().max() < 1.5
    assert recorded.shape == size


def test_recorded_depth_in_metres_and_millimetres_agree_with_a_size():
    metres = depth_to_disparity(plane(), size=(84, 84), region=REGION)
    millimetres = depth_to_disparity(plane() * 1000, size=(84, 84), region=REGION)
    assert (metres - millimetres).abs().max() <= 1 / 16


@pytest.mark.parametrize(("interpolation", "flag"), [("area", cv2.INTER_AREA), ("linear", cv2.INTER_LINEAR)])
def test_normalised_first_then_resized_as_by_opencv(interpolation, flag):
    depth = plane()
    depth[100, 100] = 0.05  # one near pixel, which sets the scale although averaging hides it
    ours = depth_to_disparity(depth, size=(84, 84), region=REGION, interpolation=interpolation)
    cropped = 1 / depth.numpy()[:, 80:560]
    normalised = 255 * (cropped - cropped.min()) / (cropped.max() - cropped.min())
    expected = cv2.resize(normalised, (84, 84), interpolation=flag)
    np.testing.assert_allclose(ours, expected, atol=1 / 32 + 1e-3)


def test_the_region_is_normalised():
    depth = plane()
    depth[:, :40] = 0.01  # the gripper, outside the region
    with_gripper = depth_to_disparity(depth, size=(84, 84))
    without = depth_to_disparity(depth, size=(84, 84), region=REGION)
    assert with_gripper[:, 10:].max() < 10
    assert without.max() > 250


def test_live_equals_stored():
    live = inverse_to_disparity(torch.rand(2, 37, 52), (84, 84))
    assert torch.equal(decode_disparity(encode_disparity(live)), live)
    assert live.dtype == torch.float32
    assert live.min() >= 0
    assert live.max() <= 255


def test_enlarging_is_smooth():
    row = torch.linspace(0, 1, 8).expand(1, 8, 8)
    steps = inverse_to_disparity(row, (32, 32))[0, 0].diff()
    assert steps.max() < 255 / 7 / 3


def test_a_constant_output_is_zeros():
    assert not inverse_to_disparity(torch.full((2, 8, 8), 0.7), (4, 4)).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_output_is_refused(value):
    inverse = torch.rand(2, 8, 8)
    inverse[1, 3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        inverse_to_disparity(inverse, (4, 4))


@pytest.mark.parametrize(
    "region", [(0, 0, 1), (0, 0.5, 1, 0.75), (-0.1, 0, 1, 1), (0, 0, 0, 1), (80, 0, 480, 480)]
)
def test_a_region_outside_the_image_is_refused(region):
    with pytest.raises(ValueError, match=r"region: found .*fractions of the image"):
        depth_to_disparity(plane(), region=region)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="'cubic', expected 'area' or 'linear'"):
        inverse_to_disparity(torch.rand(1, 8, 8), (4, 4), interpolation="cubic")
