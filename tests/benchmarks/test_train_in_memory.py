# SPDX-License-Identifier: Apache-2.0
"""A training in memory has the samples of LeRobot's own."""

import pytest
import torch
from benchmarks.lib.train_in_memory import Rows
from lerobot.datasets import LeRobotDataset

from tests.tiny_dataset import tiny_dataset


@pytest.mark.parametrize("depth", [False, True])
def test_items_are_the_same(tmp_path, depth):
    root = tiny_dataset(tmp_path / "data", depth=depth)
    window = {key: [-1 / 30, 0.0] for key in ("observation.state", "observation.images.top")}
    window["action"] = [tick / 30 for tick in range(-1, 6)]  # beyond both ends of an episode
    read, kept = (LeRobotDataset("local/tiny", root=root, delta_timestamps=window) for _ in range(2))
    reader = kept._ensure_reader()
    reader.hf_dataset = Rows(reader.hf_dataset)
    assert len(kept) == len(read)
    for index in range(len(read)):
        expected, found = read[index], kept[index]
        assert list(found) == list(expected)
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert found[key].dtype == value.dtype
                assert torch.equal(found[key], value), key
            else:
                assert found[key] == value
