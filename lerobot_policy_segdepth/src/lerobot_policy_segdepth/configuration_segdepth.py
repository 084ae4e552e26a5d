# SPDX-License-Identifier: Apache-2.0
"""Configuration of the segdepth policy."""

import copy
import difflib
from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_processor_so101 import (
    CLASS_NAMES,
    OBSERVED,
    check_choices,
    depth_image_key,
    disparity_key,
    image_key,
    seg_image_key,
    seg_key,
)
from lerobot_processor_so101.keys import RECORD_HINT

from .presets import PRESETS

SEGMENTER = "segmenter"
CHOICES = {
    "encoder": ("geometry", "both", "drqv2", "rgb"),
    "proprioception": ("joints", "none", "joints_velocities_tool"),
    "action_space": ("joints", "joint_deltas", "tool_deltas"),
    "tool_reference": ("target", "measured"),
    "base_frame": ("mujoco", "genesis"),
    "color_order": ("rgb", "bgr"),
    "interpolation": ("area", "linear"),
}
JOINTS = 6
FROM_PRESET: Any = None  # a field that the preset fills in unless it is given
_LENGTHS = {
    "crop": 4,
    "joint_scale": JOINTS,
    "joint_signs": JOINTS,
    "joint_offsets": JOINTS,
    "tool_point": 3,
    "workspace": 6,
    "lock_wrist": 2,
}
_ONE_AT_A_TIME = [("joint_deltas", "target"), ("joint_deltas", "measured"), ("tool_deltas", "measured")]
_MAY_BE_EMPTY = ("crop", "lock_wrist")


@PreTrainedConfig.register_subclass("segdepth")
@dataclass
class SegDepthConfig(PreTrainedConfig):
    """Configuration of a policy that sees masks and disparity instead of pixels.

    What is None is filled in from the preset. Lists are empty for "none of it".

    Args:
        preset: `recommended`, `handoff` (seed 002 as written) or `pick101` (as its networks were trained).
        built_from: the preset of a checkpoint; filled in.

        cameras: cameras to look through; each needs masks and depth, or pictures that models look at.
        segmenter: "observation" for masks that come with the observation, or the name of a segmenter.
        depth: "observation", the name of a depth model, or "segmenter" for the segmenter's own disparity.
        classes: what an open-vocabulary segmenter looks for.
        class_names: what the ids in the masks mean; position = id.
        watched_classes: names of the classes that matter to the task; the others are not seen. Of the encoders
            `geometry` and `both`.
        class_values: the number that stands for each class of `class_names` in what the encoder `drqv2` is given.
        color_order: of the pictures as cameras hand them out, `rgb` or `bgr`.
        crop: [top, left, height, width] of the part that is seen, as fractions of the picture; empty for all of it.
        crop_first: models and the stretch of disparity see only the crop; otherwise the whole picture.
        interpolation: of disparity, `area` or `linear`. Ids are picked.
        whole_disparity: cut off the fractions of disparity, as bytes do.
        image_size: side of the square that masks and disparity are resized to [pixels].
        n_obs_steps: frames the policy sees at once.
        fps: rate at which it is trained and run [Hz]; datasets and environments of another are refused.
        stack_period: time between the frames it sees [s].
        max_still: looks after which an unchanged picture counts as a camera that hangs; 0 turns that off. A
            simulator's picture may rightly stand still, a camera's never does.
        blind: train and act without sight, everything else equal: the baseline that tells what sight is worth.

        encoder: `geometry` of masks, `both` that and convolutions on coarse masks, `drqv2` (four convolutions on the
            stack), or `rgb` (convolutions on colours without any masks: the baseline).
        pixel_offset: what `drqv2` subtracts from values over 255.
        random_shift: pixels by which frames are shifted in training; of `drqv2` and `rgb`.
        hidden_dim: width of the MLP.
        n_layers: hidden layers of the MLP.
        conv_channels: channels of the convolutions of `both` and `rgb`.
        proprioception: `joints`, `none`, or `joints_velocities_tool` (pick101's 18 numbers per frame).
        state_noise: standard deviation of the noise added to the joints in training, where 1 is the standard
            deviation of the joint in the dataset. Teaches the policy to correct itself.
        ema_decay: the policy acts with an exponential moving average of its weights; 0 turns that off.

        action_space: `joints` (absolute), `joint_deltas`, or `tool_deltas` (of the tool point; the gripper absolute).
        chunk_size: actions predicted at once, in control periods.
        n_action_steps: actions of a chunk that are executed before the policy looks again.
        action_repeat: control periods that each action lasts.
        joint_scale: what 1 means in joint deltas [deg; gripper in percent].
        tool_scale: what 1 means in tool deltas [m].
        tool_reference: deltas are added to the last `target`, or to the `measured` place.
        tool_point: in the gripper's frame [m].
        workspace: lower and upper corner that the target of the tool stays in [m], in the base's frame.
        lock_wrist: angles of wrist_flex and wrist_roll that are kept in tool deltas [deg]; empty leaves them free.
        base_frame: of tool places, `mujoco` (x forward) or `genesis` (y forward).
        joint_signs, joint_offsets: from the arm's degrees to those of the kinematic model: sign * (degrees + offset).

        action_feature_names: names of the action's entries; LeRobot fills them in from the dataset.
        optimizer_lr, optimizer_weight_decay, optimizer_grad_clip_norm: of AdamW. The learning rate falls to zero
            along a cosine that ends with the last training step.
        scheduler_warmup_steps: steps over which the learning rate rises first.

    Raises:
        ValueError: a value that cannot work, named with what was expected.
    """

    preset: str = "recommended"
    built_from: str | None = None

    cameras: list[str] = FROM_PRESET
    segmenter: str = OBSERVED
    depth: str = OBSERVED
    classes: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=lambda: list(CLASS_NAMES))
    watched_classes: list[str] = field(default_factory=lambda: ["cube", "static_finger", "moving_finger"])
    class_values: list[int] = FROM_PRESET
    color_order: str = "rgb"
    crop: list[float] = FROM_PRESET
    crop_first: bool = FROM_PRESET
    interpolation: str = FROM_PRESET
    whole_disparity: bool = FROM_PRESET
    image_size: int = 84
    n_obs_steps: int = FROM_PRESET
    fps: int = FROM_PRESET
    stack_period: float = FROM_PRESET
    max_still: int = 0
    blind: bool = False

    encoder: str = FROM_PRESET
    pixel_offset: float = FROM_PRESET
    random_shift: int = FROM_PRESET
    hidden_dim: int = 256
    n_layers: int = 3
    conv_channels: int = 16
    proprioception: str = FROM_PRESET
    state_noise: float = FROM_PRESET
    ema_decay: float = 0.998

    action_space: str = FROM_PRESET
    chunk_size: int = FROM_PRESET
    n_action_steps: int = FROM_PRESET
    action_repeat: int = FROM_PRESET
    joint_scale: list[float] = field(default_factory=lambda: [10.0] * 5 + [30.0])
    tool_scale: float = 0.02
    tool_reference: str = "target"
    tool_point: list[float] = field(default_factory=lambda: [0.0, 0.0, -0.0981274])
    workspace: list[float] = field(default_factory=lambda: [0.10, -0.30, 0.01, 0.50, 0.30, 0.40])
    lock_wrist: list[float] = field(default_factory=list)
    base_frame: str = "mujoco"
    joint_signs: list[float] = field(default_factory=lambda: [1.0] * JOINTS)
    joint_offsets: list[float] = field(default_factory=lambda: [0.0] * JOINTS)

    action_feature_names: list[str] | None = None
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=dict)

    optimizer_lr: float = FROM_PRESET
    optimizer_weight_decay: float = 1e-3
    optimizer_grad_clip_norm: float = 5.0
    scheduler_warmup_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill_in()
        self._check_choices()
        self._check_numbers()
        self._check_classes()
        if not self.normalization_mapping:
            self.normalization_mapping = {"VISUAL": NormalizationMode.IDENTITY, **self._normalization()}

    def _fill_in(self) -> None:
        """Take from the preset what is not given."""
        check_choices(self, {"preset": PRESETS})
        if self.built_from not in (None, self.preset):
            raise ValueError(
                f"preset: found {self.preset!r}, expected {self.built_from!r}, which this checkpoint was built from. "
                "Train anew for another: `--policy.type=segdepth`."
            )
        self.built_from = self.preset
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, copy.copy(value))

    def _normalization(self) -> dict[str, NormalizationMode]:
        """Deltas, and what pick101 knows of its joints, are what they are; `drqv2` answers within -1..1."""
        raw = self.proprioception == "joints_velocities_tool"
        absolute = NormalizationMode.MIN_MAX if self.encoder == "drqv2" else NormalizationMode.MEAN_STD
        return {
            "STATE": NormalizationMode.IDENTITY if raw else NormalizationMode.MEAN_STD,
            "ACTION": absolute if self.action_space == "joints" else NormalizationMode.IDENTITY,
        }

    def _check_choices(self) -> None:
        check_choices(self, CHOICES)
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras: found {self.cameras}, expected at least one and each once.")
        if self.depth == SEGMENTER and self.segmenter == OBSERVED:
            raise ValueError(
                "depth: found 'segmenter', expected a segmenter with a disparity head, such as 'workbench'."
            )
        if self.chunk_size > 1 and (self.action_space, self.tool_reference) in _ONE_AT_A_TIME:
            raise ValueError(
                f"chunk_size: found {self.chunk_size}, expected 1: {self.action_space!r} start from joints measured "
                "each time; chunks are for 'joints', and 'tool_deltas' with tool_reference 'target'."
            )
        if self.encoder != "drqv2" and self.action_space != "joints":
            raise ValueError(
                f"action_space: found {self.action_space!r}, expected 'joints' with encoder {self.encoder!r}; deltas "
                "go with 'drqv2'."
            )
        if self.encoder != "drqv2" and self.proprioception != "joints":
            raise ValueError(
                f"proprioception: found {self.proprioception!r}, expected 'joints', which is what encoder "
                f"{self.encoder!r} goes with; 'drqv2' takes all of them."
            )

    def _check_numbers(self) -> None:
        for name in ("n_obs_steps", "chunk_size", "action_repeat", "fps", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 1 or more.")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps: found {self.n_action_steps}, expected 1 to chunk_size = {self.chunk_size}."
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay: found {self.ema_decay}, expected 0 (off) up to less than 1.")
        if self.n_obs_steps > 1 and not 0.99 < self.stack_period * self.fps / self.stack_ticks < 1.01:
            raise ValueError(
                f"stack_period: found {self.stack_period} s, expected a multiple of 1 / fps = {1 / self.fps:.4f} s."
            )
        for name, length in _LENGTHS.items():
            found = getattr(self, name)
            if len(found) != length and (found or name not in _MAY_BE_EMPTY):
                raise ValueError(f"{name}: found {found}, expected {length} numbers.")

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
        if self.class_values and len(self.class_values) != len(self.class_names):
            raise ValueError(
                f"class_values: found {len(self.class_values)} numbers, expected one for each of class_names = "
                f"{self.class_names}."
            )

    @property
    def class_ids(self) -> list[int]:
        """Ids of the watched classes."""
        return [self.class_names.index(name) for name in self.watched_classes]

    @property
    def stack_ticks(self) -> int:
        """Control periods between the frames it sees."""
        return max(1, round(self.stack_period * self.fps))

    @property
    def output_dim(self) -> int:
        """Entries of an action as the network gives it."""
        return 4 if self.action_space == "tool_deltas" else (self.output_features or {})[ACTION].shape[0]

    @property
    def uses_kinematics(self) -> bool:
        """Whether it must know where the tool point is."""
        return self.action_space == "tool_deltas" or self.proprioception == "joints_velocities_tool"

    def sources(self, camera: str) -> list[tuple[str, ...]]:
        """Keys of which the policy needs one each, from masks and then from disparity.

        With a model the pictures may come live or the results precomputed.
        """
        if self.encoder == "rgb":
            return [(image_key(camera),)]
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

    def frame_size(self, camera: str) -> tuple[int, int]:
        """(h, w) of what a dataset or environment has of a camera: pictures, or masks where it has no pictures."""
        declared = self.input_features or {}
        keys = [image_key(camera), *(key for source in self.sources(camera) for key in source)]
        shape = next(declared[key].shape for key in keys if key in declared)
        return shape[-2], shape[-1]

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
        self._check_state()
        for camera in self.cameras:
            for source in self.sources(camera):
                if not set(source) & set(found):
                    usable = ",".join(c for c in self.cameras if self._can_use(c)) or "top"
                    raise ValueError(
                        f"segdepth reads {' or '.join(map(repr, source))}; found {found}. {RECORD_HINT} Or look "
                        f"through other cameras: `--policy.cameras='[{usable}]'`. Or let models look at colour "
                        "pictures: `--policy.segmenter=workbench --policy.depth=segmenter`."
                    )

    def _check_state(self) -> None:
        """Deltas and the kinematic model are those of the SO-101."""
        for name, features in (("state", self.input_features), ("action", self.output_features)):
            key = OBS_STATE if name == "state" else ACTION
            found = (features or {})[key].shape
            if (self.uses_kinematics or self.action_space != "joints") and found != (JOINTS,):
                raise ValueError(
                    f"{key}: found shape {tuple(found)}, expected ({JOINTS},), the joints of an SO-101, for "
                    f"action_space {self.action_space!r} and proprioception {self.proprioception!r}."
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
    def observation_delta_indices(self) -> list[int] | None:
        """The frames it sees, oldest first; None for only the present one."""
        if self.n_obs_steps == 1:
            return None
        return [-self.stack_ticks * age for age in reversed(range(self.n_obs_steps))]

    @property
    def action_delta_indices(self) -> list[int]:
        """The present action and those that follow it in the chunk; before them the one that tool deltas start from."""
        before = self.action_space == "tool_deltas" and self.tool_reference == "target"
        return list(range(-before, self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None
