# SPDX-License-Identifier: Apache-2.0
"""Read and validate COCO annotations: an entry that cannot be rasterised raises an error that names it.

pycocotools rasterises. Its `COCO` class is not used: it prints, lets repeated ids overwrite each other and
validates nothing, and the C code trusts its input.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from ..perception.class_map import ClassMap
from .image_files import stem

# Fields that are read from a COCO file, and their types.
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "categories": {"id": (int, str), "name": (str,)},
    "images": {"id": (int, str), "file_name": (str,), "height": (int,), "width": (int,)},
    "annotations": {"image_id": (int, str), "category_id": (int, str), "segmentation": (list, dict)},
}

# COCO's compressed run lengths; a character of the second half of the alphabet is followed by another.
_COMPRESSED = re.compile(r"[0-o]*[0-O]")


@dataclass
class CocoImage:
    """One image of a COCO file, of height x width pixels.

    `layers` are (class id, compressed run lengths of the region) of each annotation, in the file's order.
    """

    name: str
    height: int
    width: int
    layers: list[tuple[int, dict]] = field(default_factory=list)

    @property
    def stem(self) -> str:
        return stem(self.name)

    def rasterise(self, order: Sequence[int]) -> np.ndarray:
        """Return class ids, (height, width) uint8; later classes of `order` cover earlier ones."""
        ids = np.zeros((self.height, self.width), np.uint8)
        for class_id, rle in sorted(self.layers, key=lambda layer: order.index(layer[0])):
            ids[rle_tools.decode(rle).view(bool)] = class_id
        return ids


def read_coco(path: Path, classes: ClassMap) -> list[CocoImage]:
    """Read and validate a COCO file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if an entry cannot be rasterised.
    """
    content = read_json(path)
    categories = _categories(path, _entries(path, content, "categories"), classes)
    images = _images(path, _entries(path, content, "images"))
    for index, annotation in enumerate(_entries(path, content, "annotations")):
        where = f"{path}: annotations[{index}]"
        image = _lookup(where, annotation, "image_id", images)
        class_id = _lookup(where, annotation, "category_id", categories)
        region = _region(f"{where} of {image.name}", annotation["segmentation"], image.height, image.width)
        image.layers.append((class_id, region))
    return list(images.values())


def _categories(path: Path, entries: list[dict], classes: ClassMap) -> dict[Any, int]:
    _check_distinct(path, "categories", "id", [entry["id"] for entry in entries])
    try:
        found = {entry["id"]: classes.id(entry["name"]) for entry in entries}
    except ValueError as error:
        raise ValueError(
            f"{path}: categories: {error} Rename or delete the category, or set --class_names."
        ) from None
    _check_distinct(path, "categories", "name", [classes.names[class_id] for class_id in found.values()])
    return found


def _images(path: Path, entries: list[dict]) -> dict[Any, CocoImage]:
    _check_distinct(path, "images", "id", [entry["id"] for entry in entries])
    images = {e["id"]: CocoImage(e["file_name"], e["height"], e["width"]) for e in entries}
    for image in images.values():
        if min(image.height, image.width) < 1:
            raise ValueError(
                f"{path}: {image.name}: found {image.width}x{image.height} pixels, expected at least 1x1."
            )
    _check_distinct(path, "images", "file_name without suffix", [image.stem for image in images.values()])
    return images


def _lookup(where: str, annotation: dict, key: str, known: dict[Any, Any]) -> Any:
    if annotation[key] not in known:
        raise ValueError(
            f"{where}: {key}: found {annotation[key]!r}, expected the id of one of the {len(known)} "
            f"{'images' if key == 'image_id' else 'categories'} of the file."
        )
    return known[annotation[key]]


def _region(where: str, segmentation: list | dict, height: int, width: int) -> dict:
    """Return the compressed run lengths of a COCO segmentation: polygons, or run lengths of either form."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(where, polygon, height, width)
        if not segmentation:
            raise ValueError(
                f"{where}: found no segmentation, expected polygons or RLE; a box is not enough."
            )
        return rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width))
    if segmentation.get("size") != [height, width]:
        raise ValueError(
            f"{where}: RLE size: found {segmentation.get('size')}, expected [height, width] of its image, "
            f"[{height}, {width}]."
        )
    counts = segmentation.get("counts")
    if isinstance(counts, str) and _COMPRESSED.fullmatch(counts):
        counts = _run_lengths(counts)
    if (
        not isinstance(counts, list)
        or not all(isinstance(count, int) and count >= 0 for count in counts)
        or sum(counts) != height * width
    ):
        raise ValueError(
            f"{where}: RLE counts: found runs that are malformed or do not add up to the image, expected "
            f"{height}x{width} = {height * width} pixels in all. Export the annotations again."
        )
    return rle_tools.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _run_lengths(counts: str) -> list[int]:
    """Decompress COCO's run lengths.

    They are signed numbers of 5 bits per character, low bits first; from the fourth on, differences to the
    run before the last. Decoded here because pycocotools leaves pixels after the last run uninitialised, and
    leaks memory if runs exceed the image.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - ord("0")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # continued in the next character
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def _check_polygon(where: str, polygon: Any, height: int, width: int) -> None:
    if not isinstance(polygon, list) or not all(isinstance(number, int | float) for number in polygon):
        raise ValueError(f"{where}: found a part {str(polygon)[:60]}, expected a polygon [x1, y1, x2, ...].")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(
            f"{where}: found a polygon of {len(polygon)} numbers, expected x and y of at least 3 points."
        )
    # Points slightly outside are common. pycocotools follows edges pixel by pixel: far outside it never ends.
    limit = 2 * max(height, width)
    if not all(math.isfinite(number) and abs(number) <= limit for number in polygon):
        raise ValueError(f"{where}: found a polygon far outside its image of {width}x{height} pixels.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises OSError if the file cannot be read, ValueError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: found no valid JSON ({error}). Export it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a JSON {type(content).__name__}, expected an object {{...}}.")
    return content


def read_marks(path: Path) -> dict[str, Any]:
    """Read `{"marks": {file name: value}}`, and return the values by file name; raises as `read_json`."""
    marks = read_json(path).get("marks")
    if not isinstance(marks, dict):
        raise ValueError(f'{path}: found no marks, expected {{"marks": {{file name: value}}}}.')
    return marks


def _entries(path: Path, content: dict, key: str) -> list[dict]:
    """Return the list `content[key]`, whose entries must have the fields `_FIELDS[key]`."""
    entries = content.get(key)
    if not isinstance(entries, list):
        raise ValueError(
            f"{path}: found no list {key!r}, expected a COCO file with images, annotations, categories."
        )
    for index, entry in enumerate(entries):
        for name, types in _FIELDS[key].items():
            if not isinstance(entry, dict) or not isinstance(entry.get(name), types):
                expected = " or ".join(kind.__name__ for kind in types)
                raise ValueError(
                    f"{path}: {key}[{index}]: found {str(entry)[:80]}, expected an object with {name!r}: "
                    f"{expected}."
                )
    return entries


def _check_distinct(path: Path, key: str, what: str, values: Sequence) -> None:
    repeated = [str(value) for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{path}: {key}: found the same {what} more than once{listed(repeated)}, expected each once. "
            "Merged files need new ids and file names."
        )


def listed(names: Iterable[str]) -> str:
    """Format at most five names as ": a, b, c", and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f": {', '.join(names[:5])}{more}" if names else ""
