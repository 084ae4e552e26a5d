# SPDX-License-Identifier: Apache-2.0
"""Action chunks looked up by index equal those of LeRobot's loader, in batches and in whole trainings."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies import make_pre_post_processors
from lerobot.policies.factory import make_policy
from lerobot.scripts import lerobot_train
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from lerobot_policy_hlrp import HLRPConfig
from lerobot_policy_imf import IMFConfig
from lerobot_policy_segdepth import SegDepthConfig
from lerobot_policy_segvla import SegVLAConfig
from lerobot_policy_segvla.small_vlm import save_small_vlm
from lerobot_processor_so101 import DatasetLookupMixin
from tests.policy_imf.conftest import SMALL
from tests.tiny import tiny_siglip, tiny_smolvla
from tests.tiny_dataset import tiny_dataset

LENGTHS = (7, 5, 9)  # shorter and longer than a chunk
SMOLVLA_READS = {"segvla": [0], "hlrp": [0]}  # one frame, with an axis of time


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "recorded", lengths=LENGTHS)


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """A configuration of each policy, by name."""
    small = tiny_smolvla(save_small_vlm(tmp_path_factory.mktemp("vlm"), ["Lift the cube."]))
    common = {"device": "cpu", "push_to_hub": False}
    siglip = tiny_siglip(tmp_path_factory.mktemp("siglip"))
    rgb = {"encoder": "rgb", "cameras": ["top"]}
    return {
        "segdepth": lambda **changes: SegDepthConfig(**{**rgb, "chunk_size": 6, **common, **changes}),
        "segvla": lambda: SegVLAConfig(**small),
        "imf": lambda: IMFConfig(**{**SMALL, "n_action_steps": 3}, vision_model_name=siglip, **common),
        "hlrp": lambda: HLRPConfig(**small),
    }


def batches(config, reads, root, episodes, preprocessor) -> list[dict]:
    """Return the preprocessed batches of a dataset that is read as `reads` asks for."""
    meta = LeRobotDatasetMetadata("local/tiny", root=root)
    times = resolve_delta_timestamps(reads, meta)
    dataset = LeRobotDataset("local/tiny", root=root, episodes=episodes, delta_timestamps=times)
    return [preprocessor(batch) for batch in DataLoader(dataset, batch_size=4)]


@pytest.mark.parametrize("episodes", [None, [1, 2], [0, 2]])
@pytest.mark.parametrize("name", ["segdepth", "segvla", "imf", "hlrp"])
def test_batches_equal_those_of_the_loader_to_the_last_bit(name, episodes, configs, root):
    config = configs[name]()
    meta = LeRobotDatasetMetadata("local/tiny", root=root)
    make_policy(config, ds_meta=meta)
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    observed = SMOLVLA_READS.get(name, config.observation_delta_indices)
    stock = SimpleNamespace(
        action_delta_indices=config.chunk_delta_indices,
        observation_delta_indices=observed,
        reward_delta_indices=None,
    )
    assert config.action_delta_indices is None
    expected = batches(config, stock, root, episodes, preprocessor)
    found = batches(config, config, root, episodes, preprocessor)
    assert len(found) == len(expected)
    assert any(batch["action_is_pad"].any() for batch in found)
    for looked_up, read in zip(found, expected, strict=True):
        for key, value in read.items():
            if name in SMOLVLA_READS and key.startswith("observation.") and "language" not in key:
                if key.endswith("_is_pad"):
                    continue
                value = value[:, 0]
            if isinstance(value, torch.Tensor):
                assert looked_up[key].dtype == value.dtype, key
                assert torch.equal(looked_up[key], value), key
            else:
                assert looked_up[key] == value, key


# -- whole trainings


def train(config, root, out, steps=4, **dataset):
    """Run `lerobot-train` and return the last checkpoint."""
    options = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="local/tiny", root=str(root), **dataset),
        policy=config,
        output_dir=out,
        steps=steps,
        batch_size=4,
        num_workers=0,
        save_freq=2,
        log_freq=1,
    )
    lerobot_train.train(options)
    return out / "checkpoints" / f"{steps:06d}" / "pretrained_model"


def resume(folder, monkeypatch):
    """Resume a training from its own configuration, and return the last checkpoint."""
    argv = ["lerobot-train", f"--config_path={folder / 'train_config.json'}", "--resume=true", "--steps=4"]
    monkeypatch.setattr("sys.argv", argv)
    lerobot_train.main()
    return folder.parents[1] / "checkpoints" / "000004" / "pretrained_model"


def assert_same_weights(one, other):
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def drop_step(folder):
    """Make a checkpoint one of a version without the step."""
    file = folder / "policy_preprocessor.json"
    pipeline = json.loads(file.read_text())
    pipeline["steps"] = [s for s in pipeline["steps"] if s["registry_name"] != "so101_dataset_lookup"]
    file.write_text(json.dumps(pipeline))


@pytest.mark.slow
def test_training_and_resuming_equal_those_with_the_loaders_chunks(configs, root, tmp_path, monkeypatch):
    make = configs["segdepth"]
    looked_up = train(make(), root, tmp_path / "run", eval_split=0.3)
    with monkeypatch.context() as patch:
        stock = property(lambda self: self.chunk_delta_indices)
        patch.setattr(DatasetLookupMixin, "action_delta_indices", stock)
        assert_same_weights(looked_up, train(make(), root, tmp_path / "stock", eval_split=0.3))

    resumed = []
    for name, change in (("resumed", lambda folder: None), ("old", drop_step)):
        shutil.copytree(tmp_path / "run" / "checkpoints" / "000002", tmp_path / name / "000002")
        folder = tmp_path / name / "000002" / "pretrained_model"
        change(folder)
        train_config = json.loads((folder / "train_config.json").read_text())
        train_config["output_dir"] = str(tmp_path / name)
        (folder / "train_config.json").write_text(json.dumps(train_config))
        resumed.append(resume(folder, monkeypatch))
    assert_same_weights(*resumed)
