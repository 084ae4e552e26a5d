# SPDX-License-Identifier: Apache-2.0
"""What a fault costs in the middle of a recording or a rollout.

    python -m benchmarks.safety.faults                                  # 200 runs on so101_guarded
    python -m benchmarks.safety.faults --robot=so101_follower           # the same on LeRobot's own
    python -m benchmarks.safety.faults --fault "full disk"              # those of the 200 with this fault

Half of the runs are LeRobot's own `record` with a leader, half its own `rollout --strategy.type=episodic`
with a policy: two episodes of 2 s with two cameras, on emulated arms whose time passes only where LeRobot
waits. At a random time one thing fails.
Afterwards: is every finished episode in the dataset, and does it load; are the servos limp, holding or
moving; did a joint move faster than 1.2 x its limit, by the true joints that the driver cannot read; what
was raised or logged; how long did the longest call take. A full disk is a small tmpfs, whose
dataset is repaired with `so101-repair` onto another; mounting it needs root.

Signals to the process are in `benchmarks.safety.signals`, kills of a recording in `benchmarks.safety.kills`.
Each run is appended to outputs/faults/<robot>.jsonl and not repeated; writes results/safety/faults.json.
"""

import contextlib
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from lerobot.common import control_utils
from lerobot.configs.dataset import DatasetRecordConfig
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.robots import make_robot_from_config
from lerobot.rollout import RolloutConfig
from lerobot.rollout.configs import EpisodicStrategyConfig
from lerobot.rollout.strategies import core, episodic
from lerobot.scripts import lerobot_record
from lerobot.scripts.lerobot_rollout import rollout
from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig
from tqdm import tqdm

from lerobot_env_so101_workbench.virtual_arm import frame_file
from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArm, VirtualArmConfig
from lerobot_env_so101_workbench.virtual_arm.joints import STEP
from lerobot_processor_so101.arm import GRIPPER, JOINTS, from_radians
from lerobot_processor_so101.guard import Guard, GuardLimits
from lerobot_processor_so101.recording.repair import RepairConfig, repair
from lerobot_robot_so101 import so101_guarded

from ..lib.emulated import FASTER, ROBOTS, close, robot_config, speeds, wait_for_replies
from ..lib.report import arguments, save, table
from ..lib.untrained import save_act

OUTPUT = Path("outputs/faults")
SIZE = (24, 32)  # of images
EPISODE_S, RESET_S, FPS = 2.0, 0.5, 30
DISK = "disk"  # folder of the dataset
VELOCITY = GuardLimits().velocity  # deg/s
TIMEOUT_S = 0.25  # of a reply, for a busy machine; the driver's 0.05 s make calls five times shorter
LIMIT_S = 120  # of a run, wall-clock time
ANY_JOINT = "|".join(JOINTS)
USUAL = ("slower", "Keyboard controls", "libtorchcodec", "image writer")  # in messages logged without a fault
LOGGERS = [logging.getLogger(name) for name in ("lerobot", "lerobot_robot_so101")]


def fill_disk(arm: VirtualArm) -> None:
    """Leave no room on the file system of the dataset."""
    with (
        contextlib.suppress(OSError),
        (Path(arm.config.follower_port).parent / DISK / "filler").open("wb", buffering=0) as file,
    ):
        while True:
            file.write(bytes(4096))


def second_owner(arm: VirtualArm) -> None:
    """Connect a second `so101_guarded` to the same port, send it elsewhere, and disconnect it."""
    config = robot_config("so101_guarded", arm)
    config.cameras = {}
    second = make_robot_from_config(config)
    with contextlib.suppress(ConnectionError):
        second.connect()
        second.send_action({f"{joint}.pos": 50.0 for joint in JOINTS})
        second.disconnect()


# What fails, and what a message about it has to name; nothing where the run can continue.
FAULTS: dict[str, tuple[Callable[[VirtualArm, np.random.Generator, str], Any], str]] = {
    "lost answers": (lambda arm, rng, joint: arm.follower.faults.next("lost", int(rng.integers(1, 20))), ""),
    "late answers": (lambda arm, rng, joint: arm.follower.faults.next("late", int(rng.integers(1, 20))), ""),
    "a noisy line": (lambda arm, rng, joint: arm.follower.faults.rate("corrupted", 0.02), ""),
    "silent servo": (lambda arm, rng, joint: arm.follower.faults.silence(joint), "{joint}"),
    "jammed joint": (lambda arm, rng, joint: arm.follower.faults.jam(joint), "{joint}"),
    "brown-out": (lambda arm, rng, joint: arm.follower.bus.brown_out(0.2), ANY_JOINT),
    "cable pulled": (lambda arm, rng, joint: arm.follower.bus.unplug(), "cable|port"),
    "camera pulled": (lambda arm, rng, joint: arm.cameras["wrist"].unplug(), "wrist"),
    "camera hangs": (lambda arm, rng, joint: arm.cameras["top"].faults.rate("dropped", 1.0), "top"),
    "frozen camera": (lambda arm, rng, joint: arm.cameras["top"].faults.rate("frozen", 1.0), ""),
    "full disk": (lambda arm, rng, joint: fill_disk(arm), "No space left"),
    "second owner": (lambda arm, rng, joint: second_owner(arm), ""),
}
RECORD = {
    "leader loses answers": (lambda arm, rng, joint: arm.leader.faults.next("lost", 5), "leader"),
    "leader's servo silent": (lambda arm, rng, joint: arm.leader.faults.silence(joint), "{joint}"),
    "leader pulled": (lambda arm, rng, joint: arm.leader.bus.unplug(), "leader"),
}
ROLLOUT = {"slow policy": (lambda arm, rng, joint: None, "")}
ALL = {**FAULTS, **RECORD, **ROLLOUT}


class Clock:
    """Time of the arm, the cameras and the guard. It passes where LeRobot waits.

    Args:
        arm: advanced with it.
        at: seconds after which `fail` is called, once.
    """

    def __init__(self, arm: VirtualArm, at: float, fail: Callable[[], None]) -> None:
        self.now, self._arm, self._at, self._fail = 0.0, arm, at, fail
        self.failed = self.advancing = False
        self._path: list[np.ndarray] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        for _ in range(
            round(seconds / STEP)
        ):  # one by one, because frames carry the time at which they arrive
            self.advancing = True
            self._arm.advance(STEP)
            self.advancing = False
            self.now += STEP
            self._path.append(from_radians(self._arm.follower.joints.radians))
        if not self.failed and self.now >= self._at:
            self.failed = True
            self._fail()

    def fastest(self) -> float:
        """Return the largest speed of a body joint over 0.1 s [deg/s]."""
        return float(speeds(np.array(self._path))[:, :GRIPPER].max(initial=0))


class Warnings(logging.Handler):
    """Collects warnings, errors and reports of the guard."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if not any(words in line for words in USUAL):
            self.lines.append(line.splitlines()[0] if line else "")


def timed(call: Callable, longest: list[float]) -> Callable:
    """Return `call`, recording the duration of the longest call."""

    def measured(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            longest[0] = max(longest[0], time.perf_counter() - begin)

    return measured


def patches(clock: Clock, robot: str, longest: list[float], saved: list[int], slow: bool) -> list[tuple]:
    """Return (object, name, value) of the attributes that let LeRobot run on the arm's time."""
    replacement = SimpleNamespace(perf_counter=clock, monotonic=clock, sleep=clock.wait)
    changes: list[tuple[Any, str, Any]] = [(frame_file, "now", clock)]
    for module in (lerobot_record, episodic, core, control_utils):
        new = (("time", replacement), ("precise_sleep", clock.wait))
        changes += [(module, name, value) for name, value in new if hasattr(module, name)]
    changes += [(so101_guarded, "time", replacement)]
    changes += [(so101_guarded, "Guard", lambda limits: Guard(limits, clock))]
    measured, names = ROBOTS[robot][0], ("get_observation", "send_action", "disconnect")
    changes += [(measured, name, timed(getattr(measured, name), longest)) for name in names]
    changes += [(SO101Leader, "get_action", timed(SO101Leader.get_action, longest))]
    save_episode, act = LeRobotDataset.save_episode, ACTPolicy.select_action

    def counting(dataset: LeRobotDataset, *args: Any, **kwargs: Any) -> None:
        save_episode(dataset, *args, **kwargs)
        saved[0] += 1

    def slowed(policy: ACTPolicy, batch: Any) -> Any:
        if slow and clock.failed:
            clock.wait(1.0)
        return act(policy, batch)

    return [*changes, (LeRobotDataset, "save_episode", counting), (ACTPolicy, "select_action", slowed)]


def command(kind: str, arm: VirtualArm, robot: str, root: Path, policy: ACTConfig) -> None:
    """Run LeRobot's own `record` or `rollout` on the arm."""
    dataset = DatasetRecordConfig(
        repo_id=repo_id(kind),
        single_task="Lift the cube.",
        root=root,
        fps=FPS,
        episode_time_s=EPISODE_S,
        reset_time_s=RESET_S,
        num_episodes=2,
        push_to_hub=False,
        no_stamp=True,
        num_image_writer_threads_per_camera=1,
        rgb_encoder=RGBEncoderConfig(vcodec="h264"),
    )
    options: Any = {"robot": robot_config(robot, arm), "dataset": dataset, "play_sounds": False}
    if kind == "record":
        teleop = SO101LeaderConfig(port=str(arm.config.leader_port), id=arm.config.id)
        lerobot_record.record(lerobot_record.RecordConfig(**options, teleop=teleop))
    else:
        strategy = EpisodicStrategyConfig()
        rollout(RolloutConfig(**options, policy=policy, strategy=strategy, task="Lift the cube."))


def repo_id(kind: str) -> str:
    """Return the name of the dataset; LeRobot requires a prefix for rollouts."""
    return "local/rollout_faults" if kind == "rollout" else "local/faults"


def end_of(arm: VirtualArm) -> str:
    """Return the state of the servos a second after the command has ended: limp, holding, or otherwise."""
    arm.advance(1.0)
    servos = arm.follower.bus.servos
    torque = [servo.get("Torque_Enable") for servo in servos]
    still = np.abs(np.degrees(arm.follower.joints.velocity)).max() < 5
    if not any(torque):
        return "limp"
    if all(torque):
        return "holding" if still else "moving"
    return "torque on " + ", ".join(servo.name for servo, on in zip(servos, torque, strict=True) if on)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 4 MB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def check_dataset(root: Path, kind: str, saved: int, repaired: Path | None = None) -> bool:
    """Return whether all finished episodes exist, and their first and last images can be read.

    Args:
        root: of the dataset.
        kind: record or rollout.
        saved: number of finished episodes.
        repaired: where to repair it, if it may need it.
    """
    if saved == 0:
        return True
    if repaired is not None and repair(RepairConfig(root, repaired)) is not None:
        root = repaired
    dataset = LeRobotDataset(repo_id(kind), root=root)
    if dataset.num_episodes != saved:
        return False
    numbers = np.array(dataset.hf_dataset.with_format(None)["episode_index"])
    ends = [
        rows[end] for rows in map(np.flatnonzero, numbers == np.arange(saved)[:, None]) for end in (0, -1)
    ]
    expected = (3, *SIZE)
    return all(dataset[int(row)]["observation.images.top"].shape == expected for row in ends)


def case(number: int) -> tuple[str, str]:
    """Return command and fault of a run."""
    kind = ("record", "rollout")[number % 2]
    faults = [*FAULTS, *(RECORD if kind == "record" else ROLLOUT)]
    return kind, faults[number // 2 % len(faults)]


def run(number: int, robot: str, policy: ACTConfig) -> dict[str, Any]:
    """Run one recording or rollout in which something fails."""
    rng = np.random.default_rng(number)
    kind, fault = case(number)
    at, joint = float(rng.uniform(0.1, 2 * EPISODE_S + RESET_S - 0.3)), str(rng.choice(JOINTS))
    fail, to_name = ALL[fault]
    logged, longest, saved, error = Warnings(), [0.0], [0], ""
    is_full = fault == "full disk"
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as disk:
        folder = Path(name)
        (folder / DISK).mkdir()
        if is_full:
            disk.enter_context(small_disk(folder / DISK))
        arm = emulated(folder, leader="expert" if kind == "record" else "none")
        clock = Clock(arm, at, lambda: fail(arm, rng, joint))
        changes = patches(clock, robot, longest, saved, slow=fault == "slow policy")
        try:
            arm.plug_in()
            with patch.object(frame_file, "now", clock):
                arm.advance(0.1)
            for logger in LOGGERS:  # LeRobot removes handlers from the root
                logger.addHandler(logged)
            with contextlib.ExitStack() as stack, limited(clock):
                for change in changes:
                    stack.enter_context(patch.object(*change))
                command(kind, arm, robot, folder / DISK / "set", policy)
        except Exception as raised:
            error = f"{type(raised).__name__}: {' '.join(str(raised).split())}".replace(f"{folder}/", "")
        finally:
            for logger in LOGGERS:
                logger.removeHandler(logged)
            end = end_of(arm)
            close(arm)
        repaired = folder / "repaired" if is_full else None
        loads = check_dataset(folder / DISK / "set", kind, saved[0], repaired)
    message = " ".join([error, *logged.lines])
    words = to_name.format(joint=joint).split("|") if to_name else []
    return {
        "number": number,
        "command": kind,
        "fault": fault,
        "at_s": round(at, 2),
        "joint": joint,
        "happened": clock.failed,
        "error": error[:300],
        "log": [line.replace(f"{folder}/", "") for line in logged.lines[-3:]],
        "finished_episodes": saved[0],
        "loads": loads,
        "end": end,
        "longest_call_s": round(longest[0], 3),
        "fastest": round(clock.fastest(), 1),
        "named": any(word in message for word in words) or (False if error else None) if words else None,
    }


@contextlib.contextmanager
def limited(clock: Clock) -> Iterator[None]:
    """Raise TimeoutError in a run that takes too long, but not inside the arm."""

    def ring(*_: Any) -> None:
        if clock.advancing:
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # ring again
            return
        raise TimeoutError(f"a run took longer than {LIMIT_S} s.")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def emulated(folder: Path, leader: str = "expert") -> VirtualArm:
    """Return an arm with two small cameras, and a moving leader unless that is "none"."""
    ports: Any = {"follower_port": folder / "follower", "leader_port": folder / "leader"}
    cameras: Any = {"cameras": ["top", "wrist"], "height": SIZE[0], "width": SIZE[1]}
    return VirtualArm(VirtualArmConfig(**ports, **cameras, leader=leader, id=f"faults-{folder.name}"))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts over runs. `named` counts messages that name what failed, of those `with_message`."""
    messages = [run["error"] or " ".join(run["log"]) for run in runs]
    return {
        "runs": len(runs),
        "continued": sum(not run["error"] for run in runs),
        "finished_episodes": sum(run["finished_episodes"] for run in runs),
        "incomplete_datasets": sum(not run["loads"] for run in runs),
        "too_fast": sum(run["fastest"] > FASTER * VELOCITY for run in runs),
        "ends": dict(sorted(Counter(run["end"] for run in runs).items())),
        "named": sum(bool(run["named"]) for run in runs),
        "with_message": sum(run["named"] is not None for run in runs),
        "longest_call_s": max(run["longest_call_s"] for run in runs),
        "message": next(filter(None, messages), "")[:200],
    }


def report(runs: list[dict[str, Any]], robot: str, whole: bool = True) -> None:
    """Save a row per fault that happened, and one for all if `whole`, and print this robot's."""
    happened = sorted((run for run in runs if run["happened"]), key=lambda run: run["fault"])
    cases: dict[str, list[dict]] = {"all": happened} if whole else {}
    for one in happened:
        cases.setdefault(one["fault"], []).append(one)
    rows = [{"robot": robot, "fault": fault, **summary(some)} for fault, some in cases.items()]
    save("safety/faults", rows, ("robot", "fault"))
    header = [key for key in rows[0] if key not in ("robot", "message")]
    print(table(header, [[row[key] for key in header] for row in rows]))


def main() -> None:
    choices = {"robot": ROBOTS, "fault": ALL}
    options = arguments(__doc__, choices, robot="so101_guarded", runs=200, fault=list(ALL))
    sys.argv = sys.argv[:1]  # LeRobot's configurations read the command line too
    wait_for_replies(TIMEOUT_S)
    path = OUTPUT / f"{options.robot}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    wanted = [number for number in range(options.runs) if case(number)[1] in options.fault]
    missing = sorted(set(wanted) - {run["number"] for run in runs})
    with tempfile.TemporaryDirectory() as folder:
        policy = save_act(Path(folder), SIZE)
        for number in tqdm(missing):
            runs.append(run(number, options.robot, policy))
            with path.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    report(runs, options.robot, whole=len(options.fault) == len(ALL))


if __name__ == "__main__":
    main()
