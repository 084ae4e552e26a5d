# SPDX-License-Identifier: Apache-2.0
"""Invalid options raise an error when the policy is built, invalid scores at the first batch."""

from types import SimpleNamespace

import pytest
import torch

from lerobot_policy_segvla.modeling_segvla import SegVLAPolicy
from lerobot_policy_segvla.processor_segvla import make_segvla_pre_post_processors

from .conftest import CAMERAS, CLASSES, make_batch


def prefixed(changes: dict) -> dict:
    return {f"segmentation_{name}": value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"injection": "glue"}, r"injection: found 'glue', expected one of residual"),
        ({"kind": "masks"}, r"kind: found 'masks', expected one of ids"),
        ({"dropout_prob": 1.0}, r"dropout_prob: found 1.0, expected 0 up to less than 1"),
        ({"num_classes": 150}, r"num_classes: found 150, expected 6"),
        ({"feature_map": {"top": "x"}}, r"feature_map: found camera key 'top'.*expected camera keys"),
        ({"region_specs": [[0, 0.5, 1, 0]]}, r"region_specs: found \[0, 0.5, 1, 0\]"),
        ({"region_specs": [[0, 1]]}, r"region_specs: found \[0, 1\], expected \(x0"),
        ({"max_tokens": 7}, r"max_tokens: found 7, expected at least 8"),
        ({"geometry_classes": CLASSES + CLASSES}, r"geometry_classes: found 12, expected at most 8"),
        ({"geometry_state_dim": 16}, r"geometry_state_dim: found 16, expected at least 32"),
        (
            {"injection": "tokens", "geometry_state_dim": 40},
            r"geometry_state_dim: found 40, expected max_state_dim = 32",
        ),
        ({"from_instruction": True, "max_mentions": 9}, r"max_mentions: found 9, expected 1 to 8"),
    ],
)
def test_options(segvla_config, changes, message):
    with pytest.raises(ValueError, match=f"segmentation_{message}"):
        segvla_config(**prefixed(changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_classes": ["red cub"]}, r"class 'red cub': not among the 6 classes.*'red cube'"),
        ({"task_class_ids": [17]}, r"class 17: .* has ids 0 to 5"),
        (
            {"feature_map": {"observation.images.side": "observation.seg.side"}},
            r"segmentation_feature_map: found 'observation.images.side'.*expected cameras of this policy: \[",
        ),
        (
            {"class_names": [], "task_classes": [], "geometry_classes": []},
            r"segmentation_class_names: found none",
        ),
        (
            {"injection": "connector", "max_tokens": 20},
            r"segmentation_max_tokens: found 20, expected a multiple of 16",
        ),
    ],
)
def test_building(segvla_config, changes, message):
    with pytest.raises(ValueError, match=message):
        SegVLAPolicy(segvla_config(**prefixed(changes)))


def test_a_missing_language_model(segvla_config):
    message = r"vlm_model_name: found no configuration .* 'outputs/gone/vlm'"
    with pytest.raises(ValueError, match=message):
        SegVLAPolicy(segvla_config(vlm_model_name="outputs/gone/vlm"))


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


def stored(key, shape, **info):
    """A dataset's metadata: two cameras of 640x480, and one feature."""
    image = {"dtype": "video", "shape": (480, 640, 3), "names": ["height", "width", "channels"]}
    features = {f"observation.images.{camera}": image for camera in CAMERAS}
    return SimpleNamespace(features={**features, key: {"dtype": "float16", "shape": shape, "info": info}})


def test_stored_scores_of_a_letterboxed_image_are_refused(segvla_config):
    keys = {f"observation.images.{camera}": f"observation.seg_logits_{camera}" for camera in CAMERAS}
    config = segvla_config(segmentation_kind="logits", segmentation_feature_map=keys)
    key = keys["observation.images.top"]
    with pytest.raises(
        ValueError, match=rf"{key}: found 512x512 scores of 640x480 images, expected their aspect"
    ):
        make_segvla_pre_post_processors(config, None, stored(key, (6, 512, 512)))
    make_segvla_pre_post_processors(config, None, stored(key, (6, 60, 80)))


def test_stored_scores_of_another_form_are_not_ignored(segvla_config):
    meta = stored("observation.seg_logits_top", (6, 60, 80))
    message = r"found 'ids', but 'observation.seg_logits_top' in the dataset.*segmentation_kind=logits"
    with pytest.raises(ValueError, match=message):
        make_segvla_pre_post_processors(segvla_config(), None, meta)


def test_a_class_id_is_logged_with_its_name(segvla_config, caplog):
    config = segvla_config(segmentation_task_classes=[], segmentation_task_class_ids=[2])
    config.validate_features()
    assert "class 2 of segmentation_class_names is 'red cube'; use the name instead." in caplog.messages


def test_masks_are_not_cameras(segvla_config):
    from lerobot.configs import FeatureType, PolicyFeature

    config = segvla_config()
    config.input_features["observation.images.top_seg"] = PolicyFeature(FeatureType.VISUAL, (1, 48, 64))
    assert sorted(config.image_features) == ["observation.images.top", "observation.images.wrist"]
