# SPDX-License-Identifier: Apache-2.0
"""Options of `so101-train-segmenter`."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..config_checks import check_choices, check_smallest
from ..models.efficientvit_fpn import CLASS_NAMES
from ..models.efficientvit_fpn.configuration_efficientvit_fpn import LOSSES
from ..models.efficientvit_fpn.initial_weights import IMAGENET
from ..perception.class_map import ClassMap
from .augment import AUGMENTATIONS

DTYPES = {"float32": torch.float32, "float16": torch.float16}
MIN_LR = 1e-6


@dataclass
class TrainConfig:
    """Options of `so101-train-segmenter`.

    Args:
        data: folders with images/ and masks/ (see so101-masks), and LeRobotDatasets with class ids.
        output_dir: folder of the weights, the metrics and the checkpoints.
        height, width: size of the model's images [pixels].
        classes: names of the classes; position = id. Datasets with class names are matched by name.
        class_ids: classes of stored ids that are not among `classes`, e.g. '{6: 3, 7: 1}'.
        disparity_head: learn disparity too, from the depth or the precomputed disparity of a LeRobotDataset.
        single_objects: classes of which an image shows one object at most; of their regions, only the largest
            counts when the segmenter is used. The metrics of the training are those before.
        init_from: imagenet (downloads the backbone), none (random), or a folder, Hub id or Lightning .ckpt.
        epochs: largest number of epochs.
        batch_size: images per step.
        resume: continue from the last finished epoch in output_dir.

    Expert options, with defaults that rarely need a change:
        lr: learning rate of AdamW; it falls along a cosine to 1e-6.
        weight_decay: weight decay of AdamW.
        loss: iou (soft intersection over union of each image), batch_iou (of each batch: a false object costs
            the same where there is none), ce (cross-entropy), or sums: iou+batch_iou, batch_iou+ce.
        augment: full, upright (full without flips), lighting (upright with shadows, glare, exposure, noise
            and compression, and less change of hue, for classes named by colour), flips or none.
        patience: stop after this many epochs without a better mean IoU.
        val_share: fraction of the recordings to validate on.
        every: train on each n-th frame of a LeRobotDataset.
        seed: random seed of the split, the initial weights, the order and the augmentations.
        dtype: float32, or float16 for weight files of half the size.
        workers: processes that prepare batches.
    """

    data: list[Path]
    output_dir: Path = Path("outputs/segmenter")
    height: int = 480
    width: int = 640
    classes: list[str] = field(default_factory=lambda: list(CLASS_NAMES))
    class_ids: dict[int, int] = field(default_factory=dict)
    disparity_head: bool = False
    single_objects: list[str] = field(default_factory=list)
    init_from: str = IMAGENET
    epochs: int = 100
    batch_size: int = 4
    resume: bool = False

    lr: float = 1e-4
    weight_decay: float = 1e-4
    loss: str = "iou"
    augment: str = "full"
    patience: int = 20
    val_share: float = 0.15
    every: int = 1
    seed: int = 42
    dtype: str = "float32"
    workers: int = 2

    def check(self) -> None:
        """Validate the options.

        Raises:
            ValueError: if an option is out of its range.
        """
        smallest = {"batch_size": 1, "epochs": 1, "patience": 1, "every": 1, "workers": 0}
        check_smallest(self, smallest, "--")
        if min(self.height, self.width) < 32:
            raise ValueError(f"--height and --width: found {self.height}x{self.width}, expected 32 or more.")
        if self.lr <= MIN_LR:
            raise ValueError(f"--lr: found {self.lr}, expected more than {MIN_LR}, where it ends.")
        if not 0 < self.val_share < 1:
            raise ValueError(f"--val_share: found {self.val_share}, expected more than 0 and less than 1.")
        check_choices(self, {"augment": AUGMENTATIONS, "dtype": DTYPES, "loss": LOSSES}, "--")
        if not 2 <= len(self.classes) <= 255 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"--classes: found {self.classes}, expected 2 to 255 names, each once.")
        ClassMap(self.classes, "--classes").ids(self.single_objects)
        for stored, class_id in self.class_ids.items():
            if not (0 <= stored <= 255 and 0 <= class_id < len(self.classes)):
                raise ValueError(
                    f"--class_ids: found {stored}: {class_id}, expected a stored id (0 to 255) and a "
                    f"position in --classes (0 to {len(self.classes) - 1})."
                )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the model's images."""
        return self.height, self.width

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints that a resumed training needs."""
        return self.output_dir / "checkpoints"
