# SPDX-License-Identifier: Apache-2.0
"""A scripted demonstrator that sees the world's state: approach, descend, close, lift, carry, release, go home.

It is Markov: what it commands depends on the state it sees and on nothing else. There is no clock and no plan to
track, so a policy that sees the same state can learn the same answer, and after a disturbance the right answer is
simply the next one. Each command is the present position plus a bounded step towards the goal of the present
phase; phases follow from where the arm, the cube and the bowl are. (Where commands arrive late, "present" is where
the commands under way will have brought the arm: stepping from a stale position would make it swing.)

`Disturbance` shakes the *executed* command while the recorded label stays clean, so that recordings contain the
recoveries that a cloned policy will need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import arm
from .arm import GRIPPER, to_radians
from .kinematics import Kinematics
from .scene import BOWL_HEIGHT, CUBE_HALF
from .tasks.base import is_in
from .world import World

OPEN, CLOSED = 50.0, 4.0  # gripper units
HOVER = 0.060  # m above the grasp before descending
LIFT = 0.085  # m that a cube is raised
CARRY = BOWL_HEIGHT + 0.075  # m, pinch height on the way to a bowl
DROP = BOWL_HEIGHT + 0.030  # m, pinch height for letting go
ROUND = 0.085  # m beside a post, and above the table, on the way round it
PAST = 0.055  # m beyond a post, from where on the way is free
UNDECIDED = 0.025  # m beside a post, within which either side is as near
STRIDE = 0.03  # m that a straight line is followed at a time
GRASP_HEIGHT = CUBE_HALF + 0.002  # m, pinch height for closing
# Largest step per tick [deg] by phase; the servos follow at up to 9 deg per tick.
SPEEDS = {"approach": 5.0, "align": 3.5, "descend": 2.6, "close": 2.6, "lift": 3.6, "carry": 4.0, "lower": 2.6,
          "release": 2.6, "retreat": 3.6, "home": 5.0}  # fmt: skip
# How much of its strength a disturbance has in each phase: little where millimetres count.
SHAKE = {"approach": 1.0, "align": 0.8, "descend": 0.7, "close": 0.3, "lift": 0.7, "carry": 0.7, "lower": 0.4,
         "release": 0.2, "retreat": 0.7, "home": 0.0}  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """What the expert does in one tick."""

    action: np.ndarray  # (6,) LeRobot units: the clean label
    phase: str


class Expert:
    """Scripted demonstrator for every task of the workbench."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kinematics = Kinematics(world.model)
        self._home = to_radians(arm.HOME)

    def decide(self) -> Decision:
        """Command for the present state of the world."""
        phase, joints, gripper = self._plan()
        return Decision(self._towards(joints, gripper, SPEEDS[phase]), phase)

    def go_home(self) -> Decision:
        """Command of the way home: let go, straight up while low, then to the ready pose."""
        phase, joints, gripper = self._retreat()
        return Decision(self._towards(joints, gripper, SPEEDS[phase]), phase)

    # -- phases ----------------------------------------------------------------------------------------------

    def _plan(self) -> tuple[str, np.ndarray, float]:
        """Phase, joint goal (5,) [rad] and gripper goal of the present state."""
        world, goal = self._world, self._world.goal
        if goal.around:
            return self._pass(goal.around)
        if goal.into and is_in(world, goal.pick, goal.into):
            return self._retreat()
        if world.is_gripped(goal.pick):
            return self._deliver()
        return self._grasp()

    def _grasp(self) -> tuple[str, np.ndarray, float]:
        """Down a funnel above the cube: the worse aligned, the higher the goal, without a jump anywhere."""
        cube, pinch = self._world.position(self._world.goal.pick), self._pinch()
        grasp = np.array([cube[0], cube[1], max(cube[2], CUBE_HALF) - CUBE_HALF + GRASP_HEIGHT])
        grasp_joints, _ = self._solve(grasp, self._jaw_direction(cube))
        offset, height = np.hypot(*(pinch - grasp)[:2]), pinch[2] - grasp[2]
        turn = abs(self._radians()[4] - grasp_joints[4])
        opening = self._world.joints()[GRIPPER]
        slack = 1.6 if opening < OPEN - 8.0 else 1.0  # jaws that are closing go on closing
        if height < 0.006 * slack and offset < 0.010 * slack and turn < np.radians(10.0) * slack:
            return "close", grasp_joints, CLOSED
        misaligned = max(
            (offset - 0.005) / 0.020, (turn - np.radians(4)) / np.radians(12), (OPEN - 10 - opening) / 15
        )
        rise = HOVER * float(np.clip(misaligned, 0.0, 1.0))
        if rise == 0.0:
            return "descend", grasp_joints, OPEN
        joints, _ = self._kinematics.solve(grasp + [0, 0, rise], grasp_joints, self._jaw_direction(cube))
        return ("approach" if height > HOVER / 2 else "align"), joints, OPEN

    def _deliver(self) -> tuple[str, np.ndarray, float]:
        world, goal = self._world, self._world.goal
        pinch = self._pinch()
        if goal.into is None:
            joints, _ = self._solve(np.array([*pinch[:2], GRASP_HEIGHT + LIFT]))
            return "lift", joints, CLOSED
        bowl = world.position(goal.into)
        # The cube is off the pinch point by however it was gripped: bring the cube, not the fingers, over the bowl.
        over = bowl[:2] + (world.pinch_point() - world.position(goal.pick))[:2]
        away = np.hypot(*(pinch[:2] - over))
        if away < 0.012:
            if pinch[2] < DROP + 0.012:
                return "release", self._radians()[:5], OPEN
            joints, _ = self._solve(np.array([*over, DROP]))
            return "lower", joints, CLOSED
        if pinch[2] < CARRY - 0.02 - 0.25 * max(0.0, 0.06 - away):
            joints, _ = self._solve(np.array([*pinch[:2], CARRY]))
            return "lift", joints, CLOSED
        joints, _ = self._solve(np.array([*over, CARRY]))
        return "carry", joints, CLOSED

    def _retreat(self) -> tuple[str, np.ndarray, float]:
        pinch = self._pinch()
        if pinch[2] < CARRY - 0.02:
            joints, _ = self._solve(np.array([*pinch[:2], CARRY + 0.02]))
            return "retreat", joints, OPEN
        return "home", self._home[:5], float(arm.HOME[GRIPPER])

    def _pass(self, post: str) -> tuple[str, np.ndarray, float]:
        """Round the post by the side that the arm is on, or where it is on neither by that of the goal; then down."""
        goal, pinch = self._world.goal, self._pinch()
        obstacle, pad = self._world.position(post), self._world.position(goal.pick)
        beside, ahead = pinch[1] - obstacle[1], pinch[0] - obstacle[0]
        side = 1.0 if goal.side == "left" else -1.0
        if abs(beside) > UNDECIDED:
            side = np.sign(beside)
        if ahead > PAST:
            phase, target = "descend", np.array([*pad[:2], GRASP_HEIGHT])
        elif abs(beside) < ROUND - 0.02:
            phase, target = "approach", np.array([obstacle[0] - 0.05, obstacle[1] + side * ROUND, ROUND])
        else:
            phase, target = "carry", np.array([pad[0], obstacle[1] + side * ROUND, ROUND])
        away = target - pinch
        step = pinch + away * min(1.0, STRIDE / max(float(np.linalg.norm(away)), 1e-9))
        return phase, self._solve(step)[0], CLOSED

    # -- motion ----------------------------------------------------------------------------------------------

    def _radians(self) -> np.ndarray:
        return to_radians(self._world.upcoming_joints())

    def _pinch(self) -> np.ndarray:
        return self._kinematics.pinch(self._radians())

    def _towards(self, joints: np.ndarray, gripper: float, speed: float) -> np.ndarray:
        """Present position plus a step towards the goal, all joints arriving together."""
        now = self._world.upcoming_joints()
        away = np.degrees(joints) - now[:GRIPPER]
        action = now.copy()
        action[:GRIPPER] += away * min(1.0, speed / max(np.abs(away).max(), 1e-9))
        action[GRIPPER] = gripper
        return action

    def _solve(self, target: np.ndarray, turn: float | None = None) -> tuple[np.ndarray, float]:
        return self._kinematics.solve(target, self._radians(), turn)

    def _jaw_direction(self, cube: np.ndarray) -> float:
        """Angle about z in which the jaws open: across two faces of the cube, nearest to the ready pose's."""
        rotation = self._world.rotation(self._world.goal.pick)
        # The face direction that is most horizontal gives the yaw, whatever face the cube lies on.
        axis = rotation[:, np.argmin(np.abs(rotation[2]))]
        yaw = np.arctan2(axis[1], axis[0])
        natural = (
            np.arctan2(cube[1], cube[0] - arm.PAN_AXIS_X) - np.pi / 2
        )  # pan turned to the cube, roll as at home
        quarter = np.pi / 2
        return float(yaw + quarter * np.round((natural - yaw) / quarter))


class Disturbance:
    """Shakes executed commands: a slow wander (Ornstein-Uhlenbeck) and now and then a kick of some ticks.

    Some kicks shut the jaws in mid-air, so that recordings show how to go on after a missed grasp.

    Args:
        rng: source of randomness.
        strength: standard deviation of the wander [deg].
    """

    _DECAY, _KICK_CHANCE, _KICK, _SHUT_SHARE = 0.9, 0.04, 2.5, 0.15
    _KICKED = ("approach", "align", "descend", "carry")

    def __init__(self, rng: np.random.Generator, strength: float) -> None:
        self._rng, self._full = rng, strength
        self._strength = strength * rng.uniform(0.2, 1.0)
        self._wander, self._kick, self._kick_ticks = np.zeros(6), np.zeros(6), 0

    def sample(self, phase: str) -> np.ndarray:
        """Disturbance (6,) in LeRobot units for a tick of the given phase."""
        spread = self._strength * np.sqrt(1.0 - self._DECAY**2)
        self._wander = self._DECAY * self._wander + self._rng.normal(0.0, 1.0, 6) * spread
        self._wander[GRIPPER] = 0.0
        if self._kick_ticks == 0 and phase in self._KICKED and self._rng.random() < self._KICK_CHANCE:
            self._kick, self._kick_ticks = self._new_kick(phase), int(self._rng.integers(4, 13))
        self._kick_ticks = max(0, self._kick_ticks - 1)
        return SHAKE[phase] * (self._wander + (self._kick if self._kick_ticks else 0.0))

    def _new_kick(self, phase: str) -> np.ndarray:
        scale = self._KICK * min(1.0, self._full)
        kick = self._rng.normal(0.0, scale * (0.4 if phase == "descend" else 1.0), 6)
        shut = phase != "carry" and self._rng.random() < self._SHUT_SHARE
        kick[GRIPPER] = -self._rng.uniform(10.0, OPEN) * min(1.0, self._full) if shut else 0.0
        return kick
