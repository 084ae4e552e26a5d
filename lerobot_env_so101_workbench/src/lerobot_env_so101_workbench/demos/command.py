# SPDX-License-Identifier: Apache-2.0
"""`so101-demos`: record demonstrations of the scripted expert as a LeRobotDataset, faster than real time.

The dataset has the features that `lerobot-record` writes with `--robot.type=so101_sim`, and the column
`intervention` of `lerobot-rollout --strategy.type=dagger`. Only successful episodes are kept. Ctrl-C and
SIGTERM discard the present episode only.

    so101-demos --root=outputs/demos --task=lift_cube --episodes=50 --seg=true --depth=true

With `--policy.path` it records takeovers: the policy acts, and the expert continues where it goes wrong.

    so101-demos --root=outputs/takeovers --task=lift_cube --episodes=50 --seg=true --depth=true \\
        --policy.path=outputs/train/checkpoints/last/pretrained_model
"""

import dataclasses
import json
import logging
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import av
import datasets
from lerobot.configs.video import DepthEncoderConfig, RGBEncoderConfig
from lerobot.datasets.io_utils import load_info
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STR
from lerobot.utils.feature_utils import hw_to_dataset_features
from tqdm import tqdm

from lerobot_processor_so101.arm import FPS
from lerobot_processor_so101.atomic import write_json
from lerobot_processor_so101.cli import run_command
from lerobot_processor_so101.config_checks import check_smallest
from lerobot_processor_so101.lock import owning
from lerobot_processor_so101.recording import RecordingDataset, check_videos

from ..device_configs import SO101SimConfig
from ..names import check_disturbance, check_level, check_task
from ..robot import SO101Sim
from ..sim.cameras import DEPTH_ENCODER, CameraSetup, ImageOptions
from ..sim.initial_states import props_of
from ..sim.scene import class_names
from ..sim.world import World
from .demonstrator import INTERVENTION, Demonstrator
from .takeovers import Actor, PolicyOptions, TakeoverOptions, Takeovers
from .workers import EpisodeSource, Workers

# Beside LeRobot's metadata: the options that episodes share and the number of seeds used; formerly a file
# with that number alone.
_PROGRESS, _ATTEMPTS = "so101_demos.json", "so101_demos_attempts"

logger = logging.getLogger(__name__)


@dataclass
class DemosConfig(ImageOptions):
    """Options of `so101-demos`: demonstrations or, with `--policy.path`, takeovers of that policy.

    Args:
        root: folder of the new dataset; it must not exist (but see `resume`).
        task: task to demonstrate.
        level: level of the task.
        episodes: number of successful episodes to record.
        seed: training seed of the first episode's initial state; each episode takes the next seed. Takeovers
            add 1,000,000 to it, so that they do not repeat initial states of demonstrations.
        cameras: cameras to record, of top, wrist and front.
        video: store images as video or, if false, in the Parquet files (faster to read if they are small).
        disturbance: strength of the disturbance of executed commands [deg]; recorded labels stay clean.
        resume: add to the dataset in `root`, continuing after its last seed; takeovers may follow
            demonstrations.
        policy, takeover: record takeovers of a policy, see `PolicyOptions` and `TakeoverOptions`. The policy
            gets the images that it needs, whatever is recorded.
        repo_id: name of the dataset; by default local/<task>_<level>.
        renderer: `auto`, `egl`, `osmesa`, `glfw` or `ray`.
        shadows: render cast shadows in RGB images.
        fps: frames per second. Policies need 30; fewer give a segmenter more scenes for the same time.
        workers: number of processes that run episodes while this one saves them, 0 for none. Demonstrations
            are the same with any number. Each process holds the images of up to three episodes.
    """

    root: Path
    task: str = "lift_cube"
    level: str = "clean"
    episodes: int = 50
    seed: int = 0
    cameras: list[str] = field(default_factory=lambda: ["top", "wrist"])
    video: bool = True
    disturbance: float = 1.2
    resume: bool = False
    repo_id: str | None = None
    renderer: str = "auto"
    shadows: bool = False
    fps: int = FPS
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    takeover: TakeoverOptions = field(default_factory=TakeoverOptions)
    workers: int = 0

    def check(self) -> None:
        """Raise ValueError if an option is not supported."""
        check_task(self.task, "--task")
        check_level(self.level, "--level")
        CameraSetup.of(self, self.cameras).check("--")
        check_smallest(self, {"episodes": 1, "workers": 0}, "--")
        check_disturbance(self.disturbance, "--disturbance")
        if not 1 <= self.fps <= FPS or FPS % self.fps:
            raise ValueError(f"--fps: found {self.fps}, expected {FPS} or a divisor of it.")
        if self.fps != FPS and self.policy.path is not None:
            raise ValueError(f"--fps: found {self.fps}, expected {FPS} for takeovers of a policy.")
        self.takeover.check()

    def robot(self) -> SO101SimConfig:
        """Return the robot's configuration with the same options."""
        names = {option.name for option in dataclasses.fields(SO101SimConfig)}
        same = {name: value for name, value in vars(self).items() if name in names}
        return SO101SimConfig(views=self.cameras, **same)


def features(config: DemosConfig) -> dict[str, dict]:
    """Derive dataset features from the robot's, with the function that `lerobot-record` uses."""
    robot = SO101Sim(config.robot())
    return {
        **hw_to_dataset_features(robot.action_features, ACTION, config.video),
        **hw_to_dataset_features(robot.observation_features, OBS_STR, config.video),
        INTERVENTION: {"dtype": "bool", "shape": (1,), "names": None},
    }


def open_dataset(config: DemosConfig) -> RecordingDataset:
    """Create the dataset, or open it to add episodes.

    Raises:
        FileExistsError: if `root` contains something and `resume` is false.
        FileNotFoundError: if `resume` is true and there is no dataset.
        ValueError: if the dataset was recorded with other options, or is damaged.
    """
    described = features(config)
    names = list(class_names(props_of(config.task, config.level)))
    for camera in config.cameras if config.seg else ():
        described[f"{OBS_IMAGES}.{camera}_seg"]["info"]["class_names"] = names
    repo_id = config.repo_id or f"local/{config.task}_{config.level}"
    options: dict[str, Any] = {
        "root": config.root,
        "streaming_encoding": config.video,
        "image_writer_threads": 2 * len(config.cameras),
        "rgb_encoder": RGBEncoderConfig(vcodec="h264"),
        # Lossless with any preset: this one takes a third of the default's time and twice its space. x265
        # ignores PyAV's log level.
        "depth_encoder": DepthEncoderConfig(
            **DEPTH_ENCODER, preset="ultrafast", extra_options={"x265-params": "lossless=1:log-level=error"}
        ),
    }
    if config.resume:
        if not (config.root / "meta" / "info.json").is_file():
            raise FileNotFoundError(
                f"--root: found no dataset in {config.root} to resume; leave out --resume."
            )
        _check_resumed(config, described)
        return RecordingDataset.resume(repo_id, **options)
    try:
        return RecordingDataset.create(
            repo_id, config.fps, described, robot_type=SO101Sim.name, use_videos=config.video, **options
        )
    except FileExistsError:
        raise FileExistsError(
            f"--root: {config.root} exists already and was left as it is. Choose another folder, or add to "
            "the dataset in it with --resume=true."
        ) from None


def _check_resumed(config: DemosConfig, described: dict[str, dict]) -> None:
    """Raise ValueError if a dataset's task, level or features are not those of the options."""
    info = load_info(config.root)
    made_for = {"task": config.task, "level": config.level}

    def options(fps: int, made_for: dict[str, Any], features: dict[str, Any]) -> dict[str, Any]:
        """Describe the dataset, or the options."""
        found = {"--task": made_for["task"], "--level": made_for["level"], "--fps": fps}
        found["--cameras, --rgb, --seg, --depth"] = sorted(k for k in features if k.startswith(OBS_IMAGES))
        for key, feature in features.items():
            found[f"type of {key}"], found[f"shape of {key}"] = feature["dtype"], tuple(feature["shape"])
            found[f"class names of {key}"] = (feature.get("info") or {}).get("class_names")
        return found

    recorded = options(info.fps, made_for | _read_progress(config.root), info.features)
    for what, expected in options(config.fps, made_for, described).items():
        found = recorded.get(what, expected)  # older datasets lack features
        if found != expected:
            raise ValueError(
                f"--resume: the dataset in {config.root} was recorded with other options. {what}: found "
                f"{found} in the dataset, and {expected} in the command. Give the dataset's options, or "
                "record to another --root."
            )


def _read_progress(root: Path) -> dict[str, Any]:
    """Return task, level, policy and number of seeds used of a dataset, as far as they are stored."""
    progress, attempts = root / "meta" / _PROGRESS, root / "meta" / _ATTEMPTS
    if progress.is_file():
        return json.loads(progress.read_text())
    return {"attempts": int(attempts.read_text())} if attempts.is_file() else {}


def record(config: DemosConfig) -> RecordingDataset:
    """Record `config.episodes` successful demonstrations, or takeovers.

    Returns:
        The finalised dataset; after an interrupt, with the episodes finished by then.

    Raises:
        ValueError: if an option is not supported, or the policy does not fit.
        RuntimeError: if the expert fails far more often than it should, if the policy hardly ever needs a
            takeover, or if an episode's video lacks frames; the dataset keeps the episodes before it.
        OSError: if the disk is full (the dataset keeps the finished episodes) or another process records to
            the same folder.
    """
    config.check()
    with owning(config.root), closing(open_source(config)) as source:
        dataset = open_dataset(config)
        if config.workers == 0:
            return _record(config, source, dataset)
        with closing(Workers(partial(open_source, config), config.workers, source)) as workers:
            return _record(config, workers, dataset)


def open_source(config: DemosConfig) -> Demonstrator | Takeovers:
    """Create the world and, for takeovers, load the policy and try it.

    Raises:
        ValueError: if the policy does not fit.
    """
    cameras = CameraSetup.of(config, config.cameras)
    world = World(config.task, config.level, config.renderer, config.shadows)
    demonstrator = Demonstrator(world, cameras, config.disturbance, FPS // config.fps)
    if config.policy.path is None:
        return demonstrator
    actor = Actor(config.policy, config.task, config.level, (config.height, config.width))
    takeovers = Takeovers(demonstrator, actor, config.takeover)
    takeovers.try_policy()
    return takeovers


def _record(config: DemosConfig, source: EpisodeSource, dataset: RecordingDataset) -> RecordingDataset:
    first_seed = config.seed + source.first_seed
    progress = {"attempts": 0, "policy_attempts": 0, "policy_succeeded": 0} | _read_progress(config.root)
    if progress.get("policy.path") != source.identity.get(
        "policy.path"
    ):  # the seeds go on, its counts do not
        progress |= {"policy_attempts": 0, "policy_succeeded": 0}
    progress |= source.identity
    saved = failures = unneeded = 0
    bar = tqdm(total=config.episodes, desc=f"{config.task}, {config.level}", unit="episode")
    try:
        while saved < config.episodes:
            # 1. write the frames of an episode while it runs
            for frame in source.episode(first_seed + progress["attempts"]):
                if INTERVENTION not in dataset.features:  # an older dataset
                    del frame[INTERVENTION]
                dataset.add_frame(frame)
            progress["attempts"] += 1
            progress["policy_attempts"] += 1
            # 2. keep it if the expert succeeded
            if source.is_needed and source.succeeded:
                # first the number of seeds: a kill between the two wastes a seed, and repeats none
                write_json(config.root / "meta" / _PROGRESS, progress)
                dataset.save_episode()
                saved += 1
                bar.update()
            else:
                dataset.clear_episode_buffer()
                failures += source.is_needed
                unneeded += not source.is_needed
                progress["policy_succeeded"] += not source.is_needed
            bar.set_postfix(frames=dataset.num_frames, failed=failures, unneeded=unneeded)
            _check_yield(config, failures, unneeded)
    except KeyboardInterrupt:
        logger.warning("Interrupted: keeping the %d finished episodes.", dataset.num_episodes)
    finally:
        # 3. discard an unfinished episode and finalise the dataset
        bar.close()
        if dataset.has_pending_frames():
            dataset.clear_episode_buffer()
        dataset.finalize()
    if config.video and dataset.num_episodes:
        check_videos(config.root)
    return dataset


def _check_yield(config: DemosConfig, failures: int, unneeded: int) -> None:
    """Raise RuntimeError if the expert failed, or the policy succeeded, too often."""
    if failures > 20 + config.episodes // 2:
        raise RuntimeError(
            f"The expert failed {failures} times on {config.task} ({config.level}); lower --disturbance (now "
            f"{config.disturbance}), or take over earlier: --takeover.late (now {config.takeover.late})."
        )
    if unneeded > 20 + 10 * config.episodes:
        raise RuntimeError(
            f"The policy succeeded {unneeded} times before the takeover: it needs few corrections. Lower "
            f"--takeover.late (now {config.takeover.late}) or --episodes (now {config.episodes})."
        )


def main() -> None:
    """Run `so101-demos`."""
    datasets.disable_progress_bars()
    av.logging.set_libav_level(av.logging.ERROR)
    logging.getLogger("lerobot_processor_so101").setLevel(logging.WARNING)  # what resuming removes

    def command(config: DemosConfig) -> str:
        dataset = record(config)
        recorded = f"{dataset.num_episodes} episodes, {dataset.num_frames} frames in {config.root}"
        if config.policy.path is None:
            return recorded
        progress = _read_progress(config.root)
        unneeded, attempts = progress["policy_succeeded"], progress["policy_attempts"]
        return f"{recorded}. The policy succeeded before the takeover in {unneeded} of {attempts} episodes."

    run_command("so101-demos", DemosConfig, command, log="lerobot_env_so101_workbench")


if __name__ == "__main__":
    main()
