# SPDX-License-Identifier: Apache-2.0
"""Configuration of the segvla policy."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import PolicyFeature, PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import OBS_IMAGES

from lerobot_processor_so101 import (
    OBSERVED,
    ClassMap,
    DatasetLookupMixin,
    check_choices,
    seg_key,
    seg_logits_key,
    seg_top_k_key,
)
from lerobot_processor_so101.policy.presets import RGBCamerasMixin

INJECTIONS = ("residual", "connector", "tokens")
KINDS = ("ids", "top_k", "logits", "log_scores", "probs")
PER_CLASS = 4  # numbers of geometry per class: presence, x, y, size
GEOMETRY_CLASSES = 8  # at most, so that they fill SmolVLA's 32 numbers of state
SCORE_KEYS = {"ids": seg_key, "top_k": seg_top_k_key, "logits": seg_logits_key}  # of a camera, by kind


@PreTrainedConfig.register_subclass("segvla")
@dataclass
class SegVLAConfig(RGBCamerasMixin, DatasetLookupMixin, SmolVLAConfig):
    """Configuration of SmolVLA with segmentation cues. Without a segmenter and a feature map it is SmolVLA.

    The fields below come in addition to SmolVLA's. Class names and ids both work; names are easier to read.

    Args:
        init_from: folder or Hub id of a SmolVLA or segvla checkpoint whose weights to start from.
        segmenter: model that segments live, under a name that `make_segmenter` accepts; "observation" for ids
            that come with the observation; empty if scores are precomputed, or for no cues.
        segmenter_classes: the classes of an open-vocabulary segmenter, free text.
        segmentation_kind: form of the scores: `ids` (B, h, w), `top_k` (as `so101-precompute` stores them),
            or `logits`, `log_scores` or `probs` (B, C, h, w).
        segmentation_class_names: of the C classes; position = id. Filled in from a live segmenter or dataset.
        segmentation_task_classes: classes that always have a token.
        segmentation_geometry_classes: up to 8 classes whose presence, position and size condition the policy.
        segmentation_from_instruction: take the task and geometry classes of each sample from its instruction.
        segmentation_synonyms: other words for classes, `{class name: [words]}`.
        segmentation_injection: where cues enter SmolVLA: `residual` adds them to patch features and the
            state's embedding, from zero; `connector` and `tokens` add tokens per camera.
        segmentation_dropout_prob: probability, in [0, 1), of withholding all cues of a sample in training.
        segmentation_required: raise an error if scores are missing; if false, act as SmolVLA without them.

    Expert options, whose defaults suit most tasks:
        segmentation_feature_map: key of the scores of each camera key. Filled in for all cameras.
        segmentation_num_classes: C; only compared with the names, or instead of them.
        segmentation_task_class_ids: task classes by id; logged with their names.
        segmentation_geometry_class_ids: geometry classes by id.
        segmentation_geometry_state_dim: length of the geometry vector, at least 32.
        segmentation_max_mentions: most classes that an instruction can choose, 1 to 8.
        segmentation_top_k_classes: most classes beside the task's that get a token, the largest first.
        segmentation_max_tokens: tokens per camera: one for the image, one per region, the rest for classes.
        segmentation_region_specs: regions as (x0, x1, y0, y1), fractions of the image.

    Raises:
        ValueError: if the value of a field is invalid.
    """

    init_from: str = ""
    segmenter: str = ""
    segmenter_classes: list[str] = field(default_factory=list)
    segmentation_kind: str = "ids"
    segmentation_class_names: list[str] = field(default_factory=list)
    segmentation_task_classes: list[str] = field(default_factory=list)
    segmentation_geometry_classes: list[str] = field(default_factory=list)
    segmentation_from_instruction: bool = False
    segmentation_synonyms: dict[str, list[str]] = field(default_factory=dict)
    segmentation_injection: str = "residual"
    segmentation_dropout_prob: float = 0.1
    segmentation_required: bool = True

    # Expert options.
    segmentation_feature_map: dict[str, str] = field(default_factory=dict)
    segmentation_num_classes: int = 0
    segmentation_task_class_ids: list[int] = field(default_factory=list)
    segmentation_geometry_class_ids: list[int] = field(default_factory=list)
    segmentation_geometry_state_dim: int = 32
    segmentation_max_mentions: int = 4
    segmentation_top_k_classes: int = 10
    segmentation_max_tokens: int = 16
    segmentation_region_specs: list[list[float]] = field(
        default_factory=lambda: [  # the quarters of the image and its centre
            [0.0, 0.5, 0.0, 0.5],
            [0.5, 1.0, 0.0, 0.5],
            [0.0, 0.5, 0.5, 1.0],
            [0.5, 1.0, 0.5, 1.0],
            [0.25, 0.75, 0.25, 0.75],
        ]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, {"segmentation_injection": INJECTIONS, "segmentation_kind": KINDS})
        dropout, count = self.segmentation_dropout_prob, self.segmentation_num_classes
        _check("dropout_prob", dropout, 0 <= dropout < 1, "0 up to less than 1")
        names = len(self.segmentation_class_names)
        expected = f"{names}, the number of segmentation_class_names; leave one of them out"
        _check("num_classes", count, names == 0 or count in (0, names), expected)
        expected = f"camera keys such as '{OBS_IMAGES}.top' as names and keys of scores as values"
        for camera, key in self.segmentation_feature_map.items():
            found = f"camera key {camera!r} (scores {key!r})"
            _check("feature_map", found, camera.startswith(f"{OBS_IMAGES}."), expected)
        self._check_tokens()
        self._check_geometry()

    def _check_tokens(self) -> None:
        expected = "(x0, x1, y0, y1) with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
        for region in self.segmentation_region_specs:
            x0, x1, y0, y1 = region if len(region) == 4 else (1.0, 0.0, 0.0, 0.0)  # the latter is invalid
            _check("region_specs", region, 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, expected)
        regions, classes = len(self.segmentation_region_specs), max(1, self.task_slots)
        expected = f"at least {1 + regions + classes} (image: 1, regions: {regions}, task classes: {classes})"
        _check("max_tokens", self.segmentation_max_tokens, self.class_tokens >= classes, expected)

    def _check_geometry(self) -> None:
        mentions, length = self.segmentation_max_mentions, self.segmentation_geometry_state_dim
        valid = not self.segmentation_from_instruction or 1 <= mentions <= GEOMETRY_CLASSES
        _check("max_mentions", mentions, valid, f"1 to {GEOMETRY_CLASSES}")
        classes = len(self._geometry_classes)
        _check("geometry_classes", classes, classes <= GEOMETRY_CLASSES, f"at most {GEOMETRY_CLASSES}")
        least = PER_CLASS * GEOMETRY_CLASSES
        _check("geometry_state_dim", length, length >= least, f"at least {least}")
        expected = (
            f"max_state_dim = {self.max_state_dim}: with injection {self.segmentation_injection!r} the layer "
            "that embeds the state embeds the geometry too"
        )
        valid = self.segmentation_injection == "residual" or length == self.max_state_dim
        _check("geometry_state_dim", length, valid, expected)

    @property
    def observation_delta_indices(self) -> None:
        """None: the current frame. SmolVLA's [0] makes the loader read it once more for each key."""
        return None

    @property
    def uses_cues(self) -> bool:
        """Whether there are any cues; without them the policy is SmolVLA."""
        return bool(self.segmentation_feature_map or self.segmenter)

    @property
    def _task_classes(self) -> list[str | int]:
        return [*self.segmentation_task_classes, *self.segmentation_task_class_ids]

    @property
    def _geometry_classes(self) -> list[str | int]:
        return [*self.segmentation_geometry_classes, *self.segmentation_geometry_class_ids]

    @property
    def task_slots(self) -> int:
        """Number of task classes, each with a token of its own."""
        chosen = self.segmentation_from_instruction
        return self.segmentation_max_mentions if chosen else len(self._task_classes)

    @property
    def class_tokens(self) -> int:
        """Number of tokens for classes, per camera."""
        return self.segmentation_max_tokens - 1 - len(self.segmentation_region_specs)

    @property
    def geometry_slots(self) -> int:
        """Number of classes with geometry."""
        chosen = self.segmentation_from_instruction
        return self.segmentation_max_mentions if chosen else len(self._geometry_classes)

    @property
    def class_map(self) -> ClassMap:
        """Look-up of the class names; without names and a number of classes a ValueError."""
        numbered = [f"class {id_}" for id_ in range(self.segmentation_num_classes)]
        names = self.segmentation_class_names or numbered
        if not names:
            raise ValueError(
                "segmentation_class_names: found none, neither from a segmenter nor in the dataset. Give "
                """them ordered by id: `--policy.segmentation_class_names='["background", "cube"]'`."""
            )
        return ClassMap(names, "segmentation_class_names")

    @property
    def task_ids(self) -> list[int]:
        """Ids of the task classes; an unknown name raises a ValueError."""
        return self.class_map.ids(self._task_classes)

    @property
    def geometry_ids(self) -> list[int]:
        """Ids of the geometry classes; an unknown name raises a ValueError."""
        return self.class_map.ids(self._geometry_classes)

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """RGB cameras, without masks and depth, which LeRobot stores as images too."""
        scores = self.segmentation_feature_map.values()
        return {key: f for key, f in super().image_features.items() if key not in scores}

    def set_dataset_feature_metadata(self, features: dict[str, dict]) -> None:
        """Take class names from the dataset's metadata. LeRobot calls this before it builds the policy."""
        super().set_dataset_feature_metadata(features)
        stored = self.segmenter in ("", OBSERVED)
        if self.segmentation_class_names or self.segmentation_num_classes or not stored:
            return
        keys = set(self.segmentation_feature_map.values())
        if self.segmenter == OBSERVED:
            keys |= {key for key in features if key.startswith(OBS_IMAGES) and key.endswith("_seg")}
        for key in sorted(keys & set(features)):
            info = features[key].get("info") or {}
            names = (info.get("perception") or info).get("class_names")
            if names:
                self.segmentation_class_names = list(names)
                return

    def validate_features(self) -> None:
        """Fill in the feature map and the class names, and check them.

        Raises:
            ValueError: if a camera of the feature map is missing, or a class is unknown.
        """
        super().validate_features()
        if not self.uses_cues:
            return
        cameras = [key for key in self.image_features if "empty_camera" not in key]
        if not self.segmentation_feature_map:
            name_key = SCORE_KEYS.get(self.segmentation_kind, seg_logits_key)
            self.segmentation_feature_map = {
                key: name_key(key.removeprefix(f"{OBS_IMAGES}.")) for key in cameras
            }
        for key, scores in self.segmentation_feature_map.items():
            if key not in cameras:
                raise ValueError(
                    f"segmentation_feature_map: found {key!r} (scores {scores!r}), expected cameras of this "
                    f"policy: {cameras}."
                )
        if not self.segmentation_class_names and self.segmenter not in ("", OBSERVED):
            self.segmentation_class_names = self._names_of_segmenter()
        _ = self.task_ids, self.geometry_ids  # raises an error for unknown names now, not in training

    def _names_of_segmenter(self) -> list[str]:
        from lerobot_processor_so101.models import class_names_of, is_open_vocabulary

        from_sentence = self.segmentation_from_instruction and not self.segmenter_classes
        if not (from_sentence and is_open_vocabulary(self.segmenter)):
            return list(class_names_of(self.segmenter, self.segmenter_classes))
        if self.segmentation_kind != "probs":
            raise ValueError(
                f"segmentation_kind: found {self.segmentation_kind!r}, expected 'probs': {self.segmenter!r} "
                "gets its classes from each sentence, so that ids would have no fixed meaning."
            )
        return [f"thing {number + 1}" for number in range(self.segmentation_max_mentions)]


def _check(name: str, found: Any, valid: bool, expected: str) -> None:
    """Raise a ValueError if the field `segmentation_<name>` is invalid."""
    if not valid:
        raise ValueError(f"segmentation_{name}: found {found}, expected {expected}.")
