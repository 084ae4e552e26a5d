# SPDX-License-Identifier: Apache-2.0
"""`so101-frames` chooses frames that differ, writes them as recorded, and refuses what it cannot read."""

import numpy as np
import pytest
import torch
from lerobot.datasets import LeRobotDataset
from PIL import Image

from lerobot_processor_so101.recording.frames import Frame, FramesConfig, choose, extract
from lerobot_processor_so101.segmenter_training.sources import recording_of
from tests.tiny_dataset import tiny_dataset


def test_each_group_of_similar_frames_is_chosen_from_before_any_is_chosen_twice():
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(5)
    features = np.concatenate([centre + rng.normal(0, 0.1, (20, 5)) for centre in centres])
    frames = [Frame(0, 10 * i, "top") for i in range(100)]
    chosen = choose(frames, features, 5, gap=1)
    assert sorted(i // 20 for i in chosen) == [0, 1, 2, 3, 4]


def test_neighbours_in_an_episode_are_never_chosen_together():
    features = np.random.default_rng(1).normal(size=(60, 4))
    frames = [Frame(0, i, "top") for i in range(30)] + [Frame(1, i, "top") for i in range(30)]
    chosen = choose(frames, features, 60, gap=10)
    for episode in (0, 1):
        places = sorted(frames[i].index for i in chosen if frames[i].episode == episode)
        assert len(places) >= 2
        assert min(np.diff(places)) >= 10


@pytest.fixture(params=["image", "h264"])
def root(request, tmp_path):
    return tiny_dataset(tmp_path / "recorded", storage=request.param)


def test_the_images_are_those_of_the_recording(root, tmp_path):
    text = extract(FramesConfig(root, tmp_path / "out", count=3, cameras=["top"]))
    paths = sorted((tmp_path / "out" / "images").iterdir())
    assert text.startswith(f"{len(paths)} frames")
    dataset = LeRobotDataset("local/recorded", root=root)
    starts = dataset.meta.episodes["dataset_from_index"]
    for path in paths:
        _, episode, camera, index = path.stem.split("_")
        expected = dataset[starts[int(episode)] + int(index)][f"observation.images.{camera}"]
        found = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
        torch.testing.assert_close(found, expected, atol=0.5 / 255 + 1e-6, rtol=0)
        assert recording_of(path.stem) == f"episode_{episode}_top"  # a recording is on one side of the split


def test_cameras_have_equal_shares(root, tmp_path):
    extract(FramesConfig(root, tmp_path / "out", count=6))
    names = [path.stem.split("_")[2] for path in (tmp_path / "out" / "images").iterdir()]
    assert (names.count("top"), names.count("wrist")) == (3, 3)


def test_what_cannot_be_done_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match=r"--cameras: found laptop, expected some of .*top"):
        extract(FramesConfig(root, tmp_path / "out", cameras=["laptop"]))
    with pytest.raises(ValueError, match="--count: found 0"):
        extract(FramesConfig(root, tmp_path / "out", count=0))
    with pytest.raises(FileNotFoundError, match="--root: found no dataset"):
        extract(FramesConfig(tmp_path / "nothing", tmp_path / "out"))
    (tmp_path / "out" / "images").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"--output: .*was left as it was"):
        extract(FramesConfig(root, tmp_path / "out"))
