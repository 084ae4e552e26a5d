# SPDX-License-Identifier: Apache-2.0
"""The joints that emulated servos turn: of the simulated arm on its table, or of a leader that somebody moves.

A *hand* can hold joints whose servos are limp: an endless iterator of poses (6,) [rad], one per physics step. It holds the
arm until all servos have torque, or until it is taken away.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from . import arm
from .bus_faults import Faults
from .scene import SUBSTEPS
from .sts_servo import ShaftState
from .world import World

STEP = 1.0 / (arm.FPS * SUBSTEPS)  # s, one physics step
logger = logging.getLogger(__name__)

_N = len(arm.JOINTS)
_HAND_SPEED = np.radians(180.0)  # rad/s
_HAND_PAUSE = 0.2  # s at each end of a joint's range
_JAM_DAMPING = 1e5  # N.m.s/rad: at the stall torque, a third of a step per second

MIDDLE = (arm.LOWER + arm.UPPER) / 2

Hand = Iterator[np.ndarray]


class Joints:
    """Six joints and the servos' grip on them.

    Attributes:
        radians, velocity: present state (6,) [rad], [rad/s].
        load: torque of each servo as a share of the stall torque (6,).
        goal, torque: what the servos want: positions (6,) [rad], shares of the stall torque (6,), 0 for limp.
        hand: what holds the limp joints, if anything.
        faults: joints may be jammed.
    """

    def __init__(self, radians: np.ndarray, faults: Faults) -> None:
        self.radians, self.goal = radians.copy(), radians.copy()
        self.velocity, self.load, self.torque = np.zeros(_N), np.zeros(_N), np.zeros(_N)
        self.hand: Hand | None = None
        self.faults = faults
        self.shafts = [JointShaft(self, index) for index in range(_N)]

    def step(self) -> None:
        """Let a physics step's time pass."""
        raise NotImplementedError

    def _jammed(self) -> np.ndarray:
        """Which joints are stuck (6,)."""
        return np.array([joint in self.faults.jammed for joint in arm.JOINTS])


class JointShaft:
    """One joint as a servo sees it: in steps, position 0 where the joint's angle is 0."""

    def __init__(self, joints: Joints, index: int) -> None:
        self._joints, self._index = joints, index

    def read(self) -> ShaftState:
        joints, i = self._joints, self._index
        return ShaftState(
            float(joints.radians[i]) / arm.ENCODER_STEP,
            float(joints.velocity[i]) / arm.ENCODER_STEP,
            float(joints.load[i]),
        )

    def drive(self, goal: float, torque: float) -> None:
        self._joints.goal[self._index] = goal * arm.ENCODER_STEP
        self._joints.torque[self._index] = torque


class WorldJoints(Joints):
    """The joints of the simulated arm."""

    def __init__(self, world: World, faults: Faults) -> None:
        super().__init__(world.data.qpos[:_N], faults)
        self._world = world
        self._damping = world.model.dof_damping[:_N].copy()

    def step(self) -> None:
        """Advance the world by one physics step; while a hand holds the arm, the table stands still."""
        world, hand, limp, jammed = self._world, self.hand, self.torque == 0, self._jammed()
        if hand is not None and limp.any():
            pose = np.where(limp & ~jammed, next(hand), self.radians)
            self.velocity[:] = (pose - self.radians) / STEP
            world.hold(pose)
        else:
            self.hand = None
            world.model.dof_damping[:_N] = np.where(jammed, _JAM_DAMPING, self._damping)
            world.drive(np.where(limp, self.radians, self.goal), self.torque)
            self.velocity[:] = world.data.qvel[:_N]
        self.radians[:] = world.data.qpos[:_N]
        self.load[:] = np.where(limp, 0.0, world.data.actuator_force[:_N] / arm.STALL_TORQUE)


class LeaderJoints(Joints):
    """The joints of a leader arm without physics: limp ones are where the hand has them."""

    def step(self) -> None:
        """Let a physics step's time pass."""
        hand, limp, jammed = self.hand, self.torque == 0, self._jammed()
        led = self.radians if hand is None else next(hand)
        reach = arm.NO_LOAD_SPEED * STEP
        driven = self.radians + np.clip(self.goal - self.radians, -reach, reach)
        pose = np.where(jammed, self.radians, np.where(limp, led, driven))
        self.velocity[:] = (pose - self.radians) / STEP
        pushing = np.where(jammed & ~limp, np.sign(self.goal - self.radians), 0.0)
        self.load[:] = pushing * self.torque
        self.radians[:] = pose


# -- hands -----------------------------------------------------------------------------------------------------


def stay(pose: np.ndarray) -> Hand:
    """Hold the arm at `pose` (6,) [rad]."""
    while True:
        yield pose


def carry(begin: np.ndarray, end: np.ndarray) -> Hand:
    """Carry the arm from one pose (6,) [rad] to another, say so, and hold it there."""
    yield from way(begin, end)
    logger.info("so101-virtual-arm: the limp joints are there, and held.")
    yield from stay(end)


def join(begin: np.ndarray, hand: Hand) -> Hand:
    """Carry the arm from `begin` (6,) [rad] to where `hand` is, and go on with it."""
    yield from way(begin, next(hand))
    # Not `yield from`: that would end `hand` when another takes over, and it may be wanted again.
    while True:
        yield next(hand)


def through_ranges(begin: np.ndarray) -> Hand:
    """From `begin` (6,) [rad] to the middle of all ranges; every joint to its lower and upper end; hold the middle."""
    yield from way(begin, MIDDLE)
    for joint in range(_N):
        low, high = MIDDLE.copy(), MIDDLE.copy()
        low[joint], high[joint] = arm.LOWER[joint], arm.UPPER[joint]
        for start, end in ((MIDDLE, low), (low, high), (high, MIDDLE)):
            yield from way(start, end)
            for _ in range(round(_HAND_PAUSE / STEP)):
                yield end
    logger.info("so101-virtual-arm: the limp joints have been through their ranges.")
    yield from stay(MIDDLE)


def way(begin: np.ndarray, end: np.ndarray) -> Hand:
    """Poses from `begin` to `end` (6,) [rad], all joints arriving together."""
    n_steps = int(np.ceil(np.abs(end - begin).max() / (_HAND_SPEED * STEP)))
    for i in range(1, n_steps + 1):
        yield begin + (end - begin) * (i / n_steps)
