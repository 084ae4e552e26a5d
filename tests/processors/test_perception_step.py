# SPDX-License-Identifier: Apache-2.0
"""The steps that add masks and disparity: stored, observed or from a live model, immediate or deferred."""

import json

import pytest
import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.processor import PolicyProcessorPipeline, ProcessorStepRegistry

from lerobot_processor_so101 import (
    PERCEPTION,
    DisparityProcessorStep,
    SegmentationProcessorStep,
    depth_to_disparity,
    resolve_all,
    resolve_perception,
)
from lerobot_processor_so101.perception.stored import encode_disparity, encode_ids
from tests.conftest import count_pictures
from tests.tiny import tiny_depth_anything, tiny_efficientvit_fpn

CAMERAS = ["top", "wrist"]


def observation(batch=(2,), size=(84, 84), cameras=("top", "wrist"), dtype=torch.float32):
    frames = {"observation.state": torch.zeros(*batch, 6)}
    for camera in cameras:
        frames[f"observation.images.{camera}"] = torch.rand(*batch, 3, *size)
        frames[f"observation.images.{camera}_seg"] = torch.randint(0, 6, (*batch, 1, *size)).to(dtype)
        frames[f"observation.images.{camera}_depth"] = torch.randint(100, 900, (*batch, 1, *size)).to(dtype)
    return frames


def rgb_images(batch=(2,), size=(64, 96), cameras=("top", "wrist")):
    return {f"observation.images.{camera}": torch.rand(*batch, 3, *size) for camera in cameras}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """Folder of a small random segmenter with a disparity head."""
    return tiny_efficientvit_fpn(tmp_path_factory.mktemp("segmenter"), disparity_head=True)


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory):
    return tiny_depth_anything(tmp_path_factory.mktemp("depth"))


@pytest.fixture
def calls(monkeypatch):
    """Number of images in each call of the segmenter."""
    from lerobot_processor_so101.models.efficientvit_fpn import (
        EfficientViTFPNForSemanticSegmentation as Model,
    )

    return count_pictures(monkeypatch, Model)


# --- observed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16, torch.int32])
def test_masks_and_depth_become_ids_and_disparity(dtype):
    frames = observation(dtype=dtype)
    seg, depth = frames["observation.images.top_seg"], frames["observation.images.top_depth"]

    result = DisparityProcessorStep(CAMERAS).observation(
        SegmentationProcessorStep(CAMERAS).observation(frames)
    )

    assert set(result) == {
        "observation.state",
        *(f"observation.{kind}.{camera}" for kind in ("images", "seg", "disparity") for camera in CAMERAS),
    }
    ids = result["observation.seg.top"]
    assert ids.dtype == torch.uint8
    torch.testing.assert_close(ids.int(), seg[:, 0].int())
    torch.testing.assert_close(
        result["observation.disparity.top"], depth_to_disparity(depth[:, 0], size=(84, 84))
    )
    assert result["observation.images.top"] is frames["observation.images.top"]


@pytest.mark.parametrize("step", [SegmentationProcessorStep, DisparityProcessorStep])
def test_resizes_to_image_size_and_leaves_the_callers_observation_alone(step):
    frames = observation()
    keys = set(frames)
    result = step(["top"], [42, 21]).observation(frames)
    assert {tuple(result[key].shape) for key in set(result) - keys} == {(2, 42, 21)}
    assert set(frames) == keys


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_leading_dimensions_are_kept(batch):
    result = SegmentationProcessorStep(["top"]).observation(observation(batch))
    assert result["observation.seg.top"].shape == (*batch, 84, 84)


def test_a_missing_key_is_named_with_the_command():
    with pytest.raises(ValueError, match="wrist_seg") as error:
        SegmentationProcessorStep(CAMERAS).observation(observation(cameras=("top",)))
    assert "observation.images.top_seg" in str(error.value)
    assert "so101-demos --seg=true --depth=true" in str(error.value)


def test_ids_in_metres_are_refused():
    frames = observation()
    frames["observation.images.wrist_seg"] /= 1000
    with pytest.raises(ValueError, match=r"wrist_seg.*depth_output_unit=mm"):
        SegmentationProcessorStep(CAMERAS).observation(frames)


def test_nan_ids_are_refused():
    frames = observation()
    frames["observation.images.top_seg"][0, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="top_seg"):
        SegmentationProcessorStep(["top"]).observation(frames)


def test_ids_that_do_not_fit_are_refused():
    frames = observation()
    frames["observation.images.top_seg"] += 255
    with pytest.raises(ValueError, match=r"top_seg: found class ids from 255"):
        SegmentationProcessorStep(["top"]).observation(frames)


def test_three_channels_are_refused():
    frames = observation()
    frames["observation.images.top_seg"] = torch.zeros(2, 3, 84, 84)
    with pytest.raises(ValueError, match="one channel"):
        SegmentationProcessorStep(["top"]).observation(frames)


def test_no_gradient_is_recorded():
    frames = observation()
    frames["observation.images.top_depth"].requires_grad_()
    assert not DisparityProcessorStep(["top"]).observation(frames)["observation.disparity.top"].requires_grad


# --- stored ------------------------------------------------------------------------------------------------


def test_stored_features_are_decoded_and_no_model_runs(segmenter, calls):
    ids, disparity = torch.randint(0, 6, (2, 84, 84)), torch.rand(2, 84, 84) * 255
    frames = {
        "observation.seg.top": encode_ids(ids).float(),
        "observation.disparity.top": encode_disparity(disparity).float(),
    }
    result = SegmentationProcessorStep(["top"], segmenter=segmenter, disparity=True).observation(frames)
    assert PERCEPTION not in result
    assert not calls
    torch.testing.assert_close(result["observation.seg.top"], ids.to(torch.uint8))
    torch.testing.assert_close(result["observation.disparity.top"], disparity, atol=1 / 32, rtol=0)


def test_live_and_stored_are_equal_to_the_bit(segmenter):
    step = SegmentationProcessorStep(["top"], segmenter=segmenter, disparity=True, defer=False)
    live = step.observation(rgb_images(cameras=("top",)))
    stored = {
        "observation.seg.top": encode_ids(live["observation.seg.top"]).float(),
        "observation.disparity.top": encode_disparity(live["observation.disparity.top"]).float(),
    }
    read = step.observation(stored)
    assert all(torch.equal(read[key], live[key]) for key in stored)


def test_floored_disparity_is_equal_live_and_stored(segmenter, depth_model):
    frames = rgb_images(cameras=("top",))
    for exact, floored in (
        [
            SegmentationProcessorStep(["top"], segmenter=segmenter, disparity=True, defer=False, whole=w)
            for w in (0, 1)
        ],
        [DisparityProcessorStep(["top"], depth=depth_model, defer=False, whole=w) for w in (0, 1)],
    ):
        values, integers = (s.observation(frames)["observation.disparity.top"] for s in (exact, floored))
        assert not torch.equal(values, integers)
        assert torch.equal(values.floor(), integers)
        stored = {"observation.seg.top": torch.zeros(2, 1, 84, 84)}
        stored["observation.disparity.top"] = encode_disparity(integers).float()
        assert torch.equal(floored.observation(stored)["observation.disparity.top"], integers)


def test_stored_ids_without_stored_disparity_name_the_command(segmenter):
    step = SegmentationProcessorStep(["top"], segmenter=segmenter, disparity=True)
    with pytest.raises(ValueError, match="so101-precompute --depth=segmenter"):
        step.observation({"observation.seg.top": torch.zeros(1, 1, 84, 84)})


# --- live models -------------------------------------------------------------------------------------------


def test_a_model_runs_once_for_all_cameras_and_frames_when_resolved(segmenter, calls):
    step = SegmentationProcessorStep(CAMERAS, [32, 48], segmenter=segmenter, disparity=True)
    batch = step.observation(rgb_images((2, 3)))
    assert not calls
    assert set(batch) == {"observation.images.top", "observation.images.wrist", PERCEPTION}

    resolved = resolve_perception(batch)
    again = resolve_perception(batch)

    assert calls == [12]
    assert PERCEPTION not in resolved
    assert resolved["observation.seg.wrist"].shape == (2, 3, 32, 48)
    assert resolved["observation.disparity.top"].shape == (2, 3, 32, 48)
    assert all(resolved[key] is again[key] for key in resolved)
    assert resolve_perception(resolved) is resolved


def test_bgr_is_converted(segmenter):
    frames = rgb_images(cameras=("top",))
    bgr = {"observation.images.top": frames["observation.images.top"].flip(1)}
    rgb = SegmentationProcessorStep(["top"], segmenter=segmenter, defer=False).observation(frames)
    step = SegmentationProcessorStep(["top"], segmenter=segmenter, defer=False, color_order="bgr")
    assert torch.equal(step.observation(bgr)["observation.seg.top"], rgb["observation.seg.top"])
    with pytest.raises(ValueError, match="color_order: found 'gbr', expected 'rgb' or 'bgr'"):
        SegmentationProcessorStep(["top"], color_order="gbr")


def test_deferred_equals_immediate(segmenter):
    frames = rgb_images()
    later = resolve_perception(SegmentationProcessorStep(CAMERAS, segmenter=segmenter).observation(frames))
    now = SegmentationProcessorStep(CAMERAS, segmenter=segmenter, defer=False).observation(frames)
    assert set(later) == set(now)
    assert all(torch.equal(later[key], now[key]) for key in now)


def test_a_stack_of_ticks_is_one_call_and_old_ticks_are_free(segmenter, calls):
    step = SegmentationProcessorStep(CAMERAS, segmenter=segmenter)
    ticks = [step.observation(rgb_images((1,)))[PERCEPTION] for _ in range(3)]
    first = ticks[0].resolve()
    stack = resolve_all([*ticks, ticks[-1]])
    assert calls == [2, 4]
    assert torch.equal(stack[0]["observation.seg.top"], first["observation.seg.top"])
    assert torch.equal(stack[2]["observation.seg.top"], stack[3]["observation.seg.top"])


def test_two_models_share_one_deferred_value(segmenter, depth_model):
    batch = SegmentationProcessorStep(CAMERAS, segmenter=segmenter).observation(rgb_images())
    batch = DisparityProcessorStep(CAMERAS, depth=depth_model).observation(batch)
    resolved = resolve_perception(batch)
    disparity = resolved["observation.disparity.top"]
    assert resolved["observation.seg.top"].shape == disparity.shape == (2, 84, 84)
    assert disparity.max() <= 255
    assert disparity.min() >= 0


def test_a_failure_is_not_cached(segmenter):
    batch = SegmentationProcessorStep(["top"], segmenter=segmenter).observation(
        {"observation.images.top": torch.full((1, 3, 64, 96), torch.nan)}
    )
    for _ in range(2):
        with pytest.raises(ValueError, match="NaN"):
            resolve_perception(batch)


def test_missing_images_are_named(segmenter):
    with pytest.raises(
        ValueError, match=r"'observation.images.wrist' among the images \['observation.images.top'\]"
    ):
        SegmentationProcessorStep(CAMERAS, segmenter=segmenter).observation(rgb_images(cameras=("top",)))


def test_wrong_names_fail_when_the_pipeline_is_built(tmp_path, depth_model):
    with pytest.raises(ValueError, match="no such folder"):
        SegmentationProcessorStep(CAMERAS, segmenter=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="disparity"):
        SegmentationProcessorStep(CAMERAS, disparity=True)
    bare = tiny_efficientvit_fpn(tmp_path, disparity_head=False)
    with pytest.raises(ValueError, match="no disparity head"):
        SegmentationProcessorStep(CAMERAS, segmenter=bare, disparity=True)


# --- checkpoints -------------------------------------------------------------------------------------------


def saved_and_loaded(step, folder):
    PolicyProcessorPipeline([step], name="policy_preprocessor").save_pretrained(folder)
    saved = json.loads((folder / "policy_preprocessor.json").read_text())
    loaded = PolicyProcessorPipeline.from_pretrained(folder, config_filename="policy_preprocessor.json")
    return saved["steps"], loaded.steps[0]


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (SegmentationProcessorStep(["top"], [42, 42]), "so101_segmentation"),
        (DisparityProcessorStep(["top"], [42, 42]), "so101_disparity"),
    ],
)
def test_rebuilt_from_json(step, name, tmp_path):
    saved, loaded = saved_and_loaded(step, tmp_path)
    assert saved == [{"registry_name": name, "config": step.get_config()}]
    assert loaded == step
    assert ProcessorStepRegistry.get(name) is type(step)


def test_a_checkpoint_contains_the_identity_and_loads_no_model(segmenter, tmp_path):
    step = SegmentationProcessorStep(CAMERAS, segmenter=segmenter, disparity=True)
    saved, loaded = saved_and_loaded(step, tmp_path / "checkpoint")
    assert len(saved[0]["config"]["identity"]["weights"]) == 64
    assert not list((tmp_path / "checkpoint").glob("*.safetensors"))
    assert "model" not in vars(loaded.live)
    frames = rgb_images()
    ours, theirs = (resolve_perception(s.observation(frames)) for s in (step, loaded))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_another_segmenter_than_the_checkpoints_is_refused(segmenter, tmp_path):
    config = SegmentationProcessorStep(CAMERAS, segmenter=segmenter).get_config()
    config["segmenter"] = tiny_efficientvit_fpn(tmp_path, decoder_dim=32)
    step = SegmentationProcessorStep(**config)
    with pytest.raises(ValueError, match=r"expects the perception model .* weights"):
        resolve_perception(step.observation(rgb_images()))


def test_masks_of_another_segmenter_in_the_dataset_are_refused(segmenter, tmp_path):
    other = SegmentationProcessorStep(CAMERAS, segmenter=tiny_efficientvit_fpn(tmp_path, decoder_dim=32))
    features = {"observation.seg.top": {"dtype": "image", "info": {"perception": other.identity}}}
    other.check_dataset(features)
    with pytest.raises(ValueError, match=r"observation.seg.top in the dataset expects"):
        SegmentationProcessorStep(CAMERAS, segmenter=segmenter).check_dataset(features)
    with pytest.raises(ValueError, match="Name the model"):
        SegmentationProcessorStep(CAMERAS).check_dataset(features)


def test_class_names_are_the_segmenters(segmenter):
    step = SegmentationProcessorStep(CAMERAS, segmenter=segmenter)
    step.check_class_names(step.identity["class_names"], {})
    with pytest.raises(ValueError, match=r"--policy.class_names='\[\"unlabeled\""):
        step.check_class_names(["cube"], {})


def test_class_names_are_the_datasets():
    step = SegmentationProcessorStep(CAMERAS)
    features = {"observation.images.top_seg": {"info": {"class_names": ["table", "cube"]}}}
    step.check_class_names(["table", "cube"], features)
    step.check_class_names(["cube"], {"observation.images.top_seg": {"info": {"is_depth_map": True}}})
    with pytest.raises(ValueError, match=r"top_seg: `--policy.class_names='\[\"table\", \"cube\"\]'`"):
        step.check_class_names(["cube", "table"], features)


@pytest.mark.parametrize("source", ["observation", "model"])
def test_declared_features_are_changed_like_the_values(source, segmenter):
    name = segmenter if source == "model" else "observation"
    steps = [SegmentationProcessorStep(CAMERAS, segmenter=name, disparity=source == "model")]
    if source == "observation":
        steps.append(DisparityProcessorStep(CAMERAS))
    frames = observation()
    declared = {
        key: PolicyFeature(FeatureType.VISUAL, tuple(value.shape[1:])) for key, value in frames.items()
    }
    features = {PipelineFeatureType.OBSERVATION: declared, PipelineFeatureType.ACTION: {}}
    result = frames
    for step in steps:
        features, result = step.transform_features(features), resolve_perception(step.observation(result))
    assert {key: feature.shape for key, feature in features[PipelineFeatureType.OBSERVATION].items()} == {
        key: tuple(value.shape[1:]) for key, value in result.items()
    }
    assert len(declared) == len(frames)
