# SPDX-License-Identifier: Apache-2.0
"""Decode annotated frames once, split them by recording, and serve them as training samples.

Frames are decoded at the training size into memory-mapped files: H x W x 4 bytes per frame (x 6 with
disparity), 77 kB at 160x120 and 1.2 MB at 640x480. Random crops are enlarged from that size by at most a
fifth: slightly blurred, but training never waits for a decoder.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from tqdm import tqdm
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..atomic import atomic_path
from ..perception.resize import resize_area, resize_ids
from .sources import FrameInfo, Source

Layout = dict[str, tuple[tuple[int, ...], type[np.generic]]]  # shape and type of each file


@dataclass(frozen=True)
class Frames:
    """All frames at the training size.

    Attributes:
        images: (N, H, W, 3) uint8.
        masks: (N, H, W) uint8 class ids.
        disparity: (N, H, W) float16 in [0, 1], near = 1, or None.
    """

    infos: list[FrameInfo]
    images: np.ndarray
    masks: np.ndarray
    disparity: np.ndarray | None


def class_table(
    classes: Sequence[str], class_ids: Mapping[int, int], stored: Sequence[str] = ()
) -> np.ndarray:
    """Return the class of each of 256 stored ids, (256,) int16, -1 for none.

    Args:
        classes: names of the classes to train; position = id.
        class_ids: class ids of stored ids; they override names.
        stored: class names of the stored ids, position = id; `classes` if empty.
    """
    table = np.full(256, -1, np.int16)
    for id_, name in enumerate(stored or classes):
        table[id_] = list(classes).index(name) if name in classes else -1
    for id_, class_id in class_ids.items():
        table[id_] = class_id
    return table


def load_frames(
    sources: Sequence[Source],
    size: tuple[int, int],
    tables: Sequence[np.ndarray],
    disparity: bool,
    cache: Path,
) -> Frames:
    """Decode all frames, unless `cache` contains them already.

    Args:
        size: (height, width) to resize to.
        tables: one `class_table` per source.
        cache: folder for decoded frames; they are in a subfolder named by a fingerprint of all inputs.

    Raises:
        ValueError: if a frame is malformed or contains unknown ids.
        OSError: if the disk is too small.
    """
    infos = [info for source in sources for info in source.frames]
    shape = (len(infos), *size)
    layout: Layout = {"images": ((*shape, 3), np.uint8), "masks": (shape, np.uint8)}
    if disparity:
        layout["disparity"] = (shape, np.float16)
    stamps = [source.fingerprint() for source in sources]
    key = json.dumps([list(size), [table.tolist() for table in tables], list(layout), stamps])
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not folder.is_dir():
        for interrupted in cache.glob("*.tmp"):
            shutil.rmtree(interrupted)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)  # on small images, several threads are slower than one
            with atomic_path(folder) as part:
                _decode_all(sources, infos, tables, size, layout, part)
        finally:
            torch.set_num_threads(threads)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in layout}
    return Frames(infos, arrays["images"], arrays["masks"], arrays.get("disparity"))


def _decode_all(
    sources: Sequence[Source],
    infos: Sequence[FrameInfo],
    tables: Sequence[np.ndarray],
    size: tuple[int, int],
    layout: Layout,
    folder: Path,
) -> None:
    folder.mkdir()
    needed = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    free = shutil.disk_usage(folder).free
    if needed > free:  # writing to a mapped file on a full disk kills the process
        raise OSError(
            f"{folder}: decoded frames take {needed / 1e9:.1f} GB, found {free / 1e9:.1f} GB free. Make "
            "room, or train on fewer frames with --every or on smaller ones with --height and --width."
        )
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, (shape, dtype) in layout.items()
    }
    frames = (
        (source, table, frame)
        for source, table in zip(sources, tables, strict=True)
        for frame in source.read()
    )
    progress = tqdm(zip(infos, frames, strict=True), "decoding", len(infos), unit="frame")
    for index, (info, (source, table, frame)) in enumerate(progress):
        # as the image processor that is saved with the model resizes
        rgb = functional.resize(frame.rgb, list(size), v2.InterpolationMode.BILINEAR, antialias=True)
        arrays["images"][index] = rgb.permute(1, 2, 0).numpy()
        arrays["masks"][index] = _classes(frame.ids, size, table, info.name, source.class_names)
        if "disparity" in arrays:
            if frame.disparity is None:
                raise ValueError(f"{info.name}: found no depth.")
            arrays["disparity"][index] = resize_area(frame.disparity, size).numpy() / 255
    for array in arrays.values():
        array.flush()


def _classes(
    ids: torch.Tensor, size: tuple[int, int], table: np.ndarray, name: str, stored: Sequence[str]
) -> np.ndarray:
    """Return the class of each pixel, (h, w)."""
    present = np.unique(ids.numpy())
    if (unknown := present[table[present] < 0]).size:
        named = [f"{id_} ({stored[id_]})" if id_ < len(stored) else str(id_) for id_ in unknown]
        raise ValueError(
            f"{name}: found the ids {', '.join(named)}, expected those of the {int((table >= 0).sum())} "
            "--classes. Add them to --classes, or map them to a class, e.g. "
            f"--class_ids='{{{unknown[0]}: 3}}'."
        )
    return table[resize_ids(ids, size).numpy()]


def split_by_recording(infos: list[FrameInfo], val_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the rows of training and validation frames, split by recordings, stratified.

    A recording belongs to the stratum of most of its frames. Recordings are shuffled, sorted by stratum and
    picked at equal steps: the fraction `val_share` to validate on, at least one on each side.

    Raises:
        ValueError: if there are less than two recordings.
    """
    strata: dict[str, list[str]] = {}
    for info in infos:
        strata.setdefault(info.recording, []).append(info.stratum)
    if len(strata) < 2:
        raise ValueError(
            f"--data: found {len(strata)} recording ({', '.join(strata)}), expected at least 2: one to train "
            "on and another to validate on, because neighbouring frames are too alike. A frame's recording "
            "is its episode, or its file name up to the last number."
        )
    recordings = sorted(strata)
    np.random.default_rng(seed).shuffle(recordings)
    recordings.sort(key=lambda recording: max(sorted(strata[recording]), key=strata[recording].count))
    count = min(max(round(val_share * len(recordings)), 1), len(recordings) - 1)
    steps = ((np.arange(count) + 0.5) * len(recordings) / count).astype(int)
    validation = {recordings[step] for step in steps}
    sides: tuple[list[int], list[int]] = ([], [])
    for index, info in enumerate(infos):
        sides[info.recording in validation].append(index)
    return sides


class FrameDataset(Dataset):
    """Training samples: the frames of some rows, augmented by a torchvision transform, and normalised."""

    def __init__(self, frames: Frames, rows: Sequence[int], augment: Callable = v2.Identity()) -> None:
        self.frames, self.rows, self.augment = frames, rows, augment
        self.normalise = v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return a sample by the arguments of `EfficientViTFPNForSemanticSegmentation.forward`."""
        row = self.rows[index]
        image = torch.from_numpy(self.frames.images[row].transpose(2, 0, 1).copy())
        sample: dict[str, torch.Tensor] = {
            "pixel_values": tv_tensors.Image(image),
            "labels": tv_tensors.Mask(torch.from_numpy(self.frames.masks[row].copy())),
        }
        if self.frames.disparity is not None:
            disparity = self.frames.disparity[row].astype(np.float32)
            sample["disparity_labels"] = tv_tensors.Mask(torch.from_numpy(disparity))
        sample = self.augment(sample)
        if "disparity_labels" in sample:  # min-max over what is still in the image; all 0 without contrast
            low, high = sample["disparity_labels"].aminmax()
            sample["disparity_labels"] = (sample["disparity_labels"] - low) / (high - low).clamp(min=1e-6)
        scaled = functional.to_dtype(sample["pixel_values"], torch.float32, scale=True)
        return {**sample, "pixel_values": self.normalise(scaled)}
