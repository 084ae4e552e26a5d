# SPDX-License-Identifier: Apache-2.0
"""The joints that emulated servos turn: of the simulated arm on its table, or of a leader arm.

A *hand* can hold joints without torque, as a person does: an endless iterator of poses (6,) [rad], one per
physics step. It holds the follower until all servos have torque, or until it is removed.
"""

import itertools
import logging
from collections.abc import Iterator

import numpy as np

from lerobot_processor_so101 import arm

from ..sim.scene import SUBSTEPS
from ..sim.servos import ENCODER_STEP, NO_LOAD_SPEED, STALL_TORQUE
from ..sim.world import World
from .faults import Faults
from .sts_servo import ShaftState

STEP = 1.0 / (arm.FPS * SUBSTEPS)  # s, one physics step
MIDDLE = (arm.LOWER + arm.UPPER) / 2

_N = len(arm.JOINTS)
_HAND_SPEED = np.radians(180.0)  # rad/s
_HAND_PAUSE = 0.2  # s at each end of a joint's range
_JAM_INERTIA = 1e4  # kg.m²: the stall torque does not move it

Hand = Iterator[np.ndarray]

logger = logging.getLogger(__name__)


class Joints:
    """Six joints and what the servos demand of them.

    Attributes:
        radians, velocity: present state (6,) [rad], [rad/s].
        load: torque of each servo as a share of the stall torque (6,).
        goal, torque: of the servos: positions (6,) [rad], torque limits (6,) as shares of the stall torque.
        hand: what holds the joints without torque, if anything.
        faults: of the arm; joints may be jammed.
    """

    def __init__(self, radians: np.ndarray, faults: Faults) -> None:
        self.radians, self.goal = radians.copy(), radians.copy()
        self.velocity, self.load, self.torque = np.zeros(_N), np.zeros(_N), np.zeros(_N)
        self.hand: Hand | None = None
        self.faults = faults
        self.shafts = [JointShaft(self, index) for index in range(_N)]

    def step(self) -> None:
        """Advance by one physics step."""
        raise NotImplementedError

    def _jammed(self) -> np.ndarray:
        """Return which joints are jammed (6,)."""
        return np.array([joint in self.faults.jammed for joint in arm.JOINTS])


class JointShaft:
    """One joint as the shaft of a servo, in encoder steps; position 0 is the joint's angle 0."""

    def __init__(self, joints: Joints, index: int) -> None:
        self._joints, self._index = joints, index

    def read(self) -> ShaftState:
        joints, i = self._joints, self._index
        position, velocity = joints.radians[i] / ENCODER_STEP, joints.velocity[i] / ENCODER_STEP
        return ShaftState(float(position), float(velocity), float(joints.load[i]))

    def drive(self, goal: float, torque: float) -> None:
        self._joints.goal[self._index] = goal * ENCODER_STEP
        self._joints.torque[self._index] = torque


class WorldJoints(Joints):
    """The joints of the simulated arm."""

    def __init__(self, world: World, faults: Faults) -> None:
        super().__init__(world.data.qpos[:_N], faults)
        self._world = world
        self._inertia = world.model.dof_armature[:_N].copy()

    def step(self) -> None:
        """Advance the world by one physics step; while a hand holds the arm, the physics is paused."""
        world, hand, limp, jammed = self._world, self.hand, self.torque == 0, self._jammed()
        if hand is not None and limp.any():
            pose = np.where(limp & ~jammed, next(hand), self.radians)
            self.velocity[:] = (pose - self.radians) / STEP
            world.hold(pose)
        else:
            self.hand = None
            # Inertia and not damping: MuJoCo computes contact forces without damping, and a hand that grips
            # something would be thrown about.
            world.model.dof_armature[:_N] = np.where(jammed, _JAM_INERTIA, self._inertia)
            world.data.qvel[:_N][jammed] = 0.0
            world.drive(np.where(limp, self.radians, self.goal), self.torque)
            self.velocity[:] = world.data.qvel[:_N]
        self.radians[:] = world.data.qpos[:_N]
        self.load[:] = np.where(limp, 0.0, world.data.actuator_force[:_N] / STALL_TORQUE)


class LeaderJoints(Joints):
    """The joints of a leader arm without physics: those without torque follow the hand."""

    def step(self) -> None:
        """Advance by one physics step."""
        hand, limp, jammed = self.hand, self.torque == 0, self._jammed()
        led = self.radians if hand is None else next(hand)
        largest = NO_LOAD_SPEED * STEP
        driven = self.radians + np.clip(self.goal - self.radians, -largest, largest)
        pose = np.where(jammed, self.radians, np.where(limp, led, driven))
        self.velocity[:] = (pose - self.radians) / STEP
        direction = np.where(jammed & ~limp, np.sign(self.goal - self.radians), 0.0)
        self.load[:] = direction * self.torque
        self.radians[:] = pose


# -- hands -----------------------------------------------------------------------------------------


def hold(pose: np.ndarray) -> Hand:
    """Hold the arm at `pose` (6,) [rad]."""
    return itertools.repeat(pose)


def to_middle(begin: np.ndarray) -> Hand:
    """Move the arm from `begin` (6,) [rad] to the middle of its ranges, log the arrival, and hold it."""
    yield from _move(begin, MIDDLE)
    logger.info("so101-virtual-arm: joints without torque are held at the goal.")
    yield from hold(MIDDLE)


def move_and_follow(begin: np.ndarray, hand: Hand) -> Hand:
    """Move the arm from `begin` (6,) [rad] to the present pose of `hand`, and follow `hand`."""
    yield from _move(begin, next(hand))
    # Not `yield from`: closing this iterator would close `hand`, which may be followed again.
    while True:
        yield next(hand)


def sweep(begin: np.ndarray) -> Hand:
    """Move from `begin` (6,) [rad] to the middle, then each joint to both ends of its range, and hold."""
    yield from _move(begin, MIDDLE)
    for joint in range(_N):
        low, high = MIDDLE.copy(), MIDDLE.copy()
        low[joint], high[joint] = arm.LOWER[joint], arm.UPPER[joint]
        for start, end in ((MIDDLE, low), (low, high), (high, MIDDLE)):
            yield from _move(start, end)
            for _ in range(round(_HAND_PAUSE / STEP)):
                yield end
    logger.info("so101-virtual-arm: joints without torque have moved through their ranges.")
    yield from hold(MIDDLE)


def _move(begin: np.ndarray, end: np.ndarray) -> Hand:
    """Interpolate between two poses (6,) [rad]; all joints arrive together."""
    n_steps = int(np.ceil(np.abs(end - begin).max() / (_HAND_SPEED * STEP)))
    for i in range(1, n_steps + 1):
        yield begin + (end - begin) * (i / n_steps)
