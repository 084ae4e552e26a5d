# SPDX-License-Identifier: Apache-2.0
"""Cues describe the scores; each test covers a flaw of the original implementation."""

import pytest
import torch

from lerobot_policy_segvla import SegVLAConfig
from lerobot_policy_segvla.cues import CameraInput, SegmentationCueBuilder

DIM, GRID, BOX = 5, (8, 8), (64, 64)
SIZE = (64, 64)
NAMES = [f"class {id_}" for id_ in range(6)]
QUARTERS = [[0.0, 0.5, 0.0, 0.5], [0.5, 1.0, 0.0, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 1.0, 0.5, 1.0]]


def builder(kind="ids", task=(2, 4), geometry=(2, 4), class_tokens=4, top_k=10, mentions=0):
    torch.manual_seed(0)
    config = SegVLAConfig(
        device="cpu",
        segmentation_kind=kind,
        segmentation_class_names=NAMES,
        segmentation_task_classes=[NAMES[id_] for id_ in task],
        segmentation_geometry_classes=[NAMES[id_] for id_ in geometry],
        segmentation_from_instruction=mentions > 0,
        segmentation_max_mentions=max(1, mentions),
        segmentation_max_tokens=1 + len(QUARTERS) + class_tokens,
        segmentation_top_k_classes=top_k,
        segmentation_region_specs=QUARTERS,
    )
    return SegmentationCueBuilder(config, DIM, GRID, BOX)


def scene(*rectangles, batch=2) -> torch.Tensor:
    """Ids of a 64 x 64 image: background 0, and (class, top, bottom, left, right) each."""
    ids = torch.zeros(batch, 64, 64, dtype=torch.uint8)
    for id_, top, bottom, left, right in rectangles:
        ids[:, top:bottom, left:right] = id_
    return ids


def logits_of(ids, sharpness=20.0) -> torch.Tensor:
    return torch.nn.functional.one_hot(ids.long(), len(NAMES)).movedim(-1, 1) * sharpness


PATCHES = torch.randn(2, 64, DIM, generator=torch.Generator().manual_seed(3))


def test_a_class_token_is_the_mean_of_its_patches():
    build = builder()
    cues = build(PATCHES, CameraInput(None, scene((2, 0, 16, 16, 24)), SIZE))
    own = PATCHES[:, [2, 10]].mean(1)  # two patches: rows 0 and 1, column 2
    expected = build.norm(own) + build.class_embedding.weight[2] + build.task_embedding[0]
    assert torch.allclose(cues.tokens[:, 1], expected, atol=1e-4)
    assert torch.equal(cues.presence[:, 1], torch.ones(2))


@pytest.mark.parametrize("kind", ["ids", "probs", "logits", "log_scores"])
def test_every_kind_of_score_gives_the_same_cues(kind):
    ids = scene((2, 0, 16, 16, 24), (4, 40, 64, 0, 64))
    one_hot = logits_of(ids, 1.0)
    scores = {
        "ids": ids,
        "probs": one_hot,
        "logits": 40 * one_hot,
        "log_scores": (one_hot + 1e-12).log(),
    }[kind]
    cues = builder(kind)(PATCHES, CameraInput(None, scores, SIZE))
    expected = builder("ids")(PATCHES, CameraInput(None, ids, SIZE))
    assert torch.equal(cues.class_ids[:, :2], expected.class_ids[:, :2])
    assert torch.allclose(cues.tokens[:, :3], expected.tokens[:, :3], atol=1e-3)
    assert torch.allclose(cues.geometry, expected.geometry, atol=1e-4)


def test_task_classes_always_have_their_slots():
    # The task's classes are the smallest of the image, or absent.
    ids = scene((1, 0, 64, 0, 40), (3, 0, 64, 40, 60), (2, 0, 2, 60, 62))
    cues = builder(class_tokens=4)(PATCHES, CameraInput(None, ids, SIZE))
    assert cues.class_ids.tolist() == [[2, 4, 1, 3]] * 2


def test_other_classes_come_by_size_and_absent_ones_not_at_all():
    ids = scene((5, 0, 64, 0, 8), (3, 0, 64, 8, 32))
    cues = builder(class_tokens=7, top_k=10)(PATCHES, CameraInput(None, ids, SIZE))
    assert cues.class_ids.tolist() == [[2, 4, 0, 3, 5, -1, -1]] * 2
    limited = builder(class_tokens=7, top_k=1)(PATCHES, CameraInput(None, ids, SIZE))
    assert limited.class_ids.tolist() == [[2, 4, 0, -1, -1, -1, -1]] * 2


def test_a_token_contains_its_class():
    build = builder(task=(), geometry=(), class_tokens=2)
    left = build(PATCHES, CameraInput(None, scene((2, 0, 64, 0, 64)), SIZE)).tokens[:, 1]
    right = build(PATCHES, CameraInput(None, scene((3, 0, 64, 0, 64)), SIZE)).tokens[:, 1]
    expected = build.class_embedding.weight[2] - build.class_embedding.weight[3]
    assert torch.allclose(left - right, expected.expand(2, -1), atol=1e-5)


def test_an_absent_class_is_not_the_mean_of_the_image():
    build = builder()
    with torch.no_grad():
        build.absent.copy_(torch.arange(DIM))
    cues = build(PATCHES, CameraInput(None, scene(), SIZE))
    expected = build.absent + build.class_embedding.weight[2] + build.task_embedding[0]
    assert torch.allclose(cues.tokens[:, 1], expected.expand(2, -1), atol=1e-6)
    assert not cues.presence[:, 1].any()


def test_a_small_object_is_not_lost():
    # Two pixels of 4096; without antialiasing they fall between the samples.
    build = builder()
    cues = build(PATCHES, CameraInput(None, scene((2, 33, 34, 50, 52)), SIZE))
    assert (cues.evidence[:, 1] > 0).sum().item() == 2  # one patch in each image
    assert cues.evidence[0, 1].argmax() == 4 * 8 + 6
    assert cues.geometry[0, 0] == 1


def test_the_image_and_region_tokens_pool_the_task_classes():
    build = builder()
    cues = build(
        PATCHES, CameraInput(None, scene((1, 0, 64, 0, 64), (2, 0, 16, 16, 24), (4, 48, 64, 56, 64)), SIZE)
    )
    evidence = cues.evidence[0]
    assert evidence[0].nonzero().flatten().tolist() == [2, 10, 55, 63]
    quarters = evidence[-4:]
    assert quarters[0].nonzero().flatten().tolist() == [2, 10]
    assert not quarters[1].any()
    assert not quarters[2].any()
    assert quarters[3].nonzero().flatten().tolist() == [55, 63]


def test_geometry():
    ids = scene((2, 0, 16, 48, 64), (4, 48, 64, 0, 32))
    geometry = builder()(PATCHES, CameraInput(None, ids, SIZE)).geometry[0]
    first, second = geometry[:4], geometry[4:8]
    assert torch.allclose(first, torch.tensor([1.0, 0.75, -0.75, 0.25]), atol=1e-5)
    assert torch.allclose(second, torch.tensor([1.0, -0.5, 0.75, 8**-0.5 / 1.0]), atol=1e-4)
    dx, dy = -1.25, 1.5
    distance = (dx**2 + dy**2) ** 0.5
    assert torch.allclose(
        geometry[8:13], torch.tensor([dx, dy, distance, dy / distance, dx / distance]), atol=1e-4
    )
    assert not geometry[13:].any()


def test_the_geometry_of_an_absent_class_is_zero():
    geometry = builder()(PATCHES, CameraInput(None, scene((4, 0, 8, 0, 8)), SIZE)).geometry[0]
    assert not geometry[:4].any()
    assert geometry[4] == 1
    assert geometry[5] < -0.8
    assert not geometry[8:].any()  # no relation between them


def test_the_instruction_chooses_per_sample():
    ids = scene((2, 0, 16, 16, 24), (3, 0, 16, 40, 48), (4, 48, 64, 0, 32))
    mentioned = torch.tensor([[2, 4, -1], [3, -1, -1]])
    build = builder(mentions=3, class_tokens=4, top_k=1)
    cues = build(PATCHES, CameraInput(None, ids, SIZE, mentioned))
    assert cues.class_ids.tolist() == [[2, 4, -1, 0], [3, -1, -1, 0]]
    geometry = cues.geometry.unflatten(1, (8, 4))
    assert geometry[:, :3, 0].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert torch.equal(cues.presence[:, 3], torch.zeros(2))


def test_bfloat16_patches_and_gradients():
    build = builder("logits")
    scores = logits_of(scene((2, 0, 16, 16, 24)))
    cues = build(PATCHES.bfloat16(), CameraInput(None, scores, SIZE))
    assert cues.tokens.dtype == torch.float32
    cues.tokens.sum().backward()
    assert build.class_embedding.weight.grad.isfinite().all()


def test_no_loop_over_samples_and_no_wait_for_the_device():
    """Fake tensors have no values: code that reads one fails."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    build = builder("logits")
    camera = CameraInput(None, logits_of(scene((2, 0, 16, 16, 24))).float(), SIZE)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = CameraInput(None, mode.from_tensor(camera.scores), SIZE)
        cues = build(mode.from_tensor(PATCHES), fake)
    assert cues.tokens.shape == (2, 9, DIM)
