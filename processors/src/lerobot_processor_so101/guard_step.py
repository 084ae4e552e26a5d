# SPDX-License-Identifier: Apache-2.0
"""The guard as the last step of a policy's postprocessor, for robot types that have none. It is advice, not protection.

A pipeline sees actions only: no calibration, no clock, no measured joints; teleoperators and the way home pass it by, and who
brings another checkpoint brings another pipeline. `so101_guarded` is what protects an arm.

    so101-add-guard --checkpoint=outputs/train/checkpoints/last/pretrained_model --limits.velocity=60
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import torch
from draccus.utils import DraccusException
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import (
    PolicyAction,
    PolicyActionProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME

from .guard import JOINTS, Guard, GuardLimits


@ProcessorStepRegistry.register("so101_guard")
@dataclass
class GuardProcessorStep(PolicyActionProcessorStep):
    """Hold actions to limits, as far as can be known from them.

    Attributes:
        limits: fields of `GuardLimits`; body joints in degrees, the gripper in percent.
        fps: actions per second [Hz]: its clock.
    """

    limits: dict[str, Any] = field(default_factory=dict)
    fps: float = 30.0

    def __post_init__(self) -> None:
        self._limits = GuardLimits(**self.limits)
        self.reset()

    def reset(self) -> None:
        """Forget what was last told."""
        self._ticks = 0
        self._guards: list[Guard] = []

    def action(self, action: PolicyAction) -> PolicyAction:
        """Actions (B, 6), each held against the one before; or chunks (B, T, 6), each held together in itself.

        Raises:
            ValueError: another size, or nothing but NaN to begin with.
        """
        if action.shape[-1] != len(JOINTS):
            raise ValueError(
                f"action: found {tuple(action.shape)}, expected {len(JOINTS)} joints in the last dimension."
            )
        chunks = action if action.ndim == 3 else action[:, None]
        if action.ndim == 3 or len(self._guards) != len(action):
            # A chunk overlaps the one before by what only the engine knows: it begins where it says.
            self._guards = [self._standing(chunk[0]) for chunk in chunks.double().cpu().numpy()]
        held = np.empty(chunks.shape)
        for tick in range(chunks.shape[1]):
            self._ticks += 1
            for row, guard in enumerate(self._guards):
                held[row, tick] = guard.check(chunks[row, tick].double().cpu().numpy())
        return torch.from_numpy(held).to(action).reshape(action.shape)

    def _standing(self, joints: np.ndarray) -> Guard:
        guard = Guard(self._limits, lambda: self._ticks / self.fps)
        guard.stand(np.clip(joints, self._limits.lower, self._limits.upper))
        return guard

    def get_config(self) -> dict[str, Any]:
        """Return everything needed to rebuild the step from JSON."""
        return {"limits": self.limits, "fps": self.fps}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Nothing changes its shape."""
        return features


@dataclass
class AddGuardConfig:
    """Options of `so101-add-guard`.

    Args:
        checkpoint: `pretrained_model` folder whose postprocessor gets the step, or has it replaced.
        fps: that the policy acts at [Hz].
        limits: see `GuardLimits`.
    """

    checkpoint: Path
    fps: float = 30.0
    limits: GuardLimits = field(default_factory=GuardLimits)


def add_guard(config: AddGuardConfig) -> None:
    """Write the step into a checkpoint.

    Raises:
        ValueError: there is no postprocessor.
    """
    name = f"{POLICY_POSTPROCESSOR_DEFAULT_NAME}.json"
    if not (config.checkpoint / name).is_file():
        raise ValueError(
            f"--checkpoint: found no {name} in {config.checkpoint}; give a `pretrained_model` folder."
        )
    pipeline: Any = PolicyProcessorPipeline.from_pretrained(
        config.checkpoint,
        config_filename=name,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    kept = [step for step in pipeline.steps if not isinstance(step, GuardProcessorStep)]
    pipeline.steps = [*kept, GuardProcessorStep(dataclasses.asdict(config.limits), config.fps)]
    pipeline.save_pretrained(config.checkpoint)


def main() -> None:
    """The console script."""
    try:
        config = draccus.parse(AddGuardConfig)
        add_guard(config)
    except (OSError, ValueError, DraccusException) as error:
        print(f"so101-add-guard: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(
        f"{config.checkpoint}: actions are held to {config.limits} before a robot gets them. This is advice; see docs/real_arm.md."
    )


if __name__ == "__main__":
    main()
