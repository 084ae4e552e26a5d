# SPDX-License-Identifier: Apache-2.0
"""`so101-view`: look at what a policy would see, side by side: picture, masks with class names, disparity.

    so101-view --root=outputs/demos                                   # a dataset, in rerun's viewer
    so101-view --root=outputs/demos --output=view.mp4                 # the same as a film
    so101-view --root=outputs/demos --checkpoint=outputs/segvla/checkpoints/last/pretrained_model --output=view.png
    so101-view --cameras='{wrist: {type: opencv, index_or_path: 0}}'  # live

What a dataset has stored is shown as it is; the rest is computed by the very steps a policy uses.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import draccus
import numpy as np
import torch
from draccus.utils import DraccusException
from lerobot.cameras import CameraConfig, make_cameras_from_configs
from lerobot.cameras.opencv import OpenCVCameraConfig  # noqa: F401  makes `type: opencv` known to the command line
from lerobot.datasets import LeRobotDataset
from PIL import Image
from tqdm import tqdm

from .disparity_step import DisparityProcessorStep
from .keys import depth_image_key, disparity_key, image_key, seg_image_key, seg_key
from .overlay import side_by_side
from .perception_step import OBSERVED
from .segmentation_step import SegmentationProcessorStep

if TYPE_CHECKING:
    from lerobot.processor import RobotObservation

logger = logging.getLogger(__name__)

SEGMENTER, NONE = "segmenter", "none"
_SUFFIXES = (".mp4", ".png", ".rrd")
_NAMELESS = tuple(f"class {id_}" for id_ in range(256))
_PNG_FRAMES = 6  # rows of a contact sheet


@dataclass
class ViewConfig:
    """Options of `so101-view`.

    Args:
        root: folder of a LeRobotDataset; or else `cameras`.
        episode: which episode of it.
        checkpoint: of a policy that draws what it reads, such as segvla; that is shown instead.
        cameras: live cameras, as in `--robot.cameras`.
        segmenter: "workbench", a Hub id or folder, "observation" for a simulator's ids, or "none".
        depth: "segmenter" for the segmenter's own head, a Hub id or folder, "observation" for recorded depth, or "none".
        classes: free-text classes of an open-vocabulary segmenter.
        height, width: size of masks and disparity, as a policy would see them.
        output: an .mp4, a .png (a contact sheet) or an .rrd (rerun's recording); without it rerun's viewer opens.
        frames: stop after so many; 0 goes on to the end of the episode, or until Ctrl-C.
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
        """Say what cannot be, in the words of the command line.

        Raises:
            ValueError: a combination that does not work.
        """
        if (self.root is None) == (not self.cameras):
            raise ValueError("--root or --cameras: expected one of them.")
        if self.checkpoint is not None and self.root is None:
            raise ValueError("--checkpoint: expected a dataset with it, --root=...")
        if self.segmenter == NONE and self.depth in (NONE, SEGMENTER):
            raise ValueError(f"--segmenter={NONE} --depth={self.depth}: nothing is left to look at.")
        if self.output is not None and self.output.suffix not in _SUFFIXES:
            raise ValueError(
                f"--output: found {self.output}, expected a name that ends in {', '.join(_SUFFIXES)}."
            )


def perception_steps(config: ViewConfig, cameras: Sequence[str]) -> list[Any]:
    """The steps a policy would have, without deferral."""
    names, size = list(cameras), [config.height, config.width]
    steps: list[Any] = []
    if config.segmenter != NONE:
        own = config.depth == SEGMENTER and config.segmenter != OBSERVED
        steps.append(
            SegmentationProcessorStep(
                names, size, defer=False, segmenter=config.segmenter, classes=config.classes, disparity=own
            )
        )
    if config.depth not in (NONE, SEGMENTER):
        steps.append(DisparityProcessorStep(names, size, defer=False, depth=config.depth))
    return steps


@dataclass(frozen=True)
class Views:
    """Where pictures come from.

    Attributes:
        cameras: names of the cameras.
        fps: pictures per second.
        class_names: what ids mean that come with the observation.
        observations: one per moment, (1, C, H, W) by key.
    """

    cameras: list[str]
    fps: float
    class_names: tuple[str, ...]
    observations: Iterator[RobotObservation]


def _episode(config: ViewConfig) -> tuple[LeRobotDataset, range]:
    """A dataset and the indices of an episode's frames.

    Raises:
        ValueError: there is no such episode.
    """
    assert config.root is not None
    dataset = LeRobotDataset(f"local/{config.root.name}", root=config.root)
    if not 0 <= config.episode < dataset.num_episodes:
        raise ValueError(f"--episode: found {config.episode}, expected 0 to {dataset.num_episodes - 1}.")
    start, end = (dataset.meta.episodes[config.episode][f"dataset_{bound}_index"] for bound in ("from", "to"))
    return dataset, range(start, end)


def dataset_source(config: ViewConfig) -> Views:
    """An episode of a dataset.

    Raises:
        ValueError: there is no such episode, or no camera with colour pictures.
    """
    dataset, episode = _episode(config)
    cameras = [
        key.removeprefix(image_key("")) for key in dataset.meta.camera_keys if key.startswith(image_key(""))
    ]
    cameras = [camera for camera in cameras if image_key(camera) not in dataset.meta.depth_keys]
    if not cameras:
        raise ValueError(f"--root: {config.root} has no colour pictures, found {dataset.meta.camera_keys}.")
    wanted = {
        key(camera)
        for camera in cameras
        for key in (image_key, seg_image_key, depth_image_key, seg_key, disparity_key)
    }

    def read() -> Iterator[RobotObservation]:
        for index in episode:
            frame = dataset[index]
            yield {key: value[None] for key, value in frame.items() if key in wanted}

    infos = [dataset.meta.features.get(seg_image_key(camera), {}).get("info") or {} for camera in cameras]
    names = next((info["class_names"] for info in infos if "class_names" in info), _NAMELESS)
    return Views(cameras, dataset.fps, tuple(names), read())


def live_source(config: ViewConfig) -> Views:
    """Live cameras, which close with the iterator."""
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
    return Views(list(cameras), fps, _NAMELESS, read())


@dataclass(frozen=True)
class Panel:
    """What one camera saw at one moment.

    Attributes:
        rgb: (H, W, 3) uint8.
        ids: (h, w) class ids.
        disparity: (h, w) in 0..255.
    """

    camera: str
    rgb: np.ndarray
    ids: np.ndarray | None
    disparity: np.ndarray | None


def policy_panels(config: ViewConfig) -> tuple[list[str], float, tuple[str, ...], Iterator[list[Panel]]]:
    """As `panels`, with what a policy draws in the place of pictures."""
    from .view_policy import explained

    assert config.checkpoint is not None
    dataset, episode = _episode(config)
    pictures = explained(config.checkpoint, dataset, episode[: config.frames or None], config.device)
    moments = ([Panel(camera, drawn, None, None) for camera, drawn in one.items()] for one in pictures)
    return [], dataset.fps, (), moments


def panels(config: ViewConfig) -> tuple[list[str], float, tuple[str, ...], Iterator[list[Panel]]]:
    """Cameras, frame rate, class names, and what the cameras saw at each moment."""
    source = dataset_source(config) if config.root else live_source(config)
    cameras, fps = source.cameras, source.fps
    steps = perception_steps(config, cameras)
    identity = next((step.identity for step in steps if isinstance(step, SegmentationProcessorStep)), None)
    class_names = tuple(identity["class_names"]) if identity else source.class_names

    def look() -> Iterator[list[Panel]]:
        for observation in source.observations:
            seen = {key: value.to(config.device) for key, value in observation.items()}
            for step in steps:
                seen = step.observation(seen)
            yield [_panel(camera, seen) for camera in cameras]

    frames = look()
    return cameras, fps, class_names, itertools.islice(frames, config.frames) if config.frames else frames


def _panel(camera: str, seen: RobotObservation) -> Panel:
    rgb = (seen[image_key(camera)][0].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    ids, disparity = seen.get(seg_key(camera)), seen.get(disparity_key(camera))
    return Panel(
        camera,
        rgb,
        None if ids is None else ids[0].cpu().numpy(),
        None if disparity is None else disparity[0].cpu().numpy(),
    )


def picture(moment: Sequence[Panel], class_names: Sequence[str]) -> np.ndarray:
    """All cameras at one moment, one row each, (H, W, 3) uint8; narrower rows are filled up with black."""
    rows = [side_by_side(panel.rgb, panel.ids, panel.disparity, class_names) for panel in moment]
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def write_film(moments: Iterator[list[Panel]], class_names: Sequence[str], fps: float, path: Path) -> int:
    """Write an .mp4 and return how many frames it has. Ctrl-C ends it early and leaves a film that plays."""
    import av

    part = path.with_name(f"{path.stem}.part{path.suffix}")
    count = 0
    with av.open(str(part), "w") as film:
        stream = None
        try:
            for moment in tqdm(moments, "frames", unit="frame"):
                frame = picture(moment, class_names)
                frame = frame[
                    : frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2
                ]  # yuv420p wants even sides
                if stream is None:
                    stream = film.add_stream("h264", rate=round(fps), options={"crf": "18"})
                    stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
                film.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
                count += 1
        except KeyboardInterrupt:
            logger.warning("stopped after %d frames.", count)
        if stream is not None:
            film.mux(stream.encode())
    part.replace(path)
    return count


def write_sheet(moments: Iterator[list[Panel]], class_names: Sequence[str], path: Path) -> int:
    """Write a .png of up to six moments, spread evenly, one under the other."""
    seen = [picture(moment, class_names) for moment in tqdm(moments, "frames", unit="frame")]
    chosen = np.linspace(0, len(seen) - 1, min(_PNG_FRAMES, len(seen))).round().astype(int)
    Image.fromarray(np.vstack([seen[index] for index in chosen])).save(path)
    return len(seen)


def show_in_rerun(
    moments: Iterator[list[Panel]], class_names: Sequence[str], fps: float, path: Path | None
) -> int:
    """Log every moment to rerun's viewer, or to an .rrd file."""
    import rerun as rr

    from .overlay import class_colours

    rr.init("so101-view")
    if path is not None:
        rr.save(path)
    else:
        _open_viewer()
    colours = class_colours(class_names)
    rr.log(
        "/",
        rr.AnnotationContext([(id_, name, colours[id_]) for id_, name in enumerate(class_names)]),
        static=True,
    )
    count, start = 0, time.monotonic()
    try:
        for count, moment in enumerate(moments, 1):
            rr.set_time("frame", sequence=count)
            rr.set_time("time", duration=(count / fps) if path else time.monotonic() - start)
            for panel in moment:
                rr.log(f"{panel.camera}/picture", rr.Image(panel.rgb).compress())
                if panel.ids is not None:
                    rr.log(f"{panel.camera}/masks", rr.SegmentationImage(panel.ids))
                if panel.disparity is not None:
                    rr.log(
                        f"{panel.camera}/disparity", rr.DepthImage(255 - panel.disparity, colormap="viridis")
                    )
    except KeyboardInterrupt:
        logger.warning("stopped after %d frames.", count)
    rr.disconnect()
    return count


def _open_viewer() -> None:
    import rerun as rr

    try:
        rr.spawn()
    except RuntimeError as error:
        raise ValueError(
            f"rerun's viewer did not open ({str(error).splitlines()[0]}). Activate the environment, so that `rerun` "
            "is on PATH, or write a file: --output=view.mp4."
        ) from error


def view(config: ViewConfig) -> int:
    """Show or write what the cameras saw, and return the number of moments.

    Raises:
        ValueError: bad input; the message names the flag or key.
        OSError: a camera that does not answer, or no room.
    """
    config.check()
    _, fps, class_names, moments = policy_panels(config) if config.checkpoint else panels(config)
    moments = itertools.chain([next(moments)], moments)  # what fails, fails before anything opens
    path = config.output
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path is None or path.suffix == ".rrd":
        return show_in_rerun(moments, class_names, fps, path)
    if path.suffix == ".mp4":
        return write_film(moments, class_names, fps, path)
    return write_sheet(moments, class_names, path)


def main() -> None:
    logging.basicConfig(format="%(message)s")
    try:
        config = draccus.parse(ViewConfig)
        count = view(config)
    except (ValueError, OSError, DraccusException) as error:
        print(f"so101-view: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{count} frames" + (f" in {config.output}" if config.output else ""))


if __name__ == "__main__":
    main()
