# SPDX-License-Identifier: Apache-2.0
"""Annotate the frames of a folder for `so101-masks` with one box for each class, in place of a person.

python -m tests.tiny_coco data/dataset_v0
"""

import json
import sys
from pathlib import Path

from PIL import Image

CLASSES = ("background", "table", "cube", "static_finger", "moving_finger")


def box(index: int, size: tuple[int, int]) -> list[float]:
    """Return the box (x, y, width, height) [pixels] of a class in an image of this width and height."""
    width, height = size
    return [index * width / len(CLASSES), 0, width / len(CLASSES), height]


def annotate(folder: Path) -> None:
    """Write COCO annotations of the images in `images/`, or of two new ones."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for recording in "" if any(images.iterdir()) else "ab":
        Image.new("RGB", (64, 48)).save(images / f"{recording}_0.png")
    coco: dict[str, list] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES)],
    }
    for image, path in enumerate(sorted(path for path in images.rglob("*.*") if path.is_file())):
        size = Image.open(path).size
        coco["images"].append({"id": image, "file_name": path.name, "width": size[0], "height": size[1]})
        for index in range(len(CLASSES)):
            x, y, w, h = box(index, size)
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            coco["annotations"].append({"image_id": image, "category_id": index, "segmentation": outline})
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / "instances_default.json").write_text(json.dumps(coco))


if __name__ == "__main__":
    annotate(Path(sys.argv[1]))
