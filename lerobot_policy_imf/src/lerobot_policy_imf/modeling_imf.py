# SPDX-License-Identifier: Apache-2.0
"""The imf policy: several views through one frozen encoder, and a chunk of actions in one network evaluation.

After the repository RoboIMI: Improved Mean Flows (2512.02012) with Attention Residuals (2603.15031).
What is unusual about it:
- One network evaluation makes a chunk. The network learns average velocities (`objectives.py`), with a
  derivative that is taken in forward mode through the transformer (`head.py`).
- The encoder is frozen (`vision.py`). `so101-cache-vision` stores its features in a dataset once, and
  training needs no GPU. A batch with `observation.vision.<camera>` is read from there; other cameras are
  encoded from their images.
- Frames are kept between predictions, not their features: of eight control periods only two are ever encoded.
- A checkpoint contains the encoder, in bfloat16, and loads without a network connection.
"""

import json
import logging
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import NormalizationMode
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn

from lerobot_processor_so101 import (
    CheckpointMixin,
    FrameHistory,
    ModelIdentity,
    averaged,
    check_architecture,
    image_key,
    training_dataset,
)
from lerobot_processor_so101.policy.ema import AveragedModelMixin

from .configuration_imf import IMFConfig, vision_key
from .head import VelocityHead
from .objectives import integrate, reduce_error, sample_times, velocity_error
from .text_encoder import TextEncoder
from .vision import VisionEncoder

logger = logging.getLogger(__name__)

# Options that change the meaning of weights but not their shapes: with others a checkpoint would act wrongly.
_ARCHITECTURE = ("cameras", "n_obs_steps", "horizon", "vision_grid", "n_head", "time_max_frequency")
_QUERIES = 8  # learned queries per view
_STATE_LIMIT = 2.0  # of a normalised joint; one that never moved in training has no range to normalise by


class IMFPolicy(AveragedModelMixin, CheckpointMixin, PreTrainedPolicy):
    """Behaviour cloning by improved mean flow."""

    config_class = IMFConfig
    name = "imf"
    model: "IMFModel"

    def __init__(self, config: IMFConfig, **kwargs: Any) -> None:
        """Build the model for the features in `config`; those that it does not read are removed from it.

        Raises:
            ValueError: if a feature or the encoder is missing, the dataset's cached features come from
                another encoder, or the options would change the meaning of the checkpoint's weights.
        """
        super().__init__(config)
        config.validate_features()
        config.input_features = config.used_features
        self.config: IMFConfig = config
        checkpoint = kwargs.get("checkpoint")
        if checkpoint is not None:
            saved = json.loads((checkpoint / "config.json").read_text())
            check_architecture(config, saved, _ARCHITECTURE, str(checkpoint))
        self.vision = VisionEncoder(config.vision_model_name, config.vision_grid, checkpoint)
        # a configuration file for a new policy may contain the identity of another encoder
        if checkpoint is None or config.vision_identity is None:
            config.vision_identity = self.vision.identity(config.vision_model_name).to_dict()
        dataset = training_dataset(config, kwargs.get("dataset_meta"))
        _check_cache(config, dataset.features if dataset else {})
        self.text = TextEncoder(config.vision_model_name, checkpoint) if config.instruction else None
        self.model = IMFModel(config, self.vision, self.text)
        self.ema = averaged(self.model, config.ema_decay) if config.ema_decay > 0 else None
        # Stored in checkpoints, so that a resumed training knows its step.
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._history = FrameHistory(config.n_obs_steps, 1)
        self._compiled: dict[nn.Module, Callable] = {}
        self.reset()

    def _save_pretrained(self, save_directory: Path, **kwargs: Any) -> None:
        """Save weights and configuration, and the configurations of the encoders."""
        config, steps = self.config, int(self.updates)
        if config.objective != "flow_matching" and steps > 0 and not self._learns_averages:
            logger.warning(
                "flow_matching_steps: found %d, and %d steps are done: this checkpoint has not begun to "
                "learn averages, and its single step predicts the mean of the demonstrations. Expected: half "
                "of `--steps`.",
                config.flow_matching_steps,
                steps,
            )
        super()._save_pretrained(save_directory, **kwargs)
        self.vision.save_config(save_directory)
        if self.text is not None:
            self.text.save_config(save_directory)

    def reset(self) -> None:
        """Clear the planned actions and the frames; called when an episode begins."""
        self._action_queue: deque[Tensor] = deque()
        self._history.clear()

    def update(self) -> None:
        """Count the step and update the averaged weights; `lerobot-train` calls this after every step."""
        self.updates += 1
        super().update()

    # -- training

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Compute the training loss.

        Args:
            batch: preprocessed, with `action` (B, T, A) and optionally `action_is_pad` (B, T).
            reduction: "mean" for a scalar, "none" for one loss per sample, (B,).

        Returns:
            The loss, and values to log: the losses at r = t and at r < t, and the 95 % quantile of |du/dt|.

        Raises:
            ValueError: if `reduction` is unknown or an observation is missing.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction: found {reduction!r}, expected 'mean' or 'none'.")
        config, actions = self.config, batch[ACTION].float()
        config.check_chunk(actions)
        # 1. draw times r <= t: (B,) each
        shares = (config.same_time_share, config.endpoint_share)
        r, t = sample_times(len(actions), config.time_sampler, *shares, config.time_mean, config.time_std)
        r, t = r.to(actions), t.to(actions)
        model = self.model if self.training else self._inference_model()
        with torch.autocast(actions.device.type, enabled=False):  # the derivative needs float32
            # 2. encode views, state and instruction: -> condition tokens (B, N, cond_dim)
            condition = self._condition(model, batch)
            # 3. compare the network's velocity with that of a path from noise to the actions: (B, T, A)
            noise = torch.randn_like(actions)
            error, slope = velocity_error(
                config.objective, model.head, actions, noise, r, t, condition, derive=self._learns_averages
            )
        # 4. reduce to one loss per sample: (B, T, A) -> (B,)
        losses = reduce_error(error, batch.get("action_is_pad"), config.loss, config.huber_delta)
        loss = losses.mean() if reduction == "mean" else losses
        return loss, self._logs(losses.detach(), r == t, slope)

    @property
    def _learns_averages(self) -> bool:
        return int(self.updates) >= self.config.flow_matching_steps

    def _logs(self, losses: Tensor, same: Tensor, slope: Tensor) -> dict[str, float]:
        logs = {"loss": losses.mean().item()}
        if self.config.objective != "flow_matching" and 0 < int(same.sum()) < len(losses):
            logs |= {"loss_same_time": losses[same].mean().item(), "loss_apart": losses[~same].mean().item()}
            if len(slope):
                logs["du_dt_p95"] = slope.flatten(1).norm(dim=1).quantile(0.95).item()
        return logs

    # -- inference

    @torch.no_grad()
    def predict_action_chunk(
        self, batch: dict[str, Any], noise: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Predict the actions from the current one on, (B, horizon - n_obs_steps + 1, A), normalised.

        Each call counts as a control period; `noise`, (B, horizon, A), is what to start from.
        """
        self._history.push(batch)
        return self._predict(noise)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the next action, (B, A), normalised; predicts a chunk every `n_action_steps` calls."""
        self._history.push(batch)
        if not self._action_queue:
            self._action_queue.extend(self._predict(noise)[:, : self.config.n_action_steps].transpose(0, 1))
        return self._action_queue.popleft()

    def _predict(self, noise: Tensor | None) -> Tensor:
        self.eval()
        config, model = self.config, self._inference_model()
        # 1. encode the latest observations: -> condition tokens (B, N, cond_dim)
        condition = self._condition(model, self._history.stack())
        # 2. draw noise: (B, T, A)
        if noise is None:
            shape = (len(condition), config.horizon, model.action_dim)
            noise = config.noise_scale * torch.randn(shape, device=condition.device)
        # 3. integrate to actions, in one step by default: (B, T, A)
        average = config.objective != "flow_matching"
        actions = integrate(self._field(model.head), noise, condition, config.num_inference_steps, average)
        if config.normalization_mapping.get("ACTION") == NormalizationMode.MIN_MAX:
            actions = actions.clamp(-1, 1)  # no demonstrated action is outside
        # 4. drop the actions of older observations: -> (B, horizon - n_obs_steps + 1, A)
        return actions[:, config.n_obs_steps - 1 :]

    def _field(self, head: nn.Module) -> Callable:
        if not self.config.compile_model:
            return head
        if head not in self._compiled:
            self._compiled[head] = torch.compile(head.forward)
        return self._compiled[head]

    # -- observations

    def _condition(self, model: "IMFModel", batch: dict[str, Any]) -> Tensor:
        """Encode observations and instruction as condition tokens, (B, N, cond_dim)."""
        state = _with_time(batch[OBS_STATE], 2).clamp(-_STATE_LIMIT, _STATE_LIMIT)
        text = None
        if self.text is not None:
            tokens = batch[OBS_LANGUAGE_TOKENS]
            text = self.text(tokens[:, -1] if tokens.ndim == 3 else tokens)
        return model.condition(self.encode_views(batch), state, text)

    @torch.no_grad()
    def encode_views(self, batch: dict[str, Any]) -> Tensor:
        """Return the features of all views, (B, T, V, D), cached ones where the batch has them.

        Raises:
            ValueError: if a view has neither images nor cached features.
        """
        cameras = self.config.cameras
        live = [camera for camera in cameras if vision_key(camera) not in batch]
        missing = [camera for camera in live if image_key(camera) not in batch]
        if missing:
            raise ValueError(
                f"{image_key(missing[0])}: found no image, and no {vision_key(missing[0])!r} either; "
                f"expected one of them for each of {cameras}. Connect the camera, or train for others: "
                "`--policy.cameras`."
            )
        cached = set(cameras) - set(live)
        features = {camera: _with_time(batch[vision_key(camera)], 2) for camera in cached}
        if live:
            views = self.vision([_with_time(batch[image_key(camera)], 4) for camera in live])
            features |= dict(zip(live, views.unbind(-2), strict=True))
        return torch.stack([features[camera] for camera in cameras], -2)


class IMFModel(nn.Module):
    """The trained parts: a projector for each view, one for the observation, and the head."""

    def __init__(self, config: IMFConfig, vision: VisionEncoder, text: TextEncoder | None) -> None:
        super().__init__()
        state_dim = config.used_features[OBS_STATE].shape[0]
        self.action_dim = (config.output_features or {})[ACTION].shape[0]
        cells, views_dim = max(1, config.vision_grid**2), len(config.cameras) * config.per_view_output_dim
        self.views = nn.ModuleList(
            ViewProjector(vision.output_dim, cells, config.per_view_output_dim) for _ in config.cameras
        )
        self.observation = nn.Linear(views_dim + state_dim, config.cond_dim)
        self.sentence = ViewProjector(text.output_dim, 1, config.cond_dim) if text is not None else None
        self.head = VelocityHead(
            action_dim=self.action_dim,
            horizon=config.horizon,
            cond_dim=config.cond_dim,
            width=config.n_emb,
            layers=config.n_layer,
            heads=config.n_head,
            residual=config.residual,
            blocks=config.attnres_blocks,
            max_frequency=config.time_max_frequency,
        )

    def condition(self, features: Tensor, state: Tensor, text: Tensor | None) -> Tensor:
        """Make one token per observation and one for the instruction, (B, N, cond_dim).

        Args:
            features: (B, T, V, D) of the views.
            state, text: (B, T, S) and (B, D).
        """
        # 1. project each view on its own: (B, T, D) -> (B, T, per_view_output_dim)
        views = [project(view) for project, view in zip(self.views, features.unbind(-2), strict=True)]
        # 2. project views and state together: -> (B, T, cond_dim)
        tokens = self.observation(torch.cat([*views, state], -1))
        # 3. append the instruction: -> (B, T + 1, cond_dim)
        if self.sentence is None or text is None:
            return tokens
        return torch.cat([tokens, self.sentence(text)[:, None]], 1)


class ViewProjector(nn.Module):
    """Project the features of a view to a few numbers.

    Of several cells, each learned query reads one weighted mean of contents and positions, such as the cell
    with the cube and where it is. A linear layer on all cells would have to learn every cell separately.

    Args:
        dim: of the features, which consist of `cells` of equal width.
    """

    def __init__(self, dim: int, cells: int, output_dim: int) -> None:
        super().__init__()
        self.cells = cells
        self.norm = nn.LayerNorm(dim // cells)  # the encoder's output is not normalised
        self.out = nn.Linear(dim // cells, output_dim)
        if cells > 1:
            self.queries = nn.Linear(dim // cells, math.gcd(output_dim, _QUERIES))
            self.places = nn.Parameter(0.5 * torch.randn(cells, output_dim))  # position embeddings

    def forward(self, features: Tensor) -> Tensor:
        """Project features, (..., dim) -> (..., output_dim)."""
        # 1. normalise and project each cell: (..., dim) -> (..., cells, output_dim)
        cells = self.norm(features.unflatten(-1, (self.cells, -1)))
        values = self.out(cells)
        if self.cells == 1:
            return values.squeeze(-2)
        # 2. weights of the cells for each query: (..., cells, queries)
        weights = self.queries(cells).softmax(-2)
        # 3. each query averages its part of the values: (..., cells, queries, part) -> (..., output_dim)
        parts = (values + self.places).unflatten(-1, (weights.shape[-1], -1))
        return (weights[..., None] * parts).sum(-3).flatten(-2)


def _check_cache(config: IMFConfig, features: dict[str, dict]) -> None:
    """Refuse features, cached in a dataset with this metadata, of another encoder or grid."""
    own = ModelIdentity.from_dict(config.vision_identity or {})
    grid = [max(1, config.vision_grid)] * 2
    for key in map(vision_key, config.cameras):
        info = (features.get(key) or {}).get("info") or {}
        if "perception" in info:
            own.check(ModelIdentity.from_dict(info["perception"]), f"the policy, of {key} in the dataset,")
        if "perception" in info and info.get("size") != grid:
            raise ValueError(
                f"vision_grid: found {config.vision_grid}, expected that of {key} in the dataset, "
                f"{info.get('size')} cells ([1, 1] is 0, the pooled output). Set it, or cache again: "
                "`so101-cache-vision --vision_grid`."
            )


def _with_time(values: Tensor, dims: int) -> Tensor:
    """Add a time axis to values with `dims` dimensions: (B, …) -> (B, 1, …). Others have one already."""
    return values[:, None] if values.ndim == dims else values
