# SPDX-License-Identifier: Apache-2.0
"""A segmenter keeps one region of each class of which an image shows one object at most."""

import pytest
import torch
from scipy import ndimage

from lerobot_processor_so101.models import make_segmenter
from lerobot_processor_so101.models.efficientvit_fpn import EfficientViTFPNConfig
from lerobot_processor_so101.models.efficientvit_fpn.single_objects import keep_largest_regions
from tests.tiny import tiny_efficientvit_fpn

TABLE, CUBE, BOWL = range(3)
SINGLE = torch.tensor([False, True, False])


def logits_of(ids):
    """Evidence 2 for the class of each pixel, 1 for the table, 0 and -1 for the others."""
    logits = torch.tensor([1.0, 0.0, -1.0])[None, :, None, None].repeat(1, 1, *ids.shape)
    return logits.scatter(1, ids[None, None], 2.0)


def test_only_the_largest_region_of_a_single_object_stays():
    ids = torch.full((8, 10), TABLE)
    ids[1:4, 1:4] = CUBE
    ids[6:8, 7:9] = CUBE  # a smaller one
    ids[5:7, 0:2] = BOWL
    ids[0:1, 8:9] = BOWL  # bowls may be several
    expected = ids.clone()
    expected[6:8, 7:9] = TABLE  # the next likely class
    found = keep_largest_regions(logits_of(ids), SINGLE)
    assert torch.equal(found.argmax(1)[0], expected)
    changed = found != logits_of(ids)
    assert changed.sum() == 4  # of the cube, in four pixels
    assert torch.isfinite(found).all()


def test_one_region_of_each_class_changes_nothing():
    ids = torch.full((2, 6), TABLE)
    ids[:, 2:4] = CUBE
    logits = logits_of(ids)
    assert torch.equal(keep_largest_regions(logits, SINGLE), logits)


def test_a_segmenter_with_single_objects(tmp_path):
    names = ["background"]  # two regions in one of the images
    plain = make_segmenter(tiny_efficientvit_fpn(tmp_path / "plain"))
    single = make_segmenter(tiny_efficientvit_fpn(tmp_path / "single", single_objects=names))
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    regions = {}
    for segmenter in (plain, single):
        ids = segmenter(images).values.argmax(1).numpy()
        regions[segmenter] = max(
            ndimage.label(image == id_)[1] for image in ids for id_ in segmenter.class_map.ids(names)
        )
    assert regions[plain] > 1
    assert regions[single] == 1
    # masks of one are not those of the other
    assert single.identity.weights != plain.identity.weights
    assert single.identity.weights == make_segmenter(str(tmp_path / "single")).identity.weights


def test_an_unknown_class():
    with pytest.raises(ValueError, match=r"class 'cub': not among the 6 classes of classes.*'cube'"):
        EfficientViTFPNConfig(single_objects=["cub"])
