# SPDX-License-Identifier: Apache-2.0
"""Files written by an earlier version load offline and give the same numbers; see `make.py`."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors.torch import load_file
from torch import Tensor

from tests.golden import replay

CHECKPOINTS = (
    "segdepth",
    "segdepth_workbench",
    "segvla",
    "imf",
    "hlrp",
    "hlrp_pooled",
    "hlrp_laq",
    "drqv2",
)
PIPELINES = ("policy_preprocessor.json", "policy_postprocessor.json")
# Processors differ in the last bits of float32; actions are degrees up to 180.
FLOATS = {"rtol": 1e-5, "atol": 1e-4}
TOLERANCES = {"drqv2": {"rtol": 1e-4, "atol": 3e-3}}  # a layer of it sums 39,200 products


def same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerances: float) -> None:
    """Compare floats within tolerances, integers and shapes exactly."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        limits = {**FLOATS, **tolerances} if value.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(found[name], value, **limits, msg=partial("{}: {}".format, name))


def same_fields(found: Path, expected: Path) -> None:
    """Every field and step of an old JSON file is in the new one, with the same value; more may be added."""
    missing = _changed(json.loads(found.read_text()), json.loads(expected.read_text()))
    assert not missing, f"{found.name}: {missing}"


def _changed(found: Any, expected: Any, name: str = "") -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for key, value in expected.items()
            for line in (
                _changed(found[key], value, f"{name}.{key}") if key in found else [f"{name}.{key} is gone"]
            )
        ]
    if name == ".steps":  # of a pipeline
        names = [step["registry_name"] for step in expected]
        found = [step for step in found if step["registry_name"] in names]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for index, pair in pairs for line in _changed(*pair, f"{name}[{index}]")]
    return [] if found == expected else [f"{name} was {expected!r}, now {found!r}"]


@pytest.fixture
def unpack(tmp_path):
    return lambda name: replay.unpack(name, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_gives_the_same_actions_latents_and_loss(name, unpack):
    folder = unpack(name)
    if "laq" in json.loads((folder / "inputs.json").read_text()):
        unpack("hlrp_laq")
    same(
        replay.policy_results(folder), load_file(folder / "expected.safetensors"), **TOLERANCES.get(name, {})
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_saved_again_as_it_was(name, unpack, tmp_path, plugins):
    folder, again = unpack(name), tmp_path / "again"
    config = PreTrainedConfig.from_pretrained(folder)
    policy: Any = get_policy_class(config.type).from_pretrained(folder, config=config)
    policy.save_pretrained(again)
    for pipeline in make_pre_post_processors(config, pretrained_path=str(folder)):
        pipeline.save_pretrained(again)
    same_fields(again / "config.json", folder / "config.json")
    for file in PIPELINES:
        same_fields(again / file, folder / file)
    for weights in folder.glob("*.safetensors"):
        if weights.name not in ("inputs.safetensors", "expected.safetensors"):
            same(load_file(again / weights.name), load_file(weights), rtol=0, atol=0)


def test_the_packaged_segmenter_is_the_one_that_a_checkpoint_names(unpack):
    pipeline = json.loads((unpack("segdepth_workbench") / PIPELINES[0]).read_text())
    (step,) = [step for step in pipeline["steps"] if step["registry_name"] == "so101_segmentation"]
    stored = json.loads((replay.DATA / "dataset" / "expected.json").read_text())
    assert step["config"]["identity"] == stored["observation.seg.top"]["info"]["perception"]


def test_a_dataset_of_precompute_reads_the_same(unpack):
    folder = unpack("dataset")
    same(replay.planes(folder / "perceived"), load_file(folder / "expected.safetensors"))
    expected = json.loads((folder / "expected.json").read_text())
    assert replay.perception_features(folder / "perceived") == expected


def test_precompute_writes_the_same_again(unpack, tmp_path):
    folder = unpack("dataset")
    replay.precompute(folder / "source", tmp_path / "output")
    expected = json.loads((folder / "expected.json").read_text())
    assert not _changed(replay.perception_features(tmp_path / "output"), expected)
    found, stored = replay.planes(tmp_path / "output"), load_file(folder / "expected.safetensors")
    assert found.keys() == stored.keys()
    for name, plane in stored.items():  # another processor may round a pixel between two classes to the other
        difference = (found[name].int() - plane.int()).abs()
        if name.startswith("ids"):
            assert (difference > 0).float().mean() <= 1e-3, name
        else:
            assert difference.max() <= 1, name


def test_the_guard_replays_its_log():
    tensors, texts = replay.guard_results(replay.DATA / "guard")
    same(tensors, load_file(replay.DATA / "guard" / "expected.safetensors"), rtol=0, atol=1e-9)
    assert texts == json.loads((replay.DATA / "guard" / "expected.json").read_text())


def test_the_guard_step_is_rebuilt_from_json():
    folder = replay.DATA / "guard_step"
    same(replay.guard_step_results(folder), load_file(folder / "expected.safetensors"))


def test_a_snapshot_is_imported_as_before(unpack, tmp_path):
    folder, output = unpack("drqv2"), tmp_path / "imported"
    replay.import_snapshot(folder / "snapshot.pt", output)
    for file in ("config.json", "imported_from.json", *PIPELINES):
        same_fields(output / file, folder / file)
    same(load_file(output / "model.safetensors"), load_file(folder / "model.safetensors"), rtol=0, atol=0)
