# SPDX-License-Identifier: Apache-2.0
"""From the action spaces of the policy to joint targets of the arm, and back for training.

LeRobot links the two steps of its relative actions wherever it loads a pipeline; these are subclasses of them, so that
the second knows the joints that the first has seen. Neither remembers anything of an episode, since LeRobot does not
reset pipelines: the target that tool deltas add up to is held by the policy.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    ObservationProcessorStep,
    ProcessorStepRegistry,
    RelativeActionsProcessorStep,
    RobotObservation,
)
from lerobot.utils.constants import OBS_STATE, OBS_STR
from torch import Tensor

from .configuration_segdepth import SegDepthConfig

OBS_TOOL = f"{OBS_STR}.tool"

type Features = dict[PipelineFeatureType, dict[str, PolicyFeature]]


@dataclass
class _KnowsArm:
    """What the steps need to know of the arm; see `ToolKinematics`."""

    arm: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def kinematics(self) -> Any:
        from .kinematics import ToolKinematics  # MuJoCo is only needed by those who ask for tool places

        return ToolKinematics(**self.arm)

    def pose(self, joints: Tensor) -> Tensor:
        """Tool poses at joints (..., 6), (..., 6) float32."""
        found = self.kinematics.pose(joints.reshape(-1, joints.shape[-1]).cpu().double().numpy())
        return torch.from_numpy(found).to(joints).reshape(joints.shape)


def arm_of(config: SegDepthConfig) -> dict[str, Any]:
    """What the steps need to know of the arm, from the policy's configuration."""
    return {
        "tool_point": list(config.tool_point),
        "joint_signs": list(config.joint_signs),
        "joint_offsets": list(config.joint_offsets),
        "base_frame": config.base_frame,
    }


@ProcessorStepRegistry.register("segdepth_tool_pose")
@dataclass
class ToolPoseStep(_KnowsArm, ObservationProcessorStep):
    """Add `observation.tool`, (B, 12) or (B, T, 12): angles of the joints [rad], place [m] and roll, pitch, yaw [rad].

    Attributes:
        arm: see `ToolKinematics`.
    """

    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Add angles and pose."""
        joints = observation[OBS_STATE]
        angles = torch.from_numpy(self.kinematics.to_radians(joints.cpu().double().numpy())).to(joints)
        return {**observation, OBS_TOOL: torch.cat([angles, self.pose(joints)], -1)}

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {"arm": self.arm}

    def transform_features(self, features: Features) -> Features:
        """The pose is between two steps of one policy; no dataset has it."""
        return features


@ProcessorStepRegistry.register("segdepth_to_action_space")
@dataclass
class ToActionSpaceStep(_KnowsArm, RelativeActionsProcessorStep):
    """Remember the measured joints; in training turn joint targets into what the policy is to predict.

    Attributes:
        space: joint_deltas or tool_deltas.
        scale: what 1 means, as the policy's `joint_scale` or [`tool_scale`].
        reference: of tool deltas, `target` or `measured`.
    """

    space: str = "joint_deltas"
    scale: list[float] = field(default_factory=list)
    reference: str = "target"

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Process one transition; joints and actions are in the arm's units."""
        state = (transition.get(TransitionKey.OBSERVATION) or {}).get(OBS_STATE)
        if state is None:
            return transition
        now = state[:, -1] if state.ndim == 3 else state  # (B, 6)
        self._last_state = now
        action = transition.get(TransitionKey.ACTION)
        if not isinstance(action, Tensor):
            return transition
        changed = transition.copy()
        if self.space == "joint_deltas":
            deltas = (action - now[:, None]) / action.new_tensor(self.scale)
            changed[TransitionKey.ACTION] = deltas.clamp(-1, 1)
            return changed
        extra = dict(transition.get(TransitionKey.COMPLEMENTARY_DATA) or {})
        changed[TransitionKey.ACTION] = self._tool_deltas(action, now, extra)
        changed[TransitionKey.COMPLEMENTARY_DATA] = extra
        return changed

    def _tool_deltas(self, action: Tensor, now: Tensor, extra: dict[str, Any]) -> Tensor:
        """(B, T, 6) joint targets as (B, T, 4); with `target`, the first entry only says where the others start."""
        places = self.pose(action)[..., :3]  # (B, T, 3)
        start = self.pose(now)[:, None, :3]
        if self.reference == "target":
            is_pad = extra["action_is_pad"]  # of the first: the episode begins here
            start = torch.where(is_pad[:, :1, None], start, places[:, :1])
            places, action, extra["action_is_pad"] = places[:, 1:], action[:, 1:], is_pad[:, 1:]
        before = torch.cat([start, places[:, :-1]], 1)
        gripper = action[..., -1:] / 50 - 1
        return torch.cat([(places - before) / self.scale[0], gripper], -1).clamp(-1, 1)

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {"arm": self.arm, "space": self.space, "scale": list(self.scale), "reference": self.reference}


@ProcessorStepRegistry.register("segdepth_to_joints")
@dataclass
class ToJointsStep(_KnowsArm, AbsoluteActionsProcessorStep):
    """Turn the policy's action into joint targets, (B, 6) in degrees and percent, from the joints just measured.

    Attributes:
        space: joint_deltas, from (B, 6) in -1..1; or tool_deltas, from (B, 4): the place [m] that the deltas add up
            to, and the gripper in -1..1.
        scale: of joint deltas.
        lock_wrist: see the policy's.
    """

    space: str = "joint_deltas"
    scale: list[float] = field(default_factory=list)
    lock_wrist: list[float] = field(default_factory=list)

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Process one transition.

        Raises:
            RuntimeError: the preprocessor has not run before.
        """
        action = transition.get(TransitionKey.ACTION)
        if not isinstance(action, Tensor):
            return transition
        joints = self.relative_step.get_cached_state() if self.relative_step else None
        if joints is None:
            raise RuntimeError(
                f"action_space {self.space!r}: found no measured joints, expected the preprocessor to run first, and "
                "both pipelines from `make_pre_post_processors`."
            )
        joints = joints.to(action)
        changed = transition.copy()
        if self.space == "joint_deltas":
            moved = joints + action.clamp(-1, 1) * action.new_tensor(self.scale)
            moved[:, -1].clamp_(0, 100)
        else:
            moved = torch.stack([self._towards(*row) for row in zip(joints, action, strict=True)])
        changed[TransitionKey.ACTION] = moved
        return changed

    def _towards(self, joints: Tensor, action: Tensor) -> Tensor:
        found = self.kinematics.step(
            joints.cpu().double().numpy(), action[:3].cpu().double().numpy(), self.lock_wrist
        )
        found[-1] = np.clip(50 * (float(action[3]) + 1), 0, 100)
        return torch.from_numpy(found).to(action)

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {
            "arm": self.arm,
            "space": self.space,
            "scale": list(self.scale),
            "lock_wrist": list(self.lock_wrist),
        }
