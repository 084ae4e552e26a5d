# SPDX-License-Identifier: Apache-2.0
"""segvla equals SmolVLA bit by bit without cues, and at step 0 with residual cues."""

import pytest
import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch.utils._pytree import tree_map

from lerobot_policy_segvla.configuration_segvla import INJECTIONS
from lerobot_policy_segvla.modeling_segvla import SegVLAPolicy
from lerobot_policy_segvla.small_vlm import save_small_vlm
from tests.tiny import robot_features

from .conftest import SENTENCES, make_batch, noise_and_time


@pytest.fixture(scope="module")
def smolvla(settings):
    torch.manual_seed(0)
    return SmolVLAPolicy(SmolVLAConfig(**robot_features(), **settings)).eval()


def with_weights_of(smolvla, config) -> SegVLAPolicy:
    """A segvla policy whose SmolVLA has the same weights, and whose cues are random."""
    torch.manual_seed(7)
    policy = SegVLAPolicy(config).eval()
    missing, unexpected = policy.load_state_dict(smolvla.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith("model.cues.") for key in missing)
    return policy


def outputs(policy, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses per sample and a chunk of actions, with given noise and time."""
    noise, time = noise_and_time()
    batch = tree_map(lambda value: value.clone() if isinstance(value, torch.Tensor) else value, batch)
    losses, _ = policy.forward(dict(batch), noise=noise, time=time, reduction="none")
    policy.reset()
    return losses.detach(), policy.predict_action_chunk(dict(batch), noise=noise)


def assert_equal(found, expected):
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("injection", INJECTIONS)
def test_cues_off(smolvla, segvla_config, injection):
    config = segvla_config(
        segmentation_feature_map={},
        segmentation_task_classes=[],
        segmentation_geometry_classes=[],
        segmentation_injection=injection,
    )
    policy = with_weights_of(smolvla, config)
    assert set(policy.state_dict()) == set(smolvla.state_dict())
    assert_equal(outputs(policy, make_batch()), outputs(smolvla, make_batch()))


@pytest.mark.parametrize("injection", INJECTIONS)
def test_scores_missing_and_not_required(smolvla, segvla_config, injection):
    policy = with_weights_of(
        smolvla, segvla_config(segmentation_injection=injection, segmentation_required=False)
    )
    assert set(policy.state_dict()) > set(smolvla.state_dict())
    batch = make_batch(scores=False)
    assert_equal(outputs(policy, batch), outputs(smolvla, batch))


@pytest.mark.parametrize("training", [False, True])
def test_residual_cues_at_step_0(smolvla, segvla_config, training):
    policy = with_weights_of(smolvla, segvla_config(segmentation_dropout_prob=0.5)).train(training)
    smolvla.train(training)
    noise, time = noise_and_time()
    found, _ = policy.forward(make_batch(), noise=noise, time=time)
    expected, _ = smolvla.forward(make_batch(), noise=noise, time=time)
    assert torch.equal(found, expected)
    if not training:
        assert_equal(outputs(policy, make_batch()), outputs(smolvla, make_batch()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", ["camera", "empty camera", "prefix"])
def test_the_prefix_is_laid_out_as_upstreams(settings, segvla_config, tmp_path, padding, dtype):
    """Every option of upstream's `embed_prefix`: special tokens, masked and empty cameras, a fixed length."""
    options = {
        # The root of 96 is inexact in bfloat16, so that another order of rounding would show.
        "vlm_model_name": save_small_vlm(tmp_path, SENTENCES, width=96),
        "add_image_special_tokens": True,
        "empty_cameras": int(padding == "empty camera"),
        "prefix_length": 64 if padding == "prefix" else -1,
    }
    smolvla = SmolVLAPolicy(SmolVLAConfig(**robot_features(), **{**settings, **options})).eval()
    policy = with_weights_of(smolvla, segvla_config(**options))
    batch = make_batch()
    if padding == "camera":
        batch["observation.images.wrist_padding_mask"] = torch.tensor([True, False, True])
    for model in (smolvla.model, policy.model):
        model.vlm_with_expert.vlm.to(dtype)
    assert_equal(outputs(policy, batch), outputs(smolvla, batch))


@pytest.mark.parametrize("injection", INJECTIONS)
def test_a_step_of_training_uses_the_cues(smolvla, segvla_config, injection):
    config = segvla_config(segmentation_injection=injection, train_expert_only=False)
    policy = with_weights_of(smolvla, config).train()
    noise, time = noise_and_time()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    for _ in range(2):  # layers before a zero gate get a gradient from the second step on
        optimizer.zero_grad()
        policy.forward(make_batch(), noise=noise, time=time)[0].backward()
        optimizer.step()
    without_gradient = {
        name
        for name, parameter in policy.model.cues.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert without_gradient <= {"null_tokens", "build.absent"}, without_gradient
    policy.eval()
    real, _ = policy.forward(make_batch(), noise=noise, time=time)
    shuffled = make_batch()
    for key in [key for key in shuffled if ".seg." in key]:
        shuffled[key] = shuffled[key].roll(1, 0)
    other, _ = policy.forward(shuffled, noise=noise, time=time)
    assert real != other


@pytest.mark.parametrize("injection", INJECTIONS)
def test_the_sequence_is_as_long_with_dropped_cues(smolvla, segvla_config, injection, monkeypatch):
    policy = with_weights_of(smolvla, segvla_config(segmentation_injection=injection)).train()
    lengths = []
    embed = type(policy.model).embed_conditioned_prefix

    def counting(self, *args, **kwargs):
        result = embed(self, *args, **kwargs)
        lengths.append(result[0].shape[1])
        return result

    monkeypatch.setattr(type(policy.model), "embed_conditioned_prefix", counting)
    for dropout in (0.0, 0.99):
        policy.model.cues.dropout = dropout
        policy.forward(make_batch())
    plain = 2 * 4 + 7 + 1
    extra = {"residual": 0, "connector": 2 + 2, "tokens": 2 * 16 + 2}[injection]
    assert lengths == [plain + extra] * 2


def test_dropped_cues_have_no_effect(smolvla, segvla_config):
    policy = with_weights_of(smolvla, segvla_config(segmentation_injection="tokens")).train()
    policy.model.cues.dropout = 1.0 - 1e-9
    noise, time = noise_and_time()
    one, _ = policy.forward(make_batch(), noise=noise, time=time)
    other = make_batch()
    for key in [key for key in other if ".seg." in key]:
        other[key] = other[key].flip(0)
    two, _ = policy.forward(other, noise=noise, time=time)
    assert torch.equal(one, two)
