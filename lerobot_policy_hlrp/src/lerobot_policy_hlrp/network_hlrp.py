# SPDX-License-Identifier: Apache-2.0
"""SmolVLA's network with a second output, the latent action.

    images, task, state ── SmolVLM2 ──┬─ latent tokens ── action expert ── velocity of the latent action
                                      └─ action tokens ── action expert ── velocity of the chunk

What is unusual about it: both outputs share one pass through trunk and expert. Latent and action tokens are
masked from each other, so actions are those of SmolVLA to the last bit, with or without latent tokens beside
them.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding, make_att_2d_masks
from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching
from torch import Tensor, nn

# Embeddings (B, L, W), pads (B, L), and where blocks of attention begin (B, L).
type Prefix = tuple[Tensor, Tensor, Tensor]


class Noisy(NamedTuple):
    """A target mixed with noise.

    Attributes:
        values: (B, T, D), time * noise + (1 - time) * target.
        velocity: (B, T, D), noise - target.
        time: (B,).
    """

    values: Tensor
    velocity: Tensor
    time: Tensor


class HLRPNetwork(VLAFlowMatching):
    """SmolVLA's network; with the head `expert`, tokens of a latent action (S, D) beside those of actions."""

    def __init__(self, config: Any, latent: tuple[int, int] | None, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        width = self.vlm_with_expert.expert_hidden_size
        if config.head == "expert" and latent is not None:
            self.latent_in_proj = nn.Linear(latent[1], width)
            self.latent_out_proj = nn.Linear(width, latent[1])

    def noised(self, target: Tensor, noise: Tensor | None = None, time: Tensor | None = None) -> Noisy:
        """Mix a target with noise, at times drawn as in SmolVLA."""
        noise = self.sample_noise(target.shape, target.device) if noise is None else noise
        time = self.sample_time(len(target), target.device) if time is None else time
        weight = time[:, None, None]
        return Noisy(weight * noise + (1 - weight) * target, noise - target, time)

    def errors(
        self, prefix: Prefix, actions: Noisy | None, latents: Noisy | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the squared errors of the velocities of actions and latent actions, (B, T, D) or None."""
        # 1. embed noisy values and their times as tokens: (B, S, D) -> (B, S, W), (B, T, A) -> (B, T, W)
        noisy = {kind: part for kind, part in (("latent", latents), ("action", actions)) if part is not None}
        suffixes = [self._tokens(f"{kind}_in_proj", part.values, part.time) for kind, part in noisy.items()]
        # 2. one pass through trunk and expert, without attention between the two
        outputs = self._through_expert(prefix, suffixes)
        # 3. predict velocities: (B, S, W) -> (B, S, D), (B, T, W) -> (B, T, A)
        errors = {}
        for (kind, part), output in zip(noisy.items(), outputs, strict=True):
            velocity = self.get_submodule(f"{kind}_out_proj")(output)
            errors[kind] = F.mse_loss(velocity, part.velocity, reduction="none")
        return errors.get("action"), errors.get("latent")

    @torch.no_grad()
    def sample_latents(self, prefix: Prefix, noise: Tensor, steps: int) -> Tensor:
        """Integrate from noise to latent actions, (B, S, D), in equal steps from time 1 to 0."""
        values = noise
        for step in range(steps):
            time = torch.full((len(noise),), 1 - step / steps, device=noise.device)
            tokens = self._tokens("latent_in_proj", values, time)
            (output,) = self._through_expert(prefix, [tokens])
            values = values - self.latent_out_proj(output) / steps
        return values

    def pooled(self, prefix: Prefix) -> Tensor:
        """Average the trunk's output for images and task, not for the state, (B, L, W) -> (B, W)."""
        embeddings, pads, begins = prefix
        (hidden, _), _ = self.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pads, begins),
            position_ids=pads.cumsum(1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=True,
        )
        pooled = (pads & ~begins.bool())[..., None].to(hidden.dtype)
        return ((hidden * pooled).sum(1) / pooled.sum(1).clamp_min(1)).float()

    def _tokens(self, layer: str, values: Tensor, time: Tensor) -> Tensor:
        """Embed noisy values and their time with SmolVLA's layers, (B, T, D) -> (B, T, W)."""
        tokens = self.get_submodule(layer)(values)
        times = create_sinusoidal_pos_embedding(
            time, tokens.shape[-1], self.config.min_period, self.config.max_period, device=tokens.device
        )
        mixed = torch.cat([tokens, times.to(tokens.dtype)[:, None].expand_as(tokens)], 2)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(mixed)))

    def _through_expert(self, prefix: Prefix, suffixes: list[Tensor]) -> list[Tensor]:
        """Return the expert's output for each suffix, (B, T, W) each."""
        embeddings, pads, begins = prefix
        lengths = [suffix.shape[1] for suffix in suffixes]
        # 1. mask and positions as in SmolVLA: every suffix token begins a block and attends to all before it
        ones = torch.ones(len(embeddings), sum(lengths), device=embeddings.device)
        all_pads = torch.cat([pads, ones.bool()], 1)
        mask = make_att_2d_masks(all_pads, torch.cat([begins.to(ones), ones], 1))  # (B, L + T, L + T)
        positions = [pads.cumsum(1) - 1]
        # 2. mask each suffix from those before it; each has the positions that it has alone
        start = pads.shape[1]
        for length in lengths:
            mask[:, start : start + length, pads.shape[1] : start] = False
            positions.append(pads.sum(1, keepdim=True) + torch.arange(length, device=pads.device))
            start += length
        # 3. one pass through trunk and expert: -> (B, sum of T, W)
        (_, output), _ = self.vlm_with_expert.forward(
            attention_mask=mask,
            position_ids=torch.cat(positions, 1),
            past_key_values=None,
            inputs_embeds=[embeddings, torch.cat(suffixes, 1)],
            use_cache=False,
        )
        return list(output[:, -sum(lengths) :].float().split(lengths, 1))


class PooledHeads(nn.Module):
    """Small heads on the mean of the trunk's output, after the repository high-level-robot-planner.

    Args:
        width, hidden: W, of that mean, and hidden width of the latent head.
        action_dim: size of an action.
        latent, codebook_size: (S, D) and K of latent actions; None and 0 if none are learned.
    """

    def __init__(
        self, width: int, hidden: int, action_dim: int, latent: tuple[int, int] | None, codebook_size: int
    ) -> None:
        super().__init__()
        self.action = nn.Linear(width, action_dim)
        self.latent_shape = latent
        if latent is not None:
            size = latent[0] * latent[1]
            self.latent = nn.Sequential(
                nn.Linear(width + size + 1, hidden), nn.SiLU(), nn.Linear(hidden, size)
            )
            self.code = nn.Linear(width, latent[0] * codebook_size)

    def latent_errors(self, pooled: Tensor, target: Tensor) -> Tensor:
        """Return squared errors of the velocity from noise to latent action, (B, S, D), at uniform times."""
        shape, target = target.shape, target.flatten(1)
        # 1. mix with noise; here time 1 is the target: (B, S * D)
        noise, time = torch.randn_like(target), torch.rand(len(target), 1, device=target.device)
        # 2. predict the velocity: (B, W + S * D + 1) -> (B, S * D)
        velocity = self._velocity(pooled, (1 - time) * noise + time * target, time)
        return (velocity - (target - noise)).square().view(shape)

    @torch.no_grad()
    def sample_latents(self, pooled: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Integrate from noise to latent actions, (B, S, D), in equal steps from time 0 to 1."""
        values = noise.flatten(1)
        for step in range(steps):
            time = torch.full((len(values), 1), step / steps, device=values.device)
            values = values + self._velocity(pooled, values, time) / steps
        return values.view(noise.shape)

    def code_logits(self, pooled: Tensor) -> Tensor:
        """Return the scores of the codes, (B, S, K)."""
        assert self.latent_shape is not None  # called only if latent actions are learned
        return self.code(pooled).unflatten(1, (self.latent_shape[0], -1))

    def _velocity(self, pooled: Tensor, values: Tensor, time: Tensor) -> Tensor:
        return self.latent(torch.cat([pooled, values, time], 1))
