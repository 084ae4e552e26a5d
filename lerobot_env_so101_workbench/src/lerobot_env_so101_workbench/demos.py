# SPDX-License-Identifier: Apache-2.0
"""`so101-demos`: write demonstrations of the scripted expert as a LeRobotDataset, faster than real time.

The dataset has the features that `lerobot-record` gives with `--robot.type=so101_sim`. Only successful episodes
are kept. Ctrl-C (or SIGTERM) drops the episode under way and leaves a dataset of the finished ones.

    so101-demos --root=outputs/demos --task=lift_cube --episodes=50 --seg=true --depth=true
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
import datasets
import draccus
import numpy as np
from lerobot.configs.video import DepthEncoderConfig, RGBEncoderConfig
from lerobot.datasets import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE, OBS_STR
from lerobot.utils.feature_utils import hw_to_dataset_features
from tqdm import tqdm

from .arm import FPS
from .expert import Disturbance, Expert
from .names import check_disturbance, check_level, check_task
from .robot import SO101Sim
from .robot_config import SO101SimConfig
from .scene import class_names
from .start import props_of, training_start
from .views import DEPTH_ENCODER, View
from .world import World

logger = logging.getLogger(__name__)


@dataclass
class DemosConfig:
    """Options of `so101-demos`.

    Args:
        root: folder of the new dataset; it must not exist (but see `resume`).
        task, level: what to demonstrate.
        episodes: how many successful episodes to write.
        seed: the first episode starts from the training start of this seed, the next from the next seed's.
        cameras, height, width, rgb, seg, depth: which pictures to record.
        video: store pictures as video (small) or, if false, as images in the Parquet files (quicker to read when
            they are small).
        disturbance: strength of the shaking of executed commands [deg]; labels stay clean.
        resume: add to the dataset in `root`, continuing after its last seed.
        repo_id: name of the dataset; by default local/<task>_<level>.
        renderer: auto, egl, osmesa, glfw or ray.
    """

    root: Path
    task: str = "lift_cube"
    level: str = "clean"
    episodes: int = 50
    seed: int = 0
    cameras: list[str] = field(default_factory=lambda: ["top", "wrist"])
    height: int = 224
    width: int = 224
    rgb: bool = True
    seg: bool = False
    depth: bool = False
    video: bool = True
    disturbance: float = 1.2
    resume: bool = False
    repo_id: str | None = None
    renderer: str = "auto"

    def check(self) -> None:
        """Say what cannot be, in the words of the command line.

        Raises:
            ValueError: a name or number that does not work.
        """
        check_task(self.task, "--task")
        check_level(self.level, "--level")
        self.robot().view().check("--")
        if self.episodes < 1:
            raise ValueError(f"--episodes: found {self.episodes}, expected 1 or more.")
        check_disturbance(self.disturbance, "--disturbance")

    def robot(self) -> SO101SimConfig:
        """The robot whose recording this is."""
        return SO101SimConfig(
            task=self.task, level=self.level, seed=self.seed, views=self.cameras, height=self.height,
            width=self.width, rgb=self.rgb, seg=self.seg, depth=self.depth, renderer=self.renderer,
        )  # fmt: skip


def features(config: DemosConfig) -> dict[str, dict]:
    """Dataset features, made from the robot's by the function that `lerobot-record` uses."""
    robot = SO101Sim(config.robot())
    return {
        **hw_to_dataset_features(robot.action_features, ACTION, config.video),
        **hw_to_dataset_features(robot.observation_features, OBS_STR, config.video),
    }


def open_dataset(config: DemosConfig) -> LeRobotDataset:
    """Create the dataset, or open it for more episodes.

    Raises:
        FileExistsError: `root` holds something already and `resume` is false.
        FileNotFoundError: `resume` is true and there is nothing to resume.
    """
    repo_id = config.repo_id or f"local/{config.task}_{config.level}"
    encoders = {
        "rgb_encoder": RGBEncoderConfig(vcodec="h264"),
        "depth_encoder": DepthEncoderConfig(**DEPTH_ENCODER),
    }
    threads = 2 * len(config.cameras)
    if config.resume:
        if not (config.root / "meta" / "info.json").is_file():
            raise FileNotFoundError(
                f"--root: found no dataset in {config.root} to resume; leave out --resume."
            )
        return LeRobotDataset.resume(
            repo_id,
            root=config.root,
            streaming_encoding=config.video,
            image_writer_threads=threads,
            **encoders,
        )
    if config.root.exists():
        raise FileExistsError(
            f"--root: {config.root} exists already and was left as it is. Choose another folder, or add to the "
            "dataset in it with --resume=true."
        )
    described = features(config)
    for key in (f"{OBS_IMAGES}.{camera}_seg" for camera in config.cameras if config.seg):
        described[key]["info"]["class_names"] = list(class_names(props_of(config.task, config.level)))
    return LeRobotDataset.create(
        repo_id,
        FPS,
        described,
        root=config.root,
        robot_type=SO101Sim.name,
        use_videos=config.video,
        streaming_encoding=config.video,
        image_writer_threads=threads,
        **encoders,
    )


@dataclass
class Demonstrator:
    """Lets the expert work and turns what happens into dataset frames."""

    world: World
    view: View
    disturbance: float

    def __post_init__(self) -> None:
        self._expert = Expert(self.world)

    def episode(self, seed: int) -> list[dict] | None:
        """Frames of one demonstration from the training start of `seed`, or None if the expert failed."""
        world = self.world
        world.reset(training_start(world.task.name, world.level, seed))
        shake = Disturbance(np.random.default_rng(seed), self.disturbance)
        frames = []
        for _ in range(world.task.time_limit_ticks):
            decision = self._expert.decide()
            frames.append(self._frame(decision.action))
            world.step(decision.action, shake.sample(decision.phase) if self.disturbance > 0 else None)
            if world.is_success():
                return frames
            if not world.is_finite():
                return None
        return None

    def _frame(self, action: np.ndarray) -> dict:
        pictures = self.view.capture(self.world)
        return {
            OBS_STATE: self.world.joints().astype(np.float32),
            ACTION: action.astype(np.float32),
            **{f"{OBS_IMAGES}.{name}": picture for name, picture in pictures.items()},
            "task": self.world.instruction(),
        }


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that a stopped job finalises its dataset too."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def record(config: DemosConfig) -> LeRobotDataset:
    """Write `config.episodes` successful demonstrations.

    Returns:
        The finalised dataset; after an interruption, with the episodes finished by then.

    Raises:
        RuntimeError: the expert fails far more often than it should.
    """
    config.check()
    robot = config.robot()
    dataset = open_dataset(config)
    world = World(config.task, config.level, config.renderer)
    demonstrator = Demonstrator(world, robot.view(), config.disturbance)
    present, seed, failures = dataset.num_episodes, config.seed, 0
    if config.resume:
        seed += _attempts_so_far(config.root)
    bar = tqdm(total=config.episodes, desc=f"{config.task}, {config.level}", unit="episode")
    try:
        with _interruptible():
            while dataset.num_episodes - present < config.episodes:
                frames = demonstrator.episode(seed)
                seed += 1
                if frames is None:
                    failures += 1
                    if failures > 20 + config.episodes // 2:
                        raise RuntimeError(
                            f"The expert failed {failures} times on {config.task} ({config.level}); "
                            f"lower --disturbance (now {config.disturbance})."
                        )
                    continue
                for frame in frames:
                    dataset.add_frame(frame)
                dataset.save_episode()
                _remember_attempts(config.root, seed - config.seed)
                bar.update()
                bar.set_postfix(frames=dataset.num_frames, failed=failures)
    except KeyboardInterrupt:
        logger.warning("Interrupted: keeping the %d finished episodes.", dataset.num_episodes)
        if dataset.has_pending_frames():
            dataset.clear_episode_buffer()
    finally:
        bar.close()
        dataset.finalize()
        world.close()
    return dataset


_ATTEMPTS = "so101_demos_attempts"  # beside LeRobot's metadata: how many seeds have been used


def _attempts_so_far(root: Path) -> int:
    path = root / "meta" / _ATTEMPTS
    return int(path.read_text()) if path.is_file() else 0


def _remember_attempts(root: Path, attempts: int) -> None:
    (root / "meta" / _ATTEMPTS).write_text(f"{attempts}\n")


def _only_our_own_messages() -> None:
    """Leave the terminal to this command: each saved episode would draw a bar, the video encoder would write a page,
    and LeRobot tells at length where it looked for FFmpeg before it takes PyAV."""
    own = logging.getLogger(__package__)
    own.setLevel(logging.INFO)
    own.addHandler(logging.StreamHandler())
    own.propagate = False
    logging.getLogger("lerobot").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    av.logging.set_libav_level(av.logging.ERROR)


def main() -> None:
    _only_our_own_messages()
    try:
        config = draccus.parse(DemosConfig)
        dataset = record(config)
    except (ValueError, FileExistsError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"so101-demos: {error}") from None
    print(f"{dataset.num_episodes} episodes, {dataset.num_frames} frames in {config.root}")


if __name__ == "__main__":
    main()
