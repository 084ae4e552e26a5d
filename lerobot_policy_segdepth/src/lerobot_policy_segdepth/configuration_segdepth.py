# SPDX-License-Identifier: Apache-2.0
"""Configuration of the segdepth policy."""

import difflib
from dataclasses import dataclass, field

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_processor_so101 import (
    OBSERVED,
    depth_image_key,
    disparity_key,
    image_key,
    seg_image_key,
    seg_key,
)
from lerobot_processor_so101.keys import RECORD_HINT

SEGMENTER = "segmenter"


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
    segmenter: str = OBSERVED
    depth: str = OBSERVED
    classes: list[str] = field(default_factory=list)
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
        if self.depth == SEGMENTER and self.segmenter == OBSERVED:
            raise ValueError(
                "depth: found 'segmenter', expected a segmenter with a disparity head, such as 'workbench'."
            )
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

    def sources(self, camera: str) -> list[tuple[str, ...]]:
        """Keys of which the policy needs one each, from masks and then from disparity.

        With a model the pictures may come live or the results precomputed.
        """
        seg = (seg_image_key(camera),) if self.segmenter == OBSERVED else (seg_key(camera), image_key(camera))
        depth = (
            (depth_image_key(camera),)
            if self.depth == OBSERVED
            else (disparity_key(camera), image_key(camera))
        )
        return [seg, depth]

    @property
    def used_features(self) -> dict[str, PolicyFeature]:
        """The input features the policy reads; a dataset may have others.

        Every form of a feature is declared, though a dataset or robot has only one of them: LeRobot compares
        these names with those of each.
        """
        declared = dict(self.input_features or {})
        plane = PolicyFeature(type=FeatureType.VISUAL, shape=(1, self.image_size, self.image_size))
        used = {OBS_STATE: declared[OBS_STATE]}
        for camera in self.cameras:
            for key in (key for source in self.sources(camera) for key in source):
                used[key] = declared.get(key, plane)
        return used

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
        for camera in self.cameras:
            for source in self.sources(camera):
                if not set(source) & set(found):
                    usable = ",".join(c for c in self.cameras if self._can_use(c)) or "top"
                    raise ValueError(
                        f"segdepth reads {' or '.join(map(repr, source))}; found {found}. {RECORD_HINT} Or look "
                        f"through other cameras: `--policy.cameras='[{usable}]'`. Or let models look at colour "
                        "pictures: `--policy.segmenter=workbench --policy.depth=segmenter`."
                    )

    def _can_use(self, camera: str) -> bool:
        return all(set(source) & set(self.input_features or {}) for source in self.sources(camera))

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
