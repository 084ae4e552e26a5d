# SPDX-License-Identifier: Apache-2.0
"""Stages 2 and 3: equality with SmolVLA, weights of the losses, the later frame, and rejected checkpoints."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText

from lerobot_policy_hlrp.latent_sources import Latents
from lerobot_policy_hlrp.modeling_hlrp import HLRPPolicy
from lerobot_policy_hlrp.modeling_hlrp_laq import HLRPLAQPolicy
from tests.policy_hlrp.conftest import laq_config, training_batch
from tests.tiny import robot_features

MASK = "observation.language.attention_mask"


def observed(batch):
    """Return the observation of an environment, without a time axis."""
    return {
        key: value[:, 0] if key.startswith(("observation.images", "observation.state")) else value
        for key, value in batch.items()
        if key.startswith("observation.")
    }


def build(config, seed=0):
    torch.manual_seed(seed)
    return HLRPPolicy(config)


def flow_inputs(batch=3):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 6, 32, generator=generator), torch.rand(batch, generator=generator)


def test_without_latent_actions_it_equals_smolvla(hlrp_config, small):
    policy = build(hlrp_config(training_mode="actions"))
    torch.manual_seed(0)
    smolvla = SmolVLAPolicy(SmolVLAConfig(**robot_features(), **small))
    assert policy.state_dict().keys() == smolvla.state_dict().keys()
    batch, (noise, time) = training_batch(frames=1), flow_inputs()
    losses = smolvla.model(
        *smolvla.prepare_images(batch),
        batch["observation.language.tokens"],
        batch[MASK],
        smolvla.prepare_state(batch),
        smolvla.prepare_action(batch),
        noise,
        time,
    )
    _, logs = policy(batch, noise, time)
    assert logs["action_loss"] == pytest.approx(losses[..., :6].mean().item(), rel=1e-6)
    chunk = policy.predict_action_chunk(observed(batch), noise=noise)
    assert torch.equal(chunk, smolvla.predict_action_chunk(observed(batch), noise=noise))


def test_latent_tokens_do_not_change_the_actions(hlrp_config, laq):
    policy = build(hlrp_config(training_mode="multitask", laq=laq)).eval()
    batch, (noise, time) = training_batch(), flow_inputs()
    prefix = policy._prefix(policy.current_observation(batch))
    actions = policy.model.noised(torch.nn.functional.pad(batch["action"], (0, 26)), noise, time)
    latents = policy.model.noised(torch.randn(3, 4, 3))
    together, both = policy.model.errors(prefix, actions, latents)
    alone, none = policy.model.errors(prefix, actions, None)
    nothing, only = policy.model.errors(prefix, None, latents)
    assert none is None
    assert nothing is None
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both, only, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", ["expert", "pooled_mlp"])
def test_only_the_latent_action_model_gets_the_later_frame(hlrp_config, laq, head):
    policy = build(hlrp_config(stage="foundation", head=head, laq=laq)).eval()
    batch, other = training_batch(), training_batch()
    for key in ("observation.images.top", "observation.images.wrist", "observation.state"):
        other[key] = batch[key].clone()
        other[key][:, 1] = torch.rand_like(batch[key][:, 1])
    first, second = policy.current_observation(batch), policy.current_observation(other)
    for key in first:
        assert torch.equal(first[key], second[key]), key
    source = policy._sources[0]
    assert not torch.equal(source(batch).vectors, source(other).vectors)
    latents = source(batch)
    policy._sources = [lambda _: latents]
    losses = []
    for same in (batch, other):
        torch.manual_seed(1)
        losses.append(policy(same)[0])
    assert torch.equal(*losses)


@pytest.mark.parametrize("head", ["expert", "pooled_mlp"])
def test_stage_3_from_an_untrained_stage_2_equals_one_from_scratch(hlrp_config, laq, head, tmp_path):
    build(hlrp_config(stage="foundation", head=head, laq=laq)).save_pretrained(tmp_path / "stage2")
    started = build(hlrp_config(head=head, init_from=str(tmp_path / "stage2")), seed=7)
    scratch = build(hlrp_config(head=head))
    assert started.config.training_mode == "actions"
    batch, (noise, _) = observed(training_batch()), flow_inputs()
    given = {"noise": noise} if head == "expert" else {}
    torch.testing.assert_close(
        started.predict_action_chunk(dict(batch), **given), scratch.predict_action_chunk(dict(batch), **given)
    )


def test_a_checkpoint_does_not_contain_or_need_the_latent_action_model(hlrp_config, laq, tmp_path):
    teacher = shutil.copytree(laq, tmp_path / "teacher")
    policy = build(hlrp_config(stage="foundation", laq=str(teacher)))
    policy.save_pretrained(tmp_path / "saved")
    shutil.rmtree(teacher)
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "teacher" in key or "patches" in key]  # noqa: SIM118  not a mapping
    loaded = HLRPPolicy.from_pretrained(tmp_path / "saved")
    batch, noise = observed(training_batch()), torch.randn(3, 4, 3)
    assert torch.equal(loaded.predict_latents(batch, noise), policy.predict_latents(batch, noise))
    with pytest.raises(ValueError, match="checkpoint"):
        loaded.train()(training_batch())


def test_only_labelled_numbers_are_learned(hlrp_config):
    policy = build(hlrp_config(labelled_episodes=[0, 2]))
    batch = training_batch()
    batch["action_is_pad"][0, 4:] = True
    weights = policy.action_weights(batch)
    assert weights.shape == (3, 6, 32)
    assert float(weights[0].sum()) == 4 * 6
    assert float(weights[1].sum()) == 0
    assert float(weights[2].sum()) == 6 * 6
    noise, time = flow_inputs()
    loss, _ = policy(batch, noise, time)
    batch["action"][1] = 100.0
    again, _ = policy(batch, noise, time)
    torch.testing.assert_close(loss, again)


def test_a_batch_without_labelled_actions_has_the_latent_loss_only(hlrp_config, laq):
    policy = build(hlrp_config(training_mode="multitask", laq=laq, labelled_episodes=[99]))
    loss, logs = policy(training_batch())
    assert logs["action_loss"] == 0
    assert loss.item() == pytest.approx(logs["latent_loss"])
    loss.backward()
    assert float(policy.model.latent_out_proj.weight.grad.abs().sum()) > 0
    assert float(policy.model.action_out_proj.weight.grad.abs().sum()) == 0


def test_the_floor_is_logged_beside_the_loss(hlrp_config, laq, monkeypatch):
    monkeypatch.setattr("lerobot_policy_hlrp.modeling_hlrp._FLOOR_SAMPLES", 5)
    policy = build(hlrp_config(stage="foundation", laq=laq))
    _, first = policy(training_batch())
    assert "latent_floor" not in first
    _, second = policy(training_batch(seed=1))
    assert 0 < second["latent_floor"] < 3


@pytest.mark.parametrize("mode", ["codes", "actions", "latent_flow", "multitask"])
def test_the_pooled_heads_train_in_each_mode(hlrp_config, laq, mode):
    policy = build(hlrp_config(stage="foundation", head="pooled_mlp", training_mode=mode, laq=laq))
    loss, logs = policy(training_batch())
    loss.backward()
    assert ("action_loss" in logs) == (mode in ("actions", "multitask"))
    assert ("latent_loss" in logs) == (mode != "actions")
    trunk = policy.model.vlm_with_expert.vlm.model.text_model.layers[0].self_attn.q_proj.weight
    assert trunk.dtype == torch.float32
    assert float(trunk.grad.abs().sum()) > 0


def test_the_pooled_target_is_the_sum_or_the_last_action_of_the_gap(hlrp_config):
    batch = training_batch()
    batch["action_is_pad"][1, 2:] = True
    summed, weights = build(hlrp_config(head="pooled_mlp", action_kind="delta")).pooled_target(batch)
    torch.testing.assert_close(summed[0, :6], batch["action"][0, :3].sum(0))
    torch.testing.assert_close(summed[1, :6], batch["action"][1, :2].sum(0))
    assert float(weights[:, 6:].sum()) == 0
    last, _ = build(hlrp_config(head="pooled_mlp")).pooled_target(batch)
    torch.testing.assert_close(last[0, :6], batch["action"][0, 2])
    torch.testing.assert_close(last[1, :6], batch["action"][1, 1])


def test_the_pooled_trunk_does_not_read_the_state(hlrp_config):
    policy = build(hlrp_config(head="pooled_mlp"))
    batch = observed(training_batch())
    before = policy.predict_action_chunk(dict(batch))
    policy.reset()
    after = policy.predict_action_chunk({**batch, "observation.state": batch["observation.state"] + 5})
    torch.testing.assert_close(before, after)


def test_the_pooled_flow_learns_a_latent_action(hlrp_config, laq):
    torch.manual_seed(0)
    policy = build(
        hlrp_config(
            stage="foundation", head="pooled_mlp", training_mode="latent_flow", laq=laq, pooled_width=256
        )
    )
    target = torch.randn(1, 4, 3)
    policy._sources = [
        lambda batch: Latents(target.expand(3, -1, -1), torch.zeros(3, 4).long(), torch.ones(3).bool())
    ]
    optimizer = torch.optim.Adam(policy.heads.parameters(), 3e-3)
    batch = training_batch()
    pooled = policy.model.pooled(policy._prefix(policy.current_observation(batch))).detach()
    for _ in range(800):
        loss = policy.heads.latent_errors(pooled, target.expand(3, -1, -1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = policy.predict_latents(observed(batch))
    assert float((found - target).square().mean().sqrt()) < 0.3
    assert float((torch.randn(3, 4, 3) - target).square().mean().sqrt()) > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "three"}, "stage: found 'three'"),
        ({"head": "mlp"}, "head: found 'mlp'"),
        ({"training_mode": "latent_flow"}, "learns no actions cannot act"),
        ({"stage": "foundation", "training_mode": "codes"}, "codes are for pooled_mlp"),
        ({"laq": "a", "latent_labels": "b"}, "laq and latent_labels: found both"),
        ({"gap_s": 0.001}, "gap_s: found 0.001"),
    ],
)
def test_invalid_options_are_rejected_by_name(hlrp_config, changes, message):
    with pytest.raises(ValueError, match=message):
        hlrp_config(**changes)


def test_learning_actions_of_video_is_rejected(hlrp_config, laq):
    with pytest.raises(ValueError, match="training_mode=latent_flow"):
        HLRPPolicy(hlrp_config(stage="foundation", laq=laq, output_features={}))


def test_learning_latent_actions_without_a_source_is_rejected(hlrp_config):
    policy = build(hlrp_config(training_mode="multitask"))
    with pytest.raises(ValueError, match="found 'multitask', which learns latent actions"):
        policy(training_batch())


def test_labelled_episodes_also_limit_those_of_a_mixture(hlrp_config):
    policy = build(hlrp_config(labelled_episodes=[0, 1]))
    policy._mixture = SimpleNamespace(per_episode=(torch.tensor([0, 1, 1]), torch.full((3,), 6)))
    assert policy.action_weights(training_batch()).sum((1, 2)).tolist() == [0, 36, 0]


def test_the_expert_trains_in_float32_on_a_bfloat16_trunk(hlrp_config, vlm, tmp_path):
    folder = shutil.copytree(vlm, tmp_path / "vlm")
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    policy = build(hlrp_config(load_vlm_weights=True, vlm_model_name=str(folder)))
    kinds = {p.dtype for p in policy.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert {p.dtype for p in policy.parameters()} == {torch.float32, torch.bfloat16}
    batch, (noise, time) = training_batch(), flow_inputs()
    loss, _ = policy(batch, noise, time)
    loss.backward()
    assert torch.isfinite(policy.predict_action_chunk(observed(batch), noise=noise)).all()


def test_a_ramp_begins_at_the_last_executed_action(hlrp_config):
    policy = build(hlrp_config(head="pooled_mlp", gap_s=0.2, n_action_steps=2)).eval()
    goals = iter([0.0, 6.0, 6.0])
    policy.heads.action.forward = lambda pooled: torch.full((len(pooled), 32), next(goals))
    batch = observed(training_batch(1))
    actions = [float(policy.select_action(dict(batch))[0, 0]) for _ in range(6)]
    assert actions == pytest.approx([0, 0, 1, 2, 2 + 4 / 6, 2 + 8 / 6])


@pytest.mark.parametrize(
    ("stage2", "stage3", "message"),
    [
        ({}, {"gap_s": 0.2}, r"gap_s: found 0.2, expected 0.1.*--policy.gap_s=0.1"),
        ({"head": "pooled_mlp"}, {}, r"head: found 'expert', expected 'pooled_mlp'"),
        (
            {"head": "pooled_mlp"},
            {"head": "pooled_mlp", "action_kind": "delta"},
            r"action_kind: found 'delta', expected 'absolute'",
        ),
    ],
)
def test_stage_3_with_another_form_than_stage_2_is_rejected(
    hlrp_config, laq, tmp_path, stage2, stage3, message
):
    build(hlrp_config(stage="foundation", laq=laq, **stage2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        HLRPPolicy(hlrp_config(init_from=str(tmp_path), **stage3))


def test_a_latent_action_model_of_another_camera_is_rejected(hlrp_config, tmp_path):
    image = PolicyFeature(FeatureType.VISUAL, (3, 48, 64))
    config = laq_config(camera="front", input_features={"observation.images.front": image})
    HLRPLAQPolicy(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"laq: found one of 'observation.images.front', expected one of"):
        HLRPPolicy(hlrp_config(stage="foundation", laq=str(tmp_path)))


def test_another_gap_than_that_of_the_latent_action_model_is_rejected(hlrp_config, laq):
    with pytest.raises(ValueError, match=r"policy.gap_s=0.1"):
        HLRPPolicy(hlrp_config(stage="foundation", laq=laq, gap_s=0.2))


def test_another_latent_action_model_than_that_of_stage_2_is_rejected(hlrp_config, laq, tmp_path):
    build(hlrp_config(stage="foundation", laq=laq)).save_pretrained(tmp_path / "stage2")
    torch.manual_seed(3)
    HLRPLAQPolicy(laq_config()).save_pretrained(tmp_path / "other")
    options = {"training_mode": "multitask", "init_from": str(tmp_path / "stage2")}
    with pytest.raises(ValueError, match="laq: found one with weights"):
        HLRPPolicy(hlrp_config(laq=str(tmp_path / "other"), **options))
    HLRPPolicy(hlrp_config(laq=laq, **options))
