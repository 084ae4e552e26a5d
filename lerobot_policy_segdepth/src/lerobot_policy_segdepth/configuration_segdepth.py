# SPDX-License-Identifier: Apache-2.0
"""Configuration of the segdepth policy."""

import difflib
from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_processor_so101.keys import RECORD_HINT, depth_image_key, seg_image_key


@PreTrainedConfig.register_subclass("segdepth")
@dataclass
class SegDepthConfig(PreTrainedConfig):
    """Configuration of a policy that sees masks and disparity instead of pixels.

    Args:
        n_obs_steps: observations the policy looks at; only 1.
        chunk_size: actions predicted at once, in control periods.
        n_action_steps: actions of a chunk that are executed before the policy looks again.
        cameras: cameras to look through; each needs `observation.images.<camera>_seg` and `_depth`.
        class_names: what the ids in the masks mean; position = id.
        watched_classes: names of the classes that matter to the task; the others are not seen.
        image_size: side of the square that masks and disparity are resized to, in pixels.
        blind: train and act without sight, everything else equal: the baseline that tells what sight is worth.
        hidden_dim: width of the MLP.
        n_layers: hidden layers of the MLP.
        conv_channels: channels of the convolutional branch that sees the shape of things; 0 leaves it out.
        state_noise: standard deviation of the noise added to the state in training, where 1 is the standard
            deviation of the joint in the dataset. Teaches the policy to correct itself.
        ema_decay: the policy acts with an exponential moving average of its weights; 0 turns that off.
        action_feature_names: names of the action's entries; LeRobot fills them in from the dataset.
        optimizer_lr, optimizer_weight_decay, optimizer_grad_clip_norm: of AdamW. The learning rate falls to zero
            along a cosine that ends with the last training step.
        scheduler_warmup_steps: steps over which the learning rate rises first.

    Raises:
        ValueError: a value that cannot work, named with what was expected.
    """

    n_obs_steps: int = 1
    chunk_size: int = 4
    n_action_steps: int = 4

    cameras: list[str] = field(default_factory=lambda: ["top", "wrist"])
    class_names: list[str] = field(
        default_factory=lambda: ["unlabeled", "background", "table", "cube", "static_finger", "moving_finger"]
    )
    watched_classes: list[str] = field(default_factory=lambda: ["cube", "static_finger", "moving_finger"])
    image_size: int = 84
    blind: bool = False

    hidden_dim: int = 256
    n_layers: int = 3
    conv_channels: int = 16
    state_noise: float = 0.03
    ema_decay: float = 0.998

    action_feature_names: list[str] | None = None
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    optimizer_lr: float = 4e-3
    optimizer_weight_decay: float = 1e-3
    optimizer_grad_clip_norm: float = 5.0
    scheduler_warmup_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps != 1:
            raise ValueError(f"n_obs_steps: found {self.n_obs_steps}, expected 1.")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps: found {self.n_action_steps}, expected 1 to chunk_size = {self.chunk_size}."
            )
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras: found {self.cameras}, expected at least one and each once.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay: found {self.ema_decay}, expected 0 (off) up to less than 1.")
        self._check_classes()

    def _check_classes(self) -> None:
        if not self.watched_classes:
            raise ValueError(f"watched_classes: found none, expected some of {self.class_names}.")
        for name in self.watched_classes:
            if name not in self.class_names:
                near = difflib.get_close_matches(name, self.class_names)
                hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise ValueError(
                    f"watched_classes: found {name!r}, expected names from class_names = {self.class_names}.{hint}"
                )

    @property
    def class_ids(self) -> list[int]:
        """Ids of the watched classes."""
        return [self.class_names.index(name) for name in self.watched_classes]

    @property
    def used_features(self) -> dict[str, PolicyFeature]:
        """The input features the policy reads; a dataset may have others, such as colour images."""
        used = {OBS_STATE, *(key for camera in self.cameras for key in _image_keys(camera))}
        return {key: feature for key, feature in (self.input_features or {}).items() if key in used}

    def validate_features(self) -> None:
        """Check that the dataset or environment has what the policy reads.

        Raises:
            ValueError: it has not; the message names the key, what was found and what to do.
        """
        found = sorted(self.input_features or {})
        if OBS_STATE not in found:
            raise ValueError(f"segdepth reads {OBS_STATE!r}; found {found}.")
        if ACTION not in (self.output_features or {}):
            raise ValueError(f"segdepth predicts {ACTION!r}; found {sorted(self.output_features or {})}.")
        for key in (key for camera in self.cameras for key in _image_keys(camera)):
            if key not in found:
                usable = ",".join(c for c in self.cameras if set(_image_keys(c)) <= set(found)) or "top"
                raise ValueError(
                    f"segdepth reads {key!r}; found {found}. {RECORD_HINT} "
                    f"Or look through other cameras: `--policy.cameras='[{usable}]'`."
                )

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return AdamW with gradient clipping."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig:
        """Return a cosine that reaches zero at the last step, whatever `--steps` is."""
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    @property
    def observation_delta_indices(self) -> None:
        """Only the present observation."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The present action and those that follow it in the chunk."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None


def _image_keys(camera: str) -> tuple[str, str]:
    return seg_image_key(camera), depth_image_key(camera)
