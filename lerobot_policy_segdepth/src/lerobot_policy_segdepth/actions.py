# SPDX-License-Identifier: Apache-2.0
"""Processor steps between joint targets of the arm and the action spaces of the policy.

What is unusual about them: they subclass the two steps of LeRobot's relative actions, which LeRobot links
whenever it loads a pipeline, so that the postprocessor knows the joints that the preprocessor has measured.
LeRobot does not reset pipelines between episodes, so the steps keep no state of an episode: the policy keeps
the target of tool deltas.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    ProcessorStepRegistry,
    RelativeActionsProcessorStep,
    RobotObservation,
)
from lerobot.utils.constants import OBS_STATE, OBS_STR
from torch import Tensor

from lerobot_processor_so101.steps.check_observation import ObservationStep

from .configuration_segdepth import SegDepthConfig
from .kinematics import ToolKinematics

OBS_TOOL = f"{OBS_STR}.tool"


@dataclass
class _ArmKinematics:
    """Kinematics of the policy's arm; `arm` are the arguments of `ToolKinematics`."""

    arm: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def kinematics(self) -> ToolKinematics:
        return ToolKinematics(**self.arm)

    def pose(self, joints: Tensor) -> Tensor:
        """Compute tool poses (..., 6) at joints (..., 6)."""
        pose = self.kinematics.pose(joints.reshape(-1, joints.shape[-1]).cpu().double().numpy())
        return torch.from_numpy(pose).to(joints).reshape(joints.shape)


def arm_options(config: SegDepthConfig) -> dict[str, Any]:
    """Select the arguments of `ToolKinematics` from the policy's configuration."""
    names = ("tool_point", "joint_signs", "joint_offsets", "base_frame")
    return {name: getattr(config, name) for name in names}


@ProcessorStepRegistry.register("segdepth_tool_pose")
@dataclass
class ToolPoseStep(_ArmKinematics, ObservationStep):
    """Add `observation.tool`, (B, 12) or (B, T, 12): joint angles [rad] and tool pose [m, rad].

    It is internal to the policy and not in a dataset, so it is no declared feature.
    """

    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add joint angles and tool pose."""
        joints = observation[OBS_STATE]
        angles = torch.from_numpy(self.kinematics.to_radians(joints.cpu().double().numpy())).to(joints)
        return {**observation, OBS_TOOL: torch.cat([angles, self.pose(joints)], -1)}


@ProcessorStepRegistry.register("segdepth_to_action_space")
@dataclass
class ToActionSpaceStep(_ArmKinematics, RelativeActionsProcessorStep):
    """Store the measured joints, and in training convert joint targets to the policy's actions.

    Attributes:
        space: `joint_deltas` or `tool_deltas`.
        scale: delta of an action of 1: the policy's `joint_scale` or [`tool_scale`].
        reference: of tool deltas, `target` or `measured`.
    """

    space: str = "joint_deltas"
    scale: list[float] = field(default_factory=list)
    reference: str = "target"

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Process one transition; joints and actions are in the arm's units."""
        # 1. store the current joints for the postprocessor, (B, 6)
        state = (transition.get(TransitionKey.OBSERVATION) or {}).get(OBS_STATE)
        if state is None:
            return transition
        self._last_state = joints = state[:, -1] if state.ndim == 3 else state
        # 2. in training, convert joint targets (B, T, 6)
        action = transition.get(TransitionKey.ACTION)
        if not isinstance(action, Tensor):
            return transition
        converted = transition.copy()
        if self.space == "joint_deltas":
            deltas = (action - joints[:, None]) / action.new_tensor(self.scale)
            converted[TransitionKey.ACTION] = deltas.clamp(-1, 1)
            return converted
        extra = dict(transition.get(TransitionKey.COMPLEMENTARY_DATA) or {})
        converted[TransitionKey.ACTION] = self._tool_deltas(action, joints, extra)
        converted[TransitionKey.COMPLEMENTARY_DATA] = extra
        return converted

    def _tool_deltas(self, action: Tensor, joints: Tensor, extra: dict[str, Any]) -> Tensor:
        """Convert joint targets (B, T, 6) and measured joints (B, 6) to tool deltas in -1..1, (B, T, 4)."""
        targets = self.pose(action)[..., :3]  # (B, T, 3)
        start = self.pose(joints)[:, None, :3]
        # with `target`, (B, 1 + T) targets: the first is the one before the chunk, and padding if the chunk
        # begins the episode, at the measured position
        if self.reference == "target":
            is_pad = extra["action_is_pad"]
            start = torch.where(is_pad[:, :1, None], start, targets[:, :1])
            targets, action, extra["action_is_pad"] = targets[:, 1:], action[:, 1:], is_pad[:, 1:]
        before = torch.cat([start, targets[:, :-1]], 1)
        gripper = action[..., -1:] / 50 - 1
        return torch.cat([(targets - before) / self.scale[0], gripper], -1).clamp(-1, 1)

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {"arm": self.arm, "space": self.space, "scale": self.scale, "reference": self.reference}


@ProcessorStepRegistry.register("segdepth_to_joints")
@dataclass
class ToJointsStep(_ArmKinematics, AbsoluteActionsProcessorStep):
    """Convert the policy's action to joint targets, (B, 6) in degrees and percent, from the measured joints.

    Attributes:
        space: `joint_deltas`, from (B, 6) in -1..1; or `tool_deltas`, from (B, 4): target of the tool [m],
            and gripper in -1..1.
        scale: of joint deltas.
        lock_wrist: see `SegDepthConfig`.
    """

    space: str = "joint_deltas"
    scale: list[float] = field(default_factory=list)
    lock_wrist: list[float] = field(default_factory=list)

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Process one transition.

        Raises:
            RuntimeError: if the preprocessor has not run before.
        """
        action = transition.get(TransitionKey.ACTION)
        if not isinstance(action, Tensor):
            return transition
        joints = self.relative_step.get_cached_state() if self.relative_step else None
        if joints is None:
            raise RuntimeError(
                f"action_space {self.space!r}: found no measured joints, expected the preprocessor to run "
                "first, and both pipelines from `make_pre_post_processors`."
            )
        joints = joints.to(action)
        if self.space == "joint_deltas":
            targets = joints + action.clamp(-1, 1) * action.new_tensor(self.scale)
            targets[:, -1].clamp_(0, 100)
        else:
            targets = torch.stack([self._step_towards(*row) for row in zip(joints, action, strict=True)])
        converted = transition.copy()
        converted[TransitionKey.ACTION] = targets
        return converted

    def _step_towards(self, joints: Tensor, action: Tensor) -> Tensor:
        """Move joints (6,) one step of inverse kinematics towards an action (4,)."""
        target = action[:3].cpu().double().numpy()
        moved = self.kinematics.step(joints.cpu().double().numpy(), target, self.lock_wrist)
        moved[-1] = np.clip(50 * (float(action[3]) + 1), 0, 100)
        return torch.from_numpy(moved).to(action)

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {"arm": self.arm, "space": self.space, "scale": self.scale, "lock_wrist": self.lock_wrist}
