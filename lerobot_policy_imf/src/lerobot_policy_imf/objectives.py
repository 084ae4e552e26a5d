# SPDX-License-Identifier: Apache-2.0
"""Three objectives for one network, as pure functions, and how an action comes out of it.

The network is a field of average velocities u(z, r, t): what takes a point z_t = (1 - t) x + t e, between an action
x (t = 0) and noise e (t = 1), to z_r in one step, z_r = z_t - (t - r) u(z_t, r, t). At r = t it is the velocity of
flow matching. Averages obey u = v - (t - r) du/dt, where du/dt is along the path, so it is a Jacobian-vector product
with the tangent (v, 0, 1).

    flow_matching  learns u at r = t only
    meanflow       along the path of the sample, v = e - x                                       (2505.13447)
    imf            along the path that the network itself predicts, v = u(z, t, t)               (2512.02012)

With du/dt held constant, as both papers do, meanflow and imf differ in that tangent and in nothing else.
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
    """Draw times r <= t for a batch.

    Args:
        count: of samples.
        sampler: "uniform" in [0, 1], or "logit_normal", the sigmoid of a normal variable.
        same: share of the batch with r = t, where the objective is flow matching.
        endpoint: share with r = 0 and t = 1, which is what one-step inference asks for.
        mean, std: of that normal variable.

    Returns:
        r and t, (count,) each. The shares hold to within one sample, and on average exactly, also in small batches.
    """
    draws = torch.rand(count, 2)
    if sampler == "logit_normal":
        draws = torch.sigmoid(mean + std * torch.randn(count, 2))
    r, t = draws.amin(1), draws.amax(1)
    place = (torch.randperm(count) + torch.rand(1)) / count
    ends = (place >= same) & (place < same + endpoint)
    r = torch.where(place < same, t, r).masked_fill(ends, 0.0)
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
    """What the network's velocity is wrong by.

    Args:
        objective: one of `OBJECTIVES`; "flow_matching" takes r = t, whatever is given.
        field: the network.
        actions, noise: (B, T, A).
        r, t: (B,) times, r <= t.
        condition: (B, N, D), handed to the field; no tangent flows through it.
        derive: false to take averages for velocities and leave du/dt out, as if paths were straight. A training that
            begins so (trajectory flow matching, 2510.20771) knows every r and t before it learns from its own derivative.

    Returns:
        The error (B, T, A), and du/dt (M, T, A) of the M samples with r < t; none if it was left out.
    """
    along = t[:, None, None]
    z, target = (1 - along) * actions + along * noise, noise - actions
    if objective == "flow_matching":
        return field(z, t, t, condition) - target, z[:0]
    if not derive:
        return field(z, r, t, condition) - target, z[:0]
    # Where r = t the derivative has no say, and half of the batch goes without its cost.
    at, between = (r == t).nonzero()[:, 0], (r < t).nonzero()[:, 0]
    velocity, slope = z.new_zeros(z.shape), z[:0]
    if len(at):
        velocity = velocity.index_copy(0, at, field(z[at], t[at], t[at], condition[at]))
    if len(between):
        moving = (z[between], r[between], t[between])
        seen = condition[between]
        tangent = target[between] if objective == "meanflow" else _predicted(field, *moving, seen)
        average, slope = derivative(field, moving, tangent, seen)
        span = (moving[2] - moving[1])[:, None, None]
        velocity = velocity.index_copy(0, between, average + span * slope)
    return velocity - target, slope


@torch.no_grad()
def _predicted(field: Field, z: Tensor, r: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    return field(z, t, t, condition)


def derivative(
    field: Field, point: tuple[Tensor, Tensor, Tensor], tangent: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """u and du/dt along a tangent in z, (B, T, A) each; gradients flow through u only.

    Args:
        field: the network.
        point: z (B, T, A), r and t (B,).
        tangent: dz/dt, (B, T, A).
        condition: (B, N, D).

    Raises:
        RuntimeError: under `torch.inference_mode`, which knows no derivatives.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("derivative: found torch.inference_mode, where it would be 0; use torch.no_grad.")
    z, r, t = point
    along = (tangent, torch.zeros_like(r), torch.ones_like(t))
    # Fused attention has no forward derivative; and a head that may write in place must not, even in validation.
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        average, slope = torch.func.jvp(  # type: ignore[misc]  # its hint allows for a third
            lambda z, r, t: field(z, r, t, condition), (z, r, t), along
        )
    return average, slope.detach()


def reduce_error(error: Tensor, is_pad: Tensor | None, loss: str, delta: float = 1.0) -> Tensor:
    """One number per sample, (B,), in float32; padding leaves no trace.

    Args:
        error: (B, T, A).
        is_pad: (B, T), true where the episode is over.
        loss: "pseudo_huber", quadratic up to `delta` and linear beyond; "adaptive", the square divided by its own size
            (both papers), so that every sample counts alike; or "mse".
        delta: in standard deviations or ranges of the action, as it is normalised.
    """
    error = error.float()
    valid = torch.ones_like(error) if is_pad is None else (~is_pad)[..., None].expand_as(error).float()
    count = valid.sum((1, 2)).clamp(min=1)
    if loss == "pseudo_huber":
        each = delta**2 * ((1 + (error / delta).square()).sqrt() - 1)
        return (each * valid).sum((1, 2)) / count
    square = (error.square() * valid).sum((1, 2))
    if loss == "adaptive":
        return square / (square.detach() + _ADAPTIVE_EPS)
    return square / count


def integrate(field: Field, noise: Tensor, condition: Tensor, steps: int, average: bool = True) -> Tensor:
    """Actions (B, T, A) from noise, in equal steps from t = 1 to 0.

    Args:
        field: the network.
        noise: (B, T, A).
        condition: (B, N, D).
        steps: evaluations of the network.
        average: go by the average velocity over each step; otherwise by that at its beginning, as flow matching does.
    """
    z = noise
    times = torch.linspace(1, 0, steps + 1, device=noise.device, dtype=noise.dtype)
    for begin, end in pairwise(times):
        t = begin.expand(len(z))
        z = z - (begin - end) * field(z, end.expand(len(z)) if average else t, t, condition)
    return z
