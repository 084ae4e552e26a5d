# SPDX-License-Identifier: Apache-2.0
"""LeRobot's SO-101 follower with a guard where its commands reach the servos.

What is unusual about it:
- Nothing that LeRobot calls can send a goal past `send_action`, and `send_action` sends only what the guard says.
- It is called what LeRobot's own is called (`so_follower`), so that calibrations and datasets serve both.
- The servos' old goals are overwritten with where they are before torque comes on: nothing leaps when it connects.
- A fault on the bus names the servo. An answer that is lost now and then is no fault.
- A policy that was trained in other units, or on an arm with another calibration, is refused before anything moves.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lerobot.configs import parser
from lerobot.motors import MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.robots.so_follower import SOFollower
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_processor_so101.guard import JOINTS, Guard, GuardLimits

from .config_so101_guarded import SO101GuardedConfig
from .patient_bus import PatientBus, troubles
from .recorded_on import check_recorded_on

logger = logging.getLogger(__name__)

_Read = TypeVar("_Read")
_CAMERAS = (TimeoutError, DeviceNotConnectedError)  # what is no fault of the bus
_TRIES = 3  # of reading all joints, where no servo is silent


class SO101Guarded(SOFollower):
    """The guarded follower."""

    config_class = SO101GuardedConfig
    config: SO101GuardedConfig
    bus: FeetechMotorsBus

    def __init__(self, config: SO101GuardedConfig) -> None:
        if config.max_relative_target is not None:
            raise ValueError(
                f"--robot.max_relative_target: found {config.max_relative_target}, expected none: it would change what the "
                "guard has said, and could make it faster. Use `--robot.limits.velocity`, in deg/s."
            )
        super().__init__(config)
        self.bus = PatientBus(config.port, self.bus.motors, self.calibration, config.num_read_retries)
        self.guard: Guard | None = None
        self._torque_checked = 0.0
        self._troubled: set[str] = set()  # servos that were complained of

    @property
    def is_connected(self) -> bool:
        """Whether the port is open, so that there is something to let go of; also where a camera is gone."""
        return self.bus.is_connected

    @property
    def limits(self) -> GuardLimits:
        """Those of the configuration, within what the calibration found.

        Raises:
            ValueError: a joint is left without a range.
        """
        own, lower, upper = self.config.limits, [], []
        for number, joint in enumerate(JOINTS):
            if joint == JOINTS[-1]:
                low, high = 0.0, 100.0
            else:
                high = self._half_range(joint) - self.config.margin
                low = -high
            lower.append(max(low, own.lower[number]))
            upper.append(min(high, own.upper[number]))
            if lower[-1] >= upper[-1]:
                raise ValueError(
                    f"limits: {joint} is calibrated from {low:.1f} to {high:.1f} and limited to {own.lower[number]} to "
                    f"{own.upper[number]}, which leaves nothing. Calibrate it, or change `--robot.limits.lower` and "
                    "`--robot.limits.upper`."
                )
        return dataclasses.replace(own, lower=tuple(lower), upper=tuple(upper))

    def connect(self, calibrate: bool = True) -> None:
        """Connect to the arm and its cameras, unless the policy that is to move it was trained on something else.

        Raises:
            ConnectionError: the port or a camera cannot be opened.
            ValueError: `--policy.path` was trained in other units, or on an arm with another calibration.
        """
        policy = parser.get_path_arg("policy")  # LeRobot's commands tell a robot nothing of its policy
        if policy and self.calibration:
            config = self.config
            check_recorded_on(Path(policy), self.calibration, config.use_degrees, config.any_calibration)
        super().connect(calibrate)

    def configure(self) -> None:
        """Set the servos up as LeRobot does, and let them hold where they are.

        Raises:
            ValueError: see `limits`; nothing is written to the servos.
        """
        guard = Guard(self.limits) if self.calibration else None
        self.bus.sync_write("Goal_Position", self._raw("Present_Position"), normalize=False)
        super().configure()
        if guard is None:  # about to be calibrated: nothing can be sent until then
            return
        present = self.bus.sync_read("Present_Position", num_retry=self.config.num_read_retries)
        guard.stand(np.array([present[joint] for joint in JOINTS]) * self._scale())
        self.guard = guard

    def get_observation(self) -> dict[str, Any]:
        """What the arm and its cameras see.

        Raises:
            ConnectionError: a servo does not answer, or has lost its torque; the message names it. Or the port is gone.
        """
        observation = self._read_again(super().get_observation)
        self._check_servos()
        if self.guard is not None:
            self.guard.observe()
        return observation

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Send a command through the guard, and return what was sent.

        Raises:
            ConnectionError: the arm is not connected, or its port is gone.
        """
        if self.guard is None:
            raise ConnectionError("so101_guarded is not connected: call connect() first.")
        goals = {name: action.get(f"{name}.pos") for name in JOINTS}
        told = self.guard.check(self._degrees(goals))
        with self._naming_faults():
            return super().send_action({f"{name}.pos": goal for name, goal in self._own_units(told).items()})

    def disconnect(self) -> None:
        """Report what the guard did, and let go of the arm and its cameras, whatever fails on the way."""
        if self.guard is not None:
            logger.info("so101_guarded: %s", self.guard.report())
            self.guard = None
        try:
            self.bus.disconnect(self.config.disable_torque_on_disconnect)
        except Exception as error:
            bus_told = isinstance(error, ConnectionError)  # by name
            logger.warning("%s", error if bus_told else self._named(error) or error)
            if self.bus.is_connected:
                self.bus.port_handler.closePort()
        for name, camera in self.cameras.items():
            try:
                if camera.is_connected:
                    camera.disconnect()
            except Exception as error:  # whatever a camera's driver raises, the next one is let go of too
                logger.warning("so101_guarded: camera %s: %s", name, error)

    def _raw(self, name: str) -> dict[str, int]:
        """A register of all servos as it stands there."""
        found = self.bus.sync_read(name, normalize=False, num_retry=self.config.num_read_retries)
        return {joint: int(value) for joint, value in found.items()}

    def _read_again(self, read: Callable[[], _Read]) -> _Read:
        """Read once more where an answer was lost and all servos are there; say which ones are not."""
        for attempt in range(_TRIES):
            try:
                return read()
            except _CAMERAS:
                raise
            except Exception as error:
                named = self._named(error)
                if named is not None:
                    raise named from error
                if attempt + 1 == _TRIES or not isinstance(error, ConnectionError):
                    raise
        raise AssertionError

    def _check_servos(self) -> None:
        """Find servos that have restarted or given up: they have no torque, and answer as if nothing were.

        Those that only complain are named in the log: a gripper that holds something is overloaded, and rightly so.
        """
        now = time.monotonic()
        if now - self._torque_checked < self.config.torque_check_s:
            return
        self._torque_checked = now
        torque = self._read_again(lambda: self._raw("Torque_Enable"))
        limp = [joint for joint, on in torque.items() if not on]
        if limp:
            raise ConnectionError(
                f"so101_guarded: {', '.join(limp)} lost torque (brown-out or overload). Check the supply and what the arm "
                "pushes against, then connect again."
            )
        status = {
            joint: bits for joint, bits in self._read_again(lambda: self._raw("Status")).items() if bits
        }
        for joint in status.keys() - self._troubled:
            logger.warning("so101_guarded: %s reports: %s.", joint, troubles(status[joint]))
        self._troubled = set(status)

    @contextmanager
    def _naming_faults(self) -> Iterator[None]:
        """Say which servo it was that did not answer. What raises varies: LeRobot, pyserial, or the terminal."""
        try:
            yield
        except Exception as error:
            named = self._named(error)
            if named is None:
                raise
            raise named from error

    def _named(self, error: Exception) -> ConnectionError | None:
        """The error with the servos that do not answer; None if all do."""
        silent = []
        for joint, motor in self.bus.motors.items():
            try:
                if self.bus.ping(joint, num_retry=1) is None:
                    silent.append(f"{joint} (id {motor.id})")
            except IndexError:  # an answer in pieces, which the maker's library takes apart nevertheless
                continue
            except Exception:
                return ConnectionError(f"so101_guarded: the port {self.config.port} is gone. ({error})")
        if not silent:
            return None
        none = len(silent) == len(self.bus.motors)
        hint = f": none at {self.config.port}, so see to its cable and its supply" if none else ""
        return ConnectionError(f"so101_guarded: no answer from {', '.join(silent)}{hint}. ({error})")

    def _half_range(self, joint: str) -> float:
        """Half of what the calibration found [deg]."""
        found = self.calibration[joint]
        largest = self.bus.model_resolution_table[self.bus.motors[joint].model] - 1
        return (found.range_max - found.range_min) / 2 * 360 / largest

    def _scale(self) -> np.ndarray:
        """Degrees, or percent, per unit of the arm, (6,)."""
        body = self.bus.motors[JOINTS[0]].norm_mode
        if body is MotorNormMode.DEGREES:
            return np.ones(len(JOINTS))
        return np.array([self._half_range(joint) / 100 for joint in JOINTS[:-1]] + [1.0])

    def _degrees(self, positions: dict[str, Any]) -> np.ndarray | None:
        """(6,) in degrees and percent; None if they are no numbers."""
        try:
            return np.array([float(positions[joint]) for joint in JOINTS]) * self._scale()
        except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is what a tensor raises
            return None

    def _own_units(self, degrees: np.ndarray) -> dict[str, float]:
        return dict(zip(JOINTS, (degrees / self._scale()).tolist(), strict=True))
