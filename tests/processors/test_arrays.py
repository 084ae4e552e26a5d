# SPDX-License-Identifier: Apache-2.0
"""Masks, depth and cached features as memory-mapped arrays equal those of LeRobot's loader."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.configs.video import DepthEncoderConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies import make_pre_post_processors
from lerobot.policies.factory import make_policy
from torch.utils.data import DataLoader

from lerobot_policy_imf import IMFConfig
from lerobot_policy_imf.cache_vision import CacheVisionConfig
from lerobot_policy_segdepth import SegDepthConfig
from lerobot_processor_so101 import resolve_perception
from lerobot_processor_so101.models import class_names_of, make_segmenter
from lerobot_processor_so101.precompute.arrays import ArraysConfig, write_arrays
from lerobot_processor_so101.precompute.command import precompute
from tests.policy_imf.conftest import SMALL
from tests.tiny import tiny_siglip
from tests.tiny_dataset import tiny_dataset

NAMES = ["height", "width", "channels"]
SIZE = (48, 64)


def record(root, video: bool, class_names=None):
    """Record RGB, class ids and depth of a camera, as images or as videos."""
    joints = {"dtype": "float32", "shape": (6,), "names": [f"joint_{i}.pos" for i in range(6)]}
    kind = "video" if video else "image"
    image = {"dtype": kind, "shape": (*SIZE, 3), "names": NAMES}
    plane = {"dtype": kind, "shape": (*SIZE, 1), "names": NAMES}
    features = {"action": joints, "observation.state": joints, "observation.images.top": image}
    for name in ("seg", "depth"):
        features[f"observation.images.top_{name}"] = {**plane, "info": {"is_depth_map": True}}
    features["observation.images.top_seg"]["info"] |= {"class_names": class_names} if class_names else {}
    linear = {"depth_encoder": DepthEncoderConfig(depth_min=0.0, depth_max=4.095, use_log=False)}
    dataset = LeRobotDataset.create(
        "local/d", 30, features, root=root, use_videos=video, **(linear if video else {})
    )
    rng = np.random.default_rng(0)
    for length in (7, 5, 9):
        for _ in range(length):
            frame = {key: rng.normal(size=6).astype(np.float32) for key in ("action", "observation.state")}
            frame["observation.images.top"] = np.zeros((*SIZE, 3), np.uint8)
            frame["observation.images.top_seg"] = rng.integers(0, 5, (*SIZE, 1), dtype=np.uint16)
            frame["observation.images.top_depth"] = rng.integers(300, 900, (*SIZE, 1), dtype=np.uint16)
            dataset.add_frame({**frame, "task": "Lift the cube."})
        dataset.save_episode()
    dataset.finalize()
    return root


def batches(config, root, episodes, lookup: bool) -> list[dict]:
    """Return the preprocessed batches of a dataset, with chunks looked up or read by the loader."""
    meta = LeRobotDatasetMetadata("local/d", root=root)
    make_policy(config, ds_meta=meta)
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    reads = SimpleNamespace(
        action_delta_indices=None if lookup else config.chunk_delta_indices,
        observation_delta_indices=config.observation_delta_indices,
        reward_delta_indices=None,
    )
    times = resolve_delta_timestamps(reads, meta)
    dataset = LeRobotDataset("local/d", root=root, episodes=episodes, delta_timestamps=times)
    return [preprocessor(batch) for batch in DataLoader(dataset, batch_size=4)]


def assert_equal(found: list[dict], expected: list[dict], more: tuple[str, ...] = ()) -> None:
    """Compare batches; `expected` may have more keys."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert {key for key in other if not key.startswith(more)} <= one.keys()
        for key in one:
            if isinstance(other[key], torch.Tensor):
                assert one[key].dtype == other[key].dtype, key
                assert torch.equal(one[key], other[key]), key
            else:
                assert one[key] == other[key], key


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("video", [False, True])
def test_batches_of_masks_and_depth_equal_those_of_the_loader(tmp_path, video, stack):
    source = record(tmp_path / "demos", video)
    copy = tmp_path / "arrays"
    assert write_arrays(ArraysConfig(source, copy)).startswith("2 arrays of 21 frames")
    assert {path.name: np.load(path).dtype for path in (copy / "arrays").iterdir()} == {
        "observation.images.top_seg.npy": np.uint8,
        "observation.images.top_depth.npy": np.uint16,
    }
    assert not (copy / "videos").exists()
    for episodes in (None, [0, 2]):
        configs = segdepth(stack), segdepth(stack)
        found = batches(configs[0], copy, episodes, True)
        expected = batches(configs[1], source, episodes, False)
        masks = "observation.images.top_seg"
        assert configs[0].input_features[masks] == configs[1].input_features[masks]
        assert found[0]["observation.seg.top"].shape[-2:] == (84, 84)
        assert_equal(found, expected, ("observation.images.top",))


def segdepth(stack: int = 1, **options) -> SegDepthConfig:
    options = {"class_names": ["background", "table", "cube", "static_finger", "moving_finger"], **options}
    return SegDepthConfig(cameras=["top"], n_obs_steps=stack, device="cpu", push_to_hub=False, **options)


def test_masks_of_a_simulator_as_a_segmenter_would_output_them(tmp_path):
    names = ["table", "static_finger", "red cube", "moving_finger", "pencil"]
    source, copy = record(tmp_path / "demos", False, class_names=names), tmp_path / "arrays"
    write_arrays(ArraysConfig(source, copy, segmenter="sorting"))
    classes, common = list(class_names_of("sorting")), {"watched_classes": ["red cube"], "image_size": 24}
    learner = segdepth(segmenter="sorting", depth="segmenter", class_names=classes, **common)
    found = batches(learner, copy, None, True)
    observed = batches(segdepth(class_names=names, **common), source, None, False)
    own = torch.tensor([classes.index(name) for name in [*names[:4], "background"]])
    for one, other in zip(found, observed, strict=True):
        assert torch.equal(one["observation.seg.top"].long(), own[other["observation.seg.top"].long()])
        # rounded to what a dataset stores before the size changes instead of after it
        torch.testing.assert_close(
            one["observation.disparity.top"], other["observation.disparity.top"], rtol=0, atol=1 / 16
        )

    # the policy then runs the segmenter on RGB
    preprocessor, _ = make_pre_post_processors(learner, dataset_stats=LeRobotDatasetMetadata("l", copy).stats)
    image = torch.rand(1, 3, *SIZE)
    live = resolve_perception(
        preprocessor({"observation.images.top": image, "observation.state": torch.zeros(1, 6)})
    )
    expected = make_segmenter("sorting")(image).ids((24, 24))
    assert torch.equal(live["observation.seg.top"], expected)


def test_masks_without_names_or_depth_are_no_segmenters(tmp_path):
    nameless = record(tmp_path / "nameless", False)
    with pytest.raises(ValueError, match="top_seg: found masks without class names"):
        write_arrays(ArraysConfig(nameless, tmp_path / "arrays", segmenter="sorting"))
    with pytest.raises(ValueError, match="--segmenter: found no masks of a simulator"):
        write_arrays(ArraysConfig(tiny_dataset(tmp_path / "rgb"), tmp_path / "arrays", segmenter="sorting"))
    assert not (tmp_path / "arrays").exists()


def test_batches_of_cached_features_equal_those_of_the_loader(tmp_path):
    siglip = tiny_siglip(tmp_path / "siglip")
    source, copy = tmp_path / "cached", tmp_path / "arrays"
    recorded = tiny_dataset(tmp_path / "recorded")
    cache = {"vision_model_name": siglip, "device": "cpu", "drop_rgb": True}
    precompute(CacheVisionConfig(output=source, root=recorded, **cache))
    write_arrays(ArraysConfig(source, copy))
    options = {**SMALL, "n_action_steps": 3, "vision_model_name": siglip, "device": "cpu"}
    made = [
        batches(IMFConfig(**options, push_to_hub=False), root, [1, 2], lookup)
        for root, lookup in ((copy, True), (source, False))
    ]
    assert made[0][0]["observation.vision.top"].ndim == 3
    assert_equal(*made)


def test_nothing_incomplete_is_left(tmp_path, monkeypatch):
    source, copy = record(tmp_path / "demos", False), tmp_path / "arrays"

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lerobot_processor_so101.precompute.arrays.sync", full)
        with pytest.raises(OSError, match="No space"):
            write_arrays(ArraysConfig(source, copy))
    assert os.listdir(tmp_path) == ["demos"]
    (tmp_path / "arrays.123.tmp").mkdir()  # of a killed process
    write_arrays(ArraysConfig(source, copy))
    assert sorted(os.listdir(tmp_path)) == ["arrays", "demos"]
    with pytest.raises(FileExistsError, match="--output"):
        write_arrays(ArraysConfig(source, copy))


def test_a_dataset_without_masks_and_one_without_its_arrays(tmp_path):
    recorded = tiny_dataset(tmp_path / "recorded", lengths=(3,))
    with pytest.raises(ValueError, match="--root: found neither masks, depth nor cached features"):
        write_arrays(ArraysConfig(recorded, tmp_path / "arrays"))
    write_arrays(ArraysConfig(record(tmp_path / "demos", False), tmp_path / "arrays"))
    (tmp_path / "arrays" / "arrays" / "observation.images.top_seg.npy").unlink()
    with pytest.raises(ValueError, match=r"observation.images.top_seg: found no .*\.npy"):
        batches(segdepth(), tmp_path / "arrays", None, True)
