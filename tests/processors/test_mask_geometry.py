# SPDX-License-Identifier: Apache-2.0
"""Mask geometry: agreement with an independent reference, and invariances."""

import numpy as np
import pytest
import torch

from lerobot_processor_so101 import GEOMETRY_FEATURES, class_masks, mask_geometry

INDEX = {name: i for i, name in enumerate(GEOMETRY_FEATURES)}
SUB = 16  # sub-samples per pixel side in the reference


def id_map(height=84, width=84, blobs=((3, 20, 30, 12, 12),)):
    """Ids (1, H, W) with one rectangle per (class, row, column, height, width)."""
    ids = torch.zeros(1, height, width, dtype=torch.uint8)
    for class_id, row, column, h, w in blobs:
        ids[0, row : row + h, column : column + w] = class_id
    return ids


def rotated_shape(angle_deg, side=0.3, size=168, triangle=False):
    """A square or triangle about the centre, rotated by `angle_deg` (x right, y down)."""
    axis = (2 * np.arange(size) + 1 - size) / size
    x, y = np.meshgrid(axis, axis)
    turn = np.deg2rad(angle_deg)
    u, v = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    if triangle:
        corners = [0, 2 * np.pi / 3, 4 * np.pi / 3]
        inside = np.all([u * np.cos(a) + v * np.sin(a) > -side for a in corners], axis=0)
    else:
        inside = (abs(u) < side) & (abs(v) < side)
    return torch.from_numpy(inside.astype(np.uint8))[None]


def reference(ids, disparity, class_id):
    """Compute the same numbers by brute force: every pixel becomes SUB x SUB points in float64."""
    height, width = ids.shape
    rows, columns = np.nonzero(ids == class_id)
    if rows.size == 0:
        return np.zeros(len(GEOMETRY_FEATURES))
    offsets = (np.arange(SUB) + 0.5) / SUB
    side = max(height, width)
    x = (2 * (columns[:, None, None] + offsets[None, None, :]) - width) / side + np.zeros((1, SUB, 1))
    y = (2 * (rows[:, None, None] + offsets[None, :, None]) - height) / side + np.zeros((1, 1, SUB))
    z = (x - x.mean()) + 1j * (y - y.mean())
    r2, r4 = (abs(z) ** 2).mean(), (abs(z) ** 4).mean()
    third, fourth = (z**3).mean() / np.sqrt(r2 * r4), (z**4).mean() / r4
    return np.array(
        [
            1.0,
            np.log(1 + rows.size / (height * width) * 1e4),
            x.mean(),
            y.mean(),
            z.real.std(),
            z.imag.std(),
            (z.real * z.imag).mean() / (z.real.std() * z.imag.std()),
            third.real,
            third.imag,
            fourth.real,
            fourth.imag,
            disparity[rows, columns].mean(),
            (2 * columns.min() - width) / side,
            (2 * columns.max() + 2 - width) / side,
            (2 * rows.min() - height) / side,
            (2 * rows.max() + 2 - height) / side,
        ]
    )


@pytest.mark.parametrize("size", [(84, 84), (48, 64), (7, 5)])
def test_agrees_with_per_pixel_reference(size):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, (3, *size), generator=generator, dtype=torch.uint8)
    ids[:, : size[0] // 2] = 0
    ids[1][ids[1] == 2] = 0
    disparity = torch.rand(3, *size, generator=generator)

    geometry = mask_geometry(ids, disparity, [1, 2, 3])

    for b in range(3):
        for c in range(3):
            expected = reference(ids[b].numpy(), disparity[b].numpy(), c + 1)
            np.testing.assert_allclose(geometry[b, c], expected, atol=2e-3)


def test_small_object_in_a_corner_is_precise():
    ids = id_map(blobs=((3, 0, 80, 3, 4),))
    disparity = torch.ones(1, 84, 84)
    centred = id_map(blobs=((3, 40, 40, 3, 4),))
    shape = slice(INDEX["spread_x"], INDEX["sin4"] + 1)
    torch.testing.assert_close(
        mask_geometry(ids, disparity, [3])[..., shape],
        mask_geometry(centred, disparity, [3])[..., shape],
        atol=1e-5,
        rtol=1e-4,
    )


def test_translation_moves_only_position_and_extent():
    disparity = torch.full((1, 84, 84), 0.5)
    before = mask_geometry(id_map(blobs=((3, 10, 20, 9, 14),)), disparity, [3])[0, 0]
    after = mask_geometry(id_map(blobs=((3, 31, 41, 9, 14),)), disparity, [3])[0, 0]
    moved = torch.zeros(len(GEOMETRY_FEATURES))
    moved[[INDEX[name] for name in ("x", "y", "x_min", "x_max", "y_min", "y_max")]] = 2 * 21 / 84
    torch.testing.assert_close(after - before, moved, atol=1e-5, rtol=0)


def test_twice_the_resolution_gives_the_same_numbers():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 3, (2, 84, 84), generator=generator)
    disparity = torch.rand(2, 84, 84, generator=generator)
    double = (frames.repeat_interleave(2, -1).repeat_interleave(2, -2) for frames in (ids, disparity))
    torch.testing.assert_close(
        mask_geometry(ids, disparity, [1, 2]), mask_geometry(*double, [1, 2]), atol=2e-5, rtol=1e-5
    )


def test_scaling_keeps_the_angular_moments():
    disparity = torch.zeros(1, 168, 168)
    angular = slice(INDEX["cos3"], INDEX["sin4"] + 1)
    small, large = (mask_geometry(rotated_shape(20, side=s), disparity, [1])[0, 0] for s in (0.2, 0.4))
    torch.testing.assert_close(small[angular], large[angular], atol=0.03, rtol=0)
    torch.testing.assert_close(
        large[INDEX["spread_x"]] / small[INDEX["spread_x"]], torch.tensor(2.0), rtol=0.03, atol=0
    )


@pytest.mark.parametrize("angle", [0, 10, 30, 44, 60, 80])
@pytest.mark.parametrize(("folds", "triangle"), [(3, True), (4, False)])
def test_angular_moments_rotate_with_the_object(angle, folds, triangle):
    disparity = torch.zeros(1, 168, 168)

    def phase(turn):
        features = mask_geometry(rotated_shape(turn, triangle=triangle), disparity, [1])[0, 0]
        cos, sin = features[INDEX[f"cos{folds}"]], features[INDEX[f"sin{folds}"]]
        assert torch.hypot(cos, sin) > 0.3
        return torch.rad2deg(torch.atan2(sin, cos))

    turned = (phase(angle) - phase(0)) / folds - angle
    period = 360 / folds
    assert abs((turned + period / 2) % period - period / 2) < 2  # deg


def test_absent_class_is_all_zeros():
    geometry = mask_geometry(id_map(), torch.rand(1, 84, 84), [5, 3, 300])
    assert not geometry[0, 0].any()
    assert not geometry[0, 2].any()
    assert geometry[0, 1, INDEX["presence"]] == 1


@pytest.mark.parametrize("blob", [(3, 0, 0, 1, 1), (3, 0, 0, 84, 84), (3, 0, 0, 1, 84), (3, 83, 83, 1, 1)])
def test_extreme_masks_stay_finite_and_bounded(blob):
    geometry = mask_geometry(id_map(blobs=(blob,)), torch.ones(1, 84, 84), [3])
    assert torch.isfinite(geometry).all()
    geometry[..., INDEX["log_area"]] = 0
    assert geometry.abs().max() <= 1 + 1e-5


def test_batch_equals_single():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 5, (4, 84, 84), generator=generator)
    disparity = torch.rand(4, 84, 84, generator=generator)
    batch = mask_geometry(ids, disparity, [1, 4])
    single = torch.cat([mask_geometry(ids[i : i + 1], disparity[i : i + 1], [1, 4]) for i in range(4)])
    torch.testing.assert_close(batch, single, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int64])
def test_any_integer_dtype(dtype):
    ids, disparity = id_map(), torch.rand(1, 84, 84)
    torch.testing.assert_close(
        mask_geometry(ids.to(dtype), disparity, [3]), mask_geometry(ids, disparity, [3])
    )


def test_masks_are_one_where_the_class_is():
    masks = class_masks(id_map(), [0, 3])
    assert masks.dtype == torch.float32
    assert masks[0, 1].sum() == 144
    assert (masks.sum(1) == 1).all()


def test_each_sample_may_have_classes_of_its_own():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 6, (3, 5, 4), generator=generator, dtype=torch.uint8)
    classes = torch.tensor([[2, 4, 1], [3, 5, 1], [2, 5, 1]])
    masks = class_masks(ids, classes)
    for sample in range(3):
        assert torch.equal(
            masks[sample : sample + 1], class_masks(ids[sample : sample + 1], classes[sample].tolist())
        )


def test_wrong_inputs_are_named():
    with pytest.raises(TypeError, match=r"float32.*integer"):
        mask_geometry(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), [1])
    with pytest.raises(ValueError, match=r"ids: found shape \(8, 8\)"):
        mask_geometry(torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(8, 8), [1])
    with pytest.raises(ValueError, match=r"disparity: found \(1, 4, 4\)"):
        mask_geometry(id_map(), torch.zeros(1, 4, 4), [1])
