# SPDX-License-Identifier: Apache-2.0
"""Keep goals near the measured arm, and ease off joints that are stuck.

A goal far ahead of a jammed joint is a loaded spring: the joint jumps when it comes free. So a goal may lead
the measured position by a limited distance only. If a joint does not move although its goal is that far
ahead, the goal returns to the joint. About once a second it probes, by no more than the joint may move in
0.1 s, whether the joint is free again. A joint that sags when it is eased off gets the lead back that held
it.
"""

import math

import numpy as np

from ..arm import GRIPPER, JOINTS
from .limits import GuardLimits
from .servo_path import Motion

_BEHIND = 0.05  # s that a moving joint may be behind its goal
_RESPONSE = 0.1  # s in which a joint responds
_STUCK = 0.3  # s without progress after which a joint is stuck
_PROGRESS = 0.2  # deg, two encoder steps: less is no motion
_SAG = 1.0  # deg against the direction of the push; less is gear play
_PLAY = 0.25  # deg, half the gear play: a goal this far behind the joint unloads the gears
_REST, _PROBE = 1.2, 0.3  # s without a push, and s of each probe
_LARGEST_PROBE = 3.0  # deg
_REGROW = 0.5  # s in which the lead grows back to its limit once a joint moves again


class Tracking:
    """Bounds of goals around measured positions, per joint, by velocity limit and tracking error."""

    def __init__(self, limits: GuardLimits) -> None:
        self._velocity = limits.velocities
        self._joints = [
            _JointTracking(
                float(velocity), limits.tracking_error, may_ease=joint < GRIPPER
            )  # it keeps its grip
            for joint, velocity in enumerate(self._velocity)
        ]
        self._measured: np.ndarray | None = None
        self._speed: np.ndarray = np.zeros(len(JOINTS))  # measured [deg/s, percent/s]
        self._time = 0.0  # of the measurement [s]

    @property
    def is_measured(self) -> bool:
        """Whether there is a measurement."""
        return self._measured is not None

    @property
    def motion(self) -> Motion | None:
        """The arm's motion at the last measurement; None if there is none."""
        return None if self._measured is None else Motion(self._measured, self._speed)

    def observe(self, joints: np.ndarray, now: float) -> None:
        """Take measured positions (6,), and find out which joints are stuck or free again."""
        self._speed = self._speed_to(joints, now)
        self._measured, self._time = joints, now
        for joint, position in zip(self._joints, joints.tolist(), strict=True):
            joint.observe(position, now)

    def bounds(self, now: float) -> np.ndarray:
        """Return the lowest and the highest goal of each joint, (2, 6)."""
        return np.array([joint.bounds(now) for joint in self._joints]).T

    def record(self, requested: np.ndarray) -> None:
        """Record a command (6,): the joints that it pushes beyond the last `bounds`."""
        for joint, goal in zip(self._joints, requested.tolist(), strict=True):
            joint.record(goal)

    def _speed_to(self, joints: np.ndarray, now: float) -> np.ndarray:
        """Return the speed since the last measurement, (6,); 0 if that is too long ago."""
        if self._measured is None or not 0 < now - self._time <= _RESPONSE:
            return np.zeros(len(JOINTS))
        return np.clip((joints - self._measured) / (now - self._time), -self._velocity, self._velocity)


class _JointTracking:
    """Bounds of the goals of one joint, in scalars: for six joints they are faster than arrays."""

    def __init__(self, velocity: float, margin: float, may_ease: bool) -> None:
        self._velocity, self._margin, self._may_ease = velocity, margin, may_ease
        self._probe = min(max(velocity * _RESPONSE, 0.5), _LARGEST_PROBE)
        self._measured, self._time = 0.0, 0.0
        self._push = 0  # direction in which commands lie beyond the bounds: -1, 0, 1
        self._anchor = 0.0  # position of the last progress
        self._progressed = 0.0  # time of the last progress [s]
        self._eased: float | None = None  # time since which the joint is eased off [s]
        self._freed: float | None = None  # time at which it then began to move [s]
        self._floor = 0.0  # lead that keeps an eased joint from sagging
        self._sagged = -math.inf  # time of the last change of the floor [s]
        self._side = 0  # direction in which the lead is reduced
        self._growing = -math.inf  # time since which the lead grows back [s]
        self._bounds = 0.0, 0.0  # the last ones

    def observe(self, position: float, now: float) -> None:
        """Take a measured position, and find out whether the joint is stuck or free again."""
        self._measured, self._time = position, now
        if self._eased is None:
            if not self._push or (position - self._anchor) * self._push > _PROGRESS:
                self._anchor, self._progressed = position, now
            elif self._may_ease and now - self._progressed > _STUCK:
                self._eased, self._side, self._floor = now, self._push, 0.0
                self._anchor = position
            return
        # A sagging joint gets its lead back; one that moves waits 0.1 s and is free again.
        forward = (position - self._anchor) * self._side
        if forward < -_SAG and now - self._sagged > _STUCK:
            self._floor, self._sagged = min(self._floor - 2 * forward, self._full(now)), now
        if forward > _PROGRESS and self._freed is None:
            self._freed = now
        if not self._push or (self._freed is not None and now - self._freed >= _RESPONSE):
            self._growing, self._eased, self._freed = now, None, None
            self._anchor, self._progressed = position, now

    def bounds(self, now: float) -> tuple[float, float]:
        """Return the lowest and the highest goal."""
        full = self._full(now)
        low, high = self._measured - full, self._measured + full
        # On the side of the push: around the anchor while eased off, then growing around the measurement.
        bound = None
        if self._eased is not None:
            is_probe = (now - self._eased) % (_REST + _PROBE) >= _REST
            bound = self._anchor + self._side * (self._floor + (self._probe if is_probe else -_PLAY))
        elif now - self._growing < _REGROW:
            lead = max(self._floor + self._probe, full * ((now - self._growing) / _REGROW))
            bound = self._measured + self._side * lead
        if bound is not None and self._side > 0:
            high = min(high, bound)
        elif bound is not None:
            low = max(low, bound)
        self._bounds = min(low, high), high
        return self._bounds

    def record(self, goal: float) -> None:
        """Record a command: whether it pushes the joint beyond its last bounds."""
        low, high = self._bounds
        self._push = (goal > high) - (goal < low)
        if self._eased is not None:
            is_onward = self._side * (goal - self._anchor) > self._floor + _PROGRESS
            self._push = self._side if is_onward else 0

    def _full(self, now: float) -> float:
        """Largest lead; it grows with the age of the measurement."""
        return self._margin + self._velocity * (_BEHIND + now - self._time)
