# SPDX-License-Identifier: Apache-2.0
"""`so101-frames`: choose frames of a recording that differ from each other, to annotate them.

    so101-frames --root=outputs/arm --output=data/mine --count=150

Every camera has an equal share. Each further frame is the one that differs most from all that are chosen
(farthest-point sampling on small thumbnails), and at least half a second from those of its episode. They are
written to images/, where `so101-masks` finds them once they are annotated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from ..cli import run_command
from ..perception.keys import image_key
from ..precompute.frames import read_batches
from ..precompute.source import Source, rgb_camera_names

_THUMBNAIL = (12, 16)  # height, width
_GAP_S = 0.5  # between chosen frames of an episode
_BATCH = 32


@dataclass
class FramesConfig:
    """Options of `so101-frames`.

    Args:
        root: folder of a LeRobotDataset.
        output: folder to write images/ into; must not contain any yet.
        count: number of frames, of all cameras together.
        cameras: cameras to choose frames from; by default all with RGB images.
    """

    root: Path
    output: Path
    count: int = 150
    cameras: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Validate the options.

        Raises:
            ValueError: if `count` is too small.
            FileExistsError: if there are images already.
        """
        if self.count < 1:
            raise ValueError(f"--count: found {self.count}, expected 1 or more.")
        if (self.output / "images").exists():
            raise FileExistsError(
                f"--output: {self.output / 'images'} exists and was left as it was. Choose another folder."
            )


@dataclass(frozen=True)
class Frame:
    """Place of an image: episode, frame in the episode, camera."""

    episode: int
    index: int
    camera: str


def extract(config: FramesConfig) -> str:
    """Choose frames and write them as PNG.

    Raises:
        ValueError: if an option or the dataset is not supported.
        FileNotFoundError: if there is no dataset.
        FileExistsError: if `output` contains images.
    """
    config.check()
    source = Source(config.root)
    cameras = _cameras(source, config.cameras)
    chosen: list[Frame] = []
    for number, (frames, thumbnails) in enumerate(_thumbnails(source, cameras)):
        share = (config.count + number) // len(cameras)
        chosen += [frames[i] for i in choose(frames, thumbnails, share, _GAP_S * source.meta.fps)]
    folder = config.output / "images"
    folder.mkdir(parents=True)
    for frame, image in _images(source, chosen):
        name = f"episode_{frame.episode:03d}_{frame.camera}_{frame.index:05d}.png"
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()  # (H, W, 3)
        Image.fromarray(pixels).save(folder / name)
    return f"{len(chosen)} frames of {len({frame.episode for frame in chosen})} episodes in {folder}"


def choose(frames: list[Frame], features: np.ndarray, count: int, gap: float) -> list[int]:
    """Return the positions of frames that are chosen by farthest-point sampling, in this order.

    Args:
        frames: candidates, of one camera.
        features: (N, D) of the candidates; their Euclidean distance is how much they differ.
        count: number of frames; fewer are chosen if no others are left.
        gap: least number of frames between two of an episode.
    """
    places = np.array([frame.index for frame in frames])
    episodes = np.array([frame.episode for frame in frames])
    # the first is the most unusual one
    distance = np.linalg.norm(features - features.mean(0), axis=1)
    chosen: list[int] = []
    free = np.ones(len(frames), bool)
    while len(chosen) < count and free.any():
        best = int(np.argmax(np.where(free, distance, -np.inf)))
        to_best = np.linalg.norm(features - features[best], axis=1)
        distance = np.minimum(distance, to_best) if chosen else to_best
        chosen.append(best)
        free &= ~((episodes == episodes[best]) & (np.abs(places - places[best]) < gap))
        free[best] = False
    return chosen


def _cameras(source: Source, wanted: list[str]) -> list[str]:
    names = rgb_camera_names(source.meta)
    found = [camera for camera in names if 3 in source.features[image_key(camera)]["shape"]]
    unknown = [camera for camera in wanted if camera not in found]
    if unknown or not found:
        raise ValueError(
            f"--cameras: found {', '.join(unknown) or 'none'}, expected some of {', '.join(found)}, the RGB "
            f"cameras in {source.root}."
        )
    return wanted or found


def _thumbnails(source: Source, cameras: list[str]) -> Iterator[tuple[list[Frame], np.ndarray]]:
    """Read every frame once, and yield the places and small versions (N, D) of each camera's."""
    frames: dict[str, list[Frame]] = {camera: [] for camera in cameras}
    thumbnails: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
    for batch in read_batches(source, source.episodes, cameras, _BATCH):
        for camera, images in batch.images.items():
            small = adaptive_avg_pool2d(images, _THUMBNAIL).flatten(1).numpy()  # (B, 3 * 12 * 16)
            places = range(batch.start, batch.start + len(small))
            frames[camera] += [Frame(batch.episode.index, place, camera) for place in places]
            thumbnails[camera].append(small)
    for camera in cameras:
        yield frames[camera], np.concatenate(thumbnails[camera])


def _images(source: Source, chosen: list[Frame]) -> Iterator[tuple[Frame, torch.Tensor]]:
    """Yield the chosen frames with their images (3, H, W) in [0, 1]."""
    for camera in {frame.camera for frame in chosen}:
        wanted = {frame for frame in chosen if frame.camera == camera}
        numbers = {frame.episode for frame in wanted}
        episodes = [episode for episode in source.episodes if episode.index in numbers]
        for batch in read_batches(source, episodes, [camera], _BATCH):
            for index, image in enumerate(batch.images[camera], batch.start):
                if (frame := Frame(batch.episode.index, index, camera)) in wanted:
                    yield frame, image


def main() -> None:
    """Run `so101-frames`."""
    run_command("so101-frames", FramesConfig, extract)


if __name__ == "__main__":
    main()
