# SPDX-License-Identifier: Apache-2.0
"""Options of `so101-improve`, and the commands that follow from them."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lerobot.datasets.io_utils import load_info

from lerobot_processor_so101.config_checks import check_smallest

from ..names import check_level, check_task
from ..policy_check import needed_images, read_config
from ..sim.cameras import CameraSetup
from ..sim.initial_states import N_VALIDATION, props_of
from ..sim.scene import class_names
from ..tasks import TASKS
from .process import eval_command

EPISODE_LOG = "episodes.jsonl"
TRAIN_CONFIG = "train.yaml"
RECORDINGS = ("demonstrate", "take over")  # kinds of steps that an interrupt ends early with exit code 0
ROLES = {"target": "cube", "container": "bowl"}
FINGERS = ("static_finger", "moving_finger")
# Seeds of training initial states: each dataset of each run has a range of its own.
_SEEDS_PER_DATASET, _DATASETS_PER_RUN = 10_000, 100
_EPOCHS, _BATCH = 6, 32  # of segdepth


@dataclass
class ImproveConfig:
    """Options of `so101-improve`.

    Args:
        root: folder of all datasets, checkpoints, evaluations and reports. The same command continues there.
        task: task to learn.
        level: level of the task.
        episodes: number of demonstrations in round 0.
        rounds: number of rounds with takeovers after round 0. It may be raised later.
        takeovers: episodes with a takeover per round.
        eval_episodes: validation initial states per evaluation.
        train: configuration of `lerobot-train` (YAML, such as `so101-config` lists); its dataset, output
            folder and seed are set for each round. By default segdepth with true masks and depth, six times
            over the frames.
        segmenter: segmenter that the default policy acts with, on RGB images, such as `sorting`. It is
            trained on masks and depth of the simulator as this segmenter would output them.
        shadows: render cast shadows in RGB images.
        compare: train also on plain demonstrations of as many frames as the last round's dataset.
        seed: random seed of the trainings; each seed has training initial states of its own.
        cameras: cameras to record, of top, wrist and front.
        height, width: image size [pixels].
        rgb: record RGB images.
        seg: record class ids.
        depth: record depth maps [mm].
        video: store images as video or, if false, in the Parquet files.
    """

    root: Path
    task: str = "place_cube"
    level: str = "randomised"
    episodes: int = 200
    rounds: int = 2
    takeovers: int = 150
    eval_episodes: int = N_VALIDATION
    train: Path | None = None
    segmenter: str | None = None
    shadows: bool = False
    compare: bool = False
    seed: int = 0
    cameras: list[str] = field(default_factory=lambda: ["top", "wrist"])
    height: int = 84
    width: int = 84
    rgb: bool = False
    seg: bool = True
    depth: bool = True
    video: bool = False

    def check(self) -> None:
        """Raise ValueError if an option is not supported, FileNotFoundError if `train` does not exist."""
        check_task(self.task, "--task")
        check_level(self.level, "--level")
        self.camera_setup().check("--")
        smallest = {"episodes": 1, "rounds": 0, "takeovers": 1, "eval_episodes": 1, "seed": 0}
        check_smallest(self, smallest, "--")
        if self.eval_episodes > N_VALIDATION:
            expected = f"expected at most {N_VALIDATION}: there are no more validation initial states"
            raise ValueError(f"--eval_episodes: found {self.eval_episodes}, {expected}.")
        if self.compare and self.rounds == 0:
            raise ValueError(
                "--compare: found true without takeovers to compare with; set --rounds=1 or more."
            )
        if self.train is not None and not self.train.is_file():
            raise FileNotFoundError(f"--train: found no file {self.train}.")
        if self.train is None and not (self.seg and self.depth):
            raise ValueError(
                "--seg, --depth: found false, expected true, because the default policy needs masks and "
                "depth. Give the configuration of another policy with --train."
            )
        if self.segmenter is not None:
            self._check_segmenter(self.segmenter)

    def _check_segmenter(self, name: str) -> None:
        """Raise ValueError if the default policy cannot act with a segmenter."""
        if self.train is not None:
            raise ValueError(
                f"--segmenter: found {name} beside --train, expected one of them: the configuration of "
                "another policy names its own segmenter."
            )
        from lerobot_processor_so101.models import make_segmenter  # slow to import

        segmenter = make_segmenter(name)
        if not segmenter.predicts_disparity:
            raise ValueError(
                f"--segmenter: found {name}, expected one with a disparity head, such as 'sorting', because "
                "the default policy needs both."
            )
        size = segmenter.identity.input_size
        height, width = size if len(size) == 2 else (self.height, self.width)  # others take any image
        if self.width * height != self.height * width:
            raise ValueError(
                f"--width, --height: found {self.width}x{self.height}, expected the shape of the images that "
                f"{name} was trained on, {width}x{height}: give --width={self.height * width // height}."
            )

    def camera_setup(self) -> CameraSetup:
        kinds = self.rgb, self.seg, self.depth
        return CameraSetup(tuple(self.cameras), self.height, self.width, *kinds)


@dataclass(frozen=True)
class Step:
    """One command of a round.

    Args:
        round: `round <n>`, or `plain <n>`, the comparison with round n.
        kind: demonstrate, copy, take over, arrays, train or evaluate.
        command: returns console script and arguments, once the steps before have finished; empty if nothing
            is left to do. It continues a part that exists, or removes it if it cannot be continued.
        beside: it needs nothing of the step before, and runs at the same time.
    """

    round: str
    kind: str
    command: Callable[[], list[str]]
    beside: bool = False

    @property
    def name(self) -> str:
        return f"{self.round}: {self.kind}"


def folder(config: ImproveConfig, round: str) -> Path:
    """Return the folder of a round."""
    return config.root / round.replace(" ", "_")


def dataset(config: ImproveConfig, round: str) -> Path:
    """Return the dataset that a round's policy is trained on."""
    return folder(config, round) / "dataset"


def plan(config: ImproveConfig) -> Iterator[Step]:
    """Yield all steps in order. A policy is evaluated while the next one is trained."""
    first = dataset(config, "round 0")
    yield Step("round 0", "demonstrate", partial(_record, config, first, config.episodes, 0))
    yield from _train_steps(config, "round 0")
    for number in range(1, config.rounds + 1):
        name, last = f"round {number}", f"round {number - 1}"
        data, episodes = dataset(config, name), config.episodes + number * config.takeovers
        yield Step(name, "copy", partial(_copy, dataset(config, last), data))
        policy = _checkpoint(folder(config, last))
        yield Step(name, "take over", partial(_record, config, data, episodes, number, policy))
        yield from _train_steps(config, name)
        yield Step(last, "evaluate", partial(_evaluate, config, folder(config, last)), beside=True)
    name = last = f"round {config.rounds}"
    if config.compare:
        name = f"plain {config.rounds}"
        data = dataset(config, name)
        yield Step(name, "copy", partial(_copy, first, data))
        yield Step(name, "demonstrate", partial(_record_as_many_frames, config, data, last))
        yield from _train_steps(config, name)
        yield Step(last, "evaluate", partial(_evaluate, config, folder(config, last)), beside=True)
    yield Step(name, "evaluate", partial(_evaluate, config, folder(config, name)))


def _train_steps(config: ImproveConfig, round: str) -> Iterator[Step]:
    data = dataset(config, round)
    if config.train is None:  # other policies may not be able to read arrays
        arrays = folder(config, round) / "arrays"
        yield Step(round, "arrays", partial(_arrays, data, arrays, config.segmenter))
        data = arrays
    yield Step(round, "train", partial(_train, config, data, folder(config, round) / "train"))


# -- commands --------------------------------------------------------------------------------------


def _record(
    config: ImproveConfig, root: Path, episodes: int, number: int, policy: Path | None = None
) -> list[str]:
    """Record the episodes that a dataset lacks: demonstrations, or takeovers of a policy."""
    missing = episodes - count(root)[0]
    if missing == 0:
        return []
    seed = _SEEDS_PER_DATASET * (_DATASETS_PER_RUN * config.seed + number)
    command = ["so101-demos", f"--root={root}", f"--task={config.task}", f"--level={config.level}"]
    command += [f"--episodes={missing}", f"--seed={seed}", *config.camera_setup().flags()]
    command += [f"--video={json.dumps(config.video)}", "--workers=2"]
    if config.shadows:
        command.append("--shadows=true")
    if policy is not None:
        command.append(f"--policy.path={policy}")
    if missing < episodes:
        return [*command, "--resume=true"]
    shutil.rmtree(root, ignore_errors=True)
    return command


def _record_as_many_frames(config: ImproveConfig, root: Path, last: str) -> list[str]:
    """Add plain demonstrations with as many frames as the takeovers of all rounds."""
    (episodes, frames), (_, all_frames) = count(dataset(config, "round 0")), count(dataset(config, last))
    return _record(config, root, max(episodes + 1, round(all_frames * episodes / frames)), config.rounds + 1)


def _copy(data: Path, output: Path) -> list[str]:
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(exist_ok=True)
    return ["cp", "-r", str(data), str(output)]


def _arrays(data: Path, output: Path, segmenter: str | None) -> list[str]:
    shutil.rmtree(output, ignore_errors=True)
    options = [f"--segmenter={segmenter}"] if segmenter else []
    return ["so101-arrays", f"--root={data}", f"--output={output}", *options]


def _train(config: ImproveConfig, data: Path, output: Path) -> list[str]:
    """Train from scratch on all episodes so far, or resume from the last checkpoint."""
    saved = _checkpoint(output.parent) / "train_config.json"
    if saved.is_file():
        return ["lerobot-train", f"--config_path={saved}", "--resume=true"]
    shutil.rmtree(output, ignore_errors=True)
    command = ["lerobot-train", f"--dataset.repo_id=local/{config.task}", f"--dataset.root={data}"]
    command += [f"--output_dir={output}", f"--seed={config.seed}"]
    if config.train is not None:
        return [*command, f"--config_path={config.root / TRAIN_CONFIG}"]
    names = [prop.name for prop in TASKS[config.task].props]
    roles = {role: word for role, word in ROLES.items() if word in " ".join(names).split()}
    classes, perception = class_names(props_of(config.task, config.level)), []
    if config.segmenter is not None:
        from lerobot_processor_so101.models import class_names_of

        classes = class_names_of(config.segmenter)
        perception = [f"--policy.segmenter={config.segmenter}", "--policy.depth=segmenter"]
    return [
        *command,
        "--policy.type=segdepth",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        f"--policy.cameras={json.dumps(config.cameras)}",
        *perception,
        f"--policy.class_names={json.dumps(classes)}",
        f"--policy.watched_classes={json.dumps([*(roles or names), *FINGERS])}",
        *([f"--policy.roles={json.dumps(roles)}"] if roles else []),
        f"--steps={max(1, _EPOCHS * count(data)[1] // _BATCH)}",
        f"--batch_size={_BATCH}",
        "--num_workers=0",  # arrays are read faster than they are passed between processes
        "--save_freq=1000",
        "--log_freq=200",
    ]


def _evaluate(config: ImproveConfig, round: Path) -> list[str]:
    output = round / "eval"
    shutil.rmtree(output, ignore_errors=True)
    options: dict[str, object] = {"env.task": config.task, "env.level": config.level}
    options |= {"env.starts": "validation", "env.episode_log": output / EPISODE_LOG, "seed": 0}
    images, checkpoint = config.camera_setup(), _checkpoint(round)
    if config.segmenter is not None:
        images = needed_images(read_config(checkpoint), checkpoint, (config.height, config.width))
    if config.shadows:
        options["env.shadows"] = "true"
    return eval_command(checkpoint, images, config.eval_episodes, output, options)


def _checkpoint(round: Path) -> Path:
    return round / "train" / "checkpoints" / "last" / "pretrained_model"


def count(root: Path) -> tuple[int, int]:
    """Return the number of episodes and frames of a dataset; zeros if there is none."""
    if not (root / "meta" / "info.json").is_file():
        return 0, 0
    info = load_info(root)
    return info.total_episodes, info.total_frames
