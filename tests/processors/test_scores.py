# SPDX-License-Identifier: Apache-2.0
"""Scores of every kind give consistent logits, probabilities and ids."""

import pytest
import torch

from lerobot_processor_so101.perception.scores import Scores

NAMES = ("floor", "table", "cube", "gripper")


def evidence(batch=2, size=(12, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, len(NAMES), *size, generator=generator) * 3


def test_softmax_of_the_logits_of_evidence_normalises_it():
    values = evidence()
    expected = values / values.sum(1, keepdim=True)
    scores = Scores(values, "probs", NAMES)
    torch.testing.assert_close(scores.as_logits().softmax(1), expected, atol=3e-6, rtol=0)
    torch.testing.assert_close(scores.as_probs(), expected, atol=3e-6, rtol=0)


def test_no_evidence_gives_equal_probabilities():
    scores = Scores(torch.zeros(1, 4, 2, 2), "probs", NAMES)
    assert torch.isfinite(scores.as_logits()).all()
    torch.testing.assert_close(scores.as_probs(), torch.full((1, 4, 2, 2), 0.25))


@pytest.mark.parametrize("kind", ["logits", "log_scores"])
def test_logits_are_unchanged(kind):
    values = evidence().half()
    scores = Scores(values, kind, NAMES)
    torch.testing.assert_close(scores.as_logits(), values.float())
    torch.testing.assert_close(scores.as_probs(), values.float().softmax(1))


@pytest.mark.parametrize("kind", ["logits", "log_scores", "probs"])
def test_ids_are_the_classes_with_most_evidence(kind):
    ids = Scores(evidence(), kind, NAMES).ids()
    assert ids.dtype == torch.uint8
    torch.testing.assert_close(ids.long(), evidence().argmax(1))


@pytest.mark.parametrize("size", [(12, 16), (48, 64), (7, 9)])
def test_evidence_is_interpolated_before_the_argmax(size):
    larger = torch.nn.functional.interpolate(evidence(), size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(Scores(evidence(), "logits", NAMES).ids(size).long(), larger.argmax(1))


def test_more_than_256_classes_need_wider_ids():
    values = torch.zeros(1, 300, 2, 2)
    values[:, 299] = 1
    ids = Scores(values, "probs", tuple(map(str, range(300)))).ids()
    assert ids.dtype == torch.int32
    assert (ids == 299).all()


def test_ids_are_returned_exactly():
    ids = torch.randint(0, 4, (2, 1, 12, 16))
    scores = Scores(ids, "ids", NAMES)
    torch.testing.assert_close(scores.ids(), ids[:, 0].to(torch.uint8))
    torch.testing.assert_close(scores.as_probs().argmax(1), ids[:, 0])
    assert scores.as_probs().amin(1).max() < 1e-5
    assert set(scores.ids((48, 64)).unique().tolist()) <= {0, 1, 2, 3}


def test_pooled_probabilities_keep_their_mean_and_sum():
    scores = Scores(evidence(), "probs", NAMES)
    pooled = scores.pooled((3, 4))
    assert pooled.shape == (2, 4, 3, 4)
    torch.testing.assert_close(pooled.sum(1), torch.ones(2, 3, 4))
    torch.testing.assert_close(pooled.mean((-2, -1)), scores.as_probs().mean((-2, -1)))


def test_top_k_are_the_classes_that_cover_most():
    values = torch.full((2, 4, 8, 8), 0.01)
    values[0, 2, :6], values[0, 0, 6:] = 1, 1
    values[1, 3] = 1
    ids, probabilities = Scores(values, "probs", NAMES).top_k(2, (4, 4))
    assert ids[0].tolist() == [2, 0]
    assert ids[1, 0] == 3
    assert probabilities.shape == (2, 2, 4, 4)
    pooled = Scores(values, "probs", NAMES).pooled((4, 4))
    torch.testing.assert_close(probabilities[0, 0], pooled[0, 2])
    assert Scores(values, "probs", NAMES).top_k(9, (4, 4))[0].shape == (2, 4)


def test_rows_are_some_of_the_images():
    scores = Scores(evidence(3), "probs", NAMES, torch.rand(3, 12, 16))
    rows = scores.rows(1, 3)
    torch.testing.assert_close(rows.values, scores.values[1:])
    torch.testing.assert_close(rows.disparity, scores.disparity[1:])


def test_disparity_is_stored_in_sixteenths():
    disparity = Scores(evidence(), "probs", NAMES, torch.rand(2, 12, 16)).disparity_map((24, 32))
    assert disparity.shape == (2, 24, 32)
    torch.testing.assert_close(disparity * 16, (disparity * 16).round(), atol=0, rtol=0)
    with pytest.raises(ValueError, match="no disparity head"):
        Scores(evidence(), "probs", NAMES).disparity_map((24, 32))


@pytest.mark.parametrize(
    ("shape", "kind"), [((2, 3, 4, 4), "probs"), ((4, 4, 4), "logits"), ((2, 4, 4, 4), "ids")]
)
def test_a_shape_that_does_not_fit_is_refused(shape, kind):
    with pytest.raises(ValueError, match=r"4 classes: found shape \(.*expected \(B, [14], h, w\)"):
        Scores(torch.zeros(shape), kind, NAMES)
