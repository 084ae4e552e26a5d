# SPDX-License-Identifier: Apache-2.0
"""What cannot work is said when the policy is built, or at the first look."""

import pytest
import torch

from lerobot_policy_segvla.modeling_segvla import SegVLAPolicy

from .conftest import CLASSES, make_batch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation_injection": "glue"}, r"segmentation_injection: found 'glue', expected one of residual"),
        ({"segmentation_kind": "masks"}, r"segmentation_kind: found 'masks', expected one of ids"),
        ({"segmentation_dropout_prob": 1.0}, r"segmentation_dropout_prob: found 1.0, expected 0 up to less than 1"),
        ({"segmentation_num_classes": 150}, r"segmentation_num_classes: found 150, expected 6"),
        ({"segmentation_feature_map": {"top": "x"}}, r"found camera key 'top'.*expected camera keys"),
        ({"segmentation_region_specs": [[0, 0.5, 1, 0]]}, r"segmentation_region_specs: found \[0, 0.5, 1, 0\]"),
        ({"segmentation_region_specs": [[0, 1]]}, r"segmentation_region_specs: found \[0, 1\], expected \(x0"),
        ({"segmentation_max_tokens": 7}, r"segmentation_max_tokens: found 7, expected at least 8"),
        ({"segmentation_geometry_classes": CLASSES + CLASSES}, r"found 12, expected at most 8"),
        ({"segmentation_geometry_state_dim": 16}, r"segmentation_geometry_state_dim: found 16, expected at least 32"),
        (
            {"segmentation_injection": "tokens", "segmentation_geometry_state_dim": 40},
            r"segmentation_geometry_state_dim: found 40, expected max_state_dim = 32",
        ),
        (
            {"segmentation_from_instruction": True, "segmentation_max_mentions": 9},
            r"segmentation_max_mentions: found 9, expected 1 to 8",
        ),
    ],
)  # fmt: skip
def test_options(segvla_config, changes, message):
    with pytest.raises(ValueError, match=message):
        segvla_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation_task_classes": ["red cub"]}, r"class 'red cub': not among the 6 classes.*'red cube'"),
        ({"segmentation_task_class_ids": [17]}, r"class 17: .* has ids 0 to 5"),
        (
            {"segmentation_feature_map": {"observation.images.side": "observation.seg.side"}},
            r"segmentation_feature_map: found 'observation.images.side'.*expected cameras of this policy: \[",
        ),
        (
            {"segmentation_class_names": [], "segmentation_task_classes": [], "segmentation_geometry_classes": []},
            r"segmentation_class_names: found none",
        ),
        ({"vlm_model_name": "outputs/gone/vlm"}, r"vlm_model_name: found no configuration .* 'outputs/gone/vlm'"),
        (
            {"segmentation_injection": "connector", "segmentation_max_tokens": 20},
            r"segmentation_max_tokens: found 20, expected a multiple of 16",
        ),
    ],
)  # fmt: skip
def test_building(segvla_config, changes, message):
    with pytest.raises(ValueError, match=message):
        SegVLAPolicy(segvla_config(**changes))


def test_scores(segvla_config):
    policy = SegVLAPolicy(segvla_config())
    with pytest.raises(
        ValueError, match=r"found no 'observation.seg.top', the scores of 'observation.images.top'"
    ):
        policy.forward(make_batch(scores=False))
    batch = make_batch()
    batch["observation.seg.top"] = torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"observation.seg.top: found shape \(3, 5\), expected \(B, h, w\)"):
        policy.forward(batch)
    dense = SegVLAPolicy(segvla_config(segmentation_kind="logits"))
    batch = make_batch()
    for camera in ("top", "wrist"):
        batch[f"observation.seg.{camera}"] = torch.zeros(3, 150, 8, 8)
    with pytest.raises(ValueError, match=r"found shape \(3, 150, 8, 8\), expected \(B, 6, h, w\)"):
        dense.forward(batch)


def test_a_number_is_echoed_with_its_name(segvla_config, caplog):
    config = segvla_config(segmentation_task_classes=[], segmentation_task_class_ids=[2])
    config.validate_features()
    assert "class 2 of segmentation_class_names is 'red cube'; name it so." in caplog.messages


def test_masks_and_depth_are_no_cameras(segvla_config):
    from lerobot.configs import FeatureType, PolicyFeature

    config = segvla_config()
    config.input_features["observation.images.top_seg"] = PolicyFeature(FeatureType.VISUAL, (1, 48, 64))
    assert sorted(config.image_features) == ["observation.images.top", "observation.images.wrist"]
