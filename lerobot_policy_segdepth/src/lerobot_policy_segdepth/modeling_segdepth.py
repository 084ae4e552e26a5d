# SPDX-License-Identifier: Apache-2.0
"""The segdepth policy: masks and disparity in, a chunk of joint targets out.

What is unusual about it:
- It sees no colours. Each camera gives 16 numbers per watched class (`mask_geometry`), and a small convolutional
  branch on coarse masks and disparity. That is little enough to learn from a few thousand frames on a CPU.
- A linear layer leads from the state to every action of the chunk and starts as the identity, so that the MLP
  learns the motion and not the pose. An untrained policy holds still.
- It acts with an exponential moving average of its weights. The average is a second copy of the model: it is part
  of the checkpoint, is not trained by gradients, and is what runs in eval mode, validation losses included.
"""

from collections import deque
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lerobot_processor_so101 import disparity_key, resolve_perception, seg_key

from .configuration_segdepth import SegDepthConfig
from .encoders import ConvEncoder, GeometryEncoder

_HUBER_BETA = 0.05  # in standard deviations of the action: quadratic below, so that small corrections count


class SegDepthPolicy(PreTrainedPolicy):
    """Behaviour cloning on masks and disparity."""

    config_class = SegDepthConfig
    name = "segdepth"

    def __init__(self, config: SegDepthConfig, **kwargs: Any):
        """Build the model for the features in `config`.

        Args:
            config: configuration with input and output features. Input features that the policy does not read
                are removed from it, so that a robot or environment need not offer them.
            kwargs: what LeRobot passes to every policy; not used.

        Raises:
            ValueError: a feature that the policy reads is missing.
        """
        super().__init__(config)
        config.validate_features()
        config.input_features = config.used_features
        self.config: SegDepthConfig = config
        self.model = SegDepthModel(config)
        self.ema: AveragedModel | None = None
        if config.ema_decay > 0:
            self.ema = AveragedModel(self.model, multi_avg_fn=partial(_average, config.ema_decay))
            self.ema.requires_grad_(False)
        self.reset()

    def get_optim_params(self) -> list[nn.Parameter]:
        """Return the trainable parameters, which the averaged copy has none of."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Forget the planned actions; called when an episode begins."""
        self._action_queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def update(self) -> None:
        """Take the trained weights into the average; `lerobot-train` calls this after every optimizer step."""
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Compute the imitation loss.

        Args:
            batch: what the preprocessor gives, with `action` (B, T, A) and optionally `action_is_pad` (B, T).
            reduction: "mean" for a scalar, "none" for one loss per sample, (B,).

        Returns:
            The loss over the actions that are not padding, and what to log.

        Raises:
            ValueError: another `reduction`.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction: found {reduction!r}, expected 'mean' or 'none'.")
        batch = resolve_perception(batch)
        model = self.model if self.training else self._acting_model()
        target = batch[ACTION]
        error = F.smooth_l1_loss(model(batch), target, beta=_HUBER_BETA, reduction="none").mean(-1)  # (B, T)
        is_pad = batch.get("action_is_pad")
        valid = torch.ones_like(error) if is_pad is None else (~is_pad).to(error)
        dims = (0, 1) if reduction == "mean" else (1,)
        loss = (error * valid).sum(dims) / valid.sum(dims).clamp(min=1)
        return loss, {"loss": loss.mean().item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Predict `chunk_size` normalised actions from the present observation, (B, T, A)."""
        self.eval()
        return self._acting_model()(resolve_perception(batch))

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action, (B, A); looks at `batch` only every `n_action_steps` calls."""
        self.eval()
        if not self._action_queue:
            chunk = self.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            self._action_queue.extend(chunk.transpose(0, 1))  # (n_action_steps, B, A)
        return self._action_queue.popleft()

    def _acting_model(self) -> nn.Module:
        # The average is empty until the first update: in a new policy, or a checkpoint trained without it.
        return self.ema if self.ema is not None and self.ema.n_averaged > 0 else self.model


class SegDepthModel(nn.Module):
    """Encoders of every camera, an MLP, and the linear layer past it."""

    def __init__(self, config: SegDepthConfig):
        super().__init__()
        if config.robot_state_feature is None or config.action_feature is None:
            raise ValueError("segdepth needs the features of state and action.")
        self.cameras = tuple(config.cameras)
        self.blind = config.blind
        self.n_classes = len(config.class_names)
        self._ids_checked = False
        self.state_noise = config.state_noise
        self.chunk_size = config.chunk_size
        state_dim, self.action_dim = config.robot_state_feature.shape[0], config.action_feature.shape[0]

        self.geometry = nn.ModuleList(GeometryEncoder(config.class_ids) for _ in self.cameras)
        self.conv = nn.ModuleList()
        if config.conv_channels > 0:
            self.conv.extend(ConvEncoder(config.class_ids, config.conv_channels) for _ in self.cameras)
        self.visual_dim = sum(encoder.output_dim for encoder in (*self.geometry, *self.conv))

        self.mlp = _mlp(
            self.visual_dim + state_dim, config.hidden_dim, config.n_layers, self.chunk_size * self.action_dim
        )
        self.hold = nn.Linear(state_dim, self.chunk_size * self.action_dim)
        self._start_by_holding_still(state_dim)

    @torch.no_grad()
    def _start_by_holding_still(self, state_dim: int) -> None:
        # Exact where state and action are the same joints with the same statistics, a fair start elsewhere.
        self.hold.weight.copy_(torch.eye(self.action_dim, state_dim).repeat(self.chunk_size, 1))
        self.hold.bias.zero_()
        output = self.mlp[-1]
        assert isinstance(output, nn.Linear)
        output.weight.zero_()
        output.bias.zero_()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict a chunk of normalised actions, (B, T, A), from what the preprocessor gives."""
        state = batch[OBS_STATE]  # (B, S)
        if self.training and self.state_noise > 0:
            state = state + self.state_noise * torch.randn_like(state)
        actions = self.hold(state) + self.mlp(torch.cat([self._look(batch, state), state], dim=-1))
        return actions.unflatten(-1, (self.chunk_size, self.action_dim))  # (B, T, A)

    def _look(self, batch: dict[str, Tensor], state: Tensor) -> Tensor:
        """Encode what all cameras see, (B, visual_dim); zeros if blind."""
        if self.blind:
            return state.new_zeros(len(state), self.visual_dim)
        if not self._ids_checked:  # once is enough, and each check waits for the device
            self._check_ids(batch)
        views = [(batch[seg_key(camera)], batch[disparity_key(camera)] / 255) for camera in self.cameras]
        codes = [encode(*view) for encode, view in zip(self.geometry, views, strict=True)]
        if self.conv:
            codes += [encode(*view) for encode, view in zip(self.conv, views, strict=True)]
        return torch.cat(codes, dim=-1)

    def _check_ids(self, batch: dict[str, Tensor]) -> None:
        """Refuse masks whose ids the configuration has no names for."""
        for camera in self.cameras:
            highest = int(batch[seg_key(camera)].max())
            if highest >= self.n_classes:
                raise ValueError(
                    f"{seg_key(camera)}: found class id {highest}, expected 0 to {self.n_classes - 1}, the positions "
                    "in class_names. Name the classes of this task with `--policy.class_names`; or, if the masks "
                    "were recorded as video, record them again with `--dataset.depth_encoder.use_log=false`."
                )
        self._ids_checked = True


def _mlp(input_dim: int, hidden_dim: int, n_layers: int, output_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(n_layers):
        layers += [nn.Linear(input_dim if i == 0 else hidden_dim, hidden_dim), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden_dim if n_layers else input_dim, output_dim))


def _average(decay: float, averaged: Any, current: Any, n_averaged: Tensor | int) -> None:
    """Move the averaged weights towards the current ones, faster in the beginning.

    Without the warm-up a training of a few hundred steps would act with weights close to its initial ones.
    """
    n = int(n_averaged)
    get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, n_averaged)
