# SPDX-License-Identifier: Apache-2.0
"""A scripted demonstrator with access to the state of the world.

It is Markov: a command depends on the present state and on nothing else. There is no clock and no planned
trajectory, so a policy that observes the same state can learn the same action, and recovery from a
disturbance needs no special case. Each command is the present position plus a bounded step towards the goal
of the present phase; the phase follows from the positions of the arm, the cube and the bowl. With latency,
the present position is that after all pending commands; otherwise the arm would oscillate.

`Disturbance` perturbs the *executed* command while the recorded label stays clean, so that demonstrations
contain the recoveries that an imitating policy needs: from displacements, from a grasp that missed and was
carried on with, and from a dropped cube.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lerobot_processor_so101 import arm
from lerobot_processor_so101.arm import GRIPPER, JOINTS, to_radians

from ..tasks.base import is_in
from .kinematics import jaw_angle, pinch_position, solve
from .scene import BOWL_HEIGHT, CUBE_HALF
from .world import World

OPEN, CLOSED = 50.0, 4.0  # gripper units
HOVER = 0.060  # m above the grasp before descending
LIFT = 0.085  # m, height of a lifted cube
CARRY = BOWL_HEIGHT + 0.075  # m, pinch height on the way to a bowl
DROP = BOWL_HEIGHT + 0.030  # m, pinch height for releasing
CLEARANCE = 0.085  # m, distance from a post and height above the table while passing it
PAST = 0.055  # m beyond a post, from where the path to the pad is free
UNDECIDED = 0.025  # m to the left or right of a post, within which neither side is nearer
STRIDE = 0.03  # m, length of a straight step
_PAN_AXIS_X = 0.0388  # m, the pan axis in the base's frame
GRASP_HEIGHT = CUBE_HALF + 0.002  # m, pinch height for closing
_TURNED = np.radians(50.0)
ROLL = JOINTS.index("wrist_roll")
# By phase: largest step per tick [deg] (the servos follow up to 9), and share of a disturbance's strength.
PHASES = {
    "approach": (5.0, 1.0),
    "align": (3.5, 0.8),
    "descend": (2.6, 0.7),
    "close": (2.6, 0.3),
    "lift": (3.6, 0.7),
    "carry": (4.0, 0.7),
    "lower": (2.6, 0.4),
    "release": (2.6, 0.2),
    "retreat": (3.6, 0.7),
    "home": (5.0, 0.0),
}


@dataclass(frozen=True)
class Decision:
    """The expert's command for one tick."""

    action: np.ndarray  # (6,) in LeRobot's units: the clean label
    phase: str


class Expert:
    """Scripted demonstrator for every task of the workbench."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._home = to_radians(arm.HOME)

    def decide(self) -> Decision:
        """Command the next step of the task from the world's present state."""
        return self._step(*self._plan())

    def go_home(self) -> Decision:
        """Command the next step of homing: open the jaws, straight up if low, then to the ready pose."""
        return self._step(*self._retreat())

    def miss(self, offset: np.ndarray) -> Decision:
        """Command the next step of a grasp `offset` (2,) [m] beside the cube."""
        return self._step(*self._grasp(offset))

    def deliver(self, gripper: float = CLOSED) -> Decision:
        """Command what follows a grasp, whether or not the cube is gripped, with the jaws at `gripper`."""
        phase, joints, _ = self._deliver()
        return self._step(phase, joints, gripper)

    # -- phases: each method returns phase, joint goal (5,) [rad] and gripper goal ------------------

    def _plan(self) -> tuple[str, np.ndarray, float]:
        world, goal = self.world, self.world.goal
        if goal.around:
            return self._pass(goal.around)
        if goal.into and is_in(world, goal.pick, goal.into):
            return self._retreat()
        if world.is_gripped(goal.pick):
            return self._deliver()
        return self._grasp()

    def _grasp(self, beside: np.ndarray | float = 0.0) -> tuple[str, np.ndarray, float]:
        """Descend through a funnel above the cube: the goal's height grows with the misalignment."""
        cube, pinch = self.world.position(self.world.goal.pick), self._pinch()
        cube[:2] += beside
        grasp, direction = cube.copy(), self._jaw_direction(cube)
        grasp[2] = max(cube[2], CUBE_HALF) - CUBE_HALF + GRASP_HEIGHT
        grasp_joints = self._solve(*grasp, turn=direction)
        offset, height = np.hypot(*(pinch - grasp)[:2]), pinch[2] - grasp[2]
        turn = abs(self._radians()[4] - grasp_joints[4])
        opening = self.world.joints()[GRIPPER]
        slack = 1.6 if opening < OPEN - 8.0 else 1.0  # hysteresis: jaws that are closing continue
        if height < 0.006 * slack and offset < 0.010 * slack and turn < np.radians(10.0) * slack:
            return "close", grasp_joints, CLOSED
        turned, shut = (turn - np.radians(4)) / np.radians(12), (OPEN - 10 - opening) / 15
        misaligned = max((offset - 0.005) / 0.020, turned, shut)
        rise = HOVER * float(np.clip(misaligned, 0.0, 1.0))
        if rise == 0.0:
            return "descend", grasp_joints, OPEN
        joints = solve(grasp + [0, 0, rise], grasp_joints, direction)
        return ("approach" if height > HOVER / 2 else "align"), joints, OPEN

    def _deliver(self) -> tuple[str, np.ndarray, float]:
        """Lift the gripped cube; with a bowl as the goal, carry it over the bowl, lower it and release it."""
        world, goal = self.world, self.world.goal
        pinch = self._pinch()
        if goal.into is None:
            return "lift", self._solve(*pinch[:2], GRASP_HEIGHT + LIFT), CLOSED
        over = world.position(goal.into)[:2]
        if world.is_gripped(goal.pick):  # the grasp leaves an offset: bring the cube, not the fingers
            over += (world.pinch_point() - world.position(goal.pick))[:2]
        distance = np.hypot(*(pinch[:2] - over))
        if distance < 0.012:
            if pinch[2] < DROP + 0.012:
                return "release", self._radians()[:5], OPEN
            return "lower", self._solve(*over, DROP), CLOSED
        if pinch[2] < CARRY - 0.02 - 0.25 * max(0.0, 0.06 - distance):
            return "lift", self._solve(*pinch[:2], CARRY), CLOSED
        return "carry", self._solve(*over, CARRY), CLOSED

    def _retreat(self) -> tuple[str, np.ndarray, float]:
        pinch = self._pinch()
        if pinch[2] < CARRY - 0.02:
            return "retreat", self._solve(*pinch[:2], CARRY + 0.02), OPEN
        return "home", self._home[:5], float(arm.HOME[GRIPPER])

    def _pass(self, post: str) -> tuple[str, np.ndarray, float]:
        """Pass the post on the arm's side, or on the goal's side if the arm is on neither; then descend."""
        goal, pinch = self.world.goal, self._pinch()
        obstacle, pad = self.world.position(post), self.world.position(goal.pick)
        ahead, beside = (pinch - obstacle)[:2]
        side = 1.0 if goal.side == "left" else -1.0
        if abs(beside) > UNDECIDED:
            side = np.sign(beside)
        lane = obstacle[1] + side * CLEARANCE
        if ahead > PAST:
            phase, target = "descend", np.array([*pad[:2], GRASP_HEIGHT])
        elif abs(beside) < CLEARANCE - 0.02:
            phase, target = "approach", np.array([obstacle[0] - 0.05, lane, CLEARANCE])
        else:
            phase, target = "carry", np.array([pad[0], lane, CLEARANCE])
        path = target - pinch
        step = pinch + path * min(1.0, STRIDE / max(float(np.linalg.norm(path)), 1e-9))
        return phase, self._solve(*step), CLOSED

    # -- motion ------------------------------------------------------------------------------------

    def _radians(self) -> np.ndarray:
        return to_radians(self.world.upcoming_joints())

    def _pinch(self) -> np.ndarray:
        return pinch_position(self._radians())

    def _step(self, phase: str, joints: np.ndarray, gripper: float) -> Decision:
        """Step from the present position towards the goal, all joints arriving together."""
        present = self.world.upcoming_joints()
        distance = np.degrees(joints) - present[:GRIPPER]
        action = present.copy()
        action[:GRIPPER] += distance * min(1.0, PHASES[phase][0] / max(np.abs(distance).max(), 1e-9))
        action[GRIPPER] = gripper
        return Decision(action, phase)

    def _solve(self, *target: float, turn: float | None = None) -> np.ndarray:
        return solve(np.array(target), self._radians(), turn)

    def _jaw_direction(self, cube: np.ndarray) -> float:
        """Return the angle about z in which the jaws open: across two faces, nearest to the present one."""
        # Nearest to that at HOME would be as good for the expert. But two directions are equally near to it
        # for some cubes, and a policy that has learned both halfway takes neither.
        rotation = self.world.rotation(self.world.goal.pick)
        # The face direction that is most horizontal gives the yaw, whatever face the cube lies on.
        axis = rotation[:, np.argmin(np.abs(rotation[2]))]
        yaw, quarter = np.arctan2(axis[1], axis[0]), np.pi / 2
        # Pan directed at the cube, roll as at present.
        natural = np.arctan2(cube[1], cube[0] - _PAN_AXIS_X) - quarter + self._turned_since_home()
        return float(yaw + quarter * np.round((natural - yaw) / quarter))

    def _turned_since_home(self) -> float:
        """Return how far the roll has turned the jaws about z [rad]; at most `_TURNED`."""
        present = self._radians()[:GRIPPER]
        untwisted = present.copy()
        untwisted[ROLL] = self._home[ROLL]
        before, now = (jaw_angle(joints) for joints in (untwisted, present))
        turned = (now - before + np.pi) % (2 * np.pi) - np.pi
        return float(np.clip(turned, -_TURNED, _TURNED))


class Disturbance:
    """Perturbs executed commands: noise, kicks and mistakes.

    - Noise is an Ornstein-Uhlenbeck process.
    - A kick lasts some ticks. Some kicks close the jaws in mid-air.
    - A mistake is what policies do wrong. A miss grasps beside the cube, closes, lifts and carries on with an
      empty gripper; a drop opens the jaws while the cube is carried, closes them and carries on.

    Args:
        strength: largest standard deviation of the noise [deg]; each episode draws a share of it. Kicks and
            mistakes are the same from 1 deg on, and smaller or rarer below.
    """

    _DECAY, _KICK_CHANCE, _KICK, _SHUT_SHARE = 0.9, 0.04, 2.5, 0.15
    _KICKED = ("approach", "align", "descend", "close", "lift", "carry")
    _MISS_CHANCE, _MISS, _MISS_TICKS = 0.03, (0.018, 0.035), 45  # per tick; [m]; longest grasp
    _DROP_CHANCE, _DROP_TICKS = 0.006, (3, 8)  # per tick; ticks with open jaws
    _CARRY_ON_TICKS = (5, 30)  # with an empty gripper

    def __init__(self, expert: Expert, rng: np.random.Generator, strength: float) -> None:
        self._expert, self._rng = expert, rng
        self._strength, self._share = strength * rng.uniform(0.2, 1.0), min(1.0, strength)
        self._noise, self._kick, self._kick_ticks = np.zeros(6), np.zeros(6), 0
        self._mistake: Iterator[Decision] = iter(())

    def sample(self, decision: Decision) -> np.ndarray:
        """Draw the disturbance (6,) of this tick's command, in LeRobot's units."""
        spread = self._strength * np.sqrt(1.0 - self._DECAY**2)
        self._noise = self._DECAY * self._noise + self._rng.normal(0.0, 1.0, 6) * spread
        self._noise[GRIPPER] = 0.0
        wrong = next(self._mistake, None) or self._new_mistake(decision.phase)
        if wrong is not None:
            return wrong.action - decision.action + PHASES[wrong.phase][1] * self._noise
        phase = decision.phase
        if self._kick_ticks == 0 and phase in self._KICKED and self._rng.random() < self._KICK_CHANCE:
            self._kick, self._kick_ticks = self._new_kick(phase), int(self._rng.integers(4, 13))
        self._kick_ticks = max(0, self._kick_ticks - 1)
        return PHASES[phase][1] * (self._noise + (self._kick if self._kick_ticks else 0.0))

    def _new_kick(self, phase: str) -> np.ndarray:
        kick = self._rng.normal(0.0, self._KICK * self._share * (0.4 if phase == "descend" else 1.0), 6)
        shut = phase in ("approach", "align", "descend") and self._rng.random() < self._SHUT_SHARE
        kick[GRIPPER] = -self._rng.uniform(10.0, OPEN) * self._share if shut else 0.0
        return kick

    def _new_mistake(self, phase: str) -> Decision | None:
        """Return the first command of a mistake, or None for no mistake at this tick."""
        world, draw = self._expert.world, self._rng.random()
        if world.goal.around or world.is_success():
            return None
        if phase in ("align", "descend") and draw < self._MISS_CHANCE * self._share:
            self._mistake = self._miss()
        elif phase in ("lift", "carry") and draw < self._DROP_CHANCE * self._share:
            self._mistake = self._drop()
        return next(self._mistake, None)

    def _miss(self) -> Iterator[Decision]:
        angle = self._rng.uniform(-np.pi, np.pi)
        offset = self._rng.uniform(*self._MISS) * np.array([np.cos(angle), np.sin(angle)])
        for _ in range(self._MISS_TICKS):
            if self._expert.world.joints()[GRIPPER] < CLOSED + 4.0:
                break
            yield self._expert.miss(offset)
        yield from self._carry_on()

    def _drop(self) -> Iterator[Decision]:
        for _ in range(self._rng.integers(*self._DROP_TICKS)):
            yield self._expert.deliver(OPEN)
        yield from self._carry_on()

    def _carry_on(self) -> Iterator[Decision]:
        """Lift and carry an empty gripper; end early if it did grip the cube."""
        world = self._expert.world
        for _ in range(self._rng.integers(*self._CARRY_ON_TICKS)):
            if world.is_gripped(world.goal.pick):
                return
            yield self._expert.deliver()
