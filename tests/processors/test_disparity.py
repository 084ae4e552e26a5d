# SPDX-License-Identifier: Apache-2.0
"""Depth to disparity: near is 255, and what was not measured is far."""

import numpy as np
import pytest
import torch

from lerobot_processor_so101 import depth_to_disparity


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
def test_a_hole_is_far_and_does_not_move_the_rest(hole):
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
