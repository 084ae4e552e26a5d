# SPDX-License-Identifier: Apache-2.0
"""Augmentations of image, mask and disparity together."""

import colorsys

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from lerobot_processor_so101.segmenter_training.augment import (
    CastShadow,
    Exposure,
    Glare,
    lighting,
    make_augmentation,
)


@pytest.mark.parametrize("name", ["full", "upright", "flips"])
def test_image_mask_and_disparity_stay_aligned(name):
    mask = np.zeros((80, 120), np.uint8)
    mask[10:60, 20:50] = 1
    mask[30:40, 60:110] = 1
    augment = make_augmentation(name, mask.shape)
    torch.manual_seed(0)
    moved = False
    for _ in range(25):
        sample = augment(
            {
                "pixel_values": tv_tensors.Image(torch.from_numpy(mask * 255).expand(3, -1, -1)),
                "labels": tv_tensors.Mask(torch.from_numpy(mask)),
                "disparity_labels": tv_tensors.Mask(torch.from_numpy(mask * 0.5)),
            }
        )
        # Jitter changes black and white by less than this; only the image's edges are smoothed.
        bright = sample["pixel_values"].float().mean(0) > 110
        assert (bright == (sample["labels"] == 1)).float().mean() > 0.97
        torch.testing.assert_close(sample["disparity_labels"], sample["labels"] * 0.5, check_dtype=False)
        moved |= not bool((sample["labels"].numpy() == mask).all())
    assert moved


@pytest.mark.parametrize("transform", lighting())
def test_lighting_changes_images_only(transform):
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    mask, disparity = torch.randint(0, 6, (40, 60), dtype=torch.uint8), torch.rand(40, 60)
    changed = 0
    for _ in range(20):
        sample = transform(
            {"x": tv_tensors.Image(image), "y": tv_tensors.Mask(mask), "z": tv_tensors.Mask(disparity)}
        )
        assert torch.equal(sample["y"], mask)
        assert torch.equal(sample["z"], disparity)
        assert sample["x"].dtype == torch.uint8
        assert sample["x"].shape == image.shape
        changed += not torch.equal(sample["x"], image)
    assert 0 < changed < 20


def test_lighting_does_what_it_says():
    grey = tv_tensors.Image(torch.full((3, 40, 60), 100, dtype=torch.uint8))
    for _ in range(20):
        shadow, glare, exposed = (make()(grey).float() for make in (CastShadow, Glare, Exposure))
        assert 25 <= shadow.min() <= shadow.max() <= 100
        assert 100 <= glare.min() <= glare.max() <= 255
        assert exposed.min() == exposed.max()
        assert 50 <= exposed.max() <= 200


def test_upright_never_mirrors():
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    mask[:, 30:], mask[32:] = 1, 2
    augment = make_augmentation("upright", (40, 40))
    for _ in range(20):
        moved = augment({"x": tv_tensors.Image(torch.zeros(3, 40, 40)), "y": tv_tensors.Mask(mask)})["y"]
        assert (moved == 1).nonzero()[:, 1].float().mean() > 20
        assert (moved == 2).nonzero()[:, 0].float().mean() > 20


def test_lighting_keeps_named_colours_apart():
    """`full` shifts red and yellow, 49 degrees apart, to the same orange."""
    colours = torch.tensor([[217, 26, 26], [230, 191, 26]], dtype=torch.uint8)  # red, yellow
    image = colours.T[..., None].repeat(1, 1, 40).repeat_interleave(20, 1)  # (3, 40, 40), red above yellow
    hues = {}
    for name in ("full", "lighting"):
        augment, found = make_augmentation(name, (40, 40)), []
        torch.manual_seed(0)
        mask = torch.arange(1, 3, dtype=torch.uint8).repeat_interleave(20)[:, None].expand(40, 40)
        for _ in range(60):
            sample = augment({"x": tv_tensors.Image(image), "y": tv_tensors.Mask(mask)})
            pixels = [sample["x"][:, sample["y"] == part].float().median(1).values / 255 for part in (1, 2)]
            found.append([colorsys.rgb_to_hsv(*pixel.tolist())[0] for pixel in pixels])
        red, yellow = (np.array(found).T + 0.5) % 1  # so that red does not wrap around
        hues[name] = yellow.min() - red.max()
    assert hues["full"] < 0 < hues["lighting"]
