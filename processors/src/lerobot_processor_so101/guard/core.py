# SPDX-License-Identifier: Apache-2.0
"""The guard: a pure function that judges a command by the last one, and a class that keeps state and counts.

Design:
- A command is compared with the last command, so sensor noise does not loosen the limits. Measurements, where
  the robot has read them anyway, only narrow what passes: a goal stays near the arm (see `tracking`).
- A verdict passes, clamps or holds. To hold repeats the last command, which is always allowed. So every
  command gets an output, and no invalid command causes a jump.
- Acceleration limits apply only to speeding up. Stopping is always immediate.
- Kinematics are computed only where a command may reach the table or the workspace boundary.
- At the table and at the workspace boundary a command is not rejected entirely: motion along the boundary
  passes.
- Joints do not arrive together: one that reverses has to stop first, while the others move on. So the poses
  between a moving arm and a goal are predicted, and may not be far out of bounds either.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..arm import JOINTS
from .limits import GuardLimits
from .points import DISPLACEMENTS, reach
from .servo_path import Motion, servo_path, stops
from .tracking import Tracking

_MAX_TICK = 0.1  # s; after a pause, a command may move as far as in this time
_LIFT_JOINTS = np.array([0.0, 1, 1, 1, 0, 0])  # joints that raise and lower the hand
# Fractions of a step that are tried at a boundary, (6, 6): of the lift joints, and of the others.
_PAIRS = ((1, 1), (0.5, 1), (0.25, 1), (0, 1), (0.25, 0.25), (0, 0))
_FRACTIONS = np.array([_LIFT_JOINTS * lift + (1 - _LIFT_JOINTS) * other for lift, other in _PAIRS])
_ON_THE_WAY = 0.003  # m that a predicted pose may be out of bounds


class LastCommand(NamedTuple):
    """The last command that was sent to an arm."""

    joints: np.ndarray  # (6,) [deg; gripper in percent]
    velocity: np.ndarray  # (6,) [deg/s, percent/s]
    time: float  # [s]


class Verdict(NamedTuple):
    """Result of judging a command."""

    command: LastCommand  # to send
    reasons: tuple[str, ...]  # for a change; empty if the command passes
    holds: bool  # whether the last command is repeated


class Clearance:
    """Skips the kinematics while the arm is far from the table and from the workspace boundary.

    Any pose is as far from them as the stored one, less what the joints between the two can move the arm.
    """

    def __init__(self) -> None:
        self._pose, self._distance = np.zeros(len(JOINTS)), -np.inf

    def store(self, pose: np.ndarray, distance: float) -> None:
        """Store a pose (6,) and its distance from the nearest bound [m]."""
        self._pose, self._distance = pose, distance

    def is_enough(self, poses: np.ndarray) -> bool:
        """Whether poses (K, 6), and all between them, are in bounds for sure."""
        return bool(np.abs(poses - self._pose).max(0) @ DISPLACEMENTS < self._distance)


def judge(
    requested: np.ndarray | None,
    last: LastCommand,
    limits: GuardLimits,
    now: float,
    observed: float | None = None,
    near: np.ndarray | None = None,
    clearance: Clearance | None = None,
    motion: Motion | None = None,
) -> Verdict:
    """Judge a command.

    Args:
        requested: finite positions, (6,) [deg; gripper in percent]; None holds.
        last, limits: the last command, and the limits of the arm.
        now: current time, by the clock of `last` [s].
        observed: time of the observation that the command was computed from; None if there is none.
        near: lowest and highest positions near the measured arm, (2, 6); None without a measurement.
        clearance: of earlier commands; saves time, and changes no verdict.
        motion: measured motion of the arm; None without a measurement.
    """
    if requested is None:
        return _hold(last, now, "no six finite positions")
    if observed is not None and now - observed > limits.max_age:
        return _hold(last, now, "stale observation")
    elapsed = now - last.time
    if elapsed <= 0:
        return _hold(last, now, "clock")
    tick = min(elapsed, _MAX_TICK)
    velocity = last.velocity if elapsed <= limits.timeout else np.zeros(len(JOINTS))
    bounds = _bounds(last.joints, velocity, limits, tick, near)
    step, reasons = requested - last.joints, []
    for name, (low, high) in bounds.items():
        within = np.minimum(np.maximum(step, low), high)
        if within.tolist() != step.tolist():  # faster than a comparison of such small arrays
            reasons.append(name)
        step = within
    step, blocked = _within_bounds(last.joints, step, limits, clearance or Clearance(), motion)
    reasons += blocked
    sent = LastCommand(last.joints + step, step / tick, now)
    return Verdict(sent, tuple(reasons), bool(reasons) and not step.any())


def _bounds(
    joints: np.ndarray,
    velocity: np.ndarray,
    limits: GuardLimits,
    tick: float,
    near: np.ndarray | None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return by reason, in the order of their application, the smallest and largest step of each joint."""
    # 1. joint range; an arm that starts outside it may move towards it, and no further away
    low, high = limits.joint_range - joints
    bounds = {"joint range": (np.minimum(low, 0), np.maximum(high, 0))}
    # 2. distance from the measured arm
    if near is not None:
        low, high = near - joints
        bounds["tracking error"] = low, high
    # 3. velocity
    largest = limits.velocities * tick
    bounds["velocity"] = -largest, largest
    # 4. acceleration, in the direction of motion; in the opposite direction the arm starts from rest
    change = limits.accelerations * tick
    slowest, fastest = np.minimum(velocity, 0) - change, np.maximum(velocity, 0) + change
    bounds["acceleration"] = slowest * tick, fastest * tick
    return bounds


def _hold(last: LastCommand, now: float, reason: str) -> Verdict:
    sent = LastCommand(last.joints, np.zeros(len(JOINTS)), max(now, last.time))
    return Verdict(sent, (reason,), True)


def _positions(command: object) -> np.ndarray | None:
    """Return (6,) finite positions, or None if the command contains anything else."""
    try:
        found = np.asarray(command, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # tensors raise RuntimeError
        return None
    return found if found.shape == (len(JOINTS),) and np.isfinite(found).all() else None


def _within_bounds(
    joints: np.ndarray, step: np.ndarray, limits: GuardLimits, clearance: Clearance, motion: Motion | None
) -> tuple[np.ndarray, list[str]]:
    """Return the first of `_FRACTIONS` of a step that stays in bounds, and the bounds that it meets."""
    goal = (joints + step)[None]
    # First the goal alone, which near a bound decides already.
    if clearance.is_enough(goal) and (
        motion is None or clearance.is_enough(np.concatenate([goal, stops(motion, limits)]))
    ):
        return step, []
    tried = _FRACTIONS * step  # (K, 6); the first is the entire step, the last none
    poses = goals = joints + tried
    if motion is not None:  # and those on the way, (T, K, 6)
        poses = np.concatenate([goals, servo_path(motion, goals, limits).reshape(-1, len(JOINTS))])
    found = excess(poses, limits).reshape(-1, *goals.shape[:1], 2)  # (1 + T, K, 2)
    beyond = found[0]
    # An arm that starts outside may come in, and go no further out.
    outside = beyond > np.maximum(beyond[-1], 0)
    if motion is not None:
        on_the_way = found[1:].max(0)
        outside |= on_the_way > np.maximum(on_the_way[-1], _ON_THE_WAY)
    chosen = int(outside.any(1).argmin())
    clearance.store(goals[chosen], -float(beyond[chosen].max()))
    return tried[chosen], [name for name, out in zip(("table", "workspace"), outside[0], strict=True) if out]


def excess(joints: np.ndarray, limits: GuardLimits) -> np.ndarray:
    """Return how far poses (K, 6) are below the table and outside the workspace, (K, 2) [m]; < 0 inside."""
    tool, lowest = reach(joints + limits.model_offsets)
    lower, upper = limits.workspace_corners
    found = np.empty((len(joints), 2))
    found[:, 0] = limits.table - lowest
    found[:, 1] = np.maximum(lower - tool, tool - upper).max(1)
    return found


class Guard:
    """Judge a sequence of commands, and count the verdicts.

    The clock returns the time [s]. It is not shared with other code, which could stop it.
    """

    def __init__(self, limits: GuardLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self._last: LastCommand | None = None
        self._observed: float | None = None
        self._in_time: bool | None = None  # whether the first command after the observation was; None: none
        self._tracking, self._clearance = Tracking(limits), Clearance()
        self.counts: Counter[str] = Counter()

    def initialise(self, joints: Sequence[float] | np.ndarray) -> None:
        """Initialise the last command at the measured joint positions, (6,).

        Raises:
            ValueError: if they are not six finite numbers.
        """
        found = _positions(joints)
        if found is None:
            raise ValueError(f"guard: found positions {joints!r}, expected six finite numbers.")
        self._last = LastCommand(found, np.zeros(len(JOINTS)), self._clock())

    def observe(self, joints: Sequence[float] | np.ndarray | None = None) -> None:
        """Record an observation, which the next command is computed from.

        Args:
            joints: measured positions, (6,), if they are part of it. Once they are, goals stay near them, and
                commands need observations: see `max_age` and `max_blind` of `GuardLimits`.
        """
        self._observed, self._in_time = self._clock(), None
        if joints is not None and (found := _positions(joints)) is not None:
            self._tracking.observe(found, self._observed)

    def check(self, command: object) -> np.ndarray:
        """Return the command to send instead of a command, (6,).

        Raises:
            RuntimeError: if the guard is not initialised.
        """
        if self._last is None:
            raise RuntimeError(
                "guard: the current pose is unknown; call initialise() with measured positions."
            )
        now, near, requested = self._clock(), None, _positions(command)
        if self._tracking.is_measured:
            near = self._tracking.bounds(now)
            if requested is not None:
                self._tracking.record(requested)
        verdict = judge(
            *(requested, self._last, self.limits, now, self._freshness(now), near, self._clearance),
            self._tracking.motion,
        )
        self._last = verdict.command
        self.counts["hold" if verdict.holds else "clamp" if verdict.reasons else "pass"] += 1
        self.counts.update(verdict.reasons)
        return verdict.command.joints.copy()

    def _freshness(self, now: float) -> float | None:
        """Return the time from which the age of a command's observation counts; None if it has none."""
        observed = self._observed
        if not self._tracking.is_measured:  # then an observation counts for one command
            self._observed = None
            return observed
        assert observed is not None
        if self._in_time is None:
            self._in_time = now - observed <= self.limits.max_age
            return observed
        # Later commands: all hold if the first one was late. Else they may go on for a while, as homing does.
        return observed + (self.limits.max_blind - self.limits.max_age) * self._in_time

    def report(self) -> str:
        """Return one line on the commands since the last report, and reset the counts."""
        counts, self.counts = self.counts, Counter()
        verdicts = ("pass", "clamp", "hold")
        reasons = ", ".join(f"{name} {n}" for name, n in counts.most_common() if name not in verdicts)
        passed, clamped, held = (counts[verdict] for verdict in verdicts)
        total = passed + clamped + held
        line = f"guard: {total} commands, {passed} passed, {clamped} clamped, {held} held"
        return f"{line} ({reasons})" if reasons else line
