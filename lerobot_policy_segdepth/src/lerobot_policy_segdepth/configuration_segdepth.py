# SPDX-License-Identifier: Apache-2.0
"""Configuration of the segdepth policy."""

import copy
import difflib
from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_processor_so101 import (
    CLASS_NAMES,
    OBSERVED,
    DatasetLookupMixin,
    check_choices,
    depth_image_key,
    disparity_key,
    image_key,
    seg_image_key,
    seg_key,
)
from lerobot_processor_so101.arm import JOINTS, TOOL_POINT
from lerobot_processor_so101.config_checks import check_smallest
from lerobot_processor_so101.perception.keys import RECORD_HINT
from lerobot_processor_so101.perception.roles import Roles
from lerobot_processor_so101.policy.presets import TrainingPresetMixin

from .presets import PRESETS

SEGMENTER = "segmenter"
N_JOINTS = len(JOINTS)
FROM_PRESET: Any = None  # a field that the preset fills in unless it is given
_CHOICES = {
    "encoder": ("geometry", "both", "drqv2", "rgb"),
    "proprioception": ("joints", "none", "joints_velocities_tool"),
    "action_space": ("joints", "joint_deltas", "tool_deltas"),
    "tool_reference": ("target", "measured"),
    "base_frame": ("mujoco", "genesis"),
    "color_order": ("rgb", "bgr"),
    "interpolation": ("area", "linear"),
}
_FROM_MEASURED = [("joint_deltas", "target"), ("joint_deltas", "measured"), ("tool_deltas", "measured")]
_LENGTHS = {
    "crop": (0, 4),
    "joint_scale": (N_JOINTS,),
    "joint_signs": (N_JOINTS,),
    "joint_offsets": (N_JOINTS,),
    "tool_point": (3,),
    "workspace": (6,),
    "lock_wrist": (0, 2),
}


@PreTrainedConfig.register_subclass("segdepth")
@dataclass
class SegDepthConfig(TrainingPresetMixin, DatasetLookupMixin, PreTrainedConfig):
    """Configuration of a policy whose input is masks and disparity instead of pixels.

    The preset fills in every option that is None. An empty list stands for "none".

    Args:
        preset: `recommended`, `handoff` (pick-101's handoff note) or `pick101` (its trained networks).
        cameras: names of the cameras; each needs masks and depth, or RGB images for perception models.
        segmenter: name of a segmenter, or "observation" for masks that come with the observation.
        depth: name of a depth model, "observation", or "segmenter" for the segmenter's own disparity.
        classes: texts for an open-vocabulary segmenter.
        class_names: names of the class ids in the masks; position = id.
        watched_classes: classes and roles that matter to the task; the encoders `geometry` and `both` ignore
            others.
        roles: what may play a role in the task sentence, by the role's name: a class name, or the last word
            of several, such as {"target": "cube", "container": "bowl"}. One policy then serves all sentences.
            Not for the encoders `drqv2` and `rgb`.
        synonyms: other words for classes, by class name.
        fps: control periods per second [Hz]; datasets and environments of another rate are refused.
        n_obs_steps: frames per prediction.
        stack_period: time between these frames [s].
        chunk_size: actions per prediction, in control periods.
        n_action_steps: actions of a chunk that are executed before the next prediction.
        encoder: `geometry` of masks; `both`, geometry and convolutions on coarse masks; `drqv2`, four
            convolutions on the stack of frames; or `rgb`, the baseline: convolutions on RGB, without masks.
        max_still: repeats of an image after which its camera counts as frozen; 0 for simulators, never.
        blind: train and run without visual features: the baseline.

    Expert options of images:
        color_order: of the cameras' images, `rgb` or `bgr`.
        crop: [top, left, height, width] of the visible region as fractions of the image; empty for all of it.
        crop_first: crop before perception models and the normalisation of disparity, instead of after them.
        interpolation: of disparity, `area` or `linear`. Ids are picked.
        whole_disparity: floor disparity to integers.
        image_size: side of the square that masks and disparity are resized to [pixels].
        class_values: value of each class of `class_names` in the input of the encoder `drqv2`.

    Expert options of the network:
        pixel_offset: `drqv2` subtracts it from values / 255.
        random_shift: largest random shift of frames in training [pixels of `image_size`; with `rgb`, of the
            camera's image]. It teaches the policy to look where objects are relative to the fingers, and not
            where a camera sees them.
        hidden_dim, n_layers: width and hidden layers of the MLP.
        conv_channels: channels of the first convolution of `both` and `rgb`.
        proprioception: `joints`, `none`, or `joints_velocities_tool` (pick101's 18 values per frame).
        state_noise: noise on the joints in training, in standard deviations of the dataset. It teaches the
            policy to correct its errors.
        ema_decay: decay of the averaged weights that inference uses; 0 turns averaging off.

    Expert options of actions:
        action_space: `joints` (absolute), `joint_deltas`, or `tool_deltas` (the gripper stays absolute).
        action_repeat: control periods per action.
        joint_scale: joint delta of an action of 1, (6,) [deg; gripper in percent].
        tool_scale: tool delta of an action of 1 [m].
        tool_reference: add tool deltas to the last `target` or to the `measured` position.
        tool_point: (3,) in the gripper's frame [m].
        workspace: lower and upper corner of the tool's targets, (6,) in the base's frame [m].
        lock_wrist: fixed angles of wrist_flex and wrist_roll with tool deltas [deg]; empty leaves them free.
        base_frame: of tool positions, `mujoco` (x forward) or `genesis` (y forward).
        joint_signs, joint_offsets: the kinematic model's degrees are sign * (the arm's degrees + offset).

    Expert options of training:
        optimizer_lr, optimizer_weight_decay, optimizer_grad_clip_norm: options of AdamW.
        scheduler_warmup_steps: warm-up of the cosine schedule, which ends at zero with the last step.

    Filled in, not set:
        built_from: the preset of a checkpoint.
        action_feature_names: names of the action's entries, from the dataset.

    Raises:
        ValueError: if a value is out of range or two values contradict each other.
    """

    preset: str = "recommended"
    cameras: list[str] = FROM_PRESET
    segmenter: str = OBSERVED
    depth: str = OBSERVED
    classes: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=lambda: list(CLASS_NAMES))
    watched_classes: list[str] = field(default_factory=lambda: ["cube", "static_finger", "moving_finger"])
    roles: dict[str, str] = field(default_factory=dict)
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    fps: int = FROM_PRESET
    n_obs_steps: int = FROM_PRESET
    stack_period: float = FROM_PRESET
    chunk_size: int = FROM_PRESET
    n_action_steps: int = FROM_PRESET
    encoder: str = FROM_PRESET
    max_still: int = 0
    blind: bool = False

    color_order: str = "rgb"
    crop: list[float] = FROM_PRESET
    crop_first: bool = FROM_PRESET
    interpolation: str = FROM_PRESET
    whole_disparity: bool = FROM_PRESET
    image_size: int = 84
    class_values: list[int] = FROM_PRESET

    pixel_offset: float = FROM_PRESET
    random_shift: int = FROM_PRESET
    hidden_dim: int = 256
    n_layers: int = 3
    conv_channels: int = 16
    proprioception: str = FROM_PRESET
    state_noise: float = FROM_PRESET
    ema_decay: float = 0.998

    action_space: str = FROM_PRESET
    action_repeat: int = FROM_PRESET
    joint_scale: list[float] = field(default_factory=lambda: [10.0] * 5 + [30.0])
    tool_scale: float = 0.02
    tool_reference: str = "target"
    tool_point: list[float] = field(default_factory=TOOL_POINT.tolist)
    workspace: list[float] = field(default_factory=lambda: [0.10, -0.30, 0.01, 0.50, 0.30, 0.40])
    lock_wrist: list[float] = field(default_factory=list)
    base_frame: str = "mujoco"
    joint_signs: list[float] = field(default_factory=lambda: [1.0] * N_JOINTS)
    joint_offsets: list[float] = field(default_factory=lambda: [0.0] * N_JOINTS)

    optimizer_lr: float = FROM_PRESET
    optimizer_weight_decay: float = 1e-3
    optimizer_grad_clip_norm: float = 5.0
    scheduler_warmup_steps: int = 20

    built_from: str | None = None
    action_feature_names: list[str] | None = None
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._apply_preset()
        self._check_numbers()
        self._check_combinations()
        self._check_classes()
        if not self.normalization_mapping:
            # Raw features stay as they are: deltas, and pick101's joints. `drqv2` outputs -1..1.
            identity, standard = NormalizationMode.IDENTITY, NormalizationMode.MEAN_STD
            absolute = NormalizationMode.MIN_MAX if self.encoder == "drqv2" else standard
            self.normalization_mapping = {
                "VISUAL": identity,
                "STATE": identity if self.proprioception == "joints_velocities_tool" else standard,
                "ACTION": absolute if self.action_space == "joints" else identity,
            }

    def _apply_preset(self) -> None:
        check_choices(self, {"preset": PRESETS})
        if self.built_from not in (None, self.preset):
            raise ValueError(
                f"preset: found {self.preset!r}, expected {self.built_from!r}, which this checkpoint was "
                "built from. Train a new policy for another preset: `--policy.type=segdepth`."
            )
        self.built_from = self.preset
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, copy.copy(value))

    def _check_numbers(self) -> None:
        sizes = ("n_obs_steps", "chunk_size", "action_repeat", "fps", "image_size")
        check_smallest(self, dict.fromkeys(sizes, 1))
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps: found {self.n_action_steps}, expected 1 to chunk_size = {self.chunk_size}."
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay: found {self.ema_decay}, expected 0 (off) up to less than 1.")
        if self.n_obs_steps > 1 and not 0.99 < self.stack_period * self.fps / self.stack_ticks < 1.01:
            raise ValueError(
                f"stack_period: found {self.stack_period} s, expected a multiple of 1 / fps = "
                f"{1 / self.fps:.4f} s."
            )
        for name, lengths in _LENGTHS.items():
            if len(getattr(self, name)) not in lengths:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected {lengths[-1]} numbers.")

    def _check_combinations(self) -> None:
        check_choices(self, _CHOICES)
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras: found {self.cameras}, expected at least one and each once.")
        if self.depth == SEGMENTER and self.segmenter == OBSERVED:
            raise ValueError(
                "depth: found 'segmenter', expected a segmenter with a disparity head, such as 'workbench'."
            )
        if self.chunk_size > 1 and (self.action_space, self.tool_reference) in _FROM_MEASURED:
            raise ValueError(
                f"chunk_size: found {self.chunk_size}, expected 1: {self.action_space!r} start from measured "
                "joints each time; chunks need 'joints', or 'tool_deltas' with tool_reference 'target'."
            )
        for name in ("action_space", "proprioception"):
            if self.encoder != "drqv2" and getattr(self, name) != "joints":
                raise ValueError(
                    f"{name}: found {getattr(self, name)!r}, expected 'joints' with encoder "
                    f"{self.encoder!r}; the others need 'drqv2'."
                )

    def _check_classes(self) -> None:
        if not self.watched_classes:
            raise ValueError(f"watched_classes: found none, expected some of {self.class_names}.")
        for name in self.watched_classes:
            if name not in (known := [*self.class_names, *self.roles]):
                near = difflib.get_close_matches(name, known)
                hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise ValueError(
                    f"watched_classes: found {name!r}, expected names from class_names = "
                    f"{self.class_names}, or roles = {list(self.roles)}.{hint}"
                )
        self._check_roles()
        if self.class_values and len(self.class_values) != len(self.class_names):
            raise ValueError(
                f"class_values: found {len(self.class_values)} numbers, expected one for each of class_names "
                f"= {self.class_names}."
            )

    def _check_roles(self) -> None:
        if not self.roles:
            return
        if self.encoder in ("drqv2", "rgb"):
            raise ValueError(f"roles: found {self.roles}, expected none with encoder {self.encoder!r}.")
        if both := set(self.roles) & set(self.class_names):
            raise ValueError(f"roles: found {sorted(both)}, expected other names than those of classes.")
        if unwatched := set(self.roles) - set(self.watched_classes):
            raise ValueError(
                f"watched_classes: found {self.watched_classes}, expected also the roles {sorted(unwatched)}."
            )
        Roles(self.watched_classes, self.roles, self.class_names, self.synonyms)

    @property
    def class_ids(self) -> list[int]:
        """Ids of the watched classes, without roles: the ids of roles depend on the sentence."""
        return [self.class_names.index(name) for name in self.watched_classes]

    @property
    def stack_ticks(self) -> int:
        """Control periods between stacked frames."""
        return max(1, round(self.stack_period * self.fps))

    @property
    def output_dim(self) -> int:
        """Entries of an action of the network."""
        return 4 if self.action_space == "tool_deltas" else (self.output_features or {})[ACTION].shape[0]

    @property
    def uses_kinematics(self) -> bool:
        """Whether the tool pose is needed."""
        return self.action_space == "tool_deltas" or self.proprioception == "joints_velocities_tool"

    def sources(self, camera: str) -> list[tuple[str, ...]]:
        """Alternative keys of each visual input: of masks and of disparity, or of RGB images.

        With a perception model the input is its precomputed output or the images for live inference.
        """
        image = image_key(camera)
        if self.encoder == "rgb":
            return [(image,)]
        seg = (seg_image_key(camera),) if self.segmenter == OBSERVED else (seg_key(camera), image)
        depth = (depth_image_key(camera),) if self.depth == OBSERVED else (disparity_key(camera), image)
        return [seg, depth]

    @property
    def used_features(self) -> dict[str, PolicyFeature]:
        """Input features that the policy reads.

        All alternative keys are declared, though a dataset or robot has one of them: LeRobot compares these
        names with the features of each.
        """
        declared = self.input_features or {}
        plane = PolicyFeature(type=FeatureType.VISUAL, shape=(1, self.image_size, self.image_size))
        keys = [key for camera in self.cameras for source in self.sources(camera) for key in source]
        return {OBS_STATE: declared[OBS_STATE], **{key: declared.get(key, plane) for key in keys}}

    def frame_size(self, camera: str) -> tuple[int, int]:
        """(h, w) of a camera's images in a dataset or environment, or of its masks if it has no images."""
        declared = self.input_features or {}
        keys = [image_key(camera), *(key for source in self.sources(camera) for key in source)]
        shape = next(declared[key].shape for key in keys if key in declared)
        return shape[-2], shape[-1]

    def validate_features(self) -> None:
        """Check that the dataset or environment has the features that the policy reads and predicts.

        Raises:
            ValueError: if one is missing or has another shape; the message names it and a way to get it.
        """
        inputs, outputs = self.input_features or {}, self.output_features or {}
        is_so101 = self.uses_kinematics or self.action_space != "joints"
        for key, features in ((OBS_STATE, inputs), (ACTION, outputs)):
            if key not in features:
                raise ValueError(f"segdepth needs {key!r}; found {sorted(features)}.")
            if is_so101 and features[key].shape != (N_JOINTS,):
                raise ValueError(
                    f"{key}: found shape {tuple(features[key].shape)}, expected ({N_JOINTS},), the joints of "
                    f"an SO-101, for action_space {self.action_space!r} and proprioception "
                    f"{self.proprioception!r}."
                )
        missing = {c: [keys for keys in self.sources(c) if not inputs.keys() & keys] for c in self.cameras}
        if any(missing.values()):
            keys = next(filter(None, missing.values()))[0]
            usable = ",".join(camera for camera in self.cameras if not missing[camera]) or "top"
            raise ValueError(
                f"segdepth reads {' or '.join(map(repr, keys))}; found {sorted(inputs)}. {RECORD_HINT} Or "
                f"use other cameras: `--policy.cameras='[{usable}]'`. Or estimate both from RGB images: "
                "`--policy.segmenter=workbench --policy.depth=segmenter`."
            )

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """Control periods of the stacked frames, oldest first; None for the current one only."""
        if self.n_obs_steps == 1:
            return None
        return [-self.stack_ticks * age for age in reversed(range(self.n_obs_steps))]

    @property
    def chunk_delta_indices(self) -> list[int]:
        """Control periods of a chunk's actions; with tool deltas also the action before, their reference."""
        before = self.action_space == "tool_deltas" and self.tool_reference == "target"
        return list(range(-before, self.chunk_size))
