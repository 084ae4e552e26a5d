# SPDX-License-Identifier: Apache-2.0
"""Maps are pooled to the patches that the letterboxed image covers."""

import pytest
import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import resize_with_pad

from lerobot_policy_segvla.patch_grid import letterbox_size, pool_to_patches, region_patches

BOX, GRID = (64, 64), (8, 8)


@pytest.mark.parametrize(
    "image_size", [(48, 64), (64, 48), (480, 640), (37, 91), (91, 37), (64, 64), (20, 20)]
)
def test_the_image_covers_the_patches_that_lerobot_fills(image_size):
    letterboxed = resize_with_pad(torch.ones(1, 1, *image_size), *BOX, pad_value=0)
    inside = letterbox_size(image_size, BOX)
    assert letterboxed.sum() == inside[0] * inside[1]
    expected = F.avg_pool2d(letterboxed, 8).flatten(1)
    assert torch.allclose(
        pool_to_patches(torch.ones(1, 1, 5, 7), image_size, BOX, GRID)[0], expected, atol=1e-6
    )
    region = region_patches(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), image_size, BOX, GRID)
    assert torch.allclose(region, expected, atol=1e-6)


def test_every_pixel_counts_by_its_area():
    maps = torch.rand(2, 3, 21, 28, generator=torch.Generator().manual_seed(0))
    image_size = (480, 640)  # inside the box 48 x 64, padded by 16 above
    fine = maps.repeat_interleave(16, -2).repeat_interleave(16, -1)  # 336 x 448: 7 times 48 x 64
    fine = F.pad(fine, (0, 0, 16 * 7, 0))
    expected = F.avg_pool2d(fine.double(), 8 * 7).flatten(2).float()
    assert torch.allclose(pool_to_patches(maps, image_size, BOX, GRID), expected, atol=1e-5)


def test_a_square_image_has_no_padding():
    maps = torch.rand(1, 2, 64, 64)
    expected = F.avg_pool2d(maps, 8).flatten(2)
    assert torch.allclose(pool_to_patches(maps, (64, 64), BOX, GRID), expected, atol=1e-6)


def test_a_region_is_a_fraction_of_the_image_and_not_of_the_box():
    lower_right = torch.tensor([[0.5, 1.0, 0.5, 1.0]])
    patches = region_patches(lower_right, (48, 64), BOX, GRID).reshape(8, 8)
    expected = torch.zeros(8, 8)
    expected[5:, 4:] = 1  # 48 pixels from row 16 on; their lower half begins at row 40
    assert torch.equal(patches, expected)
