# SPDX-License-Identifier: Apache-2.0
"""Images for display: the right pixels are tinted, and every class has a colour of its own."""

import numpy as np
import pytest

from lerobot_processor_so101.perception.overlay import class_palette, disparity_image, overlay, side_by_side

NAMES = ("unlabeled", "background", "table", "cube", "static_finger", "moving_finger")


def test_only_named_objects_are_tinted():
    rgb = np.full((40, 60, 3), 100, np.uint8)
    ids = np.ones((40, 60), np.uint8)
    ids[10:20, 10:20] = 3
    tinted = (overlay(rgb, ids, NAMES) != rgb).any(-1)
    assert tinted[10:20, 10:20].all()
    assert tinted.sum() == 100


def test_masks_are_enlarged_to_the_image():
    ids = np.array([[2, 3]], np.uint8)
    tinted = (overlay(np.zeros((10, 20, 3), np.uint8), ids, NAMES) > 0).any(-1)
    assert tinted[:, 10:].all()
    assert not tinted[:, :10].any()


def test_large_images_have_a_legend():
    rgb, ids = np.zeros((200, 300, 3), np.uint8), np.full((200, 300), 2, np.uint8)
    ids[150:, 250:] = 4
    with_names, without = overlay(rgb, ids, NAMES), overlay(rgb, ids, NAMES, legend=False)
    assert (with_names[:40, :150] != without[:40, :150]).any()
    assert (with_names[60:] == without[60:]).all()


def test_the_callers_image_is_unchanged():
    rgb = np.zeros((3, 200, 300), np.uint8).transpose(1, 2, 0)  # the layout of images from tensors
    overlay(rgb, np.full((200, 300), 3, np.uint8), NAMES)
    assert not rgb.any()


def test_colours_differ_and_do_not_depend_on_the_number_of_classes():
    palette = class_palette(NAMES).astype(int)
    distances = np.abs(palette[:, None] - palette[None]).sum(-1)
    assert distances[~np.eye(len(NAMES), dtype=bool)].min() > 60
    np.testing.assert_array_equal(class_palette(NAMES[:3]), palette[:3])


def test_an_id_without_a_name_is_refused():
    with pytest.raises(ValueError, match=r"ids: found 6, expected ids of the 6 classes"):
        overlay(np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 6, np.uint8), NAMES)


def test_near_is_bright():
    image = disparity_image(np.linspace(0, 255, 16).reshape(1, 16))
    assert (np.diff(image[0].astype(int).sum(-1)) > 0).all()


def test_panels_are_in_one_row():
    rgb, plane = np.zeros((24, 32, 3), np.uint8), np.ones((12, 16), np.uint8)
    assert side_by_side(rgb, plane, plane, NAMES).shape == (24, 96, 3)
    assert side_by_side(rgb, None, plane, NAMES).shape == (24, 64, 3)
