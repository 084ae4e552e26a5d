# SPDX-License-Identifier: Apache-2.0
"""Cues say what they are meant to say; each test is a flaw of the original that must not come back."""

import pytest
import torch

from lerobot_policy_segvla.cues import SegmentationCueBuilder, View

DIM, GRID, BOX = 5, (8, 8), (64, 64)
PICTURE = (64, 64)
CLASSES = 6
QUARTERS = [[0.0, 0.5, 0.0, 0.5], [0.5, 1.0, 0.0, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 1.0, 0.5, 1.0]]


def builder(kind="ids", task=(2, 4), geometry=(2, 4), class_tokens=4, top_k=10, mentions=0, classes=CLASSES):
    torch.manual_seed(0)
    return SegmentationCueBuilder(
        dim=DIM,
        grid=GRID,
        box=BOX,
        num_classes=classes,
        kind=kind,
        task_ids=[] if mentions else list(task),
        task_slots=mentions or len(task),
        class_tokens=class_tokens,
        top_k=top_k,
        regions=QUARTERS,
        geometry_ids=[] if mentions else list(geometry),
        geometry_slots=mentions or len(geometry),
        geometry_dim=32,
    )


def scene(*rectangles, batch=2) -> torch.Tensor:
    """Ids of a 64 x 64 picture: background 0, and (class, top, bottom, left, right) each."""
    ids = torch.zeros(batch, 64, 64, dtype=torch.uint8)
    for id_, top, bottom, left, right in rectangles:
        ids[:, top:bottom, left:right] = id_
    return ids


def logits_of(ids, sharpness=20.0) -> torch.Tensor:
    return torch.nn.functional.one_hot(ids.long(), CLASSES).movedim(-1, 1) * sharpness


PATCHES = torch.randn(2, 64, DIM, generator=torch.Generator().manual_seed(3))


def test_a_class_token_is_the_mean_of_its_patches():
    build = builder()
    cues = build(PATCHES, View(None, scene((2, 0, 16, 16, 24)), PICTURE))
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
    cues = builder(kind)(PATCHES, View(None, scores, PICTURE))
    expected = builder("ids")(PATCHES, View(None, ids, PICTURE))
    assert torch.equal(cues.class_ids[:, :2], expected.class_ids[:, :2])
    assert torch.allclose(cues.tokens[:, :3], expected.tokens[:, :3], atol=1e-3)
    assert torch.allclose(cues.geometry, expected.geometry, atol=1e-4)


def test_task_classes_always_have_their_slots():
    # The task's classes are the smallest things of the picture, or not there at all.
    ids = scene((1, 0, 64, 0, 40), (3, 0, 64, 40, 60), (2, 0, 2, 60, 62))
    cues = builder(class_tokens=4)(PATCHES, View(None, ids, PICTURE))
    assert cues.class_ids.tolist() == [[2, 4, 1, 3]] * 2


def test_other_classes_come_by_size_and_absent_ones_not_at_all():
    ids = scene((5, 0, 64, 0, 8), (3, 0, 64, 8, 32))
    cues = builder(class_tokens=7, top_k=10)(PATCHES, View(None, ids, PICTURE))
    assert cues.class_ids.tolist() == [[2, 4, 0, 3, 5, -1, -1]] * 2
    limited = builder(class_tokens=7, top_k=1)(PATCHES, View(None, ids, PICTURE))
    assert limited.class_ids.tolist() == [[2, 4, 0, -1, -1, -1, -1]] * 2


def test_a_token_tells_its_class():
    build = builder(task=(), geometry=(), class_tokens=2)
    left = build(PATCHES, View(None, scene((2, 0, 64, 0, 64)), PICTURE)).tokens[:, 1]
    right = build(PATCHES, View(None, scene((3, 0, 64, 0, 64)), PICTURE)).tokens[:, 1]
    expected = build.class_embedding.weight[2] - build.class_embedding.weight[3]
    assert torch.allclose(left - right, expected.expand(2, -1), atol=1e-5)


def test_an_absent_class_is_not_the_mean_of_the_picture():
    build = builder()
    with torch.no_grad():
        build.absent.copy_(torch.arange(DIM))
    cues = build(PATCHES, View(None, scene(), PICTURE))
    expected = build.absent + build.class_embedding.weight[2] + build.task_embedding[0]
    assert torch.allclose(cues.tokens[:, 1], expected.expand(2, -1), atol=1e-6)
    assert not cues.presence[:, 1].any()


def test_a_small_object_is_not_lost():
    # Two pixels of 4096; without antialiasing they fall between the samples.
    build = builder()
    cues = build(PATCHES, View(None, scene((2, 33, 34, 50, 52)), PICTURE))
    assert (cues.where[:, 1] > 0).sum().item() == 2  # one patch in each picture
    assert cues.where[0, 1].argmax() == 4 * 8 + 6
    assert cues.geometry[0, 0] == 1


def test_the_picture_and_region_tokens_look_at_the_task():
    build = builder()
    cues = build(
        PATCHES, View(None, scene((1, 0, 64, 0, 64), (2, 0, 16, 16, 24), (4, 48, 64, 56, 64)), PICTURE)
    )
    where = cues.where[0]
    assert where[0].nonzero().flatten().tolist() == [2, 10, 55, 63]
    quarters = where[-4:]
    assert quarters[0].nonzero().flatten().tolist() == [2, 10]
    assert not quarters[1].any()
    assert not quarters[2].any()
    assert quarters[3].nonzero().flatten().tolist() == [55, 63]


def test_geometry():
    ids = scene((2, 0, 16, 48, 64), (4, 48, 64, 0, 32))
    geometry = builder()(PATCHES, View(None, ids, PICTURE)).geometry[0]
    first, second = geometry[:4], geometry[4:8]
    assert torch.allclose(first, torch.tensor([1.0, 0.75, -0.75, 0.25]), atol=1e-5)
    assert torch.allclose(second, torch.tensor([1.0, -0.5, 0.75, 8**-0.5 / 1.0]), atol=1e-4)
    dx, dy = -1.25, 1.5
    distance = (dx**2 + dy**2) ** 0.5
    assert torch.allclose(
        geometry[8:13], torch.tensor([dx, dy, distance, dy / distance, dx / distance]), atol=1e-4
    )
    assert not geometry[13:].any()


def test_absent_is_not_top_left():
    geometry = builder()(PATCHES, View(None, scene((4, 0, 8, 0, 8)), PICTURE)).geometry[0]
    assert not geometry[:4].any()
    assert geometry[4] == 1
    assert geometry[5] < -0.8
    assert not geometry[8:].any()  # nothing is said about how one lies from the other


def test_the_instruction_chooses_per_sample():
    ids = scene((2, 0, 16, 16, 24), (3, 0, 16, 40, 48), (4, 48, 64, 0, 32))
    mentioned = torch.tensor([[2, 4, -1], [3, -1, -1]])
    build = builder(mentions=3, class_tokens=4, top_k=1)
    cues = build(PATCHES, View(None, ids, PICTURE, mentioned))
    assert cues.class_ids.tolist() == [[2, 4, -1, 0], [3, -1, -1, 0]]
    geometry = cues.geometry.unflatten(1, (8, 4))
    assert geometry[:, :3, 0].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert torch.equal(cues.presence[:, 3], torch.zeros(2))


def test_bfloat16_patches_and_gradients():
    build = builder("logits")
    scores = logits_of(scene((2, 0, 16, 16, 24)))
    cues = build(PATCHES.bfloat16(), View(None, scores, PICTURE))
    assert cues.tokens.dtype == torch.float32
    cues.tokens.sum().backward()
    assert build.class_embedding.weight.grad.isfinite().all()


def test_no_loop_over_samples_and_no_wait_for_the_device():
    """A fake device has no values, so whatever asks for one fails."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    build = builder("logits")
    view = View(None, logits_of(scene((2, 0, 16, 16, 24))).float(), PICTURE)
    build(PATCHES, view)  # fills the tables
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = View(None, mode.from_tensor(view.scores), PICTURE)
        cues = build(mode.from_tensor(PATCHES), fake)
    assert cues.tokens.shape == (2, 9, DIM)
