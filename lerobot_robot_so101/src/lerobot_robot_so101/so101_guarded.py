# SPDX-License-Identifier: Apache-2.0
"""LeRobot's SO-101 follower with a guard between its commands and the servos.

What is unusual about it:
- Every goal that LeRobot sends passes `send_action`, and `send_action` sends only what the guard returns.
- Its name is that of LeRobot's driver (`so_follower`), so that calibrations and datasets serve both.
- The servos' old goals are overwritten with the present positions before torque is enabled: nothing moves at
  connect.
- A fault on the bus is reported with the servo's name. A reply that is lost now and then is read again.
- A policy that was trained in other units, or on an arm with another calibration, is refused before anything
  moves.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.configs import parser
from lerobot.motors import MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.robots.so_follower import SOFollower
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_processor_so101.arm import JOINTS
from lerobot_processor_so101.config_checks import check_id
from lerobot_processor_so101.guard import Guard, GuardLimits, way_home

from .bus import RetryingFeetechBus, describe_status
from .calibration_check import check_calibration
from .config_so101_guarded import SO101GuardedConfig

logger = logging.getLogger(__name__)

_CAMERA_ERRORS = (TimeoutError, DeviceNotConnectedError)
_FINE_SPEED_UNIT, _COARSE_SPEED_UNIT = 1, 50  # steps/s, of the register Goal_Velocity
_ACCELERATION_UNIT = 100  # steps/s², of the register Acceleration
_FINE_SPEED, _ZERO_IS_FASTEST = 0x04, 0x08  # bits of the register Phase: fine unit; 0 means no limit
_STEPS_PER_TURN = 4096
_READ_ATTEMPTS = 3  # of a reading without a reply, if every servo replies to a ping


class SO101Guarded(SOFollower):
    """The guarded follower."""

    config_class = SO101GuardedConfig
    config: SO101GuardedConfig
    bus: FeetechMotorsBus

    def __init__(self, config: SO101GuardedConfig) -> None:
        if config.max_relative_target is not None:
            raise ValueError(
                f"--robot.max_relative_target: found {config.max_relative_target}, expected none: it changes "
                "goals after the guard and can make them faster. Use `--robot.limits.velocity`, in deg/s."
            )
        check_id(config.id, "--robot.id")
        super().__init__(config)
        self.bus = RetryingFeetechBus(config.port, self.bus.motors, self.calibration, config.num_read_retries)
        self.guard: Guard | None = None
        self._previous_speeds: dict[str, int] = {}  # Goal_Velocity before connecting
        self._servos_checked = 0.0  # time of the last check [s]
        self._reported: set[str] = set()  # servos whose error status is logged already

    @property
    def is_connected(self) -> bool:
        """Whether the port is open, also if a camera is gone: LeRobot disconnects connected robots only."""
        return self.bus.is_connected

    @property
    def limits(self) -> GuardLimits:
        """Limits of the configuration, narrowed to the calibrated ranges.

        Raises:
            ValueError: if a joint has no range left.
        """
        limits = self.config.limits
        half = [self._half_range(joint) - self.config.margin for joint in JOINTS[:-1]]
        low, high = np.array([*(-value for value in half), 0.0]), np.array([*half, 100.0])
        lower, upper = np.maximum(low, limits.lower), np.minimum(high, limits.upper)
        if (lower >= upper).any():
            i = int((lower >= upper).argmax())
            raise ValueError(
                f"limits: {JOINTS[i]} is calibrated from {low[i]:.1f} to {high[i]:.1f} and limited to "
                f"{limits.lower[i]} to {limits.upper[i]}, which leaves no range. Calibrate it, or change "
                "`--robot.limits.lower` and `--robot.limits.upper`."
            )
        return dataclasses.replace(limits, lower=tuple(lower.tolist()), upper=tuple(upper.tolist()))

    def connect(self, calibrate: bool = True) -> None:
        """Connect to the arm and its cameras.

        Raises:
            ConnectionError: if the port or a camera cannot be opened, or another process owns the port.
            RuntimeError: if a servo is missing or reports an error that does not end; the message names it.
            ValueError: if `--policy.path` was trained in other units or with another calibration.
        """
        policy = parser.get_path_arg("policy")  # LeRobot does not pass the policy to the robot
        if policy and self.calibration:
            config = self.config
            check_calibration(Path(policy), self.calibration, config.use_degrees, config.any_calibration)
        super().connect(calibrate)

    def configure(self) -> None:
        """Configure the servos as LeRobot does, and let them hold their present positions.

        Raises:
            ValueError: see `limits`; nothing is written to the servos.
        """
        guard = Guard(self.limits) if self.calibration else None
        self.bus.sync_write("Goal_Position", self._read_registers("Present_Position"), normalize=False)
        super().configure()
        if guard is None:  # about to be calibrated: `send_action` refuses commands until then
            return
        self._limit_motion(guard.limits)
        present = self.bus.sync_read("Present_Position", num_retry=self.config.num_read_retries)
        guard.initialise(np.array([present[joint] for joint in JOINTS]) * self._scale())
        self.guard = guard

    def get_observation(self) -> dict[str, Any]:
        """Read joint positions and camera frames.

        Raises:
            ConnectionError: if a servo does not reply or has no torque (the message names it), or the port is
                gone.
        """
        observation = self._read_again(super().get_observation)
        self._check_servos()
        if self.guard is not None:
            self.guard.observe(np.array([observation[f"{joint}.pos"] for joint in JOINTS]) * self._scale())
        return observation

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Send a command through the guard, and return what was sent.

        Raises:
            ConnectionError: if the arm is not connected, or its port is gone.
        """
        if self.guard is None:
            raise ConnectionError("so101_guarded is not connected: call connect() first.")
        # 1. to degrees and percent, (6,); None holds the arm
        scale = self._scale()
        try:
            command = np.array([float(action[f"{joint}.pos"]) for joint in JOINTS]) * scale
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError):  # a tensor raises the last
            command = None
        # 2. the nearest command within the limits, back in the arm's units
        goals = (self.guard.check(command) / scale).tolist()
        try:
            return super().send_action(
                {f"{joint}.pos": goal for joint, goal in zip(JOINTS, goals, strict=True)}
            )
        except Exception as error:  # LeRobot, pyserial and the terminal raise different types
            if (diagnosis := self._diagnose(error)) is None:
                raise
            raise diagnosis from error

    def path_to(self, begin: np.ndarray, goal: np.ndarray, seconds: float, fps: float) -> np.ndarray:
        """Plan commands that reach a pose around the table and the workspace boundary.

        Args:
            begin, goal: positions (6,) in the arm's units.
            seconds: duration; limits of velocity may make it longer [s].
            fps: commands per second [Hz].

        Returns:
            (T, 6) in the arm's units; a straight line if no way was found.
        """
        assert self.guard is not None
        limits, scale = self.guard.limits, self._scale()
        way = way_home(begin * scale, goal * scale, limits)
        if way is None:
            logger.warning("so101_guarded: found no free way; the table or the workspace may stop the arm.")
            way = (goal * scale)[None]
        corners = np.vstack([begin * scale, way])
        # Below the limits, so that the guard cuts no corner.
        times = np.max(np.abs(np.diff(corners, axis=0)) / (0.8 * limits.velocities), 1)
        times *= max(1.0, seconds / max(times.sum(), 1e-6))
        ends = np.cumsum(np.r_[0.0, times])
        ticks = np.arange(1, max(1, round(ends[-1] * fps)) + 1) / fps
        path = np.stack([np.interp(ticks, ends, corner) for corner in corners.T], 1)
        path[-1] = corners[-1]
        return path / scale

    def disconnect(self) -> None:
        """Log what the guard did, and release the arm and all cameras even if some of them fail."""
        if self.guard is not None:
            logger.info("so101_guarded: %s", self.guard.report())
            self.guard = None
        try:
            if self._previous_speeds:  # another driver may use the arm next
                with contextlib.suppress(Exception):  # releasing the arm matters more
                    self.bus.sync_write("Goal_Velocity", self._previous_speeds, normalize=False)
            self.bus.disconnect(self.config.disable_torque_on_disconnect)
        except Exception as error:
            named = isinstance(error, ConnectionError)  # the bus has named the servos
            logger.warning("%s", error if named else self._diagnose(error) or error)
            self.bus.close()
        for name, camera in self.cameras.items():
            try:
                if camera.is_connected:
                    camera.disconnect()
            except Exception as error:  # the next camera is released whatever this one's driver raises
                logger.warning("so101_guarded: camera %s: %s", name, error)

    def _read_registers(self, name: str) -> dict[str, int]:
        """Read a register of all servos, without normalisation."""
        found = self.bus.sync_read(name, normalize=False, num_retry=self.config.num_read_retries)
        return {joint: int(value) for joint, value in found.items()}

    def _read_again[Result](self, read: Callable[[], Result]) -> Result:
        """Read, and read again if a reply was lost.

        Raises:
            ConnectionError: if a servo does not reply to a ping either; the message names it.
        """
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                return read()
            except _CAMERA_ERRORS:
                raise
            except Exception as error:
                if (diagnosis := self._diagnose(error)) is not None:
                    raise diagnosis from error
                if attempt == _READ_ATTEMPTS or not isinstance(error, ConnectionError):
                    raise
        raise AssertionError

    def _check_servos(self) -> None:
        """Refuse servos without torque: after a restart they reply as before but do not move.

        An error status is only logged: a gripper that holds an object is overloaded, and that is normal.
        """
        now = time.monotonic()
        if now - self._servos_checked < self.config.torque_check_s:
            return
        self._servos_checked = now
        torque = self._read_again(lambda: self._read_registers("Torque_Enable"))
        limp = [joint for joint, enabled in torque.items() if not enabled]
        if limp:
            raise ConnectionError(
                f"so101_guarded: {', '.join(limp)} lost torque (brown-out or overload). Check the supply and "
                "what the arm pushes against, then connect again."
            )
        status = self._read_again(lambda: self._read_registers("Status"))
        reported = {joint for joint, bits in status.items() if bits}
        for joint in reported - self._reported:
            logger.warning("so101_guarded: %s reports: %s.", joint, describe_status(status[joint]))
        self._reported = reported

    def _diagnose(self, error: Exception) -> ConnectionError | None:
        """Name the servos that do not reply to a ping, or the port if it is gone; None if all reply."""
        silent = []
        for joint, motor in self.bus.motors.items():
            try:
                if self.bus.ping(joint, num_retry=1) is None:
                    silent.append(f"{joint} (id {motor.id})")
            except IndexError:  # raised by the vendor's library for an incomplete reply: the servo is there
                continue
            except Exception:
                return ConnectionError(f"so101_guarded: the port {self.config.port} is gone. ({error})")
        if not silent:
            return None
        hint = ""
        if len(silent) == len(self.bus.motors):
            hint = f": no servo replies at {self.config.port}, so check its cable and its supply"
        return ConnectionError(f"so101_guarded: no reply from {', '.join(silent)}{hint}. ({error})")

    def _limit_motion(self, limits: GuardLimits) -> None:
        """Write the limits of velocity and acceleration to the registers of each servo, rounded down.

        LeRobot writes the largest acceleration whenever it connects, so only the speeds need be restored.
        """
        phases, found = self._read_registers("Phase"), self._read_registers("Goal_Velocity")
        speeds, accelerations = {}, {}
        for joint, velocity, acceleration in zip(
            JOINTS, limits.servo_velocities, limits.servo_accelerations, strict=True
        ):
            steps = _STEPS_PER_TURN / 360  # per degree or percent
            if joint == "gripper":
                ends = self.calibration[joint]
                steps = (ends.range_max - ends.range_min) / 100
            unit = _FINE_SPEED_UNIT if phases[joint] & _FINE_SPEED else _COARSE_SPEED_UNIT
            speeds[joint] = int(np.clip(velocity * steps / unit, 1, 0x7FFF))
            accelerations[joint] = int(np.clip(acceleration * steps / _ACCELERATION_UNIT, 1, 254))
            # The value found may be that of a process that was killed, so 0 is restored where it means no
            # limit.
            self._previous_speeds[joint] = 0 if phases[joint] & _ZERO_IS_FASTEST else found[joint]
        self.bus.sync_write("Goal_Velocity", speeds, normalize=False)
        self.bus.sync_write("Acceleration", accelerations, normalize=False)

    def _half_range(self, joint: str) -> float:
        """Half of a joint's calibrated range [deg]."""
        found = self.calibration[joint]
        steps = self.bus.model_resolution_table[self.bus.motors[joint].model] - 1
        return (found.range_max - found.range_min) / 2 * 360 / steps

    def _scale(self) -> np.ndarray:
        """Degrees, or percent of the gripper, per unit of the arm, (6,)."""
        if self.bus.motors[JOINTS[0]].norm_mode is MotorNormMode.DEGREES:
            return np.ones(len(JOINTS))
        return np.array([self._half_range(joint) / 100 for joint in JOINTS[:-1]] + [1.0])
