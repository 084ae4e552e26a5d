# SPDX-License-Identifier: Apache-2.0
"""Resizing agrees with OpenCV."""

import cv2
import numpy as np
import pytest
import torch

from lerobot_processor_so101 import resize_area, resize_ids

SIZES = [
    ((84, 84), (21, 21)),
    ((168, 84), (84, 84)),
    ((480, 640), (84, 84)),
    ((100, 90), (84, 84)),
    ((97, 61), (33, 47)),
]


@pytest.mark.parametrize(("source", "target"), [*SIZES, ((30, 50), (84, 84))])
def test_ids_are_those_of_opencvs_nearest_neighbour(source, target):
    ids = torch.randint(0, 256, (2, *source), dtype=torch.uint8)
    resized = resize_ids(ids, target)
    for frame, expected in zip(resized, ids, strict=True):
        expected = cv2.resize(expected.numpy(), target[::-1], interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(frame.numpy(), expected)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_area_averages_as_opencv(source, target):
    values = torch.rand(2, *source) * 255
    resized = resize_area(values, target)
    for frame, expected in zip(resized, values, strict=True):
        expected = cv2.resize(expected.numpy(), target[::-1], interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(frame.numpy(), expected, atol=1e-2)


def test_same_size_is_returned_untouched():
    ids, values = torch.zeros(2, 84, 84, dtype=torch.uint8), torch.zeros(2, 84, 84)
    assert resize_ids(ids, (84, 84)) is ids
    assert resize_area(values, (84, 84)) is values


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_leading_dimensions_are_kept(lead):
    assert resize_ids(torch.zeros(*lead, 9, 8, dtype=torch.uint16), (3, 5)).shape == (*lead, 3, 5)
    assert resize_area(torch.zeros(*lead, 9, 8), (3, 4)).shape == (*lead, 3, 4)
    assert resize_area(torch.zeros(*lead, 9, 8), (4, 3)).shape == (*lead, 4, 3)
