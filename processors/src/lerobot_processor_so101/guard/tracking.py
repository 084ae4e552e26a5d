# SPDX-License-Identifier: Apache-2.0
"""Keep goals near the measured arm, and ease off joints that are stuck.

A goal far ahead of a jammed joint is a loaded spring: the joint jumps when it comes free. So a goal may lead
the measured position by a limited distance only. If a joint does not move although its goal is that far
ahead, the goal returns to the joint. About once a second it probes, by no more than the joint may move in
0.1 s, whether the joint is free again. A joint that sags when it is eased off gets the lead back that held
it.
"""

import numpy as np

from ..arm import GRIPPER, JOINTS
from .limits import GuardLimits
from .servo_path import Motion

_RESPONSE = 0.1  # s that a moving joint may be behind its goal
_STUCK = 0.3  # s without progress after which a joint is stuck
_PROGRESS = 0.2  # deg, two encoder steps: less is no motion
_SAG = 1.0  # deg against the direction of the push; less is gear play
_PLAY = 0.25  # deg, half the gear play: a goal this far behind the joint unloads the gears
_REST, _PROBE = 1.2, 0.3  # s without a push, and s of each probe
_LARGEST_PROBE = 3.0  # deg
_REGROW = 0.5  # s in which the lead grows back to its limit once a joint moves again
_BODY = np.arange(len(JOINTS)) < GRIPPER  # the gripper must keep its grip


class Tracking:
    """Bounds of goals around measured positions, per joint, by velocity limit and tracking error."""

    def __init__(self, limits: GuardLimits) -> None:
        self._velocity, self._margin = limits.velocities, limits.tracking_error
        self._probe = np.clip(self._velocity * _RESPONSE, 0.5, _LARGEST_PROBE)
        n = len(JOINTS)
        self._measured: np.ndarray | None = None
        self._speed: np.ndarray = np.zeros(n)  # measured [deg/s, percent/s]
        self._time = 0.0  # of the measurement [s]
        self._is_active = False  # whether a joint is pushed, eased off or has just been
        self._push: np.ndarray = np.zeros(n)  # direction in which commands lie beyond the bounds: -1, 0, 1
        self._anchor: np.ndarray = np.zeros(n)  # position of the last progress
        self._progressed: np.ndarray = np.zeros(n)  # time of the last progress [s]
        # times [s] since which a joint is eased off, and at which it then began to move; NaN if it did not
        self._eased: np.ndarray = np.full(n, np.nan)
        self._freed: np.ndarray = np.full(n, np.nan)
        self._floor: np.ndarray = np.zeros(n)  # lead that keeps an eased joint from sagging
        self._sagged: np.ndarray = np.full(n, -np.inf)  # time of the last change of the floor [s]
        self._side: np.ndarray = np.zeros(n)  # direction in which the lead is reduced
        self._growing: np.ndarray = np.full(n, -np.inf)  # time since which the lead grows back [s]

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
        if not self._is_active:
            self._anchor, self._progressed = joints, np.full(len(JOINTS), now)
            return
        pushed, is_eased = self._push != 0, ~np.isnan(self._eased)
        forward = (joints - self._anchor) * np.where(is_eased, self._side, self._push)
        moved = forward > _PROGRESS
        # 1. joints that are not eased off: progress, or none for too long
        progress = ~is_eased & (moved | ~pushed)
        self._anchor = np.where(progress, joints, self._anchor)
        self._progressed = np.where(progress, now, self._progressed)
        stuck = _BODY & ~is_eased & ~progress & (now - self._progressed > _STUCK)
        # 2. eased joints: a sagging one gets its lead back, a moving one waits 0.1 s and is free again
        sags = is_eased & (forward < -_SAG) & (now - self._sagged > _STUCK)
        self._floor = np.where(sags, np.minimum(self._floor - 2 * forward, self._full(now)), self._floor)
        self._sagged = np.where(sags, now, self._sagged)
        self._freed = np.where(is_eased & moved & np.isnan(self._freed), now, self._freed)
        free = is_eased & (~pushed | (now - self._freed >= _RESPONSE))
        self._growing = np.where(free, now, self._growing)
        # 3. changes of state
        changed = stuck | free
        self._eased = np.where(stuck, now, np.where(free, np.nan, self._eased))
        self._side = np.where(stuck, self._push, self._side)
        self._floor = np.where(stuck, 0.0, self._floor)
        self._freed = np.where(changed, np.nan, self._freed)
        self._anchor = np.where(changed, joints, self._anchor)
        self._progressed = np.where(changed, now, self._progressed)
        grows = now - self._growing.max() < _REGROW
        self._is_active = bool(grows or self._push.any() or not np.isnan(self._eased).all())

    def bounds(self, now: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest goal of each joint, (6,) and (6,)."""
        assert self._measured is not None
        full = self._full(now)
        low, high = self._measured - full, self._measured + full
        if not self._is_active:
            return low, high
        # on the side of the push: around the anchor while eased off, then growing around the measurement
        is_eased = ~np.isnan(self._eased)
        probes = (now - self._eased) % (_REST + _PROBE) >= _REST
        lead = self._floor + np.where(probes | ~is_eased, self._probe, -_PLAY)
        grown = full * np.clip((now - self._growing) / _REGROW, 0.0, 1.0)
        lead = np.where(is_eased, lead, np.maximum(lead, grown))
        centre = np.where(is_eased, self._anchor, self._measured)
        bound = centre + self._side * lead
        high = np.where(self._side > 0, np.minimum(high, bound), high)
        low = np.where(self._side < 0, np.maximum(low, bound), low)
        return np.minimum(low, high), high

    def record(self, requested: np.ndarray, near: tuple[np.ndarray, np.ndarray]) -> None:
        """Record a command (6,): the joints that it pushes beyond the bounds."""
        push = np.sign(requested - np.minimum(np.maximum(requested, near[0]), near[1]))
        if not self._is_active and not push.any():
            return
        self._is_active = True
        onward = self._side * (requested - self._anchor) > self._floor + _PROGRESS
        self._push = np.where(np.isnan(self._eased), push, np.where(onward, self._side, 0.0))

    def _speed_to(self, joints: np.ndarray, now: float) -> np.ndarray:
        """Return the speed since the last measurement, (6,); 0 if that is too long ago."""
        if self._measured is None or not 0 < now - self._time <= _RESPONSE:
            return np.zeros(len(JOINTS))
        return np.clip((joints - self._measured) / (now - self._time), -self._velocity, self._velocity)

    def _full(self, now: float) -> np.ndarray:
        """Largest lead of each joint, (6,); it grows with the age of the measurement."""
        return self._margin + self._velocity * (_RESPONSE + now - self._time)
