# SPDX-License-Identifier: Apache-2.0
"""What is lost when something fails in the middle of a recording or a rollout.

    python -m benchmarks.faults                                  # 200 runs on so101_guarded
    python -m benchmarks.faults --robot=so101_follower           # the same on LeRobot's own

Half of the runs are LeRobot's own `record` with a leader, half its own `rollout --strategy.type=episodic` with a policy: two
episodes of 2 s with two cameras, on emulated arms whose time passes only where LeRobot waits. At a random time one thing
fails. Afterwards: is every finished episode in the dataset, and loads it; what do the servos do; what was said; how long did a
call take. Each run is appended to outputs/faults/<robot>.jsonl, and what is there is not run again; writes results/faults.json.
"""

import argparse
import contextlib
import json
import logging
import signal
import sys
import tempfile
import time
from collections import defaultdict
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
from lerobot.rollout import RolloutConfig
from lerobot.rollout.configs import EpisodicStrategyConfig
from lerobot.rollout.strategies import core, episodic
from lerobot.scripts import lerobot_record
from lerobot.scripts.lerobot_rollout import rollout
from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig
from tqdm import tqdm

from lerobot_env_so101_workbench import picture_file
from lerobot_env_so101_workbench.arm import JOINTS
from lerobot_env_so101_workbench.virtual_arm import VirtualArm, VirtualArmConfig
from lerobot_env_so101_workbench.virtual_joints import STEP
from lerobot_processor_so101.guard import Guard
from lerobot_robot_so101 import so101_guarded

from .emulated import SIZE, act_config, close, robot_class, robot_config
from .report import circumstances, load, rate, save, table

OUTPUT = Path("outputs/faults")
EPISODE_S, RESET_S, FPS = 2.0, 0.5, 30
LIMIT_S = 120  # of a whole run, on the clock on the wall
NAMED = "|".join(JOINTS)
EVERYDAY = ("slower", "Keyboard controls", "libtorchcodec", "image writer")  # said without a fault too
LOGGERS = [logging.getLogger(name) for name in ("lerobot", "lerobot_robot_so101")]

# What fails, and what a message about it has to name; nothing where the run can go on.
FAULTS: dict[str, tuple[Callable[[VirtualArm, np.random.Generator, str], Any], str]] = {
    "lost answers": (lambda arm, rng, joint: arm.follower.faults.next("lost", int(rng.integers(1, 20))), ""),
    "late answers": (lambda arm, rng, joint: arm.follower.faults.next("late", int(rng.integers(1, 20))), ""),
    "a noisy line": (lambda arm, rng, joint: arm.follower.faults.rate("corrupted", 0.02), ""),
    "silent servo": (lambda arm, rng, joint: arm.follower.faults.silence(joint), "{joint}"),
    "jammed joint": (lambda arm, rng, joint: arm.follower.faults.jam(joint), "{joint}"),
    "brown-out": (lambda arm, rng, joint: arm.follower.bus.brown_out(0.2), NAMED),
    "cable pulled": (lambda arm, rng, joint: arm.follower.bus.pull_cable(), "cable|port"),
    "camera pulled": (lambda arm, rng, joint: arm.cameras["wrist"].pull_cable(), "wrist"),
    "camera hangs": (lambda arm, rng, joint: arm.cameras["top"].faults.rate("dropped", 1.0), "top"),
    "frozen camera": (lambda arm, rng, joint: arm.cameras["top"].faults.rate("frozen", 1.0), ""),
}
RECORD = {
    "leader loses answers": (lambda arm, rng, joint: arm.leader.faults.next("lost", 5), "leader"),
    "leader's servo silent": (lambda arm, rng, joint: arm.leader.faults.silence(joint), "{joint}"),
    "leader pulled": (lambda arm, rng, joint: arm.leader.bus.pull_cable(), "leader"),
}
ROLLOUT = {"slow policy": (lambda arm, rng, joint: None, "")}


class Clock:
    """Time that passes where LeRobot waits: the arm's, the cameras', the guard's.

    Args:
        arm: whose time it is.
        at: seconds after which `fail` is called, once.
    """

    def __init__(self, arm: VirtualArm, at: float, fail: Callable[[], None]) -> None:
        self.now, self._arm, self._at, self._fail = 0.0, arm, at, fail
        self.failed = self.advancing = False

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):  # one by one, for pictures carry the time at which they come
            self.advancing = True
            self._arm.advance(STEP)
            self.advancing = False
            self.now += STEP
        if not self.failed and self.now >= self._at:
            self.failed = True
            self._fail()


class Heard(logging.Handler):
    """Warnings and errors in the log, and reports of the guard."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if not any(words in line for words in EVERYDAY):
            self.lines.append(line.splitlines()[0] if line else "")


@contextlib.contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes that are others for a while: (object, name, value)."""
    with contextlib.ExitStack() as stack:
        for change in changes:
            stack.enter_context(patch.object(*change))
        yield


def timed(call: Callable, longest: list[float]) -> Callable:
    """`call`, keeping how long the longest took."""

    def measured(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            longest[0] = max(longest[0], time.perf_counter() - begin)

    return measured


def clocks(clock: Clock, robot: str, longest: list[float], saved: list[int], slow: bool) -> list:
    """What is replaced so that LeRobot lives by the arm's time, and is watched."""
    watch = SimpleNamespace(perf_counter=clock, monotonic=clock, sleep=clock.wait)
    changes: list[tuple[Any, str, Any]] = [(picture_file, "now", clock)]
    for module in (lerobot_record, episodic, core, control_utils):
        changes += [
            (module, name, new)
            for name, new in (("time", watch), ("precise_sleep", clock.wait))
            if hasattr(module, name)
        ]
    changes += [(so101_guarded, "time", watch), (so101_guarded, "Guard", lambda limits: Guard(limits, clock))]
    arm_class = robot_class(robot)
    changes += [
        (arm_class, name, timed(getattr(arm_class, name), longest))
        for name in ("get_observation", "send_action", "disconnect")
    ]
    changes += [(SO101Leader, "get_action", timed(SO101Leader.get_action, longest))]
    save_episode, act = LeRobotDataset.save_episode, ACTPolicy.select_action

    def counting(dataset: LeRobotDataset, *args: Any, **kwargs: Any) -> None:
        save_episode(dataset, *args, **kwargs)
        saved[0] += 1

    def thinking(policy: ACTPolicy, batch: Any) -> Any:
        if slow and clock.failed:
            clock.wait(1.0)
        return act(policy, batch)

    return [*changes, (LeRobotDataset, "save_episode", counting), (ACTPolicy, "select_action", thinking)]


def command(kind: str, arm: VirtualArm, robot: str, root: Path, policy: ACTConfig) -> None:
    """LeRobot's own `record` or `rollout`, on the arm."""
    name = "rollout_faults" if kind == "rollout" else "faults"
    dataset = DatasetRecordConfig(
        repo_id=f"local/{name}",
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
    config = robot_config(robot, arm)
    if kind == "record":
        teleop = SO101LeaderConfig(port=str(arm.config.leader_port), id=arm.config.id)
        lerobot_record.record(
            lerobot_record.RecordConfig(robot=config, dataset=dataset, teleop=teleop, play_sounds=False)
        )
    else:
        rollout(
            RolloutConfig(
                robot=config,
                policy=policy,
                strategy=EpisodicStrategyConfig(),
                dataset=dataset,
                task="Lift the cube.",
                play_sounds=False,
            )
        )


def end_of(arm: VirtualArm) -> str:
    """What the servos do a second after the command has ended: limp, holding, or otherwise."""
    arm.advance(1.0)
    servos = arm.follower.bus.servos
    torque = [servo.get("Torque_Enable") for servo in servos]
    still = np.abs(np.degrees(arm.follower.joints.velocity)).max() < 5
    if not any(torque):
        return "limp"
    if all(torque):
        return "holding" if still else "moving"
    return "torque on " + ", ".join(servo.name for servo, on in zip(servos, torque, strict=True) if on)


def check_dataset(root: Path, kind: str, saved: int) -> bool:
    """Whether all finished episodes are there, and their first and last pictures can be read."""
    if saved == 0:
        return True
    dataset = LeRobotDataset("local/rollout_faults" if kind == "rollout" else "local/faults", root=root)
    if dataset.num_episodes != saved:
        return False
    numbers = np.array(dataset.hf_dataset.with_format(None)["episode_index"])
    for episode in range(saved):
        rows = np.flatnonzero(numbers == episode)
        for row in (rows[0], rows[-1]):
            if dataset[int(row)]["observation.images.top"].shape != (3, SIZE["height"], SIZE["width"]):
                return False
    return True


def run(number: int, robot: str, policy: ACTConfig) -> dict[str, Any]:
    """One recording or rollout in which something fails."""
    rng = np.random.default_rng(number)
    kind = ("record", "rollout")[number % 2]
    faults = {**FAULTS, **(RECORD if kind == "record" else ROLLOUT)}
    fault = list(faults)[number // 2 % len(faults)]
    at, joint = float(rng.uniform(0.1, 2 * EPISODE_S + RESET_S - 0.3)), str(rng.choice(JOINTS))
    fail, named = faults[fault]
    heard, longest, saved, error = Heard(), [0.0], [0], ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arm = emulated(folder)
        clock = Clock(arm, at, lambda: fail(arm, rng, joint))
        changes = clocks(clock, robot, longest, saved, slow=fault == "slow policy")
        try:
            arm.plug_in()
            with replaced((picture_file, "now", clock)):
                arm.advance(0.1)
            for logger in LOGGERS:  # LeRobot takes handlers off the root
                logger.addHandler(heard)
            with replaced(*changes), limited(clock):
                command(kind, arm, robot, folder / "set", policy)
        except Exception as raised:
            error = f"{type(raised).__name__}: {' '.join(str(raised).split())}"
        finally:
            for logger in LOGGERS:
                logger.removeHandler(heard)
            end = end_of(arm)
            close(arm)
        loads = check_dataset(folder / "set", kind, saved[0])
    said = " ".join([error, *heard.lines])
    words = named.format(joint=joint).split("|") if named else []
    return {
        "number": number,
        "command": kind,
        "fault": fault,
        "at_s": round(at, 2),
        "joint": joint,
        "happened": clock.failed,
        "error": error[:300],
        "log": heard.lines[-3:],
        "finished_episodes": saved[0],
        "loads": loads,
        "end": end,
        "longest_call_s": round(longest[0], 3),
        "named": any(word in said for word in words) or (False if error else None) if words else None,
    }


@contextlib.contextmanager
def limited(clock: Clock) -> Iterator[None]:
    """Raises TimeoutError in what takes too long, but not inside of the arm, whose hands would end with it."""

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


def emulated(folder: Path) -> VirtualArm:
    """An arm with a leader that works, and two small cameras."""
    size = {name: SIZE[name] for name in ("height", "width")}
    ports = {"follower_port": folder / "follower", "leader_port": folder / "leader"}
    return VirtualArm(VirtualArmConfig(**ports, **size, cameras=["top", "wrist"], id=f"faults-{folder.name}"))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over runs in which the fault happened."""
    rows = [row for row in rows if row["happened"]]
    told = [row for row in rows if row["named"] is not None]
    found: dict[str, Any] = {
        "runs": len(rows),
        "went on": rate(sum(not row["error"] for row in rows), len(rows)),
        "finished episodes": sum(row["finished_episodes"] for row in rows),
        "datasets that lack one or do not load": sum(not row["loads"] for row in rows),
        "limp or holding in the end": rate(sum(row["end"] in ("limp", "holding") for row in rows), len(rows)),
        "named, of those that say something": f"{sum(row['named'] for row in told)}/{len(told)}",
        "longest call [s]": max(row["longest_call_s"] for row in rows),
    }
    by_fault = defaultdict(list)
    for row in rows:
        by_fault[row["fault"]].append(row)
    found["by fault"] = {
        fault: {
            "runs": len(some),
            "went on": sum(not row["error"] for row in some),
            "lost": sum(not row["loads"] for row in some),
            "ends": {
                end: sum(row["end"] == end for row in some) for end in sorted({row["end"] for row in some})
            },
            "named": sum(bool(row["named"]) for row in some),
            "longest_call_s": max(row["longest_call_s"] for row in some),
            "says": next(
                (row["error"] or " ".join(row["log"]) for row in some if row["error"] or row["log"]), ""
            )[:200],
        }
        for fault, some in sorted(by_fault.items())
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--robot", choices=("so101_guarded", "so101_follower"), default="so101_guarded")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--anew", action="store_true", help="forget the runs that are there")
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # LeRobot's configurations read the command line too
    path = OUTPUT / f"{options.robot}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.anew:
        path.unlink(missing_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {row["number"] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        policy = act_config(Path(folder))
        for number in tqdm([number for number in range(options.runs) if number not in done]):
            rows.append(run(number, options.robot, policy))
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    report(rows, options.robot)


def report(rows: list[dict[str, Any]], robot: str) -> None:
    """Print the table, and keep it beside the other robot's."""
    found = summary(rows)
    header = ["fault", "runs", "went on", "lost", "ends", "named", "longest call [s]"]
    cells = [
        [fault, *(str(some[key]) for key in ("runs", "went on", "lost", "ends", "named", "longest_call_s"))]
        for fault, some in found["by fault"].items()
    ]
    print(table(header, cells))
    print({key: value for key, value in found.items() if key != "by fault"})
    before = load("faults")
    of = {**before.get("circumstances", {}), robot: circumstances()}  # each robot's runs have their own
    print("written to", save("faults", {**before, "circumstances": of, robot: found}))


if __name__ == "__main__":
    main()
