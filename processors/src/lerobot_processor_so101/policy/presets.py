# SPDX-License-Identifier: Apache-2.0
"""What several policy configurations have in common: their optimizer, their schedule, and their cameras."""

from lerobot.configs import PolicyFeature
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig

from ..perception.keys import rgb_cameras


class TrainingPresetMixin:
    """Train with AdamW, gradient clipping and a cosine, without rewards; for a `PreTrainedConfig`."""

    optimizer_lr: float
    optimizer_betas: tuple[float, float] = (0.9, 0.999)
    optimizer_weight_decay: float
    optimizer_grad_clip_norm: float
    scheduler_warmup_steps: int

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig:
        """Return a cosine that reaches zero at the last step of `--steps`, after a linear warm-up."""
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    @property
    def reward_delta_indices(self) -> None:
        return None


class RGBCamerasMixin:
    """Use the RGB cameras as images; for a `PreTrainedConfig`."""

    input_features: dict[str, PolicyFeature] | None

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """RGB cameras. LeRobot stores masks and depth as images too; they are not included."""
        return rgb_cameras(self.input_features)
