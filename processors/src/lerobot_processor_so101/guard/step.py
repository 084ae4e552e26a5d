# SPDX-License-Identifier: Apache-2.0
"""The guard as a step of a policy's postprocessor: kept for checkpoints that contain it, no longer added.

A pipeline has actions only: no clock, no calibration, no measured joints. So the step cannot know where the
arm is at the first action, nor that a new episode has begun, unless LeRobot calls `reset` (`lerobot-rollout`
does, `lerobot-eval` does not). Teleoperators and homing bypass it. Only `so101_guarded` protects an arm.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import PolicyAction, PolicyActionProcessorStep, ProcessorStepRegistry
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME

from ..arm import JOINTS
from ..cli import run_command
from ..policy.trust import check_pipelines
from . import Guard, GuardLimits
from .core import excess

logger = logging.getLogger(__name__)

_POSTPROCESSOR = f"{POLICY_POSTPROCESSOR_DEFAULT_NAME}.json"
_WITHDRAWN = (
    "a postprocessor cannot guard an arm: it knows neither where the arm is nor that an episode has begun. "
    "Use `--robot.type=so101_guarded` on an SO-101; for another robot, limit commands in its driver."
)


@ProcessorStepRegistry.register("so101_guard")
@dataclass
class GuardProcessorStep(PolicyActionProcessorStep):
    """Limit actions, as far as actions alone allow.

    Attributes:
        limits: fields of `GuardLimits`; body joints in degrees, the gripper in percent.
        fps: actions per second [Hz], which replace the clock.
    """

    limits: dict[str, Any] = field(default_factory=dict)
    fps: float = 30.0

    def __post_init__(self) -> None:
        self._limits = GuardLimits(**self.limits)
        logger.warning("so101_guard: %s To remove the step, delete it from %s.", _WITHDRAWN, _POSTPROCESSOR)
        self.reset()

    def reset(self) -> None:
        """Forget the last command."""
        self._ticks = 0
        self._guards: list[Guard] = []

    def action(self, action: PolicyAction) -> PolicyAction:
        """Limit actions, (B, 6), by the previous ones, or chunks, (B, T, 6), each from its first action.

        Raises:
            ValueError: if there are not six joints, or the first action is not finite, below the table or
                outside the workspace.
        """
        if action.shape[-1] != len(JOINTS):
            raise ValueError(
                f"action: found {tuple(action.shape)}, expected {len(JOINTS)} joints in the last dimension."
            )
        chunks = action if action.ndim == 3 else action[:, None]
        if action.ndim == 3 or len(self._guards) != len(action):
            # How far a chunk overlaps the previous one is not known here: it starts from its first action.
            self._guards = [self._guard_at(chunk[0]) for chunk in chunks.double().cpu().numpy()]
        limited = np.empty(chunks.shape)
        for tick in range(chunks.shape[1]):
            self._ticks += 1
            for row, guard in enumerate(self._guards):
                limited[row, tick] = guard.check(chunks[row, tick].double().cpu().numpy())
        return torch.from_numpy(limited).to(action).reshape(action.shape)

    def _guard_at(self, joints: np.ndarray) -> Guard:
        guard = Guard(self._limits, lambda: self._ticks / self.fps)
        pose = np.clip(joints, self._limits.lower, self._limits.upper)
        guard.initialise(pose)
        beyond = excess(pose[None], self._limits).max()
        if beyond > 0:
            raise ValueError(
                f"so101_guard: the first action is {1000 * beyond:.0f} mm below the table or outside the "
                "workspace. Check the policy, or change `limits.table` and `limits.workspace`."
            )
        return guard

    def get_config(self) -> dict[str, Any]:
        return {"limits": self.limits, "fps": self.fps}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features


@dataclass
class AddGuardConfig:
    """Options of `so101-add-guard`, which is withdrawn.

    Args:
        checkpoint: `pretrained_model` folder.
        fps: rate of the policy [Hz].
        limits: see `GuardLimits`.
    """

    checkpoint: Path
    fps: float = 30.0
    limits: GuardLimits = field(default_factory=GuardLimits)


def add_guard(config: AddGuardConfig) -> None:
    """Refuse to add the step: always raise a ValueError, which names what to use instead."""
    check_pipelines(config.checkpoint)
    raise ValueError(f"withdrawn, nothing was changed: {_WITHDRAWN}")


def main() -> None:
    run_command("so101-add-guard", AddGuardConfig, add_guard)


if __name__ == "__main__":
    main()
