# SPDX-License-Identifier: Apache-2.0
"""Three training objectives for one network, as pure functions, and the integration of its flow at inference.

What is unusual about it: the network is a field of average velocities u(z, r, t). One step maps a point
z_t = (1 - t) x + t e, between an action x (t = 0) and noise e (t = 1), to z_r = z_t - (t - r) u(z_t, r, t).
At r = t it is the velocity of flow matching. Averages satisfy u = v - (t - r) du/dt, with du/dt along the
path, which is a Jacobian-vector product with the tangent (v, 0, 1).

    flow_matching  learns u at r = t only
    meanflow       tangent of the sample's path, v = e - x                         (2505.13447)
    imf            tangent that the network itself predicts, v = u(z, t, t)        (2512.02012)

Both papers hold du/dt constant in the gradient, so meanflow and imf differ in that tangent only.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

type Field = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # u(z, r, t, condition)

OBJECTIVES = ("imf", "meanflow", "flow_matching")
SAMPLERS = ("uniform", "logit_normal")
LOSSES = ("pseudo_huber", "adaptive", "mse")
_ADAPTIVE_EPS = 0.01


def sample_times(
    count: int,
    sampler: str = "uniform",
    same: float = 0.5,
    endpoint: float = 0.0,
    mean: float = -0.4,
    std: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw times r <= t for a batch of `count` samples.

    Args:
        sampler: "uniform" in [0, 1], or "logit_normal", the sigmoid of a normal variable.
        same: share of the batch with r = t, where the objective is flow matching.
        endpoint: share of the batch with r = 0 and t = 1, the times of one-step inference.
        mean, std: parameters of the normal variable.

    Returns:
        r and t, (count,) each. Shares are met to within one sample, and exactly on average.
    """
    draws = torch.rand(count, 2)
    if sampler == "logit_normal":
        draws = torch.sigmoid(mean + std * torch.randn(count, 2))
    r, t = draws.amin(1), draws.amax(1)
    # Evenly spaced ranks with a random offset meet the shares more exactly than independent draws.
    rank = (torch.randperm(count) + torch.rand(1)) / count
    ends = (rank >= same) & (rank < same + endpoint)
    r = torch.where(rank < same, t, r).masked_fill(ends, 0.0)
    return r, t.masked_fill(ends, 1.0)


def velocity_error(
    objective: str,
    field: Field,
    actions: Tensor,
    noise: Tensor,
    r: Tensor,
    t: Tensor,
    condition: Tensor,
    derive: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute the error of the network's velocity.

    Args:
        objective: one of `OBJECTIVES`; "flow_matching" sets r = t.
        field: the network.
        actions, noise: (B, T, A).
        r, t: (B,) times, r <= t.
        condition: (B, N, D), passed to the field; no tangent flows through it.
        derive: false leaves du/dt out, as if paths were straight. A training that begins so (trajectory flow
            matching, 2510.20771) has learned all r and t before its targets contain its own derivative.

    Returns:
        The error (B, T, A), and du/dt (M, T, A) of the M samples with r < t; M = 0 if it was left out.
    """
    # 1. point on the path and its velocity: z = (1 - t) x + t e, dz/dt = e - x, (B, T, A) each
    weight = t[:, None, None]
    z, target = (1 - weight) * actions + weight * noise, noise - actions

    # 2. without du/dt the velocity of the path is the target at once
    if objective == "flow_matching" or not derive:
        return field(z, t if objective == "flow_matching" else r, t, condition) - target, z[:0]

    # 3. samples with r = t, where du/dt has no weight: skip its cost
    same, apart = (r == t).nonzero()[:, 0], (r < t).nonzero()[:, 0]
    velocity, slope = z.new_zeros(z.shape), z[:0]
    if len(same):
        velocity = velocity.index_copy(0, same, field(z[same], t[same], t[same], condition[same]))

    # 4. samples with r < t: v = u + (t - r) du/dt, (M, T, A)
    if len(apart):
        moving, begin, end, known = z[apart], r[apart], t[apart], condition[apart]
        tangent = target[apart]
        if objective == "imf":
            with torch.no_grad():
                tangent = field(moving, end, end, known)
        average, slope = derivative(field, (moving, begin, end), tangent, known)
        velocity = velocity.index_copy(0, apart, average + (end - begin)[:, None, None] * slope)
    return velocity - target, slope


def derivative(
    field: Field, point: tuple[Tensor, Tensor, Tensor], tangent: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute u and du/dt along a tangent in z, (B, T, A) each; gradients flow through u only.

    Args:
        field, condition: the network, and its last argument (B, N, D).
        point: z (B, T, A), r and t (B,).
        tangent: dz/dt, (B, T, A).

    Raises:
        RuntimeError: if called under `torch.inference_mode`, which has no derivatives.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("derivative: found torch.inference_mode, where it would be 0; use torch.no_grad.")
    z, r, t = point
    tangents = (tangent, torch.zeros_like(r), torch.ones_like(t))
    # Fused attention has no forward derivative. Without gradients, as in validation, the head would write its
    # residuals into one buffer in place, which forward differentiation does not allow.
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        average, slope = torch.func.jvp(  # type: ignore[misc]  # its hint allows for a third
            lambda z, r, t: field(z, r, t, condition), (z, r, t), tangents
        )
    return average, slope.detach()


def reduce_error(error: Tensor, is_pad: Tensor | None, loss: str, delta: float = 1.0) -> Tensor:
    """Reduce an error to one loss per sample, (B,), in float32; padding does not count.

    Args:
        error: (B, T, A).
        is_pad: (B, T), true beyond the end of the episode.
        loss: "pseudo_huber", quadratic up to `delta` and linear beyond; "adaptive", the square divided by its
            own value (both papers), which weighs all samples alike; or "mse".
        delta: in units of the normalised action.
    """
    error = error.float()
    valid = torch.ones_like(error) if is_pad is None else (~is_pad)[..., None].expand_as(error).float()
    count = valid.sum((1, 2)).clamp(min=1)
    if loss == "pseudo_huber":
        huber = delta**2 * ((1 + (error / delta).square()).sqrt() - 1)
        return (huber * valid).sum((1, 2)) / count
    square = (error.square() * valid).sum((1, 2))
    if loss == "adaptive":
        return square / (square.detach() + _ADAPTIVE_EPS)
    return square / count


def integrate(field: Field, noise: Tensor, condition: Tensor, steps: int, average: bool = True) -> Tensor:
    """Integrate from noise to actions, (B, T, A), in equal steps from t = 1 to 0.

    Args:
        field, condition: the network, and its last argument (B, N, D).
        noise: (B, T, A).
        steps: network evaluations.
        average: use the average velocity over each step; otherwise the velocity at its beginning (Euler), as
            flow matching does.
    """
    z = noise
    times = torch.linspace(1, 0, steps + 1, device=noise.device, dtype=noise.dtype)
    for begin, end in pairwise(times):
        t = begin.expand(len(z))
        z = z - (begin - end) * field(z, end.expand(len(z)) if average else t, t, condition)
    return z
