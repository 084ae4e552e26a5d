# SPDX-License-Identifier: Apache-2.0
"""`so101-segment`: show what a segmenter makes of a picture, a folder of pictures or a video.

Class ids go to <output>/ids as PNGs at the size of the input, the overlay with class names to <output>/overlay: as
PNGs too, or as one mp4 for a video.

    so101-segment --input=photo.jpg --output=outputs/seen
    so101-segment --model=outputs/segmenter/best --input=recording.mp4 --output=outputs/seen
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import draccus
import numpy as np
import torch
from av.container import InputContainer
from draccus.utils import DraccusException
from PIL import Image
from tqdm import tqdm
from transformers import SegformerImageProcessor
from transformers.utils.logging import disable_progress_bar

from ..coco_annotations import IMAGE_SUFFIXES
from ..coco_masks import write_png
from ..efficientvit_fpn.lightning import image_size, import_lightning
from ..overlay import overlay
from ..segmenters import WORKBENCH, Segmenter, make_segmenter
from ..segmenters.huggingface import SemanticSegmenter

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm")


@dataclass
class SegmentConfig:
    """Options of `so101-segment`.

    Args:
        input: a picture, a folder of pictures, or a video.
        output: folder for what is written.
        model: "workbench", a folder, a Hub id, or a Lightning .ckpt of the original segmenter.
        classes: what an open-vocabulary model is to look for.
        ids: write the class ids too.
        device: cpu or cuda; by default a GPU if there is one.
        overwrite: replace files that exist already.
    """

    input: Path
    output: Path
    model: str = WORKBENCH
    classes: list[str] = field(default_factory=list)
    ids: bool = True
    device: str | None = None
    overwrite: bool = False

    @property
    def ids_folder(self) -> Path:
        """Where class ids go."""
        return self.output / "ids"

    @property
    def overlay_folder(self) -> Path:
        """Where overlays go."""
        return self.output / "overlay"


def load_segmenter(model: str, classes: list[str]) -> Segmenter:
    """`make_segmenter`, which also takes a Lightning checkpoint.

    Raises:
        ValueError: there is no such model, or it is not one that segments.
    """
    if not model.endswith(".ckpt"):
        return make_segmenter(model, classes)
    if classes:
        raise ValueError(f"--classes: {model} has fixed classes; leave them out.")
    imported = import_lightning(Path(model))
    height, width = image_size(imported)
    processor = SegformerImageProcessor(size={"height": height, "width": width})
    return SemanticSegmenter(model, imported, processor)


def segment(config: SegmentConfig) -> int:
    """Segment everything in `config.input`.

    Returns:
        The number of frames.

    Raises:
        ValueError: bad input; the message names the file and frame. What was finished before stays.
        FileExistsError: files would be overwritten; nothing has been written.
        OSError: writing failed.
    """
    if not config.input.exists():
        raise ValueError(f"--input: there is no {config.input}.")
    video = config.input.suffix.lower() in VIDEO_SUFFIXES
    pictures = [] if video else _pictures(config.input)
    stems = [config.input.stem] if video else [path.stem for path in pictures]
    if len(set(stems)) != len(stems):
        raise ValueError(f"--input: {config.input} holds pictures that differ only in their suffix.")
    _check_output(config, stems, ".mp4" if video else ".png")
    see = _Segmenting(config)
    config.overlay_folder.mkdir(parents=True, exist_ok=True)
    if config.ids:
        config.ids_folder.mkdir(exist_ok=True)
    if video:
        return _segment_video(config, see)
    for path in tqdm(pictures, "segmenting", unit="frame"):
        write_png(config.overlay_folder / f"{path.stem}.png", see(_open_picture(path), path.stem))
    return len(pictures)


class _Segmenting:
    """Picture in, overlay out; class ids are written on the way."""

    def __init__(self, config: SegmentConfig) -> None:
        self.config = config
        self.device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.segmenter = load_segmenter(config.model, config.classes)

    def __call__(self, rgb: np.ndarray, name: str) -> np.ndarray:
        image = torch.from_numpy(rgb).permute(2, 0, 1)[None].to(self.device).float() / 255
        ids = self.segmenter(image).ids(rgb.shape[:2])[0].cpu().numpy()
        if self.config.ids:
            write_png(
                self.config.ids_folder / f"{name}.png", ids if ids.itemsize == 1 else ids.astype(np.uint16)
            )
        return overlay(rgb, ids, self.segmenter.class_names)


# --- pictures ---------------------------------------------------------------------------------------------------


def _pictures(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    pictures = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise ValueError(f"--input: found no pictures in {path}, expected {', '.join(IMAGE_SUFFIXES)}.")
    return pictures


def _open_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:  # Pillow tells of a broken PNG with a SyntaxError
        raise ValueError(f"{path}: cannot be decoded as a picture ({error}).") from None


def _check_output(config: SegmentConfig, stems: list[str], suffix: str) -> None:
    present = [path for stem in stems if (path := config.overlay_folder / f"{stem}{suffix}").exists()]
    if present and not config.overwrite:
        raise FileExistsError(
            f"--output: {present[0]} exists already and was left as it is. Choose another folder, or replace files "
            "with --overwrite=true."
        )


# --- video ------------------------------------------------------------------------------------------------------


def _segment_video(config: SegmentConfig, see: _Segmenting) -> int:
    """Write the overlay of every frame; of a damaged video, of the frames before the damage."""
    stem = config.input.stem
    with av_open(config.input) as video, _Film(config.overlay_folder / f"{stem}.mp4", video) as film:
        for frame in tqdm(_frames(config.input, video), "segmenting", _promised(video), unit="frame"):
            film.write(see(frame, f"{stem}_{film.count:06d}"))
    return film.count


def av_open(path: Path) -> InputContainer:
    """Open a video.

    Raises:
        ValueError: it is none.
    """
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise ValueError(
            f"--input: {path} cannot be opened as a video ({error}). It is truncated, or no video."
        ) from None
    if not container.streams.video:
        container.close()
        raise ValueError(f"--input: {path} has no pictures, only {[s.type for s in container.streams]}.")
    return container


def _frames(path: Path, video: InputContainer) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 each. Raises ValueError where the video ends before its time."""
    count, reason = 0, "it ends there"
    try:
        for frame in video.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
            count += 1
    except av.FFmpegError as error:
        reason = str(error)
    expected = _promised(video)
    if reason != "it ends there" or count < (expected or 1):
        raise ValueError(
            f"{path}: frame {count} cannot be decoded ({reason}), expected {expected or 'more'} frames. The video is "
            f"truncated or damaged; the {count} frames before were segmented and kept."
        )


def _promised(video: InputContainer) -> int | None:
    """Number of frames by the file's header; containers without a count have a length at most."""
    stream = video.streams.video[0]
    if stream.frames:
        return stream.frames
    if video.duration is None or stream.average_rate is None or video.streams.audio:
        return None
    return int(video.duration / av.time_base * stream.average_rate) - 1  # the length is rounded


class _Film:
    """An mp4 that appears under its name when it is closed, also after an error.

    Args:
        path: its name.
        video: whose frame rate it takes.
    """

    def __init__(self, path: Path, video: InputContainer) -> None:
        self.path, self.part = path, path.with_name(f"{path.stem}.part.mp4")
        self.rate = video.streams.video[0].average_rate or 30
        self.count = 0

    def __enter__(self) -> _Film:
        self.container = av.open(str(self.part), "w")
        return self

    def write(self, rgb: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8."""
        rgb = np.ascontiguousarray(
            rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2]
        )  # yuv420p: even sides
        if not self.count:
            self.stream = self.container.add_stream("h264", rate=self.rate, options={"crf": "18"})
            self.stream.height, self.stream.width, self.stream.pix_fmt = *rgb.shape[:2], "yuv420p"
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(rgb)))
        self.count += 1

    def __exit__(self, *_: object) -> None:
        if self.count:
            self.container.mux(self.stream.encode())
        self.container.close()
        if self.count:
            os.replace(self.part, self.path)
        self.part.unlink(missing_ok=True)


def main() -> None:
    logging.basicConfig(format="%(message)s")
    disable_progress_bar()  # of weights being read
    try:
        config = draccus.parse(SegmentConfig)
        count = segment(config)
    except (ValueError, OSError, DraccusException) as error:
        print(f"so101-segment: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{count} frames in {config.output}")


if __name__ == "__main__":
    main()
