# SPDX-License-Identifier: Apache-2.0
"""The imf policy: several views, seen by one frozen encoder, and a chunk of actions in one step (seed 003).

What is unusual about it:
- One evaluation of the network makes a chunk: it learns average velocities (`objectives.py`), by a derivative that is
  taken forward through the transformer (`head.py`).
- The encoder is frozen (`vision.py`), so what it sees can be written down once, with `so101-cache-vision`, and training
  needs no GPU. Where a batch has `observation.vision.<camera>`, that is read; where it has pictures, they are seen.
- Pictures are remembered between looks, not what was seen in them: of eight control periods only two are ever seen.
- A checkpoint holds the encoder too, in bfloat16, and is loaded without a network.
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
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lerobot_processor_so101 import (
    CheckpointMixin,
    FrameHistory,
    ModelIdentity,
    averaged,
    check_form,
    image_key,
    training_dataset,
)

from .configuration_imf import IMFConfig, vision_key
from .head import VelocityHead
from .instruction import TOKENS, TextEncoder
from .objectives import integrate, reduce_error, sample_times, velocity_error
from .vision import VisionEncoder

logger = logging.getLogger(__name__)

# Options that change no shape, or only that of what goes in: with others, weights load and mean something else.
_FORM = ("cameras", "n_obs_steps", "horizon", "vision_grid", "n_head", "time_max_frequency")
_QUERIES = 8  # of cells, in a view
_STATE_LIMIT = 2.0  # of a joint in the range it had in training; one that never moved has no range


class IMFPolicy(CheckpointMixin, PreTrainedPolicy):
    """Behaviour cloning by improved mean flow."""

    config_class = IMFConfig
    name = "imf"

    def __init__(self, config: IMFConfig, **kwargs: Any) -> None:
        """Build the model for the features in `config`.

        Args:
            config: configuration with input and output features. Input features that the policy does not read are
                removed from it.
            kwargs: what LeRobot passes to every policy, and what `from_pretrained` knows of a checkpoint.

        Raises:
            ValueError: a feature is missing, the encoder cannot be had, the dataset's features are another's, or the
                weights of the checkpoint mean something else than is told.
        """
        super().__init__(config)
        config.validate_features()
        config.input_features = config.used_features
        self.config: IMFConfig = config
        checkpoint = kwargs.get("checkpoint")
        if checkpoint is not None:
            saved = json.loads((checkpoint / "config.json").read_text())
            check_form(config, saved, _FORM, str(checkpoint))
        self.vision = VisionEncoder.make(config.vision_model_name, config.vision_grid, checkpoint)
        if checkpoint is None or config.vision_identity is None:  # a file of options may hold another's
            config.vision_identity = self.vision.identity(config.vision_model_name).to_dict()
        dataset = training_dataset(config, kwargs.get("dataset_meta"))
        check_cache(config, dataset.features if dataset else {})
        self.text = TextEncoder.make(config.vision_model_name, checkpoint) if config.instruction else None
        self.model = IMFModel(config, self.vision, self.text)
        self.ema: AveragedModel | None = None
        if config.ema_decay > 0:
            self.ema = averaged(self.model, config.ema_decay)
        # Kept in checkpoints, so that a training that goes on knows where it was.
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._history = FrameHistory(config.n_obs_steps, 1)
        self._compiled: dict[nn.Module, Callable] = {}
        self.reset()

    def _save_pretrained(self, save_directory: Path, **kwargs: Any) -> None:
        """Save weights and configuration, and what the encoders are."""
        config, done = self.config, int(self.updates)
        if config.objective != "flow_matching" and done > 0 and not self._learns_averages:
            logger.warning(
                "flow_matching_steps: found %d, and %d steps are done: this checkpoint has not begun to learn averages, and its "
                "single step goes to the mean of what was shown. Expected: half of `--steps`.",
                config.flow_matching_steps,
                done,
            )
        super()._save_pretrained(save_directory, **kwargs)
        self.vision.save_config(save_directory)
        if self.text is not None:
            self.text.save_config(save_directory)

    def get_optim_params(self) -> list[nn.Parameter]:
        """Return the trainable parameters; encoders and the averaged copy have none."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Forget the planned actions and the frames; called when an episode begins."""
        self._action_queue: deque[Tensor] = deque()
        self._history.clear()

    def update(self) -> None:
        """Take the trained weights into the average; `lerobot-train` calls this after every optimizer step."""
        self.updates += 1
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Compute the training loss.

        Args:
            batch: what the preprocessor gives, with `action` (B, T, A) and optionally `action_is_pad` (B, T).
            reduction: "mean" for a scalar, "none" for one loss per sample, (B,).

        Returns:
            The loss, and what to log: its parts at r = t and at r < t, and how large du/dt gets.

        Raises:
            ValueError: another `reduction`, or an observation is missing.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction: found {reduction!r}, expected 'mean' or 'none'.")
        config, actions = self.config, batch[ACTION].float()
        r, t = sample_times(
            len(actions),
            config.time_sampler,
            config.same_time_share,
            config.endpoint_share,
            config.time_mean,
            config.time_std,
        )
        r, t = r.to(actions), t.to(actions)
        model = self.model if self.training else self._acting_model()
        with torch.autocast(actions.device.type, enabled=False):  # the derivative needs float32
            error, slope = velocity_error(
                config.objective,
                model.head,
                actions,
                torch.randn_like(actions),
                r,
                t,
                self._condition(model, batch),
                derive=self._learns_averages,
            )
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

    @torch.no_grad()
    def predict_action_chunk(
        self, batch: dict[str, Any], noise: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Predict the actions from the present one on, (B, horizon - n_obs_steps + 1, A), as the postprocessor takes them.

        Args:
            batch: what the preprocessor gives; each call counts as a control period.
            noise: (B, horizon, A) to begin from.
            kwargs: not used.
        """
        self._history.push(batch)
        return self._predict(noise)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the next action, (B, A); looks every `n_action_steps` calls."""
        self._history.push(batch)
        if not self._action_queue:
            self._action_queue.extend(self._predict(noise)[:, : self.config.n_action_steps].transpose(0, 1))
        return self._action_queue.popleft()

    def _predict(self, noise: Tensor | None) -> Tensor:
        self.eval()
        config, model = self.config, self._acting_model()
        condition = self._condition(model, self._history.stack())
        if noise is None:
            shape = (len(condition), config.horizon, model.action_dim)
            noise = config.noise_scale * torch.randn(shape, device=condition.device)
        actions = integrate(
            self._field(model.head),
            noise,
            condition,
            config.num_inference_steps,
            average=config.objective != "flow_matching",
        )
        if config.normalization_mapping.get("ACTION") == NormalizationMode.MIN_MAX:
            actions = actions.clamp(-1, 1)  # nothing outside was ever shown
        return actions[:, config.n_obs_steps - 1 :]

    def _field(self, head: nn.Module) -> Callable:
        if not self.config.compile_model:
            return head
        if head not in self._compiled:
            self._compiled[head] = torch.compile(head.forward)
        return self._compiled[head]

    def _condition(self, model: "IMFModel", batch: dict[str, Any]) -> Tensor:
        """What the network is told, (B, N, cond_dim)."""
        state = _with_time(batch[OBS_STATE], 2).clamp(-_STATE_LIMIT, _STATE_LIMIT)
        text = None
        if self.text is not None:
            tokens = batch[TOKENS]
            text = self.text(tokens[:, -1] if tokens.ndim == 3 else tokens)
        return model.condition(self.see(batch), state, text)

    @torch.no_grad()
    def see(self, batch: dict[str, Any]) -> Tensor:
        """What the encoder sees, (B, T, V, D): as it is written down in the batch, or in the batch's pictures.

        Raises:
            ValueError: a view is missing.
        """
        cameras = self.config.cameras
        live = [camera for camera in cameras if vision_key(camera) not in batch]
        missing = [camera for camera in live if image_key(camera) not in batch]
        if missing:
            raise ValueError(
                f"{image_key(missing[0])}: found no picture, and no {vision_key(missing[0])!r} either; expected one of "
                f"them for each of {cameras}. Connect the camera, or train for others: `--policy.cameras`."
            )
        seen: dict[str, Tensor] = {}
        if live:
            views = self.vision([_with_time(batch[image_key(camera)], 4) for camera in live])
            seen = dict(zip(live, views.unbind(-2), strict=True))
        kept = {camera: batch[vision_key(camera)] for camera in cameras if camera not in live}
        seen |= {camera: _with_time(features, 2) for camera, features in kept.items()}
        return torch.stack([seen[camera] for camera in cameras], -2)

    def _acting_model(self) -> Any:
        # The average is empty until the first update: in a new policy, or a checkpoint trained without it.
        return self.ema.module if self.ema is not None and self.ema.n_averaged > 0 else self.model


class IMFModel(nn.Module):
    """What is trained: a projector of each view, one of the condition, and the head."""

    def __init__(self, config: IMFConfig, vision: VisionEncoder, text: TextEncoder | None) -> None:
        super().__init__()
        if config.robot_state_feature is None or config.action_feature is None:
            raise ValueError("imf needs the features of state and action.")
        state_dim, self.action_dim = config.robot_state_feature.shape[0], config.action_feature.shape[0]
        cells = max(1, config.vision_grid**2)
        self.views = nn.ModuleList(
            ViewProjector(vision.output_dim, cells, config.per_view_output_dim) for _ in config.cameras
        )
        self.observation = nn.Linear(
            len(config.cameras) * config.per_view_output_dim + state_dim, config.cond_dim
        )
        self.sentence = ViewProjector(text.output_dim, 1, config.cond_dim) if text is not None else None
        self.head = VelocityHead(
            self.action_dim,
            config.horizon,
            config.cond_dim,
            config.n_emb,
            config.n_layer,
            config.n_head,
            config.residual,
            config.attnres_blocks,
            config.time_max_frequency,
        )

    def condition(self, seen: Tensor, state: Tensor, text: Tensor | None) -> Tensor:
        """One token per observation, and one for the instruction, (B, N, cond_dim).

        Args:
            seen: (B, T, V, D) features of the views.
            state: (B, T, S).
            text: (B, D).
        """
        views = [project(view) for project, view in zip(self.views, seen.unbind(-2), strict=True)]
        tokens = self.observation(torch.cat([*views, state], -1))
        if self.sentence is None or text is None:
            return tokens
        return torch.cat([tokens, self.sentence(text)[:, None]], 1)


class ViewProjector(nn.Module):
    """Features of a view to a few numbers.

    Of cells, each of a few learned queries reads one weighted mean: "the cell with the cube in it, and where it is there".
    A linear layer on all of them would have to learn every cell anew.

    Args:
        dim: of the features.
        cells: of equal width that they consist of.
        output_dim: of what is left.
    """

    def __init__(self, dim: int, cells: int, output_dim: int) -> None:
        super().__init__()
        self.cells = cells
        self.norm = nn.LayerNorm(dim // cells)  # the encoder's answers are not normalised
        self.out = nn.Linear(dim // cells, output_dim)
        if cells > 1:
            self.queries = nn.Linear(dim // cells, math.gcd(output_dim, _QUERIES))
            self.places = nn.Parameter(0.5 * torch.randn(cells, output_dim))

    def forward(self, features: Tensor) -> Tensor:
        """(..., dim) to (..., output_dim)."""
        cells = self.norm(features.unflatten(-1, (self.cells, -1)))
        values = self.out(cells)  # (..., cells, output_dim)
        if self.cells == 1:
            return values.squeeze(-2)
        weights = self.queries(cells).softmax(-2)  # (..., cells, queries)
        parts = (values + self.places).unflatten(-1, (weights.shape[-1], -1))
        return (weights[..., None] * parts).sum(-3).flatten(-2)


def check_cache(config: IMFConfig, features: dict[str, dict]) -> None:
    """Refuse a dataset whose features another encoder has written.

    Args:
        config: of the policy, which knows its own encoder.
        features: of the dataset's metadata.

    Raises:
        ValueError: it has; the message names the key.
    """
    own = ModelIdentity.from_dict(config.vision_identity or {})
    grid = [max(1, config.vision_grid)] * 2
    for key in map(vision_key, config.cameras):
        info = (features.get(key) or {}).get("info") or {}
        if "perception" not in info:
            continue
        own.check(ModelIdentity.from_dict(info["perception"]), f"the policy, of {key} in the dataset,")
        if info.get("size") != grid:
            raise ValueError(
                f"vision_grid: found {config.vision_grid}, expected that of {key} in the dataset, {info.get('size')} "
                "cells ([1, 1] is 0, the pooled answer). Set it, or cache again: `so101-cache-vision --vision_grid`."
            )


def _with_time(values: Tensor, dims: int) -> Tensor:
    """(B, T, …) of (B, …) with `dims` dimensions, or of what has a time already."""
    return values[:, None] if values.ndim == dims else values
