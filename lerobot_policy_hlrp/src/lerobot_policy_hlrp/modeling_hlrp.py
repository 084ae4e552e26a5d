# SPDX-License-Identifier: Apache-2.0
"""Stages 2 and 3, `hlrp`: a trunk that has learned from video what comes next, and a robot's policy on it (seed 004).

What is unusual about it:
- It is LeRobot's SmolVLA with one more thing to predict, the latent action. With `training_mode=actions` it is SmolVLA.
- Two stages are one policy type: a checkpoint of stage 2 is what stage 3 starts from (`init_from`), with pipelines of
  its own dataset.
- Only the present is looked at. The later frame goes to the latent action model and nowhere else.
- Video without actions and demonstrations stand in one dataset: `labelled_episodes` says whose actions count. Each loss
  is a mean over what counts of it.
- The latent loss is logged beside its floor: what is left of it without looking. Learning means below that.
"""

from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import (
    ACTION,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
    OBS_STR,
)
from torch import Tensor

from lerobot_processor_so101 import checkpoint_folder, training_dataset
from lerobot_processor_so101.smolvla_checkpoint import (
    SmolVLACheckpointMixin,
    load_weights,
    take_architecture,
    vlm_files,
)

from .configuration_hlrp import HLRPConfig
from .counted import counted_mean
from .floor import unconditional_floor
from .latent_targets import Latents, LatentSource, check_same_form, check_same_laq, make_latent_source
from .mixture import MixtureNotes
from .modeling_hlrp_laq import check_dataset
from .network import HLRPNetwork, PooledHeads, Prefix

_NEW = ("model.latent_in_proj.", "model.latent_out_proj.", "heads.")  # what SmolVLA has not
_FLOOR_FROM = 1024  # latent actions that the floor is computed from
_FLOOR_TIMES = 4096


class HLRPPolicy(SmolVLACheckpointMixin, SmolVLAPolicy):
    """SmolVLA that also predicts latent actions."""

    config_class = HLRPConfig
    name = "hlrp"

    def __init__(self, config: HLRPConfig, **kwargs: Any) -> None:
        """Build the model for the features in `config`, and start from `config.init_from` if that is given.

        Args:
            config: configuration with input and output features. Masks and depth are removed from it.
            kwargs: what LeRobot passes to every policy, and what `from_pretrained` knows of a checkpoint.

        Raises:
            ValueError: a feature, a dataset, a latent action model or a checkpoint that does not fit.
        """
        # Not SmolVLAPolicy's: it names the class of its network.
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        config.input_features = config.used_features
        self.config: HLRPConfig = config
        self.init_rtc_processor()
        if config.learns_latents or config.head == "pooled_mlp":  # both count the gap in frames
            check_dataset(config, training_dataset(config))
        self._mixture = MixtureNotes.of(training_dataset(config))
        checkpoint, start = kwargs.get("checkpoint"), None
        # In a list it is no module of this one: no checkpoint has the latent action model, and none needs it to act.
        self._sources: list[LatentSource] = []
        if checkpoint is None:
            self._find_source()
        if config.init_from and checkpoint is None:
            start = checkpoint_folder(config.init_from)
            saved = take_architecture(config, start, ("smolvla", "hlrp"))
            check_same_laq(config.laq_identity, saved.get("laq_identity"), config.init_from)
            check_same_form(config, saved)
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
                parameter.data = parameter.data.float()  # what is trained in bfloat16 swallows small steps
        if start is not None:
            load_weights(self, start, config.init_from, _NEW)
        self._seen_latents: list[Tensor] = []
        self._floor: float | None = None
        self.reset()

    @property
    def latent_shape(self) -> tuple[int, int] | None:
        """(S, D) of a latent action; None if none were ever learned."""
        identity = self.config.laq_identity
        return (identity["codes"], identity["dim"]) if identity else None

    def _find_source(self) -> None:
        """Find what says the latent actions, if any are learned. A checkpoint does so when it is trained on."""
        config = self.config
        source = make_latent_source(config, training_dataset(config))
        if source is not None:
            check_same_laq(source.identity, config.laq_identity, "this checkpoint")
            config.laq_identity = source.identity
            self._sources = [source]

    def reset(self) -> None:
        """Forget the planned actions; called when an episode begins."""
        super().reset()
        self._target: Tensor | None = None

    def supports_rtc(self) -> bool:
        """Chunks of the expert can be joined in real time; those of `pooled_mlp` are ramps."""
        return self.config.head == "expert"

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """Return the trainable parameters."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(
        self, batch: dict[str, Any], noise: Any = None, time: Any = None, reduction: str = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the training loss.

        Args:
            batch: what the preprocessor gives, with `action` (B, T, A) and `action_is_pad` (B, T) if actions are learned,
                and for latent actions the later frame, or `index`.
            noise, time: for the actions; of the shape (B, T, max_action_dim) and (B,).
            reduction: "mean".

        Returns:
            The loss, and what to log: its parts, and the floor of the latent part.

        Raises:
            ValueError: another `reduction`, or something is missing in the batch.
        """
        if reduction != "mean":
            raise ValueError(f"reduction: found {reduction!r}, expected 'mean'.")
        latents = self._latents(batch)  # sees the later frame, and is all that does
        present = self.present(batch)
        prefix = self._prefix(present)
        if self.heads is not None:
            parts = self._pooled_losses(prefix, present, latents)
        else:
            parts = self._expert_losses(prefix, present, latents, noise, time)
        weights = {"action_loss": self.config.action_weight, "latent_loss": self.config.latent_weight}
        loss = sum(
            (weights[name] * part for name, part in parts.items()), torch.zeros(()).to(prefix[0].device)
        )
        logs = {"loss": loss.item(), **{name: part.item() for name, part in parts.items()}}
        if self._floor is not None:
            logs["latent_floor"] = self._floor
        return loss, logs

    def present(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without what comes later: of each observation the first, (B, ...).

        In training every observation has an axis of time, whose first entry is the present.
        """
        dims = {OBS_STATE: 2, OBS_LANGUAGE_TOKENS: 2, OBS_LANGUAGE_ATTENTION_MASK: 2}
        kept = {}
        for key, value in batch.items():
            if key.startswith(f"{OBS_STR}.") and key.endswith("_is_pad"):
                continue
            usual = 4 if key in self.config.image_features else dims.get(key)
            late = isinstance(value, Tensor) and usual is not None and value.ndim == usual + 1
            kept[key] = value[:, 0] if late else value
        return kept

    def _prefix(self, present: dict[str, Any]) -> Prefix:
        images, masks = self.prepare_images(present)
        return self.model.embed_prefix(
            images,
            masks,
            present[OBS_LANGUAGE_TOKENS],
            present[OBS_LANGUAGE_ATTENTION_MASK],
            state=self.prepare_state(present),
        )

    def prepare_state(self, batch: dict[str, Any]) -> Tensor:
        """The state, filled up with zeros; zeros for video without one."""
        if OBS_STATE in batch:
            return super().prepare_state(batch)
        tokens = batch[OBS_LANGUAGE_TOKENS]
        return torch.zeros(len(tokens), self.config.max_state_dim, device=tokens.device)

    def _expert_losses(
        self, prefix: Prefix, batch: dict[str, Any], latents: Latents | None, noise: Any, time: Any
    ) -> dict[str, Tensor]:
        actions = noisy = None
        if self.config.learns_actions:
            actions = self.model.noised(self.prepare_action(batch), noise, time)
        if latents is not None:
            noisy = self.model.noised(latents.vectors)
        action_error, latent_error = self.model.errors(prefix, actions, noisy)
        losses = {}
        if action_error is not None:
            losses["action_loss"] = counted_mean(action_error, self.action_counts(batch))
        if latent_error is not None and latents is not None:
            losses["latent_loss"] = counted_mean(latent_error, latents.valid[:, None, None])
        return losses

    def _pooled_losses(
        self, prefix: Prefix, batch: dict[str, Any], latents: Latents | None
    ) -> dict[str, Tensor]:
        assert self.heads is not None
        pooled, losses = self.model.pooled(prefix), {}
        if self.config.learns_actions:
            target, counts = self.cumulative(batch)
            losses["action_loss"] = counted_mean((self.heads.action(pooled) - target).square(), counts)
        if latents is None:
            return losses
        if self.config.training_mode == "codes":
            logits = self.heads.code_logits(pooled)
            error = F.cross_entropy(logits.flatten(0, 1), latents.codes.flatten(), reduction="none")
            error = error.view_as(latents.codes)[..., None]
        else:
            error = self.heads.latent_errors(pooled, latents.vectors)
        losses["latent_loss"] = counted_mean(error, latents.valid[:, None, None])
        return losses

    def action_counts(self, batch: dict[str, Any]) -> Tensor:
        """Which numbers of a chunk are to be learned, (B, T, max_action_dim).

        Those before the end of the episode, of episodes that are labelled, and of a mixture those that its source has.
        """
        actions, pad = batch[ACTION], batch.get("action_is_pad")
        dims = torch.full((len(actions),), actions.shape[-1], device=actions.device)
        mixture, chosen = self._mixture, self.config.labelled_episodes
        labelled = torch.ones(len(actions), device=actions.device)
        if mixture is not None or chosen is not None:
            episodes = self._episodes(batch)
            if mixture is not None:
                labels, numbers = mixture.per_episode
                dims, labelled = numbers[episodes].to(actions.device), labels[episodes].to(labelled)
            if chosen is not None:
                labelled = labelled * torch.isin(episodes, torch.tensor(sorted(chosen))).to(labelled)
        within = torch.arange(self.config.max_action_dim, device=actions.device) < dims[:, None]
        counts = within[:, None] * labelled[:, None, None].expand(-1, actions.shape[1], 1)
        return counts if pad is None else counts * ~pad.bool()[..., None]

    def _episodes(self, batch: dict[str, Any]) -> Tensor:
        if "episode_index" not in batch:
            raise ValueError(
                "labelled_episodes: found no 'episode_index' in the batch, by which they are told; LeRobot's training "
                "has it."
            )
        return batch["episode_index"].flatten().cpu().long()

    def cumulative(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What actions come to over the gap, and what of it counts, (B, max_action_dim) each."""
        steps = min(self.config.gap, batch[ACTION].shape[1])
        actions = self.prepare_action(batch)[:, :steps]
        counts = self.action_counts(batch)[:, :steps]
        if self.config.action_kind == "delta":
            return (actions * counts).sum(1), counts[:, 0]
        last = counts[..., 0].sum(1).long().sub(1).clamp_min(0)  # the last within the episode
        return actions[torch.arange(len(actions)), last], counts[:, 0]

    def _latents(self, batch: dict[str, Any]) -> Latents | None:
        if not self.config.learns_latents:
            return None
        if not self._sources:
            self._find_source()
        if not self._sources:
            raise ValueError(
                f"training_mode: found {self.config.training_mode!r}, which learns latent actions, and nothing that says "
                "them; expected `--policy.laq=<checkpoint of hlrp_laq>` or `--policy.latent_labels=<file>`."
            )
        latents = self._sources[0](batch)
        if self._floor is None and self.training and self.config.training_mode != "codes":
            self._measure_floor(latents)
        return latents

    def _measure_floor(self, latents: Latents) -> None:
        self._seen_latents.append(latents.vectors[latents.valid].cpu())
        if sum(map(len, self._seen_latents)) < _FLOOR_FROM:
            return
        if self.heads is not None:
            times = torch.linspace(1 / _FLOOR_TIMES, 1, _FLOOR_TIMES)
        else:
            with torch.random.fork_rng(devices=[]):  # measuring does not change the training
                times = self.model.sample_time(_FLOOR_TIMES, "cpu")
        self._floor = unconditional_floor(torch.cat(self._seen_latents), times)
        self._seen_latents.clear()

    @torch.no_grad()
    def predict_latents(self, batch: dict[str, Any], noise: Tensor | None = None) -> Tensor:
        """Latent actions that the policy expects, (B, S, D), of mean 0 and standard deviation 1.

        Raises:
            ValueError: it has never learned any.
        """
        if self.latent_shape is None:
            raise ValueError("predict_latents: this hlrp has learned no latent actions.")
        self.eval()
        prefix = self._prefix(self.present(batch))
        if noise is None:
            noise = torch.randn(len(prefix[0]), *self.latent_shape, device=prefix[0].device)
        if self.heads is not None:
            return self.heads.sample_latents(self.model.pooled(prefix), noise, self.config.latent_steps)
        return self.model.sample_latents(prefix, noise, self.config.latent_steps)

    def _get_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Predict actions, (B, T, A)."""
        present = self.present(batch)
        if self.heads is None:
            return super()._get_action_chunk(present, noise, **kwargs)
        feature = self.config.action_feature
        assert feature is not None
        goal = self.heads.action(self.model.pooled(self._prefix(present)))[:, None, : feature.shape[0]]
        steps = min(self.config.gap, self.config.chunk_size)
        if self.config.action_kind == "delta":
            return (goal / steps).expand(-1, steps, -1)
        before = goal if self._target is None else self._target
        along = torch.linspace(1 / steps, 1, steps, device=goal.device)[:, None]
        chunk = torch.lerp(before, goal, along)
        self._target = chunk[:, [min(self.config.n_action_steps, steps) - 1]]  # the last that is carried out
        return chunk
