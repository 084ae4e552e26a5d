# SPDX-License-Identifier: Apache-2.0
"""`so101-segment`: run a segmenter on an image, a folder of images or a video.

Class ids are written to <output>/ids as PNGs at the size of the input, and overlays with class names to
<output>/overlay: PNGs too, or one mp4 for a video.

    so101-segment --input=photo.jpg --output=outputs/segmented
    so101-segment --model=outputs/segmenter/best --input=recording.mp4 --output=outputs/segmented
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from tqdm import tqdm
from transformers import SegformerImageProcessor
from transformers.utils.logging import disable_progress_bar

from ..cli import run_command
from ..config_checks import check_device
from ..models import WORKBENCH, Segmenter, make_segmenter
from ..models.efficientvit_fpn.lightning import import_lightning, training_image_size
from ..models.huggingface import SemanticSegmenter
from ..perception.overlay import overlay
from ..recording import VideoWriter
from .image_files import IMAGE_SUFFIXES, read_image, write_png

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm")


@dataclass
class SegmentConfig:
    """Options of `so101-segment`.

    Args:
        input: image, folder of images, or video.
        output: folder of the results.
        model: "workbench", a folder, a Hub id, or a Lightning .ckpt of pick101's segmenter.
        classes: free-text classes of an open-vocabulary model.
        ids: write class ids too.
        device: cpu or cuda; by default a GPU if there is one.
        overwrite: replace existing files.
    """

    input: Path
    output: Path
    model: str = WORKBENCH
    classes: list[str] = field(default_factory=list)
    ids: bool = True
    device: str | None = None
    overwrite: bool = False


def load_segmenter(model: str, classes: list[str]) -> Segmenter:
    """Load a segmenter that `make_segmenter` knows, or a Lightning checkpoint.

    Raises:
        ValueError: if there is no such model, or it is not a segmenter.
    """
    if not model.endswith(".ckpt"):
        return make_segmenter(model, classes)
    if classes:
        raise ValueError(f"--classes: {model} has fixed classes; leave them out.")
    imported = import_lightning(Path(model))
    height, width = training_image_size(imported)
    processor = SegformerImageProcessor(size={"height": height, "width": width})
    return SemanticSegmenter(model, imported, processor)


def segment(config: SegmentConfig) -> int:
    """Segment all frames of `config.input`, and return their number.

    Raises:
        ValueError: if a file or frame is invalid; complete results stay.
        FileExistsError: if files would be overwritten; nothing has been written.
        OSError: if writing fails.
    """
    if not config.input.exists():
        raise ValueError(f"--input: there is no {config.input}.")
    video = config.input.suffix.lower() in VIDEO_SUFFIXES
    images = [config.input] if video else _images(config.input)
    stems = [path.stem for path in images]
    if len(set(stems)) != len(stems):
        raise ValueError(f"--input: {config.input} contains images that differ only in their suffix.")
    overlays, suffix = config.output / "overlay", ".mp4" if video else ".png"
    paths = [overlays / f"{stem}{suffix}" for stem in stems]
    if not config.overwrite and (present := [path for path in paths if path.exists()]):
        raise FileExistsError(
            f"--output: {present[0]} exists already and was left as it is. Choose another folder, or replace "
            "files with --overwrite=true."
        )
    overlay_of = _frame_segmenter(config)
    overlays.mkdir(parents=True, exist_ok=True)
    if video:
        return _segment_video(config, paths[0], overlay_of)
    for image, path in zip(tqdm(images, "segmenting", unit="frame"), paths, strict=True):
        write_png(path, overlay_of(read_image(image, "RGB"), image.stem))
    return len(images)


def _frame_segmenter(config: SegmentConfig) -> Callable[[np.ndarray, str], np.ndarray]:
    """Return a function that writes the class ids of an image, (H, W, 3) uint8, and returns its overlay."""
    check_device(config.device)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    segmenter = load_segmenter(config.model, config.classes)

    def overlay_of(rgb: np.ndarray, name: str) -> np.ndarray:
        image = torch.from_numpy(rgb).permute(2, 0, 1)[None].to(device).float() / 255
        ids = segmenter(image).ids(rgb.shape[:2])[0].cpu().numpy()
        if config.ids:
            stored = ids if ids.itemsize == 1 else ids.astype(np.uint16)
            write_png(config.output / "ids" / f"{name}.png", stored)
        return overlay(rgb, ids, segmenter.class_names)

    return overlay_of


def _images(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    images = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise ValueError(f"--input: found no images in {path}, expected {', '.join(IMAGE_SUFFIXES)}.")
    return images


def _segment_video(config: SegmentConfig, path: Path, overlay_of: Callable) -> int:
    """Write the overlays of a video; of a damaged one, those before the damage."""
    with _open_video(config.input) as video:
        frames = tqdm(_frames(config.input, video), "segmenting", _frame_count(video), unit="frame")
        with VideoWriter(path, video.streams.video[0].average_rate or 30) as writer:
            for frame in frames:
                writer.write(overlay_of(frame, f"{path.stem}_{writer.count:06d}"))
    return writer.count


def _open_video(path: Path) -> InputContainer:
    """Open a video; raises ValueError if it is not one."""
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise ValueError(
            f"--input: {path} cannot be opened as a video ({error}). It is truncated, or not a video."
        ) from None
    if not container.streams.video:
        container.close()
        raise ValueError(f"--input: {path} has no images, only {[s.type for s in container.streams]}.")
    return container


def _frames(path: Path, video: InputContainer) -> Iterator[np.ndarray]:
    """Yield frames, (H, W, 3) uint8; raises ValueError if the video ends early."""
    count, reason = 0, "it ends there"
    try:
        for frame in video.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
            count += 1
    except av.FFmpegError as error:
        reason = str(error)
    expected = _frame_count(video)
    if reason != "it ends there" or count < (expected or 1):
        raise ValueError(
            f"{path}: frame {count} cannot be decoded ({reason}), expected {expected or 'more'} frames. The "
            f"video is truncated or damaged; the {count} frames before were segmented and kept."
        )


def _frame_count(video: InputContainer) -> int | None:
    """Return the number of frames from the header, or from the duration if the header has none."""
    stream = video.streams.video[0]
    if stream.frames:
        return stream.frames
    if video.duration is None or stream.average_rate is None or video.streams.audio:
        return None
    return int(video.duration / av.time_base * stream.average_rate) - 1  # the duration is rounded


def main() -> None:
    """Run `so101-segment`."""
    disable_progress_bar()  # of weights
    run_command("so101-segment", SegmentConfig, lambda config: f"{segment(config)} frames in {config.output}")


if __name__ == "__main__":
    main()
