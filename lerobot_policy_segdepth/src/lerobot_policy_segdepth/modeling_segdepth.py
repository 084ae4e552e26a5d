# SPDX-License-Identifier: Apache-2.0
"""The segdepth policy: masks and disparity in, motion out.

What is unusual about it:
- It sees no colours. Each camera gives 16 numbers per watched class (`mask_geometry`), and a small convolutional
  branch on coarse masks and disparity. That is little enough to learn from a few thousand frames on a CPU.
- A linear layer leads from the state to every action of the chunk and starts as the identity, so that the MLP
  learns the motion and not the pose. An untrained policy holds still.
- It acts with an exponential moving average of its weights. The average is a second copy of the model: it is part
  of the checkpoint, is not trained by gradients, and is what runs in eval mode, validation losses included.
- Its presets `handoff` and `pick101` are another network (`drqv2.py`) behind the same contract.
"""

from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lerobot_processor_so101 import (
    FrameHistory,
    averaged,
    disparity_key,
    image_key,
    resolve_perception,
    seg_key,
)

from .actions import OBS_TOOL
from .configuration_segdepth import SegDepthConfig
from .drqv2 import DrQv2Model, random_shift
from .encoders import ColorEncoder, ConvEncoder, GeometryEncoder

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
        self.model: nn.Module = DrQv2Model(config) if config.encoder == "drqv2" else SegDepthModel(config)
        self.ema: AveragedModel | None = None
        if config.ema_decay > 0:
            self.ema = averaged(self.model, config.ema_decay)
        self._history = FrameHistory(config.n_obs_steps, config.stack_ticks)
        self._classes_checked = False
        self.reset()

    def get_optim_params(self) -> list[nn.Parameter]:
        """Return the trainable parameters, which the averaged copy has none of."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Forget the planned actions, the frames and the target of the tool; called when an episode begins."""
        self._action_queue: deque[Tensor] = deque()
        self._history.clear()
        self._target: Tensor | None = None

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
        batch = self._checked(resolve_perception(batch))
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
        """Predict `chunk_size` actions from the present observation, (B, T, A), as the postprocessor takes them.

        Called by itself, each call counts as a control period of the frames that are seen together.
        """
        self._history.push(batch)
        return self._predict()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action, (B, A); looks every `n_action_steps * action_repeat` calls."""
        self._history.push(batch)
        if not self._action_queue:
            chunk = self._predict()[:, : self.config.n_action_steps]
            self._action_queue.extend(chunk.repeat_interleave(self.config.action_repeat, 1).transpose(0, 1))
        action = self._action_queue.popleft()
        if self.config.action_space == "tool_deltas":
            self._target = action[:, :3]
        return action

    def _predict(self) -> Tensor:
        """Look at the frames that are remembered, and predict."""
        self.eval()
        batch = self._checked(self._history.stack())
        actions = self._acting_model()(batch)
        if self.config.action_space != "tool_deltas":
            return actions
        return self._places(actions, batch[OBS_TOOL])

    def _places(self, actions: Tensor, tool: Tensor) -> Tensor:
        """Add tool deltas up to places inside the workspace, (B, T, 4); see `ToolPoseStep` for `tool`."""
        place = (tool[:, -1] if tool.ndim == 3 else tool)[:, 6:9]
        if self.config.tool_reference == "target" and self._target is not None:
            place = self._target
        lower, upper = actions.new_tensor(self.config.workspace).split(3)
        places = []
        for delta in actions[..., :3].unbind(1):
            place = (place + self.config.tool_scale * delta).clamp(lower, upper)
            places.append(place)
        return torch.cat([torch.stack(places, 1), actions[..., 3:]], -1)

    def _checked(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Refuse joints and masks that the network was not built for."""
        expected, found = self.config.input_features[OBS_STATE].shape[0], batch[OBS_STATE].shape[-1]
        if found != expected:
            raise ValueError(
                f"{OBS_STATE}: found {found} numbers, expected {expected}, as in training. Use the arm that the "
                "dataset was recorded with."
            )
        # In training once is enough: each check waits for the device.
        if self.config.encoder != "rgb" and not (self.training and self._classes_checked):
            for camera in self.config.cameras:
                self._check_ids(seg_key(camera), batch[seg_key(camera)])
            self._classes_checked = True
        return batch

    def _check_ids(self, key: str, ids: Tensor) -> None:
        """Refuse masks whose ids the configuration has no names for."""
        classes = len(self.config.class_names)
        if int(ids.max()) >= classes:
            raise ValueError(
                f"{key}: found class id {int(ids.max())}, expected 0 to {classes - 1}, the positions in class_names. "
                "Name the classes of this task with `--policy.class_names`; or, if the masks were recorded as video, "
                "record them again with `--dataset.depth_encoder.use_log=false`."
            )

    def _acting_model(self) -> nn.Module:
        # The average is empty until the first update: in a new policy, or a checkpoint trained without it.
        return self.ema if self.ema is not None and self.ema.n_averaged > 0 else self.model


class SegDepthModel(nn.Module):
    """Encoders of every camera, an MLP, and the linear layer past it."""

    def __init__(self, config: SegDepthConfig):
        super().__init__()
        if config.robot_state_feature is None or config.action_feature is None:
            raise ValueError("segdepth needs the features of state and action.")
        self.config = config
        self.chunk_size = config.chunk_size
        state_dim, self.action_dim = config.robot_state_feature.shape[0], config.action_feature.shape[0]

        self.geometry, self.conv, self.color = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in config.cameras:
            if config.encoder == "rgb":
                self.color.append(ColorEncoder(config.image_size, config.conv_channels))
                continue
            self.geometry.append(GeometryEncoder(config.class_ids))
            if config.encoder == "both":
                self.conv.append(ConvEncoder(config.class_ids, config.conv_channels))
        encoders = (*self.geometry, *self.conv, *self.color)
        self.visual_dim = config.n_obs_steps * sum(encoder.output_dim for encoder in encoders)

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
        state = batch[OBS_STATE]
        if state.ndim == 3:
            state = state[:, -1]  # (B, S)
        if self.training and self.config.state_noise > 0:
            state = state + self.config.state_noise * torch.randn_like(state)
        actions = self.hold(state) + self.mlp(torch.cat([self._look(batch, state), state], dim=-1))
        return actions.unflatten(-1, (self.chunk_size, self.action_dim))  # (B, T, A)

    def _look(self, batch: dict[str, Tensor], state: Tensor) -> Tensor:
        """Encode what all cameras see, (B, visual_dim); zeros if blind."""
        if self.config.blind:
            return state.new_zeros(len(state), self.visual_dim)
        cameras = self.config.cameras
        if self.color:
            codes = [
                encode(self._picture(batch, key))
                for encode, key in zip(self.color, map(image_key, cameras), strict=True)
            ]
        else:
            views = [
                (_frames(batch[seg_key(c)], 2), _frames(batch[disparity_key(c)], 2) / 255) for c in cameras
            ]
            codes = [encode(*view) for encode, view in zip(self.geometry, views, strict=True)]
            if self.conv:
                codes += [encode(*view) for encode, view in zip(self.conv, views, strict=True)]
        return torch.cat([code.unflatten(0, (len(state), -1)).flatten(1) for code in codes], dim=-1)

    def _picture(self, batch: dict[str, Tensor], key: str) -> Tensor:
        picture = _frames(batch[key], 3)
        if self.config.color_order == "bgr":
            picture = picture.flip(-3)
        shift = self.config.random_shift if self.training else 0
        return random_shift(picture, shift) if shift else picture


def _frames(values: Tensor, dims: int) -> Tensor:
    """(B, T, …) or (B, …) as (B * T, …), where a frame has `dims` dimensions."""
    return values.flatten(0, -1 - dims)


def _mlp(input_dim: int, hidden_dim: int, n_layers: int, output_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(n_layers):
        layers += [nn.Linear(input_dim if i == 0 else hidden_dim, hidden_dim), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden_dim if n_layers else input_dim, output_dim))
