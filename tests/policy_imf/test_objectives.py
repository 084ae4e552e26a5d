# SPDX-License-Identifier: Apache-2.0
"""The maths of average velocities, compared with closed forms and finite differences."""

import pytest
import torch
from torch import nn

from lerobot_policy_imf.head import VelocityHead
from lerobot_policy_imf.objectives import (
    OBJECTIVES,
    derivative,
    integrate,
    reduce_error,
    sample_times,
    velocity_error,
)

B, T, A, N, D = 6, 5, 3, 2, 8
MEAN, STD = 0.4, 0.7  # of the actions in the linear-Gaussian case


def tiny_head(residual="attnres_full", **options) -> VelocityHead:
    torch.manual_seed(0)
    settings = {"width": 16, "layers": 2, "heads": 2, "blocks": 2, **options}
    head = VelocityHead(A, T, D, residual=residual, **settings).double()
    for parameter in head.parameters():  # large enough for a curved field
        nn.init.normal_(parameter, std=0.4)
    return head


def sample():
    torch.manual_seed(1)
    actions, noise = torch.randn(2, B, T, A).double()
    r, t = torch.rand(B, 2).double().sort(1).values.T
    return actions, noise, r, t, torch.randn(B, N, D).double()


def gaussian_average(z, r, t, condition=None):
    """Return u of actions N(MEAN, STD²): the flow keeps a point's distance from the mean in deviations."""
    r, t = r[:, None, None], t[:, None, None]

    def mean(s):
        return (1 - s) * MEAN

    def std(s):
        return ((1 - s) ** 2 * STD**2 + s**2).sqrt()

    velocity = -MEAN + (t - (1 - t) * STD**2) / std(t) ** 2 * (z - mean(t))
    end = mean(r) + std(r) / std(t) * (z - mean(t))
    span = torch.where(t > r, t - r, torch.ones_like(t))
    return torch.where(t > r, (z - end) / span, velocity)


# -- the derivative ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["attnres_full", "attnres_block", "standard"])
def test_the_derivative_equals_central_differences(residual):
    head = tiny_head(residual)
    z, tangent, r, t, condition = sample()
    average, slope = derivative(head, (z, r, t), tangent, condition)
    eps = 1e-5
    with torch.no_grad():
        after = head(z + eps * tangent, r, t + eps, condition)
        before = head(z - eps * tangent, r, t - eps, condition)
    torch.testing.assert_close(average, head(z, r, t, condition))
    torch.testing.assert_close(slope, (after - before) / (2 * eps), rtol=1e-6, atol=1e-7)


def test_gradients_flow_through_u_and_not_through_its_derivative():
    head = tiny_head()
    z, tangent, r, t, condition = sample()
    average, slope = derivative(head, (z, r, t), tangent, condition.requires_grad_())
    assert not slope.requires_grad
    average.sum().backward()
    assert condition.grad.abs().sum() > 0


def test_inference_mode_is_rejected():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        derivative(
            lambda z, r, t, _: z,
            (torch.ones(1, 1, 1), torch.ones(1), torch.ones(1)),
            torch.ones(1, 1, 1),
            None,
        )


def test_the_derivative_is_the_same_under_no_grad():
    head = tiny_head()
    z, tangent, r, t, condition = sample()
    expected = derivative(head, (z, r, t), tangent, condition)
    with torch.no_grad():
        found = derivative(head, (z, r, t), tangent, condition)
    torch.testing.assert_close(found[1], expected[1])


# -- the objectives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_at_equal_times_every_objective_is_flow_matching(objective):
    head = tiny_head()
    actions, noise, _, t, condition = sample()
    error, _ = velocity_error(objective, head, actions, noise, t, t, condition)
    along = t[:, None, None]
    expected = head((1 - along) * actions + along * noise, t, t, condition) - (noise - actions)
    assert torch.equal(error, expected)


def test_without_the_derivative_the_velocity_is_the_target():
    head = tiny_head()
    actions, noise, r, t, condition = sample()
    error, slope = velocity_error("imf", head, actions, noise, r, t, condition, derive=False)
    along = t[:, None, None]
    expected = head((1 - along) * actions + along * noise, r, t, condition) - (noise - actions)
    assert torch.equal(error, expected)
    assert not len(slope)


def test_samples_with_equal_times_do_not_affect_others():
    head = tiny_head()
    actions, noise, r, t, condition = sample()
    r[::2] = t[::2]
    error, slope = velocity_error("imf", head, actions, noise, r, t, condition)
    assert len(slope) == B // 2
    for i in range(B):
        one = slice(i, i + 1)
        alone, _ = velocity_error("imf", head, actions[one], noise[one], r[one], t[one], condition[one])
        torch.testing.assert_close(error[one], alone)


def test_the_known_average_velocity_is_a_fixed_point():
    actions, noise, r, t, condition = sample()
    error, _ = velocity_error("imf", gaussian_average, actions, noise, r, t, condition)
    along = t[:, None, None]
    z = (1 - along) * actions + along * noise
    torch.testing.assert_close(error + noise - actions, gaussian_average(z, t, t))


class Net(nn.Module):
    """A field of one dimension."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, z, r, t, condition):
        times = torch.stack([r, t], -1)[:, None].expand(-1, z.shape[1], -1)
        return self.net(torch.cat([z, times], -1))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_known_average_velocity_is_learned(objective):
    torch.manual_seed(0)
    net, steps = Net(), 600
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = objective != "flow_matching"
    for _ in range(steps):
        actions, noise = MEAN + STD * torch.randn(512, 1, 1), torch.randn(512, 1, 1)
        # The single step of flow matching is its velocity at t = 1: draw that time too.
        r, t = sample_times(512, endpoint=0.0 if average else 0.1)
        error, _ = velocity_error(objective, net, actions, noise, r, t, torch.zeros(512, 1, 1))
        optimizer.zero_grad()
        reduce_error(error, None, "mse").mean().backward()
        optimizer.step()
        schedule.step()
    nothing = torch.zeros(4000, 1, 1)
    with torch.no_grad():
        samples = integrate(net, torch.randn(4000, 1, 1), nothing, steps=1, average=average)
    assert abs(samples.mean() - MEAN) < 0.1
    if average:
        assert abs(samples.std() - STD) < 0.1
    else:
        assert samples.std() < 0.2  # hence averages


# -- acting --------------------------------------------------------------------------------------------------


def test_true_averages_give_the_same_actions_for_any_number_of_steps():
    torch.manual_seed(0)
    noise = torch.randn(2000, 1, 1).double()
    results = [integrate(gaussian_average, noise, noise, steps) for steps in (1, 2, 4, 9)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
    torch.testing.assert_close(results[0], MEAN + STD * noise)


def test_flow_matching_uses_the_velocity_at_the_beginning_of_a_step():
    noise = torch.randn(4, 1, 1).double()
    result = integrate(gaussian_average, noise, noise, steps=1, average=False)
    torch.testing.assert_close(result, torch.full_like(noise, MEAN))  # one step predicts the mean
    many = integrate(gaussian_average, noise, noise, steps=2000, average=False)
    torch.testing.assert_close(many, MEAN + STD * noise, rtol=0, atol=1e-2)


# -- times and losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["uniform", "logit_normal"])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_shares_of_times_hold_in_every_batch(sampler, count):
    torch.manual_seed(0)
    same = ends = 0.0
    rounds = 2000 // count
    for _ in range(rounds):
        r, t = sample_times(count, sampler, same=0.5, endpoint=0.2)
        assert torch.all((r >= 0) & (r <= t) & (t <= 1))
        at_ends = int(((r == 0) & (t == 1)).sum())
        assert abs(int((r == t).sum()) - 0.5 * count) <= 1
        assert abs(at_ends - 0.2 * count) <= 1
        same, ends = same + float((r == t).float().mean()), ends + at_ends / count
    assert abs(same / rounds - 0.5) < 0.04
    assert abs(ends / rounds - 0.2) < 0.04


def test_logit_normal_times_hardly_ever_reach_those_of_one_step():
    torch.manual_seed(0)
    r, t = sample_times(4000, "logit_normal", same=0.0, endpoint=0.0)
    assert ((t > 0.95) & (r < 0.05)).sum() == 0
    r, t = sample_times(4000, "uniform", same=0.0, endpoint=0.0)
    assert ((t > 0.95) & (r < 0.05)).sum() > 0


@pytest.mark.parametrize("loss", ["pseudo_huber", "adaptive", "mse"])
def test_padding_does_not_count(loss):
    error = torch.randn(3, 6, 2)
    is_pad = torch.zeros(3, 6, dtype=torch.bool)
    is_pad[1, 4:] = True
    is_pad[2, :] = True
    other = torch.where(is_pad[..., None], 1e6, error)
    losses = reduce_error(error, is_pad, loss)
    assert torch.equal(losses, reduce_error(other, is_pad, loss))
    assert losses[2] == 0
    torch.testing.assert_close(losses[1:2], reduce_error(error[1:2, :4], None, loss))


def test_losses_equal_their_formulas():
    error = torch.tensor([[[0.3], [4.0]]])
    squares = error.square()
    assert torch.isclose(reduce_error(error, None, "mse")[0], squares.mean())
    huber = 4 * ((1 + squares / 4).sqrt() - 1)
    assert torch.isclose(reduce_error(error, None, "pseudo_huber", delta=2.0)[0], huber.mean())
    leaf = error.clone().requires_grad_()
    reduce_error(leaf, None, "adaptive").sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * error / (squares.sum() + 0.01))
