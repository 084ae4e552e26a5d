# SPDX-License-Identifier: Apache-2.0
"""The actor of DrQ-v2 (Yarats et al. 2021) as RoboBase builds it, for the presets `handoff` and `pick101`.

What is unusual about it: the input is bytes, class ids included, and scaled here, so that ids span a
hundredth of the range of disparity. Each input has a bottleneck of its own: Linear, LayerNorm and Tanh to 50
numbers. The trunk has no norm. Parameter names differ from RoboBase's; `snapshot.py` maps them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lerobot.utils.constants import OBS_STATE
from torch import Tensor, nn

from lerobot_processor_so101 import disparity_key, seg_key

from .actions import OBS_TOOL
from .configuration_segdepth import SegDepthConfig

CHANNELS = 32
BOTTLENECK = 50
HIDDEN = 256
STATE_DIMS = {"none": 0, "joints": 6, "joints_velocities_tool": 18}  # per frame


class DrQv2Model(nn.Module):
    """Predict actions within -1..1 from a stack of frames and the joint state."""

    values: Tensor

    def __init__(self, config: SegDepthConfig) -> None:
        super().__init__()
        self.config = config
        values = torch.tensor(config.class_values or list(range(len(config.class_names))))
        self.register_buffer("values", values, persistent=False)
        in_channels = 2 * config.n_obs_steps * len(config.cameras)
        self.encoder = DrQv2Encoder(in_channels, config.image_size, config.pixel_offset)
        state_dim = config.n_obs_steps * STATE_DIMS[config.proprioception]
        self.actor = DrQv2Actor(self.encoder.output_dim, state_dim, config.chunk_size * config.output_dim)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict a chunk of actions from the preprocessor's output.

        Args:
            batch: for each camera ids and disparity in 0..255, (B, n_obs_steps, h, w), or (B, h, w) for one
                frame; joints likewise, (B, n_obs_steps, 6) or (B, 6).

        Returns:
            (B, T, A), T = `chunk_size`.
        """
        # 1. stack ids and disparity of all frames: (B, n_obs_steps * cameras * 2, h, w)
        frames = self.frames(batch)
        if self.training and self.config.random_shift:
            (frames,) = random_shift([frames], self.config.random_shift)
        # 2. encode the stack: (B, D)
        visual = self.encoder(frames)
        if self.config.blind:
            visual = torch.zeros_like(visual)
        # 3. predict from the stack and the joints: (B, T * A) -> (B, T, A)
        actions = self.actor(visual, self.state(batch))
        return actions.unflatten(-1, (self.config.chunk_size, self.config.output_dim))

    def frames(self, batch: dict[str, Tensor]) -> Tensor:
        """Stack ids and disparity of all cameras, oldest frame first, (B, n * cameras * 2, h, w)."""
        planes = []
        for camera in self.config.cameras:
            values = self.values[batch[seg_key(camera)].long()].float()
            disparity = batch[disparity_key(camera)]
            disparity = disparity.round() if self.config.whole_disparity else disparity
            planes.append(torch.stack([values, disparity], -3))
        return torch.stack(planes, -4).flatten(1, -3)  # from (B, n_obs_steps, cameras, 2, h, w)

    def state(self, batch: dict[str, Tensor]) -> Tensor:
        """Select the joint state of all frames, (B, n_obs_steps * S)."""
        joints = batch[OBS_STATE]
        if self.config.proprioception == "none":
            return joints.new_zeros(len(joints), 0)
        if self.config.proprioception == "joints_velocities_tool":
            tool = batch[OBS_TOOL]
            joints = with_velocities(tool if tool.ndim == 3 else tool[:, None], self.config.stack_period)
        return joints.flatten(1)


class DrQv2Encoder(nn.Module):
    """Four convolutions of 3 x 3, the first with stride 2, on square frames of `side` pixels.

    Args:
        in_channels: C, of all frames together.
        offset: subtracted from values / 255.
    """

    def __init__(self, in_channels: int, side: int, offset: float) -> None:
        super().__init__()
        self.offset = offset
        strides = [(in_channels, 2), (CHANNELS, 1), (CHANNELS, 1), (CHANNELS, 1)]
        convs = [nn.Conv2d(width, CHANNELS, 3, stride) for width, stride in strides]
        for conv in convs:
            nn.init.orthogonal_(conv.weight, nn.init.calculate_gain("relu"))
            nn.init.constant_(conv.bias, 0.0)  # type: ignore[arg-type]  # it has one
        self.convs = nn.ModuleList(convs)
        self.output_dim = CHANNELS * ((side - 3) // 2 + 1 - 6) ** 2

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (B, C, H, W) in 0..255 as (B, output_dim)."""
        x = frames.float() / 255 - self.offset
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.flatten(1)


class DrQv2Actor(nn.Module):
    """Bottlenecks, a trunk and a head.

    Args:
        visual_dim, state_dim: widths of the inputs; a state of width 0 has no bottleneck.
        action_dim: width of the output.
    """

    def __init__(self, visual_dim: int, state_dim: int, action_dim: int) -> None:
        super().__init__()
        # Checkpoints contain these names: `see` is the bottleneck of frames, `feel` that of the joint state.
        self.see = _bottleneck(visual_dim)
        self.feel = _bottleneck(state_dim) if state_dim else None
        width = BOTTLENECK * (2 if state_dim else 1)
        self.trunk = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        self.head = nn.Linear(HIDDEN, action_dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, visual: Tensor, state: Tensor) -> Tensor:
        """Predict the mean action, (B, action_dim) in -1..1, from (B, visual_dim) and (B, state_dim)."""
        # 1. bottlenecks: (B, 50), with a state (B, 100)
        codes = [self.see(visual)] + ([] if self.feel is None else [self.feel(state)])
        # 2. trunk and head: (B, action_dim)
        return self.head(self.trunk(torch.cat(codes, -1))).tanh()


def _bottleneck(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, BOTTLENECK), nn.LayerNorm(BOTTLENECK), nn.Tanh())


def with_velocities(tool: Tensor, period: float) -> Tensor:
    """Insert joint velocities by finite differences.

    Args:
        tool: (B, T, 12) joint angles [rad] and tool pose.
        period: time between frames [s].

    Returns:
        (B, T, 18): angles, velocities [rad/s], pose. The oldest frame has no predecessor and gets the
        velocity of the next one; the velocity of a single frame is 0.
    """
    angles, pose = tool.split(6, -1)
    velocities = angles.diff(dim=1) / period  # (B, T - 1, 6)
    first = velocities[:, :1] if velocities.shape[1] else torch.zeros_like(angles)
    return torch.cat([angles, torch.cat([first, velocities], 1), pose], -1)


def random_shift(maps: Sequence[Tensor], pixels: int) -> list[Tensor]:
    """Shift each sample by a random number of pixels in each direction, repeating its edges; ids stay ids.

    Args:
        maps: (B, ..., H, W) each, of any types and one size; all maps of a sample shift together.
        pixels: largest shift.
    """
    batch, (height, width), device = len(maps[0]), maps[0].shape[-2:], maps[0].device
    # 1. the row and the column that each one comes from: (B, H, 1) and (B, 1, W)
    dy, dx = torch.randint(2 * pixels + 1, (2, batch, 1, 1), device=device) - pixels
    rows = (dy + torch.arange(height, device=device)[:, None]).clamp(0, height - 1)
    columns = (dx + torch.arange(width, device=device)).clamp(0, width - 1)
    # 2. pick the pixels: (B, H * W)
    index = (rows * width + columns).flatten(1)
    shifted = []
    for frames in maps:
        flat = frames.reshape(batch, -1, height * width)
        shifted.append(flat.gather(2, index[:, None].expand_as(flat)).view_as(frames))
    return shifted
