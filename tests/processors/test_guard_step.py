# SPDX-License-Identifier: Apache-2.0
"""The guard in a postprocessor: what it can know from actions alone."""

import math

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from lerobot.policies.act.configuration_act import ACTConfig

from lerobot_processor_so101.guard import GuardLimits
from lerobot_processor_so101.guard_step import AddGuardConfig, GuardProcessorStep, add_guard

HOME = torch.tensor([0.0, -80.0, 30.0, 85.0, -90.0, 50.0])


def test_actions_are_held_against_the_one_before():
    step = GuardProcessorStep({"velocity": 30.0})
    torch.testing.assert_close(step.action(HOME[None]), HOME[None])
    leap = step.action(HOME[None] + 40)
    assert (leap - HOME)[0, :5].abs().max() <= 1.0 + 1e-4
    torch.testing.assert_close(step.action(torch.full((1, 6), math.nan)), leap)
    step.reset()
    far = HOME + torch.tensor([40.0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(step.action(far[None]), far[None])  # a new episode begins where it begins


def test_a_chunk_is_held_together_and_begins_where_it_says():
    step = GuardProcessorStep({"velocity": 30.0})
    chunk = HOME.repeat(2, 10, 1)
    chunk[0, 5:, 0] += 40
    chunk[1, :, 0] += 20
    held = step.action(chunk)
    assert held.shape == chunk.shape
    assert held[0].diff(dim=0).abs().max() <= 1.0 + 1e-4
    torch.testing.assert_close(held[1], chunk[1])
    torch.testing.assert_close(step.action(chunk), held)


def test_nothing_but_nan_and_another_arm_are_refused():
    with pytest.raises(ValueError, match="six finite"):
        GuardProcessorStep().action(torch.full((1, 6), math.nan))
    with pytest.raises(ValueError, match=r"found \(1, 7\), expected 6 joints"):
        GuardProcessorStep().action(torch.zeros(1, 7))


def test_a_checkpoint_gets_it_once_and_is_rebuilt_with_it(tmp_path):
    config = ACTConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (6,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        device="cpu",
    )
    stats = {"action": {"mean": HOME, "std": torch.full((6,), 10.0)}}
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(tmp_path)
    for velocity in (60.0, 30.0):
        add_guard(AddGuardConfig(tmp_path, limits=GuardLimits(velocity=velocity)))
    _, post = make_pre_post_processors(config, pretrained_path=str(tmp_path))
    assert [type(step).__name__ for step in post.steps].count("GuardProcessorStep") == 1
    torch.testing.assert_close(post(torch.zeros(1, 6)), HOME[None])  # mean
    assert (post(torch.full((1, 6), 4.0)) - HOME)[0, 0] == pytest.approx(1.0, abs=1e-3)  # not 40 deg
    with pytest.raises(ValueError, match=r"found no policy_postprocessor.json"):
        add_guard(AddGuardConfig(tmp_path / "none"))
