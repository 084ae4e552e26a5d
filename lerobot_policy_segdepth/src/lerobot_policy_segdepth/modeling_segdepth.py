# SPDX-License-Identifier: Apache-2.0
"""The segdepth policy: masks and disparity in, a chunk of actions out.

What is unusual about it:
- It has no pixels as input. Each camera gives 16 numbers per watched class (`mask_geometry`), and a small
  convolutional branch on coarse masks and disparity. A few thousand frames and a CPU suffice to train it.
- A linear layer from the joint state to every action of the chunk is initialised as the identity, so the MLP
  learns the motion and not the pose. An untrained policy holds its pose.
- Inference uses an exponential moving average of the weights. The average is a second copy of the model: it
  is in the checkpoint, gets no gradients, and runs in eval mode, validation losses included.
- Its presets `handoff` and `pick101` use another network (`drqv2.py`) with the same inputs and outputs.
"""

from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from lerobot_processor_so101 import (
    CheckpointMixin,
    FrameHistory,
    averaged,
    class_masks,
    disparity_key,
    image_key,
    resolve_perception,
    seg_key,
)
from lerobot_processor_so101.perception.keys import WATCHED
from lerobot_processor_so101.policy.ema import AveragedModelMixin

from .actions import OBS_TOOL
from .configuration_segdepth import SegDepthConfig
from .drqv2 import DrQv2Model, random_shift
from .encoders import ConvEncoder, GeometryEncoder, RGBEncoder

_HUBER_BETA = 0.05  # quadratic below [standard deviations of the action], so that small corrections count


class SegDepthPolicy(AveragedModelMixin, CheckpointMixin, PreTrainedPolicy):
    """Behaviour cloning on masks and disparity."""

    config_class = SegDepthConfig
    name = "segdepth"

    def __init__(self, config: SegDepthConfig, **kwargs: Any):
        """Build the model for the features in `config`.

        Input features that the policy does not read are removed from `config`, so that a robot or environment
        need not offer them.

        Raises:
            ValueError: if a feature that the policy reads is missing.
        """
        super().__init__(config)
        config.validate_features()
        config.input_features = config.used_features
        self.config: SegDepthConfig = config
        self.model: nn.Module = DrQv2Model(config) if config.encoder == "drqv2" else SegDepthModel(config)
        self.ema = averaged(self.model, config.ema_decay) if config.ema_decay > 0 else None
        self._history = FrameHistory(config.n_obs_steps, config.stack_ticks)
        self._ids_checked = False
        self.reset()

    def reset(self) -> None:
        """Clear the action queue, the frame history and the tool's target at the beginning of an episode."""
        self._action_queue: deque[Tensor] = deque()
        self._history.clear()
        self._tool_target: Tensor | None = None

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Compute the imitation loss.

        Args:
            batch: output of the preprocessor, with `action` (B, T, A) and optionally `action_is_pad` (B, T).
            reduction: "mean" for a scalar, "none" for one loss per sample, (B,).

        Returns:
            The loss over the actions that are not padding, and values to log.

        Raises:
            ValueError: if `reduction` is unknown, or the input does not fit the network.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction: found {reduction!r}, expected 'mean' or 'none'.")
        self.config.check_chunk(batch[ACTION])
        # 1. run deferred perception: ids and disparity of each camera, (B, h, w) or (B, n_obs_steps, h, w)
        batch = self._check_inputs(resolve_perception(batch))
        # 2. predict a chunk and compare it, (B, T)
        model = self.model if self.training else self._inference_model()
        target = batch[ACTION]
        error = F.smooth_l1_loss(model(batch), target, beta=_HUBER_BETA, reduction="none").mean(-1)
        # 3. average over the actions that are not padding, () or (B,)
        is_pad = batch.get("action_is_pad")
        valid = torch.ones_like(error) if is_pad is None else (~is_pad).to(error)
        dims = (0, 1) if reduction == "mean" else (1,)
        loss = (error * valid).sum(dims) / valid.sum(dims).clamp(min=1)
        return loss, {"loss": loss.mean().item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Predict `chunk_size` actions from the current observation, (B, T, A), for the postprocessor.

        Each call counts as one control period of the frame history.
        """
        self._history.push(batch)
        return self._predict()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action, (B, A); predicts a chunk every `n_action_steps * action_repeat` calls."""
        self._history.push(batch)
        if not self._action_queue:
            chunk = self._predict()[:, : self.config.n_action_steps]
            self._action_queue.extend(chunk.repeat_interleave(self.config.action_repeat, 1).transpose(0, 1))
        action = self._action_queue.popleft()
        if self.config.action_space == "tool_deltas":
            self._tool_target = action[:, :3]
        return action

    def _predict(self) -> Tensor:
        """Predict a chunk from the frame history, (B, T, A)."""
        self.eval()
        # 1. stack the last frames; deferred perception runs here, once per chunk
        batch = self._check_inputs(self._history.stack())
        # 2. predict, with the averaged weights
        actions = self._inference_model()(batch)
        # 3. tool deltas become targets, because the postprocessor has no memory: (B, T, 4)
        if self.config.action_space == "tool_deltas":
            actions = self._integrate_tool_deltas(actions, batch[OBS_TOOL])
        return actions

    def _integrate_tool_deltas(self, actions: Tensor, tool: Tensor) -> Tensor:
        """Add deltas of the tool in -1..1, (B, T, 4), up to positions in the workspace [m]; keep grippers."""
        # 1. begin at the last target, or at the measured position of `ToolPoseStep`: (B, 3)
        target = (tool[:, -1] if tool.ndim == 3 else tool)[:, 6:9]
        if self.config.tool_reference == "target" and self._tool_target is not None:
            target = self._tool_target
        # 2. add up: (B, T, 3)
        lower, upper = actions.new_tensor(self.config.workspace).split(3)
        targets = []
        for delta in actions[..., :3].unbind(1):
            target = (target + self.config.tool_scale * delta).clamp(lower, upper)
            targets.append(target)
        return torch.cat([torch.stack(targets, 1), actions[..., 3:]], -1)

    def _check_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Refuse another number of joints, and class ids without a name."""
        expected, found = self.config.used_features[OBS_STATE].shape[0], batch[OBS_STATE].shape[-1]
        if found != expected:
            raise ValueError(
                f"{OBS_STATE}: found {found} numbers, expected {expected}, as in training. Use the arm that "
                "the dataset was recorded with."
            )
        # In training only once, because each check waits for the GPU.
        if self.config.encoder == "rgb" or self.config.roles or (self.training and self._ids_checked):
            return batch
        classes = len(self.config.class_names)
        for key in map(seg_key, self.config.cameras):
            largest = int(batch[key].max())
            if largest >= classes:
                raise ValueError(
                    f"{key}: found class id {largest}, expected 0 to {classes - 1}, the positions in "
                    "class_names. Name the classes of this task with `--policy.class_names`; or, if the "
                    "masks were recorded as video, record them again with "
                    "`--dataset.depth_encoder.use_log=false`."
                )
        self._ids_checked = True
        return batch


class SegDepthModel(nn.Module):
    """Encoders of all cameras, an MLP, and a linear layer that bypasses it."""

    def __init__(self, config: SegDepthConfig):
        super().__init__()
        self.config = config
        state_dim, self.action_dim = config.used_features[OBS_STATE].shape[0], config.output_dim
        output_dim = config.chunk_size * self.action_dim

        self.geometry, self.conv, self.color = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        classes, channels = len(config.watched_classes), config.conv_channels
        for _ in config.cameras:
            if config.encoder == "rgb":
                self.color.append(RGBEncoder(config.image_size, channels))
            else:
                self.geometry.append(GeometryEncoder(classes))
            if config.encoder == "both":
                self.conv.append(ConvEncoder(classes, channels))
        encoders = (*self.geometry, *self.conv, *self.color)
        self.visual_dim = config.n_obs_steps * sum(encoder.output_dim for encoder in encoders)

        self.mlp = _mlp(self.visual_dim + state_dim, config.hidden_dim, config.n_layers, output_dim)
        self.hold = nn.Linear(state_dim, output_dim)
        # A new policy holds its pose: exactly if state and action are the same joints with the same
        # statistics.
        with torch.no_grad():
            self.hold.weight.copy_(torch.eye(self.action_dim, state_dim).repeat(config.chunk_size, 1))
            for parameter in (self.hold.bias, *self.mlp[-1].parameters()):
                parameter.zero_()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict a chunk of normalised actions from the preprocessor's output.

        Args:
            batch: `observation.state` (B, S) or (B, n_obs_steps, S), and for each camera ids (B, h, w) and
                disparity (B, h, w) in 0..255, or images (B, 3, h, w) in 0..1, likewise with n_obs_steps.

        Returns:
            (B, T, A), T = `chunk_size`.
        """
        # 1. current joint state: (B, S)
        state = batch[OBS_STATE]
        if state.ndim == 3:
            state = state[:, -1]
        if self.training and self.config.state_noise > 0:
            state = state + self.config.state_noise * torch.randn_like(state)
        # 2. encode the frames of all cameras: (B, visual_dim)
        if self.config.blind:
            visual = state.new_zeros(len(state), self.visual_dim)
        else:
            # (B * n_obs_steps, D) of each encoder
            codes = self._encode_rgb(batch) if self.color else self._encode_masks(batch)
            visual = torch.cat([code.unflatten(0, (len(state), -1)).flatten(1) for code in codes], dim=-1)
        # 3. hold the pose, plus a motion: (B, T * A) -> (B, T, A)
        actions = self.hold(state) + self.mlp(torch.cat([visual, state], dim=-1))
        return actions.unflatten(-1, (self.config.chunk_size, self.action_dim))

    def _encode_masks(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Encode masks and disparity by each encoder of each camera, (B * n_obs_steps, D)."""
        class_ids = self._watched(batch)
        geometry, conv = [], []
        for number, camera in enumerate(self.config.cameras):
            # 1. ids and disparity in 0..1, (B, h, w) or (B, n_obs_steps, h, w)
            frames = [batch[seg_key(camera)], batch[disparity_key(camera)] / 255]
            if self.training and self.config.random_shift:  # as if the camera were tilted
                frames = random_shift(frames, self.config.random_shift)
            # 2. one mask per watched class: (B * n_obs_steps, C, h, w)
            ids, disparity = (maps.flatten(0, -3) for maps in frames)
            masks = class_masks(ids, class_ids)
            # 3. encode: (B * n_obs_steps, D)
            geometry.append(self.geometry[number](masks, disparity))
            if self.conv:
                conv.append(self.conv[number](masks, disparity))
        return geometry + conv

    def _watched(self, batch: dict[str, Tensor]) -> list[int] | Tensor:
        """Return the ids of the watched classes; with roles those of each frame, (B * n_obs_steps, C)."""
        if not self.config.roles:
            return self.config.class_ids
        watched = batch[WATCHED]
        if watched.ndim == 3:  # the last sentence is for all stacked frames
            watched = watched[:, -1]
        return watched.repeat_interleave(self.config.n_obs_steps, 0)

    def _encode_rgb(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Encode the images of each camera, (B * n_obs_steps, D)."""
        codes = []
        for encode, camera in zip(self.color, self.config.cameras, strict=True):
            images = batch[image_key(camera)].flatten(0, -4)
            if self.config.color_order == "bgr":
                images = images.flip(-3)
            if self.training and self.config.random_shift:
                (images,) = random_shift([images], self.config.random_shift)
            codes.append(encode(images))
        return codes


def _mlp(input_dim: int, hidden_dim: int, n_layers: int, output_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(n_layers):
        layers += [nn.Linear(input_dim if i == 0 else hidden_dim, hidden_dim), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden_dim if n_layers else input_dim, output_dim))
