# SPDX-License-Identifier: Apache-2.0
"""The guard: one function that judges a command by the last one, and a keeper that remembers and counts.

What is unusual about it:
- It compares a command with what the arm was last told, not with a measurement, so that it costs no reading and noise
  cannot open it.
- It has three answers: pass, clamp, hold. To hold is to say again what was last said, which is always allowed. So there is
  always an answer, and no fault in a command can be answered by a jump.
- Limits of speed are limits of speeding up: whatever stops the arm may stop it at once.
- At the table and at the wall of the workspace a command is not refused whole: what leads along them passes.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .geometry import GRIPPER, JOINTS, reach
from .limits import GuardLimits

_LONGEST_TICK = 0.1  # s: after a pause a command may move as far as in this time
_STEPPING = np.array([0.0, 1, 1, 1, 0, 0])  # joints that raise and lower the hand
# Shares of a step tried at the table or a wall: of the raising joints, and of the others.
_SHARES = np.array(
    [
        _STEPPING * a + (1 - _STEPPING) * b
        for a, b in ((1, 1), (0.5, 1), (0.25, 1), (0, 1), (0.25, 0.25), (0, 0))
    ]
)

logger = logging.getLogger(__name__)


class Told(NamedTuple):
    """What an arm was last told.

    Attributes:
        joints: (6,), degrees and percent.
        velocity: (6,), at which the command got there [deg/s, percent/s].
        time: of the command [s].
    """

    joints: np.ndarray
    velocity: np.ndarray
    time: float


class Verdict(NamedTuple):
    """An answer of the guard.

    Attributes:
        told: what the arm is told now.
        reasons: why it is not what was asked for; empty if it is.
        holds: whether it is what the arm was told before.
    """

    told: Told
    reasons: tuple[str, ...]
    holds: bool


def judge(
    command: object, last: Told, limits: GuardLimits, now: float, observed: float | None = None
) -> Verdict:
    """Answer a command.

    Args:
        command: six positions, degrees and percent; anything else holds.
        last: what the arm was last told.
        limits: of the arm.
        now: by the clock that `last` is told by [s].
        observed: when what the command answers was seen, by the same clock; None if it answers nothing.
    """
    asked = _positions(command)
    if asked is None:
        return _hold(last, now, "no six finite positions")
    if observed is not None and now - observed > limits.max_age:
        return _hold(last, now, "stale observation")
    passed = now - last.time
    if passed <= 0:
        return _hold(last, now, "clock")
    tick = min(passed, _LONGEST_TICK)
    before = last.velocity if passed <= limits.timeout else np.zeros(len(JOINTS))
    reasons = []

    # An arm that is found outside its range may move towards it, and no further away.
    goal = np.clip(asked, np.minimum(limits.lower, last.joints), np.maximum(limits.upper, last.joints))
    if (goal != asked).any():
        reasons.append("joint range")
    step = goal - last.joints
    allowed = np.clip(step, -limits.velocities * tick, limits.velocities * tick)
    if (allowed != step).any():
        reasons.append("velocity")
    # In the direction it moves in, an arm may get faster by so much; in the other it starts from rest.
    headroom = np.where(allowed * before > 0, np.abs(before), 0) + limits.accelerations * tick
    slower = np.clip(allowed, -headroom * tick, headroom * tick)
    if (slower != allowed).any():
        reasons.append("acceleration")

    step, blocked = _within_walls(last.joints, slower, limits)
    reasons += blocked
    told = Told(last.joints + step, step / tick, now)
    return Verdict(told, tuple(reasons), bool(reasons) and not step.any())


def _hold(last: Told, now: float, reason: str) -> Verdict:
    return Verdict(Told(last.joints, np.zeros(len(JOINTS)), max(now, last.time)), (reason,), True)


def _positions(command: object) -> np.ndarray | None:
    """(6,) finite numbers; None if they are not."""
    try:
        found = np.asarray(command, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is what a tensor raises
        return None
    return found if found.shape == (len(JOINTS),) and np.isfinite(found).all() else None


def _within_walls(joints: np.ndarray, step: np.ndarray, limits: GuardLimits) -> tuple[np.ndarray, list[str]]:
    """The largest of some shares of a step that stays above the table and in the workspace, and what was in the way."""
    beyond = _beyond(np.stack([joints, joints + step]), limits)
    bound = np.maximum(beyond[0], 0)  # an arm that is found outside may come in, and go no further out
    in_the_way = [name for name, out in zip(("table", "workspace"), beyond[1] > bound, strict=True) if out]
    if not in_the_way:
        return step, []
    tried = _SHARES * step
    fits = (_beyond(joints + tried, limits) <= bound).all(1)
    fits[-1] = True
    return tried[int(fits.argmax())], in_the_way


def _beyond(joints: np.ndarray, limits: GuardLimits) -> np.ndarray:
    """How far poses (K, 6) are below the table and outside of the workspace, (K, 2) [m]; negative inside."""
    model = joints.copy()
    model[:, :GRIPPER] += limits.joint_offsets
    tool, lowest = reach(model)
    corners = np.array(limits.workspace)
    outside = np.maximum(corners[:3] - tool, tool - corners[3:]).max(1)
    return np.stack([limits.table - lowest, outside], 1)


class Guard:
    """Judges commands one after another, and counts.

    Args:
        limits: of the arm.
        clock: seconds; nobody else's, so that no one can stop it.
    """

    def __init__(self, limits: GuardLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self._last: Told | None = None
        self._seen: float | None = None
        self.counts: Counter[str] = Counter()

    def stand(self, joints: Sequence[float] | np.ndarray) -> None:
        """Take the arm to stand at measured positions, (6,); the next command starts from there.

        Raises:
            ValueError: they are not six finite numbers.
        """
        found = _positions(joints)
        if found is None:
            raise ValueError(f"guard: found positions {joints!r}, expected six finite numbers.")
        self._last = Told(found, np.zeros(len(JOINTS)), self._clock())

    def observe(self) -> None:
        """Note that the arm and what is before it have just been seen."""
        self._seen = self._clock()

    def check(self, command: object) -> np.ndarray:
        """What the arm may be told, (6,).

        Raises:
            RuntimeError: nobody has said where the arm stands.
        """
        if self._last is None:
            raise RuntimeError(
                "guard: nobody has said where the arm stands; call stand() with measured positions."
            )
        verdict = judge(command, self._last, self.limits, self._clock(), self._seen)
        # An observation is answered once. Commands after that, such as those of the way home, answer nothing.
        self._last, self._seen = verdict.told, None
        self.counts["hold" if verdict.holds else "clamp" if verdict.reasons else "pass"] += 1
        self.counts.update(verdict.reasons)
        return verdict.told.joints.copy()

    def report(self) -> str:
        """One line on what was done since the last report, and begin to count anew."""
        counts, self.counts = self.counts, Counter()
        total = sum(counts[answer] for answer in ("pass", "clamp", "hold"))
        why = ", ".join(
            f"{name} {n}" for name, n in counts.most_common() if name not in ("pass", "clamp", "hold")
        )
        line = f"guard: {total} commands, {counts['pass']} passed, {counts['clamp']} clamped, {counts['hold']} held"
        return f"{line} ({why})" if why else line
