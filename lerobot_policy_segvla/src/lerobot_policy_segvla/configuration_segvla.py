# SPDX-License-Identifier: Apache-2.0
"""Configuration of the segvla policy."""

from dataclasses import dataclass, field

from lerobot.configs import PolicyFeature, PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import OBS_IMAGES

from lerobot_processor_so101 import (
    OBSERVED,
    ClassMap,
    check_choices,
    colour_cameras,
    seg_key,
    seg_logits_key,
    seg_top_k_key,
)

INJECTIONS = ("residual", "connector", "tokens")
KINDS = ("ids", "top_k", "logits", "log_scores", "probs")
GEOMETRY_CLASSES = 8  # of 4 numbers each, in 32
_KEYS = {"ids": seg_key, "top_k": seg_top_k_key}

type Region = tuple[float, float, float, float]


@PreTrainedConfig.register_subclass("segvla")
@dataclass
class SegVLAConfig(SmolVLAConfig):
    """Configuration of SmolVLA with segmentation cues. Without a feature map and a segmenter it is SmolVLA.

    Fields beside SmolVLA's:

    Args:
        init_from: folder or Hub id of a SmolVLA or segvla checkpoint whose weights to start from.
        segmenter: a model that looks live, by a name that `make_segmenter` knows; "observation" for ids that come
            with the observation; empty if scores come precomputed or not at all.
        segmenter_classes: what an open-vocabulary segmenter looks for, in free text.
        segmentation_feature_map: key of the scores of each camera key. Filled in for all cameras if there is a
            segmenter.
        segmentation_kind: what the scores are: `ids` (B, h, w), `top_k` (as `so101-precompute` stores them), or
            `logits`, `log_scores` or `probs` (B, C, h, w).
        segmentation_class_names: names of the classes; position = id. Filled in from a live segmenter.
        segmentation_num_classes: C; filled in from the names, and only there to be checked.
        segmentation_task_classes: names of classes that always get a token.
        segmentation_task_class_ids: the same by number; echoed with their names.
        segmentation_geometry_classes: names of up to 8 classes whose presence, place and size are told.
        segmentation_geometry_class_ids: the same by number.
        segmentation_geometry_state_dim: length of that vector.
        segmentation_from_instruction: the task sentence of each sample chooses the task and geometry classes.
        segmentation_synonyms: other words for classes, `{class name: [words]}`.
        segmentation_max_mentions: classes an instruction can choose.
        segmentation_top_k_classes: how many of the largest other classes get a token.
        segmentation_max_tokens: tokens per camera: one for the whole picture, one per region, the rest for classes.
        segmentation_region_specs: regions as (x0, x1, y0, y1), fractions of the picture.
        segmentation_injection: `residual`, `connector` or `tokens`.
        segmentation_dropout_prob: how often a sample's cues are withheld in training.
        segmentation_required: missing scores are an error; otherwise the policy acts as SmolVLA without them.

    Raises:
        ValueError: a value that cannot work, named with what was expected.
    """

    init_from: str = ""
    segmenter: str = ""
    segmenter_classes: list[str] = field(default_factory=list)

    segmentation_feature_map: dict[str, str] = field(default_factory=dict)
    segmentation_kind: str = "ids"
    segmentation_class_names: list[str] = field(default_factory=list)
    segmentation_num_classes: int = 0
    segmentation_task_classes: list[str] = field(default_factory=list)
    segmentation_task_class_ids: list[int] = field(default_factory=list)
    segmentation_geometry_classes: list[str] = field(default_factory=list)
    segmentation_geometry_class_ids: list[int] = field(default_factory=list)
    segmentation_geometry_state_dim: int = 32
    segmentation_from_instruction: bool = False
    segmentation_synonyms: dict[str, list[str]] = field(default_factory=dict)
    segmentation_max_mentions: int = 4
    segmentation_top_k_classes: int = 10
    segmentation_max_tokens: int = 16
    segmentation_region_specs: list[list[float]] = field(
        default_factory=lambda: [
            [0.0, 0.5, 0.0, 0.5],
            [0.5, 1.0, 0.0, 0.5],
            [0.0, 0.5, 0.5, 1.0],
            [0.5, 1.0, 0.5, 1.0],
            [0.25, 0.75, 0.25, 0.75],
        ]
    )
    segmentation_injection: str = "residual"
    segmentation_dropout_prob: float = 0.1
    segmentation_required: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choices()
        self._check_tokens()
        self._check_geometry()
        for camera, key in self.segmentation_feature_map.items():
            if not camera.startswith(f"{OBS_IMAGES}."):
                raise ValueError(
                    f"segmentation_feature_map: found camera key {camera!r} (scores {key!r}), expected camera keys "
                    f"such as '{OBS_IMAGES}.top' as names and keys of scores as values."
                )

    def _check_choices(self) -> None:
        check_choices(self, {"segmentation_injection": INJECTIONS, "segmentation_kind": KINDS})
        if not 0.0 <= self.segmentation_dropout_prob < 1.0:
            raise ValueError(
                f"segmentation_dropout_prob: found {self.segmentation_dropout_prob}, expected 0 up to less than 1."
            )
        count, names = self.segmentation_num_classes, self.segmentation_class_names
        if names and count and count != len(names):
            raise ValueError(
                f"segmentation_num_classes: found {count}, expected {len(names)}, the number of "
                "segmentation_class_names. Leave one of them out."
            )

    def _check_tokens(self) -> None:
        for region in self.segmentation_region_specs:
            x0, x1, y0, y1 = region if len(region) == 4 else (1.0, 0.0, 0.0, 0.0)
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise ValueError(
                    f"segmentation_region_specs: found {region}, expected (x0, x1, y0, y1) with 0 <= x0 < x1 <= 1 and "
                    "0 <= y0 < y1 <= 1."
                )
        if self.class_tokens < max(1, self.task_slots):
            raise ValueError(
                f"segmentation_max_tokens: found {self.segmentation_max_tokens}, expected at least "
                f"{1 + len(self.segmentation_region_specs) + max(1, self.task_slots)}: one for the picture, "
                f"{len(self.segmentation_region_specs)} for regions, {max(1, self.task_slots)} for task classes."
            )

    def _check_geometry(self) -> None:
        count = len(self.segmentation_geometry_classes) + len(self.segmentation_geometry_class_ids)
        if self.segmentation_from_instruction and not 1 <= self.segmentation_max_mentions <= GEOMETRY_CLASSES:
            raise ValueError(
                f"segmentation_max_mentions: found {self.segmentation_max_mentions}, expected 1 to {GEOMETRY_CLASSES}."
            )
        if count > GEOMETRY_CLASSES:
            raise ValueError(
                f"segmentation_geometry_classes: found {count}, expected at most {GEOMETRY_CLASSES}."
            )
        if self.segmentation_geometry_state_dim < 4 * GEOMETRY_CLASSES:
            raise ValueError(
                f"segmentation_geometry_state_dim: found {self.segmentation_geometry_state_dim}, expected at least "
                f"{4 * GEOMETRY_CLASSES}."
            )
        rows = self.segmentation_injection != "residual"
        if rows and self.segmentation_geometry_state_dim != self.max_state_dim:
            raise ValueError(
                f"segmentation_geometry_state_dim: found {self.segmentation_geometry_state_dim}, expected "
                f"max_state_dim = {self.max_state_dim}: with injection {self.segmentation_injection!r} the geometry "
                "goes through the state's own layer."
            )

    @property
    def uses_cues(self) -> bool:
        """Whether there are any cues; without them the policy is SmolVLA."""
        return bool(self.segmentation_feature_map or self.segmenter)

    @property
    def task_slots(self) -> int:
        """Class tokens with a meaning of their own."""
        if self.segmentation_from_instruction:
            return self.segmentation_max_mentions
        return len(self.segmentation_task_classes) + len(self.segmentation_task_class_ids)

    @property
    def class_tokens(self) -> int:
        """Tokens left for classes, per camera."""
        return self.segmentation_max_tokens - 1 - len(self.segmentation_region_specs)

    @property
    def geometry_slots(self) -> int:
        """Classes whose geometry is told."""
        if self.segmentation_from_instruction:
            return self.segmentation_max_mentions
        return len(self.segmentation_geometry_classes) + len(self.segmentation_geometry_class_ids)

    @property
    def class_map(self) -> ClassMap:
        """Look-up of the class names.

        Raises:
            ValueError: there are no names, and no number of classes either.
        """
        names = self.segmentation_class_names or [
            f"class {id_}" for id_ in range(self.segmentation_num_classes)
        ]
        if not names:
            raise ValueError(
                "segmentation_class_names: found none, and neither a segmenter nor the dataset tells them. Give them in "
                """the order of their ids: `--policy.segmentation_class_names='["background", "cube"]'`."""
            )
        return ClassMap(names, "segmentation_class_names")

    @property
    def task_ids(self) -> list[int]:
        """Ids of the task classes.

        Raises:
            ValueError: an unknown class.
        """
        return self.class_map.ids([*self.segmentation_task_classes, *self.segmentation_task_class_ids])

    @property
    def geometry_ids(self) -> list[int]:
        """Ids of the geometry classes.

        Raises:
            ValueError: an unknown class.
        """
        return self.class_map.ids(
            [*self.segmentation_geometry_classes, *self.segmentation_geometry_class_ids]
        )

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """Cameras with colours. Masks and depth, which LeRobot stores as pictures too, are none."""
        scores = self.segmentation_feature_map.values()
        return {key: f for key, f in colour_cameras(self.input_features).items() if key not in scores}

    def set_dataset_feature_metadata(self, features: dict[str, dict]) -> None:
        """Take the class names that a dataset has written down. LeRobot calls this before it builds the policy."""
        if (
            self.segmentation_class_names
            or self.segmentation_num_classes
            or self.segmenter not in ("", OBSERVED)
        ):
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
        """Complete the feature map and the class names, and check them.

        Raises:
            ValueError: a camera of the feature map that the policy has not, or no cameras, or an unknown class.
        """
        super().validate_features()
        if not self.uses_cues:
            return
        cameras = [key for key in self.image_features if "empty_camera" not in key]
        if not self.segmentation_feature_map:
            name_key = _KEYS.get(self.segmentation_kind, seg_logits_key)
            self.segmentation_feature_map = {
                key: name_key(key.removeprefix(f"{OBS_IMAGES}.")) for key in cameras
            }
        for key, scores in self.segmentation_feature_map.items():
            if key not in cameras:
                raise ValueError(
                    f"segmentation_feature_map: found {key!r} (scores {scores!r}), expected cameras of this policy: "
                    f"{cameras}."
                )
        if not self.segmentation_class_names and self.segmenter not in ("", OBSERVED):
            self.segmentation_class_names = self._names_of_segmenter()
        _ = self.task_ids, self.geometry_ids  # unknown names fail here

    def _names_of_segmenter(self) -> list[str]:
        from lerobot_processor_so101.segmenters import class_names_of, is_open_vocabulary

        by_sentence = self.segmentation_from_instruction and not self.segmenter_classes
        if not (by_sentence and is_open_vocabulary(self.segmenter)):
            return list(class_names_of(self.segmenter, self.segmenter_classes))
        if self.segmentation_kind != "probs":
            raise ValueError(
                f"segmentation_kind: found {self.segmentation_kind!r}, expected 'probs': each sentence asks "
                f"{self.segmenter!r} for other things, so that ids would mean nothing."
            )
        return [f"thing {number + 1}" for number in range(self.segmentation_max_mentions)]
