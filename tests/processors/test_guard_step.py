# SPDX-License-Identifier: Apache-2.0
"""The guard in a postprocessor, which has actions only."""

import math

import pytest
import torch

from lerobot_processor_so101.guard.step import AddGuardConfig, GuardProcessorStep, add_guard

HOME = torch.tensor([0.0, -80.0, 30.0, 85.0, -90.0, 50.0])


def test_actions_are_limited_by_the_previous_ones():
    step = GuardProcessorStep({"velocity": 30.0})
    torch.testing.assert_close(step.action(HOME[None]), HOME[None])
    jump = step.action(HOME[None] + 40)
    assert (jump - HOME)[0, :5].abs().max() <= 1.0 + 1e-4
    torch.testing.assert_close(step.action(torch.full((1, 6), math.nan)), jump)
    step.reset()
    far = HOME + torch.tensor([40.0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(
        step.action(far[None]), far[None]
    )  # a new episode starts from its first action


def test_a_chunk_is_limited_from_its_first_action():
    step = GuardProcessorStep({"velocity": 30.0})
    chunk = HOME.repeat(2, 10, 1)
    chunk[0, 5:, 0] += 40
    chunk[1, :, 0] += 20
    limited = step.action(chunk)
    assert limited.shape == chunk.shape
    assert limited[0].diff(dim=0).abs().max() <= 1.0 + 1e-4
    torch.testing.assert_close(limited[1], chunk[1])
    torch.testing.assert_close(step.action(chunk), limited)


def test_nan_at_the_start_and_another_arm_are_refused():
    with pytest.raises(ValueError, match="six finite"):
        GuardProcessorStep().action(torch.full((1, 6), math.nan))
    with pytest.raises(ValueError, match=r"found \(1, 7\), expected 6 joints"):
        GuardProcessorStep().action(torch.zeros(1, 7))


@pytest.mark.parametrize("lead", [(), (4,)])
def test_a_first_action_below_the_table_is_refused(lead):
    low = torch.tensor([0.0, 90, 30, 60, -90, 50]).expand(1, *lead, 6)
    with pytest.raises(ValueError, match=r"first action is \d+ mm below the table"):
        GuardProcessorStep().action(low)


def test_the_step_is_no_longer_added(tmp_path):
    (tmp_path / "policy_postprocessor.json").write_text('{"steps": []}')
    with pytest.raises(ValueError, match=r"withdrawn, nothing was changed: .*so101_guarded"):
        add_guard(AddGuardConfig(tmp_path))
    assert (tmp_path / "policy_postprocessor.json").read_text() == '{"steps": []}'
