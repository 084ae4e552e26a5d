# SPDX-License-Identifier: Apache-2.0
"""The network of DrQ-v2 as RoboBase builds it, for the presets that are true to the original.

What is unusual about it: pixels come as bytes and are scaled here, class ids included, so that ids span a hundredth of
what disparity spans; each input has a bottleneck of its own, Linear, LayerNorm and Tanh to 50 numbers; the trunk has
no norm. Source: Yarats et al. 2021 and research on pick-101; names of the parameters are ours, `snapshot.py` knows the
original's.
"""

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
    """Frames and joints in, actions within -1..1 out.

    Args:
        config: the policy's.
    """

    values: Tensor

    def __init__(self, config: SegDepthConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer(
            "values",
            torch.tensor(config.class_values or list(range(len(config.class_names)))),
            persistent=False,
        )
        self.encoder = DrQv2Encoder(
            2 * config.n_obs_steps * len(config.cameras), config.image_size, config.pixel_offset
        )
        self.actor = DrQv2Actor(
            self.encoder.output_dim,
            config.n_obs_steps * STATE_DIMS[config.proprioception],
            config.chunk_size * config.output_dim,
        )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict a chunk of actions, (B, T, A), from what the preprocessor gives.

        Args:
            batch: frames (B, T, h, w), or (B, h, w) where only one is seen; joints likewise.
        """
        frames = self.frames(batch)
        if self.training and self.config.random_shift:
            frames = random_shift(frames, self.config.random_shift)
        visual = self.encoder(frames)
        if self.config.blind:
            visual = torch.zeros_like(visual)
        actions = self.actor(visual, self.state(batch))
        return actions.unflatten(-1, (self.config.chunk_size, self.config.output_dim))

    def frames(self, batch: dict[str, Tensor]) -> Tensor:
        """The stack, (B, T * cameras * 2, h, w): ids and disparity of each camera, oldest frame first."""
        planes = []
        for camera in self.config.cameras:
            values = self.values[batch[seg_key(camera)].long()].float()
            disparity = batch[disparity_key(camera)]
            planes.append(
                torch.stack([values, disparity.round() if self.config.whole_disparity else disparity], -3)
            )
        stack = torch.stack(planes, -4)  # (B, T, cameras, 2, h, w)
        return stack.flatten(1, -3)

    def state(self, batch: dict[str, Tensor]) -> Tensor:
        """What it knows of its joints, (B, T * S)."""
        joints = batch[OBS_STATE]
        if self.config.proprioception == "none":
            return joints.new_zeros(len(joints), 0)
        if self.config.proprioception == "joints_velocities_tool":
            tool = batch[OBS_TOOL]
            joints = with_velocities(tool if tool.ndim == 3 else tool[:, None], self.config.stack_period)
        return joints.flatten(1)


class DrQv2Encoder(nn.Module):
    """Four convolutions of 3x3, the first with stride 2.

    Args:
        channels: of all frames together.
        side: of the square pictures, in pixels.
        offset: what is subtracted from values over 255.
    """

    def __init__(self, channels: int, side: int, offset: float) -> None:
        super().__init__()
        self.offset = offset
        strides = [(channels, 2), (CHANNELS, 1), (CHANNELS, 1), (CHANNELS, 1)]
        convs = [nn.Conv2d(width, CHANNELS, 3, stride) for width, stride in strides]
        for conv in convs:
            nn.init.orthogonal_(conv.weight, nn.init.calculate_gain("relu"))
            nn.init.constant_(conv.bias, 0.0)  # type: ignore[arg-type]  # it has one
        self.convs = nn.ModuleList(convs)
        self.output_dim = CHANNELS * ((side - 3) // 2 + 1 - 6) ** 2

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (B, C, H, W) of bytes as (B, output_dim)."""
        x = frames.float() / 255 - self.offset
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.flatten(1)


class DrQv2Actor(nn.Module):
    """Bottlenecks, a trunk and a head.

    Args:
        visual_dim, state_dim: of what it is given; no state, no bottleneck for it.
        action_dim: of what it returns.
    """

    def __init__(self, visual_dim: int, state_dim: int, action_dim: int) -> None:
        super().__init__()
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
        """Return the mean action (B, action_dim), in -1..1."""
        codes = [self.see(visual)]
        if self.feel is not None:
            codes.append(self.feel(state))
        return self.head(self.trunk(torch.cat(codes, -1))).tanh()


def _bottleneck(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, BOTTLENECK), nn.LayerNorm(BOTTLENECK), nn.Tanh())


def with_velocities(tool: Tensor, period: float) -> Tensor:
    """Insert what the joints' angles change by.

    Args:
        tool: (B, T, 12) angles [rad] and tool pose.
        period: between frames [s].

    Returns:
        (B, T, 18): angles, velocities [rad/s], pose. The oldest frame, before which nothing is known, has the
        velocity of the one after it; a single frame has none.
    """
    angles, pose = tool.split(6, -1)
    moved = angles.diff(dim=1) / period
    first = moved[:, :1] if moved.shape[1] else torch.zeros_like(angles)
    return torch.cat([angles, torch.cat([first, moved], 1), pose], -1)


def random_shift(frames: Tensor, pixels: int) -> Tensor:
    """Shift each sample by some whole pixels in any direction, repeating its edges; ids stay ids.

    Args:
        frames: (B, C, H, W) float; all channels of a sample move together.
        pixels: the most.
    """
    height, width = frames.shape[-2:]
    padded = F.pad(frames, (pixels,) * 4, mode="replicate")
    dy, dx = torch.randint(2 * pixels + 1, (2, len(frames), 1, 1), device=frames.device)
    rows = dy + torch.arange(height, device=frames.device)[:, None]  # (B, H, 1)
    columns = dx + torch.arange(width, device=frames.device)
    sample = torch.arange(len(frames), device=frames.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)
