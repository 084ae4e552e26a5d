# SPDX-License-Identifier: Apache-2.0
"""Stages 2 and 3, `hlrp`: a SmolVLA that also learns latent actions, and a robot's policy from it.

After the repository high-level-robot-planner and LAPA (2410.11758). What is unusual about it:
- It is LeRobot's SmolVLA with a second output, the latent action. With `training_mode=actions` it is SmolVLA.
- Both stages are one policy type: stage 3 starts from a checkpoint of stage 2 (`init_from`), with pipelines
  of its own dataset.
- The network reads the current frame only. The later frame goes to the latent action model and nowhere else.
- One dataset contains demonstrations and episodes without labelled actions: `labelled_episodes` selects those
  whose actions are learned. Each loss is a mean over its labelled values.
- The latent loss is logged beside its floor, the loss that a flow reaches without observations.
"""

from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from lerobot_processor_so101 import checkpoint_folder, training_dataset
from lerobot_processor_so101.policy.smolvla_checkpoint import (
    SmolVLACheckpointMixin,
    load_weights,
    take_architecture,
    vlm_files,
)

from .configuration_hlrp import HLRPConfig
from .laq.loss_floor import unconditional_floor
from .latent_sources import Latents, LatentSource, check_same_architecture, check_same_laq, make_latent_source
from .mixing.mixture import MixtureNotes
from .modeling_hlrp_laq import check_dataset
from .network_hlrp import HLRPNetwork, PooledHeads, Prefix
from .weighted_mean import weighted_mean

_FLOOR_SAMPLES = 1024  # latent actions that the floor is computed from
_FLOOR_TIMES = 4096
# Dimensions of an observation without a time axis.
_DIMS = {OBS_STATE: 2, OBS_LANGUAGE_TOKENS: 2, OBS_LANGUAGE_ATTENTION_MASK: 2}


class HLRPPolicy(SmolVLACheckpointMixin, SmolVLAPolicy):
    """SmolVLA that also predicts latent actions."""

    config_class = HLRPConfig
    name = "hlrp"
    new_modules = ("model.latent_in_proj", "model.latent_out_proj", "heads")

    def __init__(self, config: HLRPConfig, **kwargs: Any) -> None:
        """Build the model for the features in `config`, with the weights of `config.init_from` if given.

        Masks and depth are removed from `config`.

        Raises:
            ValueError: if a feature is missing, or dataset, latent action model or checkpoint do not match.
        """
        # The constructor of SmolVLAPolicy would build SmolVLA's network.
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        config.input_features = config.used_features
        self.config: HLRPConfig = config
        self.init_rtc_processor()
        if config.learns_latents or config.head == "pooled_mlp":  # both need the gap in frames
            check_dataset(config, training_dataset(config))
        self._mixture = MixtureNotes.of(training_dataset(config))
        checkpoint, start = kwargs.get("checkpoint"), None
        # In a list, so that the latent action model is not a submodule: checkpoints do not contain it.
        self._sources: list[LatentSource] = []
        if checkpoint is None:
            self._find_source()
        if config.init_from and checkpoint is None:
            start = checkpoint_folder(config.init_from)
            saved = take_architecture(config, start, ("smolvla", "hlrp"))
            check_same_laq(config.laq_identity, saved.get("laq_identity"), config.init_from)
            check_same_architecture(config, saved)
            config.laq_identity = config.laq_identity or saved.get("laq_identity")
        with vlm_files(config, checkpoint or start):
            self.model = HLRPNetwork(config, self.latent_shape, rtc_processor=self.rtc_processor)
        self.heads: PooledHeads | None = None
        if config.head == "pooled_mlp":
            vlm = self.model.vlm_with_expert
            self.heads = PooledHeads(
                vlm.config.text_config.hidden_size,
                config.pooled_width,
                config.max_action_dim,
                self.latent_shape,
                (config.laq_identity or {}).get("codebook_size", 0),
            )
            vlm.lm_expert.requires_grad_(False)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # bfloat16 would lose small updates
        if start is not None:
            load_weights(self, start, config.init_from)
        self._floor_latents: list[Tensor] = []
        self._floor: float | None = None
        self.reset()

    @property
    def latent_shape(self) -> tuple[int, int] | None:
        """(S, D) of a latent action; None if none were ever learned."""
        identity = self.config.laq_identity
        return (identity["codes"], identity["dim"]) if identity else None

    def _find_source(self) -> None:
        """Make the source of latent actions, if any are learned; a loaded checkpoint does so in training."""
        config = self.config
        source = make_latent_source(config, training_dataset(config))
        if source is not None:
            check_same_laq(source.identity, config.laq_identity, "this checkpoint")
            config.laq_identity = source.identity
            self._sources = [source]

    def reset(self) -> None:
        """Clear the planned actions; called when an episode begins."""
        super().reset()
        self._target: Tensor | None = None

    def supports_rtc(self) -> bool:
        """Return whether real-time chunking works: for the expert, not for the ramps of `pooled_mlp`."""
        return self.config.head == "expert"

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """Return the trainable parameters."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    # -- training

    def forward(
        self, batch: dict[str, Any], noise: Any = None, time: Any = None, reduction: str = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the training loss.

        Args:
            batch: preprocessed, with `action` (B, T, A) and `action_is_pad` (B, T) if actions are learned,
                and for latent actions the later frame, or `index`.
            noise, time: for the actions, (B, T, max_action_dim) and (B,).
            reduction: "mean".

        Returns:
            The loss, and values to log: its parts, and the floor of the latent part.

        Raises:
            ValueError: if `reduction` is another or something is missing in the batch.
        """
        if reduction != "mean":
            raise ValueError(f"reduction: found {reduction!r}, expected 'mean'.")
        if self.config.learns_actions:
            self.config.check_chunk(batch[ACTION])
        # 1. latent actions from the current and the later frame, or a file: (B, S, D)
        latents = self._latents(batch)

        # 2. embed the current images, task and state: -> prefix (B, L, W)
        current = self.current_observation(batch)
        prefix = self._prefix(current)

        # 3. losses of actions and latent actions
        if self.heads is not None:
            parts = self._pooled_losses(prefix, current, latents)
        else:
            parts = self._expert_losses(prefix, current, latents, noise, time)

        # 4. weighted sum
        weights = {"action_loss": self.config.action_weight, "latent_loss": self.config.latent_weight}
        zero = torch.zeros((), device=prefix[0].device)
        loss = sum((weights[name] * part for name, part in parts.items()), zero)
        logs = {"loss": loss.item(), **{name: part.item() for name, part in parts.items()}}
        if self._floor is not None:
            logs["latent_floor"] = self._floor
        return loss, logs

    def current_observation(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch without later frames, (B, ...).

        In training every observation has a time axis, whose first entry is the current one.
        """
        kept = {}
        for key, value in batch.items():
            dims = 4 if key in self.config.image_features else _DIMS.get(key)
            has_time = isinstance(value, Tensor) and dims is not None and value.ndim == dims + 1
            kept[key] = value[:, 0] if has_time else value
        return kept

    def _prefix(self, batch: dict[str, Any]) -> Prefix:
        images, masks = self.prepare_images(batch)
        return self.model.embed_prefix(
            images,
            masks,
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK],
            state=self.prepare_state(batch),
        )

    def prepare_state(self, batch: dict[str, Any]) -> Tensor:
        """Return the state padded with zeros, (B, max_state_dim); zeros for video without one."""
        if OBS_STATE in batch:
            return super().prepare_state(batch)
        tokens = batch[OBS_LANGUAGE_TOKENS]
        return torch.zeros(len(tokens), self.config.max_state_dim, device=tokens.device)

    def _expert_losses(
        self, prefix: Prefix, batch: dict[str, Any], latents: Latents | None, noise: Any, time: Any
    ) -> dict[str, Tensor]:
        # 1. mix targets with noise: (B, T, max_action_dim), (B, S, D)
        actions = noisy = None
        if self.config.learns_actions:
            actions = self.model.noised(self.prepare_action(batch), noise, time)
        if latents is not None:
            noisy = self.model.noised(latents.vectors)
        # 2. predict both velocities in one pass
        action_error, latent_error = self.model.errors(prefix, actions, noisy)
        # 3. means over what is labelled
        losses = {}
        if action_error is not None:
            losses["action_loss"] = weighted_mean(action_error, self.action_weights(batch))
        if latent_error is not None and latents is not None:
            losses["latent_loss"] = weighted_mean(latent_error, latents.valid[:, None, None])
        return losses

    def _pooled_losses(
        self, prefix: Prefix, batch: dict[str, Any], latents: Latents | None
    ) -> dict[str, Tensor]:
        assert self.heads is not None
        # 1. mean of the trunk's output: (B, L, W) -> (B, W)
        pooled, losses = self.model.pooled(prefix), {}
        # 2. regress the action over the gap: (B, W) -> (B, max_action_dim)
        if self.config.learns_actions:
            target, weights = self.pooled_target(batch)
            losses["action_loss"] = weighted_mean((self.heads.action(pooled) - target).square(), weights)
        if latents is None:
            return losses
        # 3. classify the codes, (B, S, 1), or predict the velocity of their vectors, (B, S, D)
        if self.config.training_mode == "codes":
            logits = self.heads.code_logits(pooled)
            error = F.cross_entropy(logits.flatten(0, 1), latents.codes.flatten(), reduction="none")
            error = error.view_as(latents.codes)[..., None]
        else:
            error = self.heads.latent_errors(pooled, latents.vectors)
        losses["latent_loss"] = weighted_mean(error, latents.valid[:, None, None])
        return losses

    def action_weights(self, batch: dict[str, Any]) -> Tensor:
        """Return 1 for the numbers of a chunk that are learned, else 0, (B, T, max_action_dim).

        Those before the end of the episode, of labelled episodes, and in a mixture those that the source has.
        """
        actions, pad = batch[ACTION], batch.get("action_is_pad")
        dims = torch.full((len(actions),), actions.shape[-1], device=actions.device)
        labelled = torch.ones(len(actions), device=actions.device)
        mixture, chosen = self._mixture, self.config.labelled_episodes
        if mixture is not None or chosen is not None:
            if "episode_index" not in batch:
                raise ValueError(
                    "labelled_episodes: found no 'episode_index' in the batch, expected the one of LeRobot's "
                    "training."
                )
            episodes = batch["episode_index"].flatten().cpu().long()
            if mixture is not None:
                labels, sizes = mixture.per_episode
                dims, labelled = sizes[episodes].to(actions.device), labels[episodes].to(labelled)
            if chosen is not None:
                labelled = labelled * torch.isin(episodes, torch.tensor(sorted(chosen))).to(labelled)
        within = torch.arange(self.config.max_action_dim, device=actions.device) < dims[:, None]
        weights = within[:, None] * labelled[:, None, None].expand(-1, actions.shape[1], 1)
        return weights if pad is None else weights * ~pad.bool()[..., None]

    def pooled_target(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the last action or sum of actions in the gap, and its weights, (B, max_action_dim) each."""
        steps = min(self.config.gap, batch[ACTION].shape[1])
        actions = self.prepare_action(batch)[:, :steps]
        weights = self.action_weights(batch)[:, :steps]
        if self.config.action_kind == "delta":
            return (actions * weights).sum(1), weights[:, 0]
        last = weights[..., 0].sum(1).long().sub(1).clamp_min(0)  # index of the last one within the episode
        return actions[torch.arange(len(actions)), last], weights[:, 0]

    def _latents(self, batch: dict[str, Any]) -> Latents | None:
        if not self.config.learns_latents:
            return None
        if not self._sources:
            self._find_source()
        if not self._sources:
            raise ValueError(
                f"training_mode: found {self.config.training_mode!r}, which learns latent actions, and no "
                "source of them; expected `--policy.laq=<checkpoint of hlrp_laq>` or "
                "`--policy.latent_labels=<file>`."
            )
        latents = self._sources[0](batch)
        if self._floor is None and self.training and self.config.training_mode != "codes":
            self._measure_floor(latents)
        return latents

    def _measure_floor(self, latents: Latents) -> None:
        """Collect latent actions, and compute the floor of their loss once there are enough."""
        self._floor_latents.append(latents.vectors[latents.valid].cpu())
        if sum(map(len, self._floor_latents)) < _FLOOR_SAMPLES:
            return
        if self.heads is not None:
            times = torch.linspace(1 / _FLOOR_TIMES, 1, _FLOOR_TIMES)
        else:
            with torch.random.fork_rng(devices=[]):  # measuring must not change the training
                times = self.model.sample_time(_FLOOR_TIMES, "cpu")
        self._floor = unconditional_floor(torch.cat(self._floor_latents), times)
        self._floor_latents.clear()

    # -- inference

    @torch.no_grad()
    def predict_latents(self, batch: dict[str, Any], noise: Tensor | None = None) -> Tensor:
        """Predict latent actions, (B, S, D), of mean 0 and standard deviation 1.

        Raises:
            ValueError: if the policy has never learned any.
        """
        if self.latent_shape is None:
            raise ValueError("predict_latents: this hlrp has learned no latent actions.")
        self.eval()
        prefix = self._prefix(self.current_observation(batch))
        if noise is None:
            noise = torch.randn(len(prefix[0]), *self.latent_shape, device=prefix[0].device)
        if self.heads is not None:
            return self.heads.sample_latents(self.model.pooled(prefix), noise, self.config.latent_steps)
        return self.model.sample_latents(prefix, noise, self.config.latent_steps)

    def _get_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Predict actions, (B, T, A)."""
        current = self.current_observation(batch)
        if self.heads is None:
            return super()._get_action_chunk(current, noise, **kwargs)
        feature = self.config.action_feature
        assert feature is not None
        # 1. predict the action over the gap: (B, W) -> (B, 1, A)
        goal = self.heads.action(self.model.pooled(self._prefix(current)))[:, None, : feature.shape[0]]
        # 2. spread it over the gap: equal parts of the sum, or a ramp from the last executed action
        steps = min(self.config.gap, self.config.chunk_size)
        if self.config.action_kind == "delta":
            return (goal / steps).expand(-1, steps, -1)
        before = goal if self._target is None else self._target
        ramp = torch.linspace(1 / steps, 1, steps, device=goal.device)[:, None]
        chunk = torch.lerp(before, goal, ramp)
        self._target = chunk[:, [min(self.config.n_action_steps, steps) - 1]]  # the last one that is executed
        return chunk
