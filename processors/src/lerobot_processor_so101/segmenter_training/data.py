# SPDX-License-Identifier: Apache-2.0
"""Decode annotated frames once, split them by recording, and serve them as training samples.

Frames are decoded at the training size into memory-mapped files: H x W x 4 bytes per frame (x 6 with
disparity), 77 kB at 160x120 and 1.2 MB at 640x480. Random crops are enlarged from that size by at most a
fifth: slightly blurred, but training never waits for a decoder.
"""

from __future__ import annotations

import hashlib
import json
import os
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

from ..perception.resize import resize_area, resize_ids
from .sources import FrameInfo, Source

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Layout = dict[str, tuple[tuple[int, ...], type[np.generic]]]  # shape and type of each file


@dataclass(frozen=True)
class Frames:
    """All frames at the training size.

    Attributes:
        infos: metadata of each frame.
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
    """Map stored ids to classes.

    Args:
        classes: names of the classes to train; position = id.
        class_ids: class ids of stored ids; they override names.
        stored: class names of the stored ids, position = id; `classes` if empty.

    Returns:
        (256,) int16 class of each stored id, -1 for none.
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
        sources: sources of the frames.
        size: (height, width) to resize to.
        tables: one `class_table` per source.
        disparity: also decode disparity.
        cache: folder for decoded frames; they are in a subfolder named by a fingerprint of all inputs.

    Raises:
        ValueError: if a frame is malformed or contains unknown ids.
        OSError: if the disk is too small.
    """
    infos = [info for source in sources for info in source.frames]
    names = ["images", "masks"] + ["disparity"] * disparity
    stamps = [source.fingerprint() for source in sources]
    key = json.dumps([list(size), [table.tolist() for table in tables], names, stamps])
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not folder.is_dir():
        _decode_all(sources, infos, size, tables, disparity, folder)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    return Frames(infos, arrays["images"], arrays["masks"], arrays.get("disparity"))


def _decode_all(
    sources: Sequence[Source],
    infos: Sequence[FrameInfo],
    size: tuple[int, int],
    tables: Sequence[np.ndarray],
    disparity: bool,
    folder: Path,
) -> None:
    shape = (len(infos), *size)
    layout: Layout = {"images": ((*shape, 3), np.uint8), "masks": (shape, np.uint8)}
    if disparity:
        layout["disparity"] = (shape, np.float16)
    part = folder.with_name(f"{folder.name}.part")
    threads = torch.get_num_threads()
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        torch.set_num_threads(1)  # on small images, several threads are slower than one
        _check_room(part, layout)
        arrays = {
            name: np.lib.format.open_memmap(part / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
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
            if disparity:
                if frame.disparity is None:
                    raise ValueError(f"{info.name}: found no depth.")
                arrays["disparity"][index] = resize_area(frame.disparity, size).numpy() / 255
        for array in arrays.values():
            array.flush()
        os.replace(part, folder)
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(part, ignore_errors=True)


def _check_room(folder: Path, layout: Layout) -> None:
    """Raise if the disk is too small: writing to a mapped file on a full disk kills the process."""
    needed = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: decoded frames take {needed / 1e9:.1f} GB, found {free / 1e9:.1f} GB free. Make "
            "room, or train on fewer frames with --every or on smaller ones with --height and --width."
        )


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


def split_by_recording(
    infos: Sequence[FrameInfo], val_share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split frames into training and validation by recordings, stratified.

    A recording belongs to the stratum of most of its frames. Recordings are shuffled, sorted by stratum and
    picked at equal steps.

    Args:
        infos: metadata of each frame.
        val_share: fraction of the recordings to validate on; each side has at least one.
        seed: random seed of the shuffle.

    Returns:
        Indices of `infos` for training and for validation.

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
    """Training samples: some of the frames, augmented and normalised for the model.

    Args:
        frames: all frames.
        rows: indices of the frames to use.
        augment: torchvision v2 transform of a sample, or None.
    """

    def __init__(self, frames: Frames, rows: Sequence[int], augment: Callable | None = None) -> None:
        self.frames, self.rows, self.augment = frames, rows, augment
        self.normalise = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)

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
        if self.augment is not None:
            sample = self.augment(sample)
        if "disparity_labels" in sample:  # min-max over what is still in the image; all 0 without contrast
            low, high = sample["disparity_labels"].aminmax()
            sample["disparity_labels"] = (sample["disparity_labels"] - low) / (high - low).clamp(min=1e-6)
        scaled = functional.to_dtype(sample["pixel_values"], torch.float32, scale=True)
        return {**sample, "pixel_values": self.normalise(scaled)}
