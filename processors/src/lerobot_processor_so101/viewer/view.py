# SPDX-License-Identifier: Apache-2.0
"""`so101-view`: show the inputs of a policy side by side: images, masks with class names, disparity.

    so101-view --root=outputs/demos                                   # a dataset, in rerun's viewer
    so101-view --root=outputs/demos --output=view.mp4                 # the same as a video
    so101-view --root=outputs/demos --checkpoint=outputs/run/checkpoints/last/pretrained_model  # of a policy
    so101-view --cameras='{wrist: {type: opencv, index_or_path: 0}}'  # live

Stored masks and disparity are shown as they are; others are computed by a policy's processor steps.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lerobot.cameras import CameraConfig, make_cameras_from_configs
from lerobot.cameras.opencv import OpenCVCameraConfig  # noqa: F401  registers `type: opencv`
from lerobot.datasets import LeRobotDataset
from lerobot.processor import RobotObservation
from PIL import Image
from torch.utils.data import default_collate
from tqdm import tqdm

from ..atomic import atomic_path
from ..cli import run_command
from ..config_checks import check_dataset_folder, check_device
from ..perception.keys import depth_image_key, disparity_key, image_key, seg_image_key, seg_key
from ..perception.overlay import class_palette, side_by_side
from ..recording import VideoWriter
from ..steps.disparity import DisparityProcessorStep
from ..steps.perception import OBSERVED
from ..steps.segmentation import SegmentationProcessorStep

logger = logging.getLogger(__name__)

SEGMENTER, NONE = "segmenter", "none"
_SUFFIXES = (".mp4", ".png", ".rrd")
_NUMBERED = tuple(f"class {id_}" for id_ in range(256))
_SHEET_ROWS = 6


@dataclass
class ViewConfig:
    """Options of `so101-view`.

    Args:
        root: folder of a LeRobotDataset; or else `cameras`.
        episode: index of the episode.
        checkpoint: `pretrained_model` folder of a policy that can draw its inputs, such as segvla; these
            drawings are shown instead.
        cameras: live cameras, as in `--robot.cameras`.
        segmenter: "workbench", a Hub id or folder, "observation" for a simulator's ids, or "none".
        depth: "segmenter" for its own head, a Hub id or folder, "observation" for recorded depth, or "none".
        classes: free-text classes of an open-vocabulary segmenter.
        height, width: size of masks and disparity [pixels], as for a policy.
        output: an .mp4, a .png (contact sheet) or an .rrd (rerun's recording); by default rerun's viewer.
        frames: number of frames; 0 shows all until the end of the episode, or Ctrl-C.
        device: cpu or cuda.
    """

    root: Path | None = None
    episode: int = 0
    checkpoint: Path | None = None
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    segmenter: str = "workbench"
    depth: str = SEGMENTER
    classes: list[str] = field(default_factory=list)
    height: int = 84
    width: int = 84
    output: Path | None = None
    frames: int = 0
    device: str = "cpu"

    def check(self) -> None:
        """Validate the options.

        Raises:
            ValueError: if a combination is invalid; the message names it as on the command line.
        """
        if (self.root is None) == (not self.cameras):
            raise ValueError("--root or --cameras: expected one of them.")
        if self.checkpoint is not None and self.root is None:
            raise ValueError("--checkpoint: expected a dataset with it, --root=...")
        if self.root is not None:
            check_dataset_folder(self.root)
        check_device(self.device)
        if self.segmenter == NONE and self.depth in (NONE, SEGMENTER):
            raise ValueError(f"--segmenter={NONE} --depth={self.depth}: there is nothing to show.")
        if self.output is not None and self.output.suffix not in _SUFFIXES:
            suffixes = ", ".join(_SUFFIXES)
            raise ValueError(f"--output: found {self.output}, expected a name that ends in {suffixes}.")


class Panel(NamedTuple):
    """One camera's image, masks and disparity."""

    camera: str
    rgb: np.ndarray  # (H, W, 3) uint8
    ids: np.ndarray | None = None  # (h, w)
    disparity: np.ndarray | None = None  # (h, w) in 0..255


class Stream[Frame](NamedTuple):
    """A sequence of frames: observations, (1, C, H, W) by key, or panels of all cameras."""

    cameras: list[str]
    fps: float
    class_names: tuple[str, ...]
    frames: Iterator[Frame]


def perception_steps(config: ViewConfig, cameras: Sequence[str]) -> list[Any]:
    """Create the processor steps of a policy, which run at once instead of deferred."""
    names, size = list(cameras), [config.height, config.width]
    steps: list[Any] = []
    if config.segmenter != NONE:
        own = config.depth == SEGMENTER and config.segmenter != OBSERVED
        segmentation = SegmentationProcessorStep(
            names, size, defer=False, segmenter=config.segmenter, classes=config.classes, disparity=own
        )
        steps.append(segmentation)
    if config.depth not in (NONE, SEGMENTER):
        steps.append(DisparityProcessorStep(names, size, defer=False, depth=config.depth))
    return steps


def _open_episode(config: ViewConfig) -> tuple[LeRobotDataset, range]:
    """Open a dataset and return the indices of an episode's frames."""
    assert config.root is not None
    dataset = LeRobotDataset(f"local/{config.root.name}", root=config.root)
    if not 0 <= config.episode < dataset.num_episodes:
        raise ValueError(f"--episode: found {config.episode}, expected 0 to {dataset.num_episodes - 1}.")
    start, end = (dataset.meta.episodes[config.episode][f"dataset_{bound}_index"] for bound in ("from", "to"))
    return dataset, range(start, end)


def dataset_stream(config: ViewConfig) -> Stream[RobotObservation]:
    """Read an episode of a dataset.

    Raises:
        ValueError: if there is no such episode, or no RGB camera.
    """
    dataset, episode = _open_episode(config)
    keys, prefix = dataset.meta.camera_keys, image_key("")
    rgb = [key for key in keys if key.startswith(prefix) and key not in dataset.meta.depth_keys]
    cameras = [key.removeprefix(prefix) for key in rgb]
    if not cameras:
        raise ValueError(f"--root: {config.root} has no RGB images, found {keys}.")
    kinds = (image_key, seg_image_key, depth_image_key, seg_key, disparity_key)
    shown = {key(camera) for camera in cameras for key in kinds}
    infos = [dataset.meta.features.get(seg_image_key(camera), {}).get("info") or {} for camera in cameras]
    class_names = next((info["class_names"] for info in infos if "class_names" in info), _NUMBERED)
    items = (dataset[index] for index in episode)
    frames = ({key: value[None] for key, value in item.items() if key in shown} for item in items)
    return Stream(cameras, dataset.fps, tuple(class_names), frames)


def live_stream(config: ViewConfig) -> Stream[RobotObservation]:
    """Read live cameras, which are disconnected with the iterator."""
    cameras = make_cameras_from_configs(config.cameras)

    def read() -> Iterator[RobotObservation]:
        try:
            for camera in cameras.values():
                camera.connect()
            while True:
                frames = {name: camera.async_read() for name, camera in cameras.items()}
                yield {
                    image_key(name): torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
                    for name, frame in frames.items()
                }
        finally:
            for camera in cameras.values():
                if camera.is_connected:
                    camera.disconnect()

    fps = min((camera.fps or 30 for camera in cameras.values()), default=30)
    return Stream(list(cameras), fps, _NUMBERED, read())


def policy_panels(config: ViewConfig) -> Stream[list[Panel]]:
    """Return the images that a policy draws of its inputs in a dataset, by its method `explain(batch)`.

    Raises:
        ValueError: if there is no such episode or checkpoint, or its policy has no such method.
    """
    from ..policy.trained_policy import load_policy  # imports every policy

    dataset, episode = _open_episode(config)
    checkpoint = config.checkpoint
    if checkpoint is None or not (checkpoint / "config.json").is_file():
        raise ValueError(
            f"--checkpoint: found no config.json in {checkpoint}; give a `pretrained_model` folder."
        )
    policy, preprocessor, _ = load_policy(checkpoint, config.device)
    if not hasattr(policy, "explain"):
        raise ValueError(
            f"--checkpoint: {policy.config.type!r} policies draw nothing; leave it out to show their inputs."
        )

    @torch.no_grad()
    def draw(index: int) -> list[Panel]:
        images = policy.explain(preprocessor(default_collate([dataset[index]])))
        return [Panel(camera, rgb) for camera, rgb in images.items()]

    return Stream([], dataset.fps, (), map(draw, episode[: config.frames or None]))


def panels(config: ViewConfig) -> Stream[list[Panel]]:
    """Return the panels of all cameras of a dataset or live, with computed masks and disparity."""
    source = dataset_stream(config) if config.root else live_stream(config)
    steps = perception_steps(config, source.cameras)
    identity = next((step.identity for step in steps if isinstance(step, SegmentationProcessorStep)), None)
    class_names = tuple(identity["class_names"]) if identity else source.class_names

    def process() -> Iterator[list[Panel]]:
        for observation in source.frames:
            processed = {key: value.to(config.device) for key, value in observation.items()}
            for step in steps:
                processed = step.observation(processed)
            yield [_panel(camera, processed) for camera in source.cameras]

    frames = itertools.islice(process(), config.frames) if config.frames else process()
    return Stream(source.cameras, source.fps, class_names, frames)


def _panel(camera: str, observation: RobotObservation) -> Panel:
    rgb = (observation[image_key(camera)][0].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    maps = (observation.get(key(camera)) for key in (seg_key, disparity_key))
    return Panel(camera, rgb, *(None if values is None else values[0].cpu().numpy() for values in maps))


def stack_panels(frame: Sequence[Panel], class_names: Sequence[str]) -> np.ndarray:
    """Stack all cameras, one row each, (H, W, 3) uint8; narrower rows are padded with black."""
    rows = [side_by_side(panel.rgb, panel.ids, panel.disparity, class_names) for panel in frame]
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def write_video(stream: Stream[list[Panel]], path: Path) -> int:
    """Write an .mp4 and return its number of frames. After Ctrl-C it contains the frames until then."""
    with VideoWriter(path, round(stream.fps)) as video:
        try:
            for frame in tqdm(stream.frames, "frames", unit="frame"):
                video.write(stack_panels(frame, stream.class_names))
        except KeyboardInterrupt:
            logger.warning("stopped after %d frames.", video.count)
    return video.count


def write_sheet(stream: Stream[list[Panel]], path: Path) -> int:
    """Write a .png of up to six frames, evenly spaced, one below the other."""
    frames = tqdm(stream.frames, "frames", unit="frame")
    images = [stack_panels(frame, stream.class_names) for frame in frames]
    chosen = np.linspace(0, len(images) - 1, min(_SHEET_ROWS, len(images))).round().astype(int)
    with atomic_path(path) as temporary:
        Image.fromarray(np.vstack([images[index] for index in chosen])).save(temporary, format="PNG")
    return len(images)


def show_in_rerun(stream: Stream[list[Panel]], path: Path | None) -> int:
    """Log every frame to rerun's viewer, or to an .rrd file."""
    import rerun as rr

    rr.init("so101-view")
    if path is not None:
        rr.save(path)
    else:
        try:
            rr.spawn()
        except RuntimeError as error:
            raise ValueError(
                f"rerun's viewer did not open ({str(error).splitlines()[0]}). Activate the environment, so "
                "that `rerun` is on PATH, or write a file: --output=view.mp4."
            ) from error
    palette = class_palette(stream.class_names)
    classes = [(id_, name, palette[id_]) for id_, name in enumerate(stream.class_names)]
    rr.log("/", rr.AnnotationContext(classes), static=True)
    count, start = 0, time.monotonic()
    try:
        for count, frame in enumerate(stream.frames, 1):
            rr.set_time("frame", sequence=count)
            rr.set_time("time", duration=(count / stream.fps) if path else time.monotonic() - start)
            for camera, rgb, ids, disparity in frame:
                rr.log(f"{camera}/image", rr.Image(rgb).compress())
                if ids is not None:
                    rr.log(f"{camera}/masks", rr.SegmentationImage(ids))
                if disparity is not None:
                    rr.log(f"{camera}/disparity", rr.DepthImage(255 - disparity, colormap="viridis"))
    except KeyboardInterrupt:
        logger.warning("stopped after %d frames.", count)
    rr.disconnect()
    return count


def view(config: ViewConfig) -> int:
    """Show or write the frames, and return their number.

    Raises:
        ValueError: if the input is invalid; the message names the flag or key.
        OSError: if a camera does not respond, or the disk is full.
    """
    config.check()
    stream = policy_panels(config) if config.checkpoint else panels(config)
    # The first frame raises what is wrong before anything opens.
    stream = stream._replace(frames=itertools.chain([next(stream.frames)], stream.frames))
    path = config.output
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path is None or path.suffix == ".rrd":
        return show_in_rerun(stream, path)
    return (write_video if path.suffix == ".mp4" else write_sheet)(stream, path)


def main() -> None:
    def command(config: ViewConfig) -> str:
        return f"{view(config)} frames" + (f" in {config.output}" if config.output else "")

    run_command("so101-view", ViewConfig, command, log="lerobot_processor_so101")


if __name__ == "__main__":
    main()
