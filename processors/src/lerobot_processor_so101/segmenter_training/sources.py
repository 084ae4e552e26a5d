# SPDX-License-Identifier: Apache-2.0
"""Sources of annotated frames: a folder of images and masks, or a LeRobotDataset with class ids.

A source has `frames`, the metadata of each frame, and `class_names`, those of the stored ids (empty if
unknown); `read` decodes the frames in this order, and `fingerprint` returns JSON that changes with them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.video import DepthEncoderConfig
from lerobot.datasets import LeRobotDataset

from ..perception.disparity import depth_to_disparity
from ..perception.keys import depth_image_key, disparity_key, image_key, seg_image_key, seg_key
from ..perception.stored import decode_disparity
from ..precompute.source import rgb_camera_names
from .coco_annotations import read_marks
from .coco_masks import EXCLUDED
from .image_files import find_image, read_image, stem


@dataclass(frozen=True)
class FrameInfo:
    """Metadata of a frame, known before it is decoded.

    Attributes:
        recording: recording of the frame; its frames resemble each other and are on one side of the split.
        stratum: kind of frame; all kinds are split alike.
        camera: camera of the frame; its frames share the layout of the scene.
        name: name for messages.
    """

    recording: str
    stratum: str
    camera: str
    name: str


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
        rgb: (3, H, W) uint8.
        ids: (h, w) uint8 as stored, of the whole image.
        disparity: (h', w') float32 in 0..255, near = 255, of the whole image; None unless requested.
    """

    rgb: torch.Tensor
    ids: torch.Tensor
    disparity: torch.Tensor | None = None


def open_source(path: Path, every: int = 1, disparity: bool = False) -> "Source":
    """Open a folder with masks/ and images/, or every n-th frame of a LeRobotDataset.

    Raises:
        ValueError: if it is neither, or has no depth though `disparity` is set.
    """
    if (path / "meta" / "info.json").is_file():
        return LeRobotSource(path, every, disparity)
    if (path / "masks").is_dir():
        if disparity:
            raise ValueError(f"--data: {path} has masks but no depth, which --disparity_head=true needs.")
        return MaskFolder(path)
    raise ValueError(
        f"--data: found neither masks/ nor meta/info.json in {path}, expected a folder that so101-masks "
        "wrote or a LeRobotDataset with class ids."
    )


class MaskFolder:
    """Images in images/ or images/default/ and their masks, PNGs of class ids, in masks/.

    The recording of a frame is its file name without the number at the end: grasp_demo0_00012 is frame 12 of
    grasp_demo0. Frames marked in selections.json show a held object and form a stratum of their own.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        files = (folder / "excluded.json", folder / "selections.json")
        marks, selections = (read_marks(file) if file.is_file() else {} for file in files)
        excluded = {stem(name) for name, value in marks.items() if value == EXCLUDED}
        held = {stem(name) for name in selections}
        self.masks = [path for path in sorted((folder / "masks").glob("*.png")) if path.stem not in excluded]
        if not self.masks:
            raise ValueError(
                f"--data: found no masks in {folder / 'masks'} ({len(excluded)} excluded), expected *.png; "
                "so101-masks makes them from COCO annotations."
            )
        self.images = [_image_of(mask, folder / "images") for mask in self.masks]
        self.frames = [
            FrameInfo(
                recording=f"{folder.name}/{recording_of(mask.stem)}",
                stratum=f"{folder}/{'grasp' if mask.stem in held else 'default'}",
                camera=str(folder),
                name=str(mask),
            )
            for mask in self.masks
        ]

    def read(self) -> Iterator[Frame]:
        """Decode every frame; raises ValueError if one is malformed."""
        for image, mask in zip(self.images, self.masks, strict=True):
            rgb, ids = read_image(image, "RGB"), read_image(mask)
            if ids.ndim != 2 or ids.dtype != np.uint8:
                raise ValueError(f"{mask}: found {ids.dtype} {ids.shape}, expected 8-bit ids in one channel.")
            if rgb.shape[:2] != ids.shape:
                raise ValueError(
                    f"{mask}: found {ids.shape[1]}x{ids.shape[0]} pixels, expected those of its image "
                    f"{image}, {rgb.shape[1]}x{rgb.shape[0]}."
                )
            yield Frame(torch.from_numpy(rgb).permute(2, 0, 1), torch.from_numpy(ids))

    def fingerprint(self) -> Any:
        """Return names, sizes and times of the files."""
        return [_stamp(path) for path in (*self.images, *self.masks)]


def recording_of(name: str) -> str:
    """Return the name of a frame's file without the number at its end."""
    return re.sub(r"(^|[_-])\d+$", "", name) or "all"


def _image_of(mask: Path, images: Path) -> Path:
    if path := find_image((images / "default", images), mask.stem):
        return path
    raise ValueError(f"{mask}: found no {mask.stem}.jpg or .png in {images} or {images / 'default'}.")


class LeRobotSource:
    """Images, class ids and disparity of every camera of a LeRobotDataset that has ids.

    Ids and depth are recorded ones, or those that `so101-precompute` wrote, of any size: so a small segmenter
    learns from a large one. An episode is one recording, with all its cameras.
    """

    def __init__(self, root: Path, every: int, disparity: bool) -> None:
        self.root, self.every, self.disparity = root, every, disparity
        self.dataset = LeRobotDataset(
            f"local/{root.resolve().name}", root=root, return_uint8=True, depth_output_unit="mm"
        )
        self.ids_keys = self._find_ids_keys()
        self.class_names = self._find_class_names()
        columns = self.dataset.hf_dataset.data
        episodes = columns.column("episode_index").to_numpy()
        ticks = columns.column("frame_index").to_numpy()
        self.rows = np.flatnonzero(ticks % every == 0).tolist()
        self.frames = [
            FrameInfo(
                recording=f"{root.name}/episode {episodes[row]}",
                stratum=str(root),
                camera=f"{root}/{camera}",
                name=f"{root}: episode {episodes[row]}, frame {ticks[row]}, {self.ids_keys[camera]}",
            )
            for row in self.rows
            for camera in self.ids_keys
        ]

    def _find_ids_keys(self) -> dict[str, str]:
        """Return the key of the class ids of every camera that has RGB images and ids."""
        features, cameras = self.dataset.meta.features, rgb_camera_names(self.dataset.meta)
        found = {
            camera: key
            for camera in cameras
            for key in (seg_image_key(camera), seg_key(camera))
            if key in features
        }
        if not found:
            raise ValueError(
                f"--data: {self.root} has RGB images of the cameras {cameras} but class ids of none, "
                f"expected {seg_image_key('<camera>')} or {seg_key('<camera>')}. Record with --seg=true, or "
                "add ids: `so101-precompute --segmenter=<model>`."
            )
        for camera, key in found.items():
            info = features[key].get("info")
            if key in self.dataset.meta.video_keys and DepthEncoderConfig.from_video_info(info).use_log:
                raise ValueError(
                    f"--data: {self.root}: {key} was stored with a logarithmic quantiser, which merges class "
                    "ids. Record again with --dataset.depth_encoder.use_log=false."
                )
            if self.disparity and not {depth_image_key(camera), disparity_key(camera)} & features.keys():
                raise ValueError(
                    f"--data: found neither {depth_image_key(camera)} nor {disparity_key(camera)} in "
                    f"{self.root}, which --disparity_head=true needs. Record with --depth=true, or add "
                    "disparity: `so101-precompute --depth=<model>`."
                )
        return found

    def _find_class_names(self) -> tuple[str, ...]:
        """Return the class names that so101-demos and so101-precompute store with the ids."""
        infos = [self.dataset.meta.features[key].get("info") or {} for key in self.ids_keys.values()]
        named = {tuple(info.get("class_names") or ()) for info in infos}
        if len(named) > 1:
            raise ValueError(
                f"--data: {self.root}: found {len(named)} different lists of classes in "
                f"{list(self.ids_keys.values())}, expected one."
            )
        return named.pop()

    def read(self) -> Iterator[Frame]:
        """Decode every frame; raises ValueError if one is malformed."""
        infos = iter(self.frames)
        for row in self.rows:
            item = self.dataset[row]
            for camera, key in self.ids_keys.items():
                rgb, ids = item[image_key(camera)], item[key].squeeze(0)
                if rgb.is_floating_point():
                    rgb = (rgb * 255).round().to(torch.uint8)
                name = next(infos).name
                if key == seg_image_key(camera) and ids.shape != rgb.shape[-2:]:
                    raise ValueError(
                        f"{name}: found ids of {tuple(ids.shape)}, expected the image's "
                        f"{tuple(rgb.shape[-2:])}."
                    )
                if bool((ids != ids.round()).any()) or ids.min() < 0 or ids.max() > 255:
                    raise ValueError(f"{name}: found values that are not class ids, expected 0 to 255.")
                yield Frame(rgb, ids.to(torch.uint8), self._disparity(item, camera))

    def _disparity(self, item: dict[str, torch.Tensor], camera: str) -> torch.Tensor | None:
        if not self.disparity:
            return None
        if depth_image_key(camera) in item:
            return depth_to_disparity(item[depth_image_key(camera)].squeeze(0))
        return decode_disparity(item[disparity_key(camera)])

    def fingerprint(self) -> Any:
        """Return names, sizes and times of the files, and the stride of the frames."""
        files = sorted(path for part in ("data", "videos") for path in (self.root / part).rglob("*.*"))
        return [self.every, *(_stamp(path) for path in files)]


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


type Source = MaskFolder | LeRobotSource
