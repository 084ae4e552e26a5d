# SPDX-License-Identifier: Apache-2.0
"""A foreign checkpoint runs no code, and a damaged one is refused, before anything is built."""

import json
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.utils.import_utils import register_third_party_plugins
from safetensors.torch import load_file, save_file

from lerobot_processor_so101.guard.step import AddGuardConfig, add_guard
from lerobot_processor_so101.policy.trained_policy import load_policy
from lerobot_processor_so101.policy.trust import check_weights
from tests.golden.replay import unpack

POLICIES = ("segdepth", "segvla", "imf", "hlrp", "hlrp_laq")


def load(folder: Path) -> torch.nn.Module:
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(folder)
    return get_policy_class(config.type).from_pretrained(folder, config=config)


def plant_command(folder: Path, name: str, marker: Path) -> None:
    """Add a step to a pipeline that creates a file when it is built."""
    path = folder / name
    pipeline = json.loads(path.read_text())
    pipeline["steps"].insert(0, {"class": "subprocess.Popen", "config": {"args": ["touch", str(marker)]}})
    path.write_text(json.dumps(pipeline))


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_planted_command_is_refused(policy, name, tmp_path):
    folder = unpack(policy, tmp_path)
    plant_command(folder, name, tmp_path / "marker")
    for attempt in (load, load_policy, lambda path: add_guard(AddGuardConfig(path))):
        with pytest.raises(ValueError, match=rf"{name}: step 0 is the class 'subprocess.Popen', expected"):
            attempt(folder)
    assert not (tmp_path / "marker").exists()


def test_an_unknown_step_names_the_way_out(tmp_path):
    folder = unpack("segdepth", tmp_path)
    path = folder / "policy_preprocessor.json"
    path.write_text(path.read_text().replace("so101_segmentation", "so999_segmentation"))
    with pytest.raises(
        ValueError, match=r"'so999_segmentation', which no installed package registers. Install"
    ):
        load(folder)


@pytest.mark.parametrize("policy", POLICIES)
def test_missing_weights_are_refused(policy, tmp_path):
    folder = unpack(policy, tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(dict(list(weights.items())[::2]), path)
    with pytest.raises(ValueError, match=r"tensors of \w+ are missing, such as '"):
        load(folder)


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_that_are_nan_are_refused(policy, tmp_path):
    folder = unpack(policy, tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(key for key, value in weights.items() if value.is_floating_point())
    weights[name].flatten()[0] = float("nan")
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"found 1 of \d+ numbers that are NaN or infinite"):
        load(folder)


def test_statistics_that_are_nan_are_refused(tmp_path):
    folder = unpack("segdepth", tmp_path)
    (path,) = folder.glob("policy_preprocessor_*normalizer*.safetensors")
    statistics = load_file(path)
    statistics["action.mean"] = torch.full_like(statistics["action.mean"], float("nan"))
    save_file(statistics, path)
    with pytest.raises(
        ValueError, match=r"normalizer_processor.safetensors: action.mean: found 6 of 6 numbers"
    ):
        load(folder)


def test_a_tied_parameter_is_saved_once(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    save_file(
        {key: value for key, value in model.state_dict().items() if key != "b.weight"},
        tmp_path / "w.safetensors",
    )
    check_weights(model, tmp_path / "w.safetensors")
