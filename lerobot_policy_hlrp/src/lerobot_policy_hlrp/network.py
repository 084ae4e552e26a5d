# SPDX-License-Identifier: Apache-2.0
"""SmolVLA's network with a second thing to predict: the latent action.

    picture, sentence, state ── SmolVLM2 ──┬─ latent tokens ── action expert ── velocity of the latent action
                                           └─ action tokens ── action expert ── velocity of the chunk

Both go through the trunk and the expert in one pass. Latent and action tokens are hidden from each other, so that the
actions are those of SmolVLA to the last bit, whether latent tokens stand beside them or not.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding, make_att_2d_masks
from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching
from torch import Tensor, nn

type Prefix = tuple[Tensor, Tensor, Tensor]  # embeddings, pads, and where blocks of attention begin


class Noisy(NamedTuple):
    """A target on its way to noise.

    Attributes:
        values: (B, T, D), time * noise + (1 - time) * target.
        velocity: (B, T, D), noise - target.
        time: (B,).
    """

    values: Tensor
    velocity: Tensor
    time: Tensor


class HLRPNetwork(VLAFlowMatching):
    """SmolVLA's network; with `expert`, latent tokens beside the action tokens.

    Args:
        config: the policy's.
        latent: (S, D) of a latent action; None if there are none.
        kwargs: for `VLAFlowMatching`.
    """

    def __init__(self, config: Any, latent: tuple[int, int] | None, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        width = self.vlm_with_expert.expert_hidden_size
        if config.head == "expert" and latent is not None:
            self.latent_in_proj = nn.Linear(latent[1], width)
            self.latent_out_proj = nn.Linear(width, latent[1])

    def noised(self, target: Tensor, noise: Tensor | None = None, time: Tensor | None = None) -> Noisy:
        """Mix a target with noise, at SmolVLA's times."""
        noise = self.sample_noise(target.shape, target.device) if noise is None else noise
        time = self.sample_time(len(target), target.device) if time is None else time
        along = time[:, None, None]
        return Noisy(along * noise + (1 - along) * target, noise - target, time)

    def errors(
        self, prefix: Prefix, actions: Noisy | None, latents: Noisy | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Squared errors of the predicted velocities, (B, T, D) each.

        Args:
            prefix: of `embed_prefix`.
            actions: noisy chunk, or None.
            latents: noisy latent action, or None.
        """
        suffixes = []
        if latents is not None:
            suffixes.append(self._tokens(self.latent_in_proj, latents))
        if actions is not None:
            suffixes.append(self._tokens(self.action_in_proj, actions))
        outputs = iter(self._through_expert(prefix, suffixes))
        latent_error = action_error = None
        if latents is not None:
            latent_error = F.mse_loss(self.latent_out_proj(next(outputs)), latents.velocity, reduction="none")
        if actions is not None:
            action_error = F.mse_loss(self.action_out_proj(next(outputs)), actions.velocity, reduction="none")
        return action_error, latent_error

    @torch.no_grad()
    def sample_latents(self, prefix: Prefix, noise: Tensor, steps: int) -> Tensor:
        """Latent actions, (B, S, D), from noise of that shape."""
        values = noise
        for step in range(steps):
            time = torch.full((len(noise),), 1 - step / steps, device=noise.device)
            tokens = self._tokens(self.latent_in_proj, Noisy(values, values, time))
            (out,) = self._through_expert(prefix, [tokens])
            values = values - self.latent_out_proj(out) / steps
        return values

    def pooled(self, prefix: Prefix) -> Tensor:
        """Mean of what the trunk makes of pictures and sentence, (B, W). The state is not in it."""
        embeddings, pads, begins = prefix
        (hidden, _), _ = self.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pads, begins),
            position_ids=pads.cumsum(1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=True,
        )
        counted = (pads & ~begins.bool())[..., None].to(hidden.dtype)
        return ((hidden * counted).sum(1) / counted.sum(1).clamp_min(1)).float()

    def _tokens(self, layer: nn.Module, noisy: Noisy) -> Tensor:
        """Tokens of noisy values and their time, by upstream's layers, (B, T, W)."""
        tokens = layer(noisy.values)
        time = create_sinusoidal_pos_embedding(
            noisy.time, tokens.shape[-1], self.config.min_period, self.config.max_period, device=tokens.device
        )
        mixed = torch.cat([tokens, time.to(tokens.dtype)[:, None].expand_as(tokens)], 2)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(mixed)))

    def _through_expert(self, prefix: Prefix, suffixes: list[Tensor]) -> list[Tensor]:
        """What the expert makes of each suffix, none of which sees another."""
        embeddings, pads, begins = prefix
        lengths = [suffix.shape[1] for suffix in suffixes]
        ones = torch.ones(len(embeddings), sum(lengths), device=embeddings.device)
        all_pads = torch.cat([pads, ones.bool()], 1)
        mask = make_att_2d_masks(all_pads, torch.cat([begins.to(ones), ones], 1))
        positions = [pads.cumsum(1) - 1]
        start = pads.shape[1]
        for length in lengths:
            end = start + length
            mask[:, start:end, pads.shape[1] : start] = False
            steps = torch.arange(length, device=pads.device)
            positions.append(pads.sum(1, keepdim=True) + steps)
            start = end
        (_, out), _ = self.vlm_with_expert.forward(
            attention_mask=mask,
            position_ids=torch.cat(positions, 1),
            past_key_values=None,
            inputs_embeds=[embeddings, torch.cat(suffixes, 1)],
            use_cache=False,
        )
        return list(out[:, -sum(lengths) :].float().split(lengths, 1))


class PooledHeads(nn.Module):
    """The seed's heads, on the mean of what the trunk makes of picture and sentence.

    Args:
        width: of that mean.
        hidden: of the latent head.
        action_dim: numbers of an action.
        latent: (S, D) of a latent action; None if there are none.
        codebook_size: K.
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
        """Squared errors of the velocity from noise to the latent action, (B, S, D), at uniform times."""
        target = target.flatten(1)
        noise, time = torch.randn_like(target), torch.rand(len(target), 1, device=target.device)
        velocity = self._velocity(pooled, (1 - time) * noise + time * target, time)
        return (velocity - (target - noise)).square().unflatten(1, self._shape)

    @torch.no_grad()
    def sample_latents(self, pooled: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Latent actions, (B, S, D), from noise of that shape."""
        values = noise.flatten(1)
        for step in range(steps):
            time = torch.full((len(values), 1), step / steps, device=values.device)
            values = values + self._velocity(pooled, values, time) / steps
        return values.unflatten(1, self._shape)

    def code_logits(self, pooled: Tensor) -> Tensor:
        """Scores of the codes, (B, S, K)."""
        return self.code(pooled).unflatten(1, (self._shape[0], -1))

    @property
    def _shape(self) -> tuple[int, int]:
        assert self.latent_shape is not None  # asked for only where there are latent actions
        return self.latent_shape

    def _velocity(self, pooled: Tensor, values: Tensor, time: Tensor) -> Tensor:
        return self.latent(torch.cat([pooled, values, time], 1))
