# SPDX-License-Identifier: Apache-2.0
"""`so101-masks`: paint COCO annotations into masks, 8-bit PNGs of class ids.

Later paint hides earlier paint, so the order of the classes matters: it is that of their ids, except that frames
marked in selections.json show a held object and paint it last. All input is checked before the first mask is
written. File layout and errors: docs/masks.md.

    so101-masks --dataset_path=data/dataset_v0
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import draccus
import numpy as np
from draccus.utils import DraccusException
from PIL import Image
from tqdm import tqdm

from .class_map import CLASS_NAMES, ClassMap
from .coco_annotations import IMAGE_SUFFIXES, CocoImage, listed, read_coco, read_json, stem

logger = logging.getLogger(__name__)

EXCLUDED = "Excluded"  # the one value in excluded.json that leaves a frame out


@dataclass
class MasksConfig:
    """Options of `so101-masks`.

    Args:
        dataset_path: folder with images/default/ or images/, and annotations/.
        annotations: the COCO file; by default the only .json in <dataset_path>/annotations.
        output_dir: where the masks go; by default <dataset_path>/masks.
        selections: JSON of the frames that show a held object; by default <dataset_path>/selections.json, if any.
        excluded: JSON of the frames to leave out; by default <dataset_path>/excluded.json, if any.
        class_names: names of the classes, position = id = place in the rendering order; by default the six of the
            SO-101 segmenter.
        held: classes that are painted last in the frames of `selections`.
        overwrite: replace masks that exist already.
    """

    dataset_path: Path
    annotations: Path | None = None
    output_dir: Path | None = None
    selections: Path | None = None
    excluded: Path | None = None
    class_names: list[str] = field(default_factory=lambda: list(CLASS_NAMES))
    held: list[str] = field(default_factory=lambda: ["cube"])
    overwrite: bool = False

    def check(self) -> None:
        """Say what cannot be, in the words of the command line.

        Raises:
            ValueError: class names that repeat or do not fit 8 bits, or an output folder that holds the images.
            FileNotFoundError: there is no such dataset.
        """
        if not any(folder.is_dir() for folder in self.image_folders()):
            raise FileNotFoundError(
                f"--dataset_path: found neither images/default nor images in {self.dataset_path}, expected one."
            )
        if self.masks_folder().resolve() in [folder.resolve() for folder in self.image_folders()]:
            raise ValueError(f"--output_dir: {self.masks_folder()} holds the images; choose another folder.")
        names = self.class_names
        if len(set(names)) != len(names) or len(names) > 256:
            raise ValueError(f"--class_names: found {names}, expected at most 256 names, each once.")

    def classes(self) -> ClassMap:
        """The classes to paint, in the order of their ids."""
        return ClassMap(self.class_names, "--class_names")

    def image_folders(self) -> tuple[Path, Path]:
        """Where images are looked for, in this order."""
        return self.dataset_path / "images" / "default", self.dataset_path / "images"

    def masks_folder(self) -> Path:
        """Where masks are written."""
        return self.output_dir or self.dataset_path / "masks"

    def coco_file(self) -> Path:
        """The COCO file.

        Raises:
            FileNotFoundError: none was named, and annotations/ holds none or several.
        """
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
        """selections.json or excluded.json: as named, else the one in the dataset, else none."""
        default = self.dataset_path / f"{name}.json"
        return getattr(self, name) or (default if default.is_file() else None)


# --- reading -----------------------------------------------------------------------------------------------


def read_marks(path: Path | None, images: Iterable[CocoImage]) -> dict[str, str]:
    """Read `{"marks": {file name: value}}`, keyed by stem; a mark without an image is reported.

    Raises:
        OSError: it cannot be read.
        ValueError: it has another form.
    """
    if path is None:
        return {}
    marks = read_json(path).get("marks")
    if not isinstance(marks, dict):
        raise ValueError(f'{path}: found no marks, expected {{"marks": {{file name: value}}}}.')
    stems = {image.stem for image in images}
    if lost := [name for name in marks if stem(name) not in stems]:
        logger.warning("%s: %d marks match no image%s.", path, len(lost), listed(lost))
    return {stem(name): value for name, value in marks.items()}


def _excluded(path: Path | None, images: Iterable[CocoImage]) -> set[str]:
    marks = read_marks(path, images)
    if other := {name: value for name, value in marks.items() if value != EXCLUDED}:
        named = listed(f"{name} {value!r}" for name, value in other.items())
        logger.warning("%s: %d marks are not %r and leave nothing out%s.", path, len(other), EXCLUDED, named)
    return marks.keys() - other.keys()


# --- writing -----------------------------------------------------------------------------------------------


@dataclass
class Summary:
    """What was painted.

    Attributes:
        folder: where the masks are.
        class_names: position = id.
        masks, grasp: masks written, and how many of them in the order of grasp frames.
        excluded, without_annotations: images of the COCO file that were left out.
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
        """Count one mask, (H, W) uint8."""
        pixels = np.bincount(ids.ravel(), minlength=len(self.class_names))
        self.pixels += pixels
        self.occurrences += pixels > 0
        self.masks += 1
        self.grasp += grasp

    def table(self) -> str:
        """Share of the pixels and number of masks per class, one line each."""
        width = max(map(len, ("class", *self.class_names)))
        shares = 100 * self.pixels / max(1, self.pixels.sum())
        lines = [f"{'id':>3}  {'class':<{width}}  {'pixels':>8}  {'masks':>6}"]
        for id_, (name, share, count) in enumerate(
            zip(self.class_names, shares, self.occurrences, strict=True)
        ):
            never = "" if count else "  never occurs"
            lines.append(f"{id_:>3}  {name:<{width}}  {share:>6.2f} %  {count:>6}{never}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return (
            f"{self.masks} masks in {self.folder} ({self.grasp} grasp frames); {self.excluded} images excluded, "
            f"{self.without_annotations} without annotations"
        )


def make_masks(config: MasksConfig) -> Summary:
    """Write one mask per annotated image that is not excluded.

    Raises:
        ValueError, FileNotFoundError: bad input; nothing has been written.
        FileExistsError: masks would be overwritten; nothing has been written.
        OSError: writing failed; masks that were finished stay, and no file is half written.
    """
    config.check()
    classes, coco_file = config.classes(), config.coco_file()
    images = read_coco(coco_file, classes)
    grasp = read_marks(config.marks_file("selections"), images).keys()
    excluded = _excluded(config.marks_file("excluded"), images)
    kept = [image for image in images if image.stem not in excluded]
    annotated = [image for image in kept if image.layers]
    if not annotated:
        raise ValueError(
            f"{coco_file}: found no annotated image among {len(images)} ({len(excluded)} excluded)."
        )
    orders = rendering_orders(classes, config.held if grasp else [])
    _check_pictures(config, coco_file, annotated)
    folder = config.masks_folder()
    _check_output(folder, annotated, config.overwrite)

    summary = Summary(folder, classes.names)
    summary.excluded, summary.without_annotations = len(images) - len(kept), len(kept) - len(annotated)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for image in tqdm(annotated, desc="masks", unit="mask"):
            held = image.stem in grasp
            ids = image.paint(orders["grasp" if held else "default"])
            write_png(folder / f"{image.stem}.png", ids)
            summary.add(ids, held)
    except OSError as error:
        raise OSError(
            f"{folder}: {error.strerror or error}. {summary.masks} of {len(annotated)} masks are complete and "
            "stay. Free space or give the right to write, and run again with --overwrite=true."
        ) from error
    return summary


def rendering_orders(classes: ClassMap, held: Sequence[str]) -> dict[str, list[int]]:
    """Class ids from back to front, for both kinds of frame.

    Raises:
        ValueError: a held class does not exist.
    """
    try:
        front = classes.ids(held)
    except ValueError as error:
        raise ValueError(f"--held: {error}") from None
    order = range(len(classes.names))
    return {"default": [*order], "grasp": [id_ for id_ in order if id_ not in front] + front}


def write_png(path: Path, ids: np.ndarray) -> None:
    """Write (H, W) uint8 ids as an 8-bit single-channel PNG, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        Image.fromarray(ids).save(part, format="PNG")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _check_pictures(config: MasksConfig, coco_file: Path, images: Sequence[CocoImage]) -> None:
    missing, wrong = [], []
    for image in images:
        path = _picture(config.image_folders(), image.name)
        if path is None:
            missing.append(image.name)
        elif (size := _size(path)) != (image.width, image.height):
            wrong.append(f"{path} has {size[0]}x{size[1]}, not {image.width}x{image.height}")
    if missing:
        raise FileNotFoundError(
            f"{config.dataset_path / 'images'}: found no file for {len(missing)} of the {len(images)} images to "
            f"paint{listed(missing)}. Add them, or leave them out with excluded.json."
        )
    if wrong:
        raise ValueError(
            f"{coco_file}: found {len(wrong)} images of another size (width x height) than on disk{listed(wrong)}. "
            "Annotations and files must be of the same pictures, neither resized nor rotated."
        )


def _picture(folders: Iterable[Path], name: str) -> Path | None:
    """The image file of this name, or of this stem: exports and folders may disagree on .jpg and .png."""
    base = PurePosixPath(name).parent / stem(name)
    names = [name, *(f"{base}{suffix}" for suffix in IMAGE_SUFFIXES)]
    return next((path for folder in folders for path in map(folder.joinpath, names) if path.is_file()), None)


def _size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError as error:
        raise ValueError(f"{path}: found no picture that can be opened ({error}).") from None


def _check_output(folder: Path, images: Sequence[CocoImage], overwrite: bool) -> None:
    present = {path.stem for path in folder.glob("*.png")}
    ours = {image.stem for image in images}
    if (again := sorted(present & ours)) and not overwrite:
        raise FileExistsError(
            f"--output_dir: {folder} holds {len(again)} of these masks already{listed(again)}. Nothing was "
            "changed. Choose another folder, or replace them with --overwrite=true."
        )
    if others := sorted(present - ours):
        logger.warning("%s: %d PNGs are not of this run%s.", folder, len(others), listed(others))


def main() -> None:
    logging.basicConfig(format="so101-masks: %(message)s", force=True)  # importing LeRobot has set another
    try:
        summary = make_masks(draccus.parse(MasksConfig))
    except (ValueError, OSError, DraccusException) as error:
        print(f"so101-masks: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(summary.table())
    print(summary)


if __name__ == "__main__":
    main()
