# SPDX-License-Identifier: Apache-2.0
"""`so101-masks`: rasterise COCO annotations to masks, 8-bit PNGs of class ids.

Later classes cover earlier ones. Their order is that of the ids, except that frames marked in selections.json
show a held object, which covers all others. All input is validated before the first mask is written. File
layout and errors: docs/masks.md.

    so101-masks --dataset_path=data/dataset_v0
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..cli import run_command
from ..perception.class_map import CLASS_NAMES, ClassMap
from .coco_annotations import CocoImage, listed, read_coco, read_marks
from .image_files import find_image, stem, write_png

logger = logging.getLogger(__name__)

EXCLUDED = "Excluded"  # the only value in excluded.json that excludes a frame


@dataclass
class MasksConfig:
    """Options of `so101-masks`.

    Args:
        dataset_path: folder with images/default/ or images/, and annotations/.
        output_dir: folder of the masks; by default <dataset_path>/masks.
        class_names: names of the classes, from back to front; position = id. By default the six of the SO-101
            segmenter.
        overwrite: replace existing masks.

    Expert options, with defaults that rarely need a change:
        annotations: COCO file; by default the only .json in <dataset_path>/annotations.
        selections: JSON file of the frames that show a held object; by default
            <dataset_path>/selections.json, if any.
        excluded: JSON file of the frames to exclude; by default <dataset_path>/excluded.json, if any.
        held: classes that cover all others in the frames of `selections`.
    """

    dataset_path: Path
    output_dir: Path | None = None
    class_names: list[str] = field(default_factory=lambda: list(CLASS_NAMES))
    overwrite: bool = False

    annotations: Path | None = None
    selections: Path | None = None
    excluded: Path | None = None
    held: list[str] = field(default_factory=lambda: ["cube"])

    def check(self) -> None:
        """Validate the options.

        Raises:
            ValueError: if class names repeat or exceed 8 bits, or the output folder contains the images.
            FileNotFoundError: if there is no such dataset.
        """
        if not any(folder.is_dir() for folder in self.image_folders()):
            raise FileNotFoundError(
                f"--dataset_path: found neither images/default nor images in {self.dataset_path}."
            )
        if self.masks_folder().resolve() in [folder.resolve() for folder in self.image_folders()]:
            raise ValueError(f"--output_dir: {self.masks_folder()} contains the images; choose another.")
        names = self.class_names
        if len(set(names)) != len(names) or len(names) > 256:
            raise ValueError(f"--class_names: found {names}, expected at most 256 names, each once.")

    def image_folders(self) -> tuple[Path, Path]:
        """Return the folders to search for images, in this order."""
        return self.dataset_path / "images" / "default", self.dataset_path / "images"

    def masks_folder(self) -> Path:
        """Return the folder of the masks."""
        return self.output_dir or self.dataset_path / "masks"

    def coco_file(self) -> Path:
        """Return the COCO file; raises FileNotFoundError if none is given and there are none or several."""
        if self.annotations:
            return self.annotations
        found = sorted((self.dataset_path / "annotations").glob("*.json"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"--annotations: found {len(found)} .json files in {self.dataset_path / 'annotations'}"
                f"{listed(path.name for path in found)}, expected one. Name the COCO file with this flag."
            )
        return found[0]

    def marks_file(self, name: str) -> Path | None:
        """Return selections.json or excluded.json: as given, or that of the dataset, or None."""
        default = self.dataset_path / f"{name}.json"
        return getattr(self, name) or (default if default.is_file() else None)


def _marks(path: Path | None, images: Iterable[CocoImage]) -> dict[str, Any]:
    """Read the marks of a file, and return them by stem; log those without an image."""
    marks = read_marks(path) if path else {}
    stems = {image.stem for image in images}
    if lost := [name for name in marks if stem(name) not in stems]:
        logger.warning("%s: %d marks match no image%s.", path, len(lost), listed(lost))
    return {stem(name): value for name, value in marks.items()}


def _excluded(path: Path | None, images: Iterable[CocoImage]) -> set[str]:
    marks = _marks(path, images)
    if other := {name: value for name, value in marks.items() if value != EXCLUDED}:
        named = listed(f"{name} {value!r}" for name, value in other.items())
        logger.warning("%s: %d marks are not %r and exclude nothing%s.", path, len(other), EXCLUDED, named)
    return marks.keys() - other.keys()


@dataclass
class Summary:
    """Statistics of the written masks.

    Attributes:
        masks, grasp: number of masks, and of those that show a held object.
        excluded, without_annotations: number of images of the COCO file that have no mask.
        pixels: (C,) pixels of each class over all masks.
        occurrences: (C,) masks in which each class has a pixel.
    """

    folder: Path
    class_names: tuple[str, ...]
    masks: int = 0
    grasp: int = 0
    excluded: int = 0
    without_annotations: int = 0

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.class_names), np.int64)
        self.occurrences = np.zeros(len(self.class_names), np.int64)

    def add(self, ids: np.ndarray, grasp: bool) -> None:
        """Add one mask, (H, W) uint8."""
        pixels = np.bincount(ids.ravel(), minlength=len(self.class_names))
        self.pixels += pixels
        self.occurrences += pixels > 0
        self.masks += 1
        self.grasp += grasp

    def table(self) -> str:
        """Format the share of pixels and the number of masks per class, one line each."""
        width = max(map(len, ("class", *self.class_names)))
        shares = 100 * self.pixels / max(1, self.pixels.sum())
        lines = [f"{'id':>3}  {'class':<{width}}  {'pixels':>8}  {'masks':>6}"]
        rows = zip(self.class_names, shares, self.occurrences, strict=True)
        for id_, (name, share, count) in enumerate(rows):
            never = "" if count else "  never occurs"
            lines.append(f"{id_:>3}  {name:<{width}}  {share:>6.2f} %  {count:>6}{never}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return (
            f"{self.masks} masks in {self.folder} ({self.grasp} grasp frames); {self.excluded} images "
            f"excluded, {self.without_annotations} without annotations"
        )


def make_masks(config: MasksConfig) -> Summary:
    """Write one mask per annotated image that is not excluded.

    Raises:
        ValueError, FileNotFoundError: if the input is invalid; nothing has been written.
        FileExistsError: if masks would be overwritten; nothing has been written.
        OSError: if writing fails; complete masks stay, and no file is partially written.
    """
    config.check()
    classes, coco_file = ClassMap(config.class_names, "--class_names"), config.coco_file()
    images = read_coco(coco_file, classes)
    grasp = _marks(config.marks_file("selections"), images).keys()
    excluded = _excluded(config.marks_file("excluded"), images)
    kept = [image for image in images if image.stem not in excluded]
    annotated = [image for image in kept if image.layers]
    if not annotated:
        raise ValueError(
            f"{coco_file}: found no annotated image among {len(images)} ({len(excluded)} excluded)."
        )
    try:
        front = classes.ids(config.held if grasp else [])
    except ValueError as error:
        raise ValueError(f"--held: {error}") from None
    order = range(len(classes.names))  # from back to front
    grasp_order = [id_ for id_ in order if id_ not in front] + front
    _check_images(config, coco_file, annotated)
    folder = config.masks_folder()
    _check_output(folder, annotated, config.overwrite)

    summary = Summary(folder, classes.names)
    summary.excluded, summary.without_annotations = len(images) - len(kept), len(kept) - len(annotated)
    try:
        for image in tqdm(annotated, desc="masks", unit="mask"):
            held = image.stem in grasp
            ids = image.rasterise(grasp_order if held else order)
            write_png(folder / f"{image.stem}.png", ids)
            summary.add(ids, held)
    except OSError as error:
        raise OSError(
            f"{folder}: {error.strerror or error}. {summary.masks} of {len(annotated)} masks are complete "
            "and stay. Free space or grant write permission, and run again with --overwrite=true."
        ) from error
    return summary


def _check_images(config: MasksConfig, coco_file: Path, images: Sequence[CocoImage]) -> None:
    missing, wrong = [], []
    for image in images:
        path = find_image(config.image_folders(), image.name)
        if path is None:
            missing.append(image.name)
        elif (size := _size(path)) != (image.width, image.height):
            wrong.append(f"{path} has {size[0]}x{size[1]}, not {image.width}x{image.height}")
    if missing:
        raise FileNotFoundError(
            f"{config.dataset_path / 'images'}: found no file for {len(missing)} of the {len(images)} "
            f"annotated images{listed(missing)}. Add them, or exclude them with excluded.json."
        )
    if wrong:
        raise ValueError(
            f"{coco_file}: found {len(wrong)} images of another size (width x height) than on "
            f"disk{listed(wrong)}. Annotations and files must be of the same images, not resized or rotated."
        )


def _size(path: Path) -> tuple[int, int]:
    """Return (width, height) from the file's header."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise ValueError(f"{path}: found no image that can be opened ({error}).") from None


def _check_output(folder: Path, images: Sequence[CocoImage], overwrite: bool) -> None:
    present = {path.stem for path in folder.glob("*.png")}
    ours = {image.stem for image in images}
    if (again := sorted(present & ours)) and not overwrite:
        raise FileExistsError(
            f"--output_dir: {folder} contains {len(again)} of these masks already{listed(again)}. Nothing "
            "was changed. Choose another folder, or replace them with --overwrite=true."
        )
    if others := sorted(present - ours):
        logger.warning("%s: %d PNGs are not from this run%s.", folder, len(others), listed(others))


def main() -> None:
    """Run `so101-masks`."""

    def command(config: MasksConfig) -> str:
        summary = make_masks(config)
        return f"{summary.table()}\n{summary}"

    run_command("so101-masks", MasksConfig, command)


if __name__ == "__main__":
    main()
