# SPDX-License-Identifier: Apache-2.0
"""What reaches the servos under adversarial commands, and how the arm moves, with a guard and without.

    python -m benchmarks.safety.guard
    python -m benchmarks.safety.guard --commands=0 --core=0 --moving=1000     # the motion alone, shorter

- Goals: the same adversarial commands go through `so101_guarded` and through LeRobot's `so101_follower` over
  a serial port to emulated servos. After every command the goals in the servos' registers are compared with
  the guard's limits, allowing two encoder steps (0.18 deg; 2 mm of the gripper) for rounding.
- Motion: the emulated arm moves. Its true joints, which the driver cannot read, are recorded after every
  physics step, at the limits of the goals and at the default ones. The lowest point is that of all vertices
  of its meshes, by MuJoCo's kinematics. Violations soon after the arm has touched the cube are counted apart,
  too: to a joint that is held up for a moment, the guard cannot react.
- Core: commands to the guard alone, judged by the same kinematics of MuJoCo.

Twenty minutes on two quiet cores; writes results/safety/guard.json.
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from lerobot.robots import make_robot_from_config
from lerobot.robots.so_follower import SO101FollowerConfig
from tqdm import tqdm

from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArm, VirtualArmConfig
from lerobot_env_so101_workbench.virtual_arm.joints import STEP as PHYSICS_STEP
from lerobot_env_so101_workbench.virtual_arm.sts_protocol import SYNC_WRITE, Packet
from lerobot_processor_so101.arm import GRIPPER, HOME, JOINTS, arm_model_path, from_radians, to_radians
from lerobot_processor_so101.guard import Guard, GuardLimits, reach
from lerobot_robot_so101 import SO101GuardedConfig

from ..lib.clock import percentiles
from ..lib.emulated import FASTER, close, speeds, wait_for_replies
from ..lib.report import arguments, save
from .guard_points import PARTS, corners

KINDS = ("not a number", "infinite", "huge", "jump", "oscillating", "into the table", "out of the box")
KINDS += ("missing joint", "text", "chunks that do not meet", "stale", "wrong size")
MOVING = KINDS[2:7] + KINDS[9:10] + KINDS  # those that move the arm come twice
LIMITS = GuardLimits(velocity=120, acceleration=1200, gripper_velocity=300, table=0.01)
DEFAULTS = GuardLimits(table=LIMITS.table)
BY_NAME = ("joint range", "velocity", "acceleration", "table", "workspace")
STEP, REACH = 2 * 360 / 4095, 0.002  # deg, m: what rounding to encoder steps may add
TIP = np.array([0.0, 0.0, -0.0981274])  # of the static finger, in the hand's frame [m]
# Of the moving arm: speeds are distances over 0.1 s; gear play, sag and the points that the guard checks.
PLAY, MISSED = 2.0, 0.010  # deg (percent), m
AFTER = 0.3  # s after a touch of the cube, in which the arm may still catch up


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def commands(
    count: int, seed: int = 0, kinds: tuple[str, ...] = KINDS
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Yield kind, seconds since the last command, and command."""
    rng = np.random.default_rng(seed)
    chunk: list[np.ndarray] = []
    for number in range(count):
        kind = kinds[number // 20 % len(kinds)]  # twenty of a kind in a row
        goals = HOME + 20 * np.sin(number / 40 + np.arange(6))
        if kind == "not a number":
            goals[rng.integers(6)] = math.nan
        elif kind == "infinite":
            goals[rng.integers(6)] = rng.choice([math.inf, -math.inf])
        elif kind == "huge":
            goals = rng.normal(0, 1, 6) * 10 ** rng.uniform(2, 30)
        elif kind == "jump":
            goals = rng.uniform(-180, 180, 6)
        elif kind == "oscillating":
            goals = HOME + (40 if number % 2 else -40)
        elif kind == "into the table":
            goals = np.array([rng.uniform(-60, 60), rng.uniform(20, 100), rng.uniform(-40, 60), 60, -90, 50])
        elif kind == "out of the box":
            goals = np.array([rng.choice([-109.0, 109.0]), 60, -60, 0, 0, 50])
        elif kind == "chunks that do not meet":
            chunk = chunk or list(np.linspace(rng.uniform(-90, 90, 6), rng.uniform(-90, 90, 6), 10))
            goals = chunk.pop(0)
        command: dict[str, Any] = {
            f"{joint}.pos": float(goal) for joint, goal in zip(JOINTS, goals, strict=True)
        }
        if kind == "missing joint":
            command.pop(f"{JOINTS[rng.integers(6)]}.pos")
        elif kind == "text":
            command[f"{JOINTS[rng.integers(6)]}.pos"] = "left"
        elif kind == "wrong size":
            command[f"{JOINTS[rng.integers(6)]}.pos"] = np.zeros(2)
        yield kind, float(rng.choice([0.005, 1 / 30, 1 / 30, 1 / 30, 0.06])), command


class GoalCheck:
    """Reads the servos' goals, and compares them with limits.

    Args:
        arm: the emulated arm.
        robot: connected to it; its calibration converts steps into degrees.
        limits: that goals must keep.
    """

    def __init__(self, arm: VirtualArm, robot: Any, limits: GuardLimits) -> None:
        self._bus, self._limits, self._written = arm.follower.bus, limits, 0
        # A patch, because the arm builds its bus.
        self._bus.respond = self._counting(self._bus.respond)  # type: ignore[method-assign]
        ends = np.array([(c.range_min, c.range_max) for c in map(robot.calibration.get, JOINTS)], float)
        self._low, self._high = ends.T
        self._last, self._velocity, self._seconds = self._goals(), np.zeros(6), 1.0

    def _counting(self, respond: Any) -> Any:
        def counted(packet: Packet, *args: Any) -> list[bytes]:
            responses = respond(packet, *args)
            self._written += packet.code == SYNC_WRITE
            return responses

        return counted

    def wait_for(self, written: int) -> None:
        """Wait until the servos have executed so many commands, which they do not acknowledge."""
        deadline = time.monotonic() + 5
        while self._written < written:
            if time.monotonic() > deadline:
                raise TimeoutError(f"found {self._written} commands executed, expected {written}.")
            time.sleep(0.0001)

    def _goals(self) -> np.ndarray:
        """Return goals, (6,), deg and percent."""
        with self._bus.lock:
            steps = np.array([servo.get("Goal_Position") for servo in self._bus.servos], float)
        degrees = (steps - (self._low + self._high) / 2) * 360 / 4095
        degrees[5] = 100 * (steps[5] - self._low[5]) / (self._high[5] - self._low[5])
        return degrees

    def violations(self, seconds: float) -> list[str]:
        """Return the names of the limits that the goals exceed, some seconds after the last ones."""
        limits, goals = self._limits, self._goals()
        moved = np.abs(goals - self._last)
        velocity = (goals - self._last) / seconds
        onward = np.where(velocity * self._velocity > 0, np.abs(self._velocity), 0)
        faster = np.abs(velocity) - onward - limits.accelerations * seconds
        tool, lowest = reach(goals[None].copy())
        box = np.array(limits.workspace)
        beyond = {
            "joint range": (goals < np.array(limits.lower) - STEP) | (goals > np.array(limits.upper) + STEP),
            "velocity": moved > limits.velocities * seconds + STEP,
            # Both speeds are rounded.
            "acceleration": faster * seconds > STEP * (1 + seconds / self._seconds),
            "table": lowest < limits.table - REACH,
            "workspace": (tool < box[:3] - REACH) | (tool > box[3:] + REACH),
        }
        self._last, self._velocity, self._seconds = goals, velocity, seconds
        return [name for name, where in beyond.items() if where.any()]


def run(config: Any, arm: VirtualArm, count: int, limits: GuardLimits) -> dict[str, Any]:
    """Send all commands, and count those after which goals exceed a limit."""
    robot, clock = connected(config, arm)
    guarded = hasattr(robot, "guard")
    limits = robot.limits if guarded else limits
    check, found, raised, spent, sent = GoalCheck(arm, robot, limits), Counter(), Counter(), [], 0
    for kind, seconds, command in tqdm(commands(count), total=count, desc=config.type, mininterval=10):
        clock.now += seconds
        if guarded:
            robot.guard.observe()
        if kind == "stale":
            clock.now += 1.0
            seconds += 1.0
        begin = time.perf_counter()
        try:
            robot.send_action(command)
            sent += 1
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raised[f"{kind}: {type(error).__name__}"] += 1
        spent.append(1000 * (time.perf_counter() - begin))
        check.wait_for(sent)
        found.update(check.violations(min(seconds, 0.1)))
    responses = dict(robot.guard.counts) if guarded else {}
    robot.disconnect()
    return {
        "robot": "so101_guarded" if guarded else "so101_follower",
        "commands": count,
        "violations": {name: found[name] for name in BY_NAME},
        "raised": dict(raised),
        "responses": responses,
        "send_ms": percentiles(spent, digits=3),
    }


def reached(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest height of the meshes, (P,), and the static fingertip, (P, 3), by MuJoCo [m].

    Args:
        poses: joint positions (P, 6) [deg, percent].
    """
    model = mujoco.MjModel.from_xml_path(str(arm_model_path()))
    data, parts = mujoco.MjData(model), {body: corners(model, body) for body in PARTS}
    frames = [(data.body(body), points) for body, points in parts.items()]
    lowest, tip, hand = np.empty(len(poses)), np.empty((len(poses), 3)), data.body("gripper")
    for row, pose in enumerate(to_radians(poses)):
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        lowest[row] = min((points @ body.xmat[6:] + body.xpos[2]).min() for body, points in frames)
        tip[row] = hand.xpos + hand.xmat.reshape(3, 3) @ TIP
    return lowest, tip


def beyond(poses: np.ndarray, limits: GuardLimits, degrees: float, metres: float) -> dict[str, np.ndarray]:
    """Return in which poses (P, 6) a limit is exceeded by more than this."""
    (lowest, tip), box = reached(poses), np.array(limits.workspace)
    low, high = np.array(limits.lower) - degrees, np.array(limits.upper) + degrees
    return {
        "joint range": ((poses < low) | (poses > high)).any(1),
        "table": lowest < limits.table - metres,
        "workspace": ((tip < box[:3] - metres) | (tip > box[3:] + metres)).any(1),
    }


def connected(config: Any, arm: VirtualArm) -> tuple[Any, Clock]:
    """Return a robot on the arm, and the clock of its guard if it has one."""
    robot: Any = make_robot_from_config(config)
    robot.connect()
    clock = Clock()
    if hasattr(robot, "guard"):
        pose = np.array([robot.get_observation()[f"{joint}.pos"] for joint in JOINTS])
        robot.guard = Guard(robot.limits, clock)
        robot.guard.initialise(pose)
    return robot, clock


def wait_for_command(robot: Any) -> None:
    """Wait until the servos have executed a command: it has no reply, but that to a ping comes after it.

    Raises:
        TimeoutError: if there is no complete reply.
    """
    for _ in range(10):
        with suppress(IndexError):  # raised by the vendor's library for an incomplete reply
            robot.bus.ping("gripper")  # None if the servo reports an error status, and that is a reply too
            return
    raise TimeoutError("found no complete reply to ten pings, expected one.")


def move(config: Any, arm: VirtualArm, count: int, limits: GuardLimits) -> dict[str, Any]:
    """Send commands to an arm that moves, and count the physics steps in which it exceeds a limit."""
    robot, clock = connected(config, arm)
    raised, path, touches = 0, [], []

    def advance(seconds: float) -> None:
        for _ in range(max(1, round(seconds / PHYSICS_STEP))):
            arm.advance(PHYSICS_STEP)
            clock.now += PHYSICS_STEP
            path.append(from_radians(arm.follower.joints.radians))
            touches.append(touches_cube(arm))

    stream = commands(count, 1, MOVING)
    for kind, seconds, command in tqdm(stream, total=count, desc=f"{config.type} moves", mininterval=10):
        robot.get_observation()
        if kind == "stale":
            advance(1.5 * limits.max_age)
        try:
            robot.send_action(command)
        except (ValueError, TypeError, KeyError, OverflowError):
            raised += 1
        wait_for_command(robot)
        advance(seconds)
    responses = dict(robot.guard.counts) if hasattr(robot, "guard") else {}
    robot.disconnect()
    joints = np.array(path)
    measured = speeds(joints)
    exceeded = beyond(joints, limits, PLAY, MISSED)
    exceeded["velocity"] = (measured > FASTER * limits.velocities).any(1)
    after = np.convolve(touches, np.ones(round(AFTER / PHYSICS_STEP)))[: len(touches)] > 0
    return {
        "robot": "so101_guarded" if hasattr(robot, "guard") else "so101_follower",
        "velocity_limit": limits.velocity,
        "commands": count,
        "physics_steps": len(joints),
        "violations": {name: int(exceeded[name].sum()) for name in BY_NAME if name in exceeded},
        "velocity_after_touch": int((exceeded["velocity"] & after[-len(measured) :]).sum()),
        "fastest_body": round(float(measured[:, :GRIPPER].max()), 1),
        "fastest_gripper": round(float(measured[:, GRIPPER].max()), 1),
        "lowest_mm": round(1000 * float(reached(joints)[0].min()), 1),
        "raised": raised,
        "responses": responses,
    }


def touches_cube(arm: VirtualArm) -> bool:
    """Whether any part of the arm touches the cube; `World.is_touched` knows the fingers only."""
    model = arm.world.model
    bodies = model.geom_bodyid[arm.world.data.contact.geom]  # (contacts, 2)
    others = bodies[:, ::-1][bodies == model.body("cube").id]
    return bool(others.any())  # body 0 is the table


def core(limits: GuardLimits, count: int) -> dict[str, Any]:
    """Send commands to the guard alone, and count those after which its goals exceed a limit."""
    clock = Clock()
    guard = Guard(limits, clock)
    guard.initialise(HOME)
    goals, times = np.empty((count + 1, len(JOINTS))), np.empty(count)
    goals[0] = HOME
    stream = commands(count, 2, MOVING)
    for number, (kind, seconds, command) in enumerate(tqdm(stream, total=count, desc="core", mininterval=10)):
        clock.now += seconds
        guard.observe(goals[number])
        late = 1.0 if kind == "stale" else 0.0
        clock.now += late
        goals[number + 1] = guard.check(list(command.values()))
        times[number] = min(seconds + late, 0.1)
    velocity = np.diff(goals, axis=0) / times[:, None]
    before = np.vstack([np.zeros(len(JOINTS)), velocity[:-1]])
    onward = np.where(velocity * before > 0, np.abs(before), 0)
    exceeded = beyond(goals, limits, 1e-6, MISSED)
    exceeded["velocity"] = (np.abs(velocity) > limits.velocities + 1e-6).any(1)
    exceeded["acceleration"] = (np.abs(velocity) - onward > limits.accelerations * times[:, None] + 1e-6).any(
        1
    )
    return {
        "commands": count,
        "violations": {name: int(exceeded[name].sum()) for name in BY_NAME},
        "not_finite": int((~np.isfinite(goals)).sum()),
        "responses": dict(guard.counts),
    }


@contextmanager
def emulated_arm() -> Iterator[VirtualArm]:
    """Yield an arm whose time passes in `advance` only; its calibration file is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        name = f"benchmark-{Path(folder).name}"
        arm = VirtualArm(VirtualArmConfig(leader="none", follower_port=Path(folder) / "port", id=name))
        try:
            arm.plug_in()
            yield arm
        finally:
            close(arm)


def cost(limits: GuardLimits, count: int) -> list[dict[str, Any]]:
    """Return the milliseconds of a check of usual and adversarial commands, with and without measurements."""
    rows = []
    usual = [HOME + [20 * math.sin(i / 40), 8 * math.sin(i / 30), 0, 0, 0, 0] for i in range(count)]
    adversarial = [list(command.values()) for _, _, command in commands(count)]
    cases = {"usual": usual, "adversarial": adversarial}
    for (name, stream), measured in product(cases.items(), (False, True)):
        clock, spent = Clock(), []
        guard = Guard(limits, clock)
        guard.initialise(HOME)
        joints = HOME
        for command in stream:
            clock.now += 1 / 30
            guard.observe(joints if measured else None)
            begin = time.perf_counter()
            joints = guard.check(command)
            spent.append(1000 * (time.perf_counter() - begin))
        times = {**percentiles(spent, digits=3), "mean": round(float(np.mean(spent)), 3)}
        rows.append({"commands": name, "measured": measured, **times})
    return rows


def main() -> None:
    options = arguments(__doc__, commands=100_000, moving=20_000, core=1_000_000, timed=20_000)
    wait_for_replies()
    rows, motion, tables = [], [], {}
    for config in (SO101GuardedConfig, SO101FollowerConfig):
        is_guarded = config is SO101GuardedConfig
        cases = [(run, options.commands, rows, LIMITS), (move, options.moving, motion, LIMITS)]
        if is_guarded:
            cases.append((move, options.moving, motion, DEFAULTS))
        for measure, count, results, limits in cases:
            if count:
                with emulated_arm() as arm:
                    extra = {"limits": limits} if is_guarded else {}
                    made = config(port=arm.follower.bus.port, id=arm.config.id, **extra)
                    results.append(measure(made, arm, count, limits))
    if motion:
        tables["motion"] = motion
    if options.core:
        tables["core"] = [core(LIMITS, options.core)]
    if options.timed:
        tables["guard_ms"] = cost(LIMITS, options.timed)
    rows = save("safety/guard", rows, ("robot",), settings=vars(options), **tables)
    for results in (rows, motion, tables.get("core", [])):
        print(
            [{key: row[key] for key in ("robot", "commands", "violations") if key in row} for row in results]
        )


if __name__ == "__main__":
    main()
