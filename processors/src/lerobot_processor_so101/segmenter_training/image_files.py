# SPDX-License-Identifier: Apache-2.0
"""Find, read and write image files."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..atomic import atomic_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def stem(name: str) -> str:
    """Return a file name without folders and without an image suffix."""
    base = PurePosixPath(name)
    return base.stem if base.suffix.lower() in IMAGE_SUFFIXES else base.name


def find_image(folders: Iterable[Path], name: str) -> Path | None:
    """Return the image file with this name, or with this stem: exports may differ in the suffix."""
    base = PurePosixPath(name).parent / stem(name)
    names = [name, *(f"{base}{suffix}" for suffix in IMAGE_SUFFIXES)]
    return next((path for folder in folders for path in map(folder.joinpath, names) if path.is_file()), None)


def read_image(path: Path, mode: str | None = None) -> np.ndarray:
    """Read an image, (H, W) or (H, W, C), converted to a mode of Pillow if one is given.

    Raises:
        ValueError: if it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert(mode) if mode else image)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a damaged PNG
        raise ValueError(f"{path}: cannot be decoded as an image ({error}).") from None


def write_png(path: Path, values: np.ndarray) -> None:
    """Write a PNG atomically: class ids, (H, W) uint8 or uint16, or RGB, (H, W, 3) uint8."""
    with atomic_path(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")
