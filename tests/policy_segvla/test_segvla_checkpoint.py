# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of segvla load without other files, and start from SmolVLA's."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from lerobot_policy_segvla.modeling_segvla import SegVLAPolicy
from lerobot_policy_segvla.small_vlm import save_small_vlm
from tests.tiny import robot_features, save_policy

from .conftest import CAMERAS, SENTENCES, make_batch, noise_and_time


@pytest.fixture(scope="module")
def smolvla_checkpoint(settings, tmp_path_factory):
    torch.manual_seed(3)
    policy = SmolVLAPolicy(SmolVLAConfig(**robot_features(), **settings))
    folder = tmp_path_factory.mktemp("smolvla")
    policy.save_pretrained(folder)
    return folder


def chunk(policy):
    policy.eval().reset()
    return policy.predict_action_chunk(make_batch(), noise=noise_and_time()[0])


def tokens_of(pipeline):
    sample = {"observation.state": torch.zeros(6), "task": "Put the red cube into the blue bowl."}
    sample |= {f"observation.images.{camera}": torch.zeros(3, 48, 64) for camera in CAMERAS}
    sample |= {f"observation.seg.{camera}": torch.zeros(1, 1, 84, 84) for camera in CAMERAS}
    return pipeline(sample)["observation.language.tokens"]


def test_a_checkpoint_needs_no_other_file(segvla_config, settings, tmp_path):
    own_vlm = save_small_vlm(tmp_path / "vlm", SENTENCES)
    config = segvla_config(vlm_model_name=own_vlm)
    policy = SegVLAPolicy(config)
    expected = chunk(policy)
    folder = tmp_path / "checkpoint"
    save_policy(policy, folder)
    tokens = tokens_of(make_pre_post_processors(config)[0])
    shutil.rmtree(own_vlm)

    found = SegVLAPolicy.from_pretrained(folder)
    assert torch.equal(chunk(found), expected)
    assert found.config.vlm_model_name == own_vlm  # its name is kept, its files are not needed
    loaded = PreTrainedConfig.from_pretrained(folder)
    pipeline = make_pre_post_processors(loaded, pretrained_path=str(folder))[0]
    assert torch.equal(tokens_of(pipeline), tokens)
    found.save_pretrained(tmp_path / "again")
    assert torch.equal(chunk(SegVLAPolicy.from_pretrained(tmp_path / "again")), expected)


def test_warm_start_from_smolvla(segvla_config, smolvla_checkpoint, caplog):
    caplog.set_level(logging.INFO)
    policy = SegVLAPolicy(segvla_config(init_from=str(smolvla_checkpoint)))
    smolvla = SmolVLAPolicy.from_pretrained(smolvla_checkpoint)
    assert torch.equal(chunk(policy), chunk(smolvla))
    (message,) = [
        record.message for record in caplog.records if "new, and trained from scratch" in record.message
    ]
    new = set(message.split(": ", 2)[2].rstrip(".").split(", "))
    assert new == set(policy.state_dict()) - set(smolvla.state_dict())


def test_a_warm_start_keeps_the_dtypes_of_a_frozen_language_model(segvla_config, settings, tmp_path):
    """As in `lerobot/smolvla_base`: the language model in bfloat16, the action expert in float32."""
    smolvla = SmolVLAPolicy(SmolVLAConfig(**robot_features(), **settings))
    smolvla.model.vlm_with_expert.vlm.bfloat16()
    smolvla.save_pretrained(tmp_path / "published")
    policy = SegVLAPolicy(segvla_config(init_from=str(tmp_path / "published")))
    assert torch.equal(chunk(policy), chunk(smolvla))
    saved, own = smolvla.state_dict(), policy.state_dict()
    assert {own[key].dtype for key in saved} == {torch.bfloat16, torch.float32}
    assert all(own[key].dtype == value.dtype for key, value in saved.items())

    policy.save_pretrained(tmp_path / "trained")
    assert torch.equal(chunk(SegVLAPolicy.from_pretrained(tmp_path / "trained")), chunk(smolvla))
    trained = segvla_config(init_from=str(tmp_path / "published"), train_expert_only=False)
    assert {parameter.dtype for parameter in SegVLAPolicy(trained).parameters()} == {torch.float32}


def test_an_own_language_model_is_used_in_a_warm_start(segvla_config, smolvla_checkpoint, tmp_path):
    saved = json.loads((smolvla_checkpoint / "config.json").read_text())
    start = Path(shutil.copytree(smolvla_checkpoint, tmp_path / "start"))
    (start / "config.json").write_text(json.dumps({**saved, "vlm_model_name": "no/such-model"}))
    own = save_small_vlm(tmp_path / "vlm", SENTENCES)
    policy = SegVLAPolicy(segvla_config(vlm_model_name=own, init_from=str(start)))
    assert policy.config.vlm_model_name == own
    wider = save_small_vlm(tmp_path / "wider", SENTENCES, width=96)
    with pytest.raises(
        ValueError, match=rf"does not fit.*with the language model of vlm_model_name, '{wider}'"
    ):
        SegVLAPolicy(segvla_config(vlm_model_name=wider, init_from=str(start)))


def test_warm_start_from_segvla_with_other_classes(segvla_config, tmp_path, caplog):
    first = SegVLAPolicy(segvla_config())
    first.save_pretrained(tmp_path)
    names = ["background", "red cube", "blue bowl"]
    second = SegVLAPolicy(segvla_config(segmentation_class_names=names, init_from=str(tmp_path)))
    kept = "model.cues.patch_proj.weight"
    assert torch.equal(second.state_dict()[kept], first.state_dict()[kept])
    (message,) = [record.message for record in caplog.records if "trained from scratch" in record.message]
    assert message.endswith("scratch: model.cues.build.class_embedding.weight.")


def test_warm_start_from_segvla_needs_no_other_file(segvla_config, tmp_path):
    own_vlm = save_small_vlm(tmp_path / "vlm", SENTENCES)
    first = segvla_config(vlm_model_name=own_vlm)
    SegVLAPolicy(first).save_pretrained(tmp_path / "first")
    tokens = tokens_of(make_pre_post_processors(first)[0])
    shutil.rmtree(own_vlm)
    second = segvla_config(vlm_model_name=own_vlm, init_from=str(tmp_path / "first"))
    SegVLAPolicy(second)
    assert torch.equal(tokens_of(make_pre_post_processors(second)[0]), tokens)


def test_the_architecture_comes_from_the_checkpoint(segvla_config, smolvla_checkpoint, caplog):
    policy = SegVLAPolicy(segvla_config(init_from=str(smolvla_checkpoint), num_vlm_layers=1))
    assert policy.config.num_vlm_layers == 2
    assert "init_from: num_vlm_layers = 2, as in the checkpoint (not 1)." in caplog.messages


def test_loading_a_checkpoint_does_not_read_its_warm_start(segvla_config, smolvla_checkpoint, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(smolvla_checkpoint, start)
    policy = SegVLAPolicy(segvla_config(init_from=str(start)))
    policy.save_pretrained(tmp_path / "checkpoint")
    shutil.rmtree(start)
    assert torch.equal(chunk(SegVLAPolicy.from_pretrained(tmp_path / "checkpoint")), chunk(policy))


def test_the_dtype_of_the_weights_is_kept(segvla_config, tmp_path):
    policy = SegVLAPolicy(segvla_config())
    policy.model.vlm_with_expert.vlm.bfloat16()
    policy.save_pretrained(tmp_path)
    found = SegVLAPolicy.from_pretrained(tmp_path)
    assert {k: v.dtype for k, v in found.state_dict().items()} == {
        k: v.dtype for k, v in policy.state_dict().items()
    }


def test_invalid_warm_starts(segvla_config, smolvla_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        SegVLAPolicy(segvla_config(init_from=str(tmp_path / "nowhere")))
    act = tmp_path / "act"
    act.mkdir()
    (act / "config.json").write_text(json.dumps({"type": "act"}))
    with pytest.raises(ValueError, match=r"checkpoint of type 'act'.*expected smolvla or segvla"):
        SegVLAPolicy(segvla_config(init_from=str(act)))
    wrong = tmp_path / "wrong"
    shutil.copytree(smolvla_checkpoint, wrong)
    saved = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**saved, "max_action_dim": 24}))
    with pytest.raises(ValueError, match=r"does not fit.*model.action_in_proj.weight.*expected \(48, 24\)"):
        SegVLAPolicy(segvla_config(init_from=str(wrong)))
