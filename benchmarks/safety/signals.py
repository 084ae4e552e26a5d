# SPDX-License-Identifier: Apache-2.0
"""What an arm does when the process that commands it is killed or stopped.

    python -m benchmarks.safety.signals                                 # 100 runs on so101_guarded

Each run is LeRobot's own `rollout --strategy.type=episodic` in a process of its own, on an emulated arm whose
time is real. At a random time the process gets SIGKILL, or SIGSTOP and after 3 s SIGCONT. Nothing can release
an arm whose process is gone: its servos have to hold it. Does it hold, how long does it go on moving, how
fast are its true joints over 0.1 s, and is it limp after the command has ended or, after SIGKILL, after the
robot was connected again and disconnected?

Each run is appended to outputs/signals/<robot>.jsonl and not repeated. Half a minute a run on a busy machine.
What a kill does to a dataset is measured by `benchmarks.safety.kills`.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.robots import make_robot_from_config

from lerobot_env_so101_workbench.camera import SO101VirtualCamera
from lerobot_env_so101_workbench.virtual_arm.joints import STEP
from lerobot_processor_so101.arm import GRIPPER, from_radians
from lerobot_processor_so101.guard import GuardLimits

from ..lib.emulated import FASTER, ROBOTS, WINDOW_S, close, robot_config, speeds, wait_for_replies
from ..lib.report import arguments, run_missing, save, show
from ..lib.untrained import save_act
from .faults import EPISODE_S, LIMIT_S, SIZE, command, emulated

SIGNALS = ("SIGKILL", "SIGSTOP")
STOPPED_S = 3.0  # of the arm's time
REST = 2.0  # deg in WINDOW_S, of an arm that rests
LIMIT = FASTER * GuardLimits().velocity  # deg/s
WINDOW, PASSED = round(WINDOW_S / STEP), round(STOPPED_S / STEP)  # physics steps


def roll_out(arm: Any, robot: str, root: Path, policy: ACTConfig) -> None:
    """Roll out in a process of its own; `arm` has the configuration of the arm only."""
    os.setsid()
    sys.argv = sys.argv[:1]
    wait_for_replies()
    read = SO101VirtualCamera.read_latest
    # A patch, because LeRobot builds the cameras: frames are old on a busy machine and after SIGCONT.
    SO101VirtualCamera.read_latest = lambda camera: read(camera, 60_000)  # type: ignore[method-assign]
    command("rollout", arm, robot, root, policy)


def signalled(number: int, robot: str, policy: ACTConfig) -> dict[str, Any]:
    """Kill or stop the process that commands an arm."""
    rng = np.random.default_rng([1, number])
    fault, path = SIGNALS[number % 2], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arm = emulated(folder)
        step, servos = arm.follower.step, arm.follower.bus.servos

        def witnessed() -> None:
            step()
            path.append(from_radians(arm.follower.joints.radians))

        def torque() -> list[bool]:
            return [bool(servo.get("Torque_Enable")) for servo in servos]

        # A patch, because the arm builds its follower.
        arm.follower.step = witnessed  # type: ignore[method-assign]
        given = (SimpleNamespace(config=arm.config), robot, folder / "set", policy)
        child = multiprocessing.get_context("forkserver").Process(target=roll_out, args=given)
        try:
            with arm:
                child.start()
                wait_until(lambda: all(torque()))
                time.sleep(rng.uniform(0.1, 2 * EPISODE_S))
                begun, alive = len(path), child.is_alive()
                if alive:
                    os.kill(child.pid, signal.Signals[fault])
                wait_until(lambda: len(path) >= begun + PASSED)
                held = all(torque())
                if alive and fault == "SIGSTOP":
                    os.kill(child.pid, signal.SIGCONT)
                child.join(LIMIT_S)
                ended = child.exitcode == (0 if fault == "SIGSTOP" else -signal.SIGKILL)
                if fault == "SIGKILL":
                    again = make_robot_from_config(robot_config(robot, arm))
                    again.connect()
                    again.disconnect()
                limp = not any(torque())
        finally:
            child.kill()
            child.join()
            close(arm)
    joints = np.array(path)[:, :GRIPPER]
    moves = np.abs(np.diff(joints[begun : begun + PASSED : WINDOW], axis=0))
    moving = np.flatnonzero((moves > REST).any(1))
    return {
        "number": number,
        "signal": fault,
        "happened": alive,
        "ended": ended,
        "held": held,
        "still_after_s": round(WINDOW_S * (moving[-1] + 1), 1) if len(moving) else 0.0,
        "limp_afterwards": limp,
        "fastest": round(float(speeds(joints).max()), 1),
    }


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something in real time.

    Raises:
        TimeoutError: if it does not happen.
    """
    limit = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"a run took longer than {LIMIT_S} s.")
        time.sleep(0.01)


def report(runs: list[dict[str, Any]], robot: str) -> None:
    """Save a row per signal, and print it. In `violations` an arm was too fast, not held, or not limp."""
    rows = []
    for name in SIGNALS:
        some = [run for run in runs if run["signal"] == name and run["happened"]]
        good = [run["held"] and run["limp_afterwards"] and run["fastest"] < LIMIT for run in some]
        row = {"robot": robot, "signal": name, "runs": len(some)}
        row |= {"ended_as_expected": sum(run["ended"] for run in some), "violations": good.count(False)}
        row |= {key: max((run[key] for run in some), default=None) for key in ("still_after_s", "fastest")}
        rows.append(row)
    save("safety/signals", rows, ("robot", "signal"))
    show(rows)


def main() -> None:
    options = arguments(__doc__, {"robot": ROBOTS}, robot="so101_guarded", runs=100)
    sys.argv = sys.argv[:1]  # LeRobot's configurations read the command line too
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.safety.faults"])
    wait_for_replies()
    path = Path(f"outputs/signals/{options.robot}.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        policy = save_act(Path(folder), SIZE)
        cases = [(number,) for number in range(options.runs)]
        runs = run_missing(path, ("number",), cases, lambda number: signalled(number, options.robot, policy))
    report(runs, options.robot)


if __name__ == "__main__":
    main()
