# SPDX-License-Identifier: Apache-2.0
"""LeRobot's servo bus, for a line on which replies are lost or arrive late.

What is unusual about it:
- Registers are read and written with retries. Without them one lost reply at the end of `lerobot-calibrate`
  costs the calibration.
- Late replies are discarded. A reply does not name its register, so a late one would be taken for the reply
  to the next instruction, whose own reply would be taken for that of the instruction after it, and so on.
- A port has one owner: a second process, which would drive the arm in turn with the first, is refused.
- `ping` finds a servo that reports an error status.
- Connecting ends the overload of a servo, such as a gripper that held an object when its process was killed,
  by disabling its torque. LeRobot's driver cannot connect to it.
- `disable_torque` continues with the other servos if one of them fails.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from lerobot.motors import Motor, MotorCalibration
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.motors.motors_bus import NameOrID, Value

from lerobot_processor_so101.lock import Lock

_LATE_REPLY_S = 0.05  # pause after a missing reply, so that it arrives before the buffer is cleared
_CLEAR_S = 0.5  # time that a servo has to end its error status
_STATUS_BITS = {1: "voltage", 2: "sensor", 4: "too hot", 8: "too much current", 32: "overloaded"}

logger = logging.getLogger(__name__)


def describe_status(status: int) -> str:
    """Name the errors in a servo's Status register; empty if there is none."""
    errors = [error for bit, error in _STATUS_BITS.items() if status & bit]
    return ", ".join(errors) or (f"status {status}" if status else "")


def _name_errors(status: dict[str, int]) -> str:
    return "; ".join(f"{motor} reports: {describe_status(bits)}" for motor, bits in status.items())


class RetryingFeetechBus(FeetechMotorsBus):
    """The bus of an arm.

    Args:
        port, motors, calibration: see `FeetechMotorsBus`.
        retries: number of retries after a failed first attempt.
    """

    def __init__(
        self, port: str, motors: dict[str, Motor], calibration: dict[str, MotorCalibration], retries: int
    ) -> None:
        super().__init__(port=port, motors=motors, calibration=calibration)
        self._retries = retries
        self._lock: Lock | None = None  # on the port, while connected
        self.port_handler.clearPort = self._clear_port  # called before every instruction

    def _clear_port(self) -> None:
        """Wait until everything is sent, as the vendor's library does, and discard late replies."""
        self.port_handler.ser.flush()
        self.port_handler.ser.reset_input_buffer()

    def _retry(self, read: Callable[..., Any], *args: Any, num_retry: int, **kwargs: Any) -> Any:
        """Call `read` until a reply arrives, with a pause after a missing one so that it can be discarded."""
        for retries_left in range(num_retry, -1, -1):
            try:
                return read(*args, num_retry=0, **kwargs)
            except ConnectionError:
                time.sleep(_LATE_REPLY_S)
                if not retries_left:
                    raise

    def _read(self, *args: Any, num_retry: int = 0, **kwargs: Any) -> tuple[int, int, int]:
        return self._retry(super()._read, *args, num_retry=num_retry, **kwargs)

    def _sync_read(self, *args: Any, num_retry: int = 0, **kwargs: Any) -> tuple[dict[int, int], int]:
        return self._retry(super()._sync_read, *args, num_retry=num_retry, **kwargs)

    def ping(self, motor: NameOrID, num_retry: int = 0, raise_on_error: bool = False) -> int | None:
        """Return the model number of a servo, also if it reports an error status; None if there is no reply.

        Raises:
            ConnectionError: if there is no reply and `raise_on_error` is set.
        """
        for _ in range(num_retry + 1):
            model, comm, _ = self.packet_handler.ping(self.port_handler, self._get_motor_id(motor))
            if self._is_comm_success(comm):
                return model
        if raise_on_error:
            raise ConnectionError(self.packet_handler.getTxRxResult(comm))
        return None

    def read(self, data_name: str, motor: str, *, normalize: bool = True, num_retry: int = 0) -> Value:
        """Read a register of a servo."""
        return super().read(data_name, motor, normalize=normalize, num_retry=max(num_retry, self._retries))

    def write(
        self, data_name: str, motor: str, value: Value, *, normalize: bool = True, num_retry: int = 0
    ) -> None:
        """Write a register of a servo."""
        super().write(data_name, motor, value, normalize=normalize, num_retry=max(num_retry, self._retries))

    def _connect(self, handshake: bool = True) -> None:
        """Open the port, or raise ConnectionError with the process that owns it."""
        if self._lock is None:
            try:
                self._lock = Lock(self.port)
            except BlockingIOError as error:
                raise ConnectionError(f"port: {error}") from None
        try:
            super()._connect(handshake)
        finally:
            if not self.is_connected:
                self.close()

    def disconnect(self, disable_torque: bool = True) -> None:
        """Disconnect, by default without torque. If it raises, the port is still open."""
        super().disconnect(disable_torque)
        self.close()

    def close(self) -> None:
        """Close the port, without an instruction to the servos."""
        if self.port_handler.is_open:
            self.port_handler.closePort()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _handshake(self) -> None:
        """Check the servos as LeRobot does, after ending overloads; RuntimeError names one that stays."""
        self._assert_motors_exist()
        if status := self._status():
            logger.warning("%s. Torque of these servos is disabled to clear it.", _name_errors(status))
            self.sync_write("Torque_Enable", dict.fromkeys(status, 0), normalize=False)
        deadline = time.monotonic() + _CLEAR_S
        while status and time.monotonic() < deadline:
            time.sleep(_CLEAR_S / 10)
            status = self._status()
        if status:
            raise RuntimeError(  # LeRobot hides the message of a ConnectionError here
                f"{_name_errors(status)}, also without torque. Check the supply, let the servo cool down, or "
                "switch its supply off and on; then connect again. The other servos keep their torque until "
                "then."
            )
        super()._handshake()

    def _status(self) -> dict[str, int]:
        """Read the error status of the servos that report one."""
        found = self.sync_read("Status", normalize=False, num_retry=self._retries)  # `read` would raise
        return {motor: int(status) for motor, status in found.items() if status}

    def disable_torque(self, motors: int | str | list[str] | None = None, num_retry: int = 0) -> None:
        """Disable the torque of every servo that can be reached.

        Raises:
            ConnectionError: if some servos may still have torque; the message names them.
        """
        if motors is None:
            self.sync_write("Torque_Enable", 0, normalize=False)  # one broadcast without replies comes first
        failed = {}
        for motor in self._get_motors_list(motors):
            try:
                self._disable_torque_of(motor, min(num_retry, self._retries))
            except (ConnectionError, RuntimeError) as error:
                failed[motor] = str(error)
        if failed:
            reasons = "; ".join(dict.fromkeys(failed.values()))
            raise ConnectionError(f"{', '.join(failed)} may still have torque: {reasons}")

    def _disable_torque_of(self, motor: str, num_retry: int) -> None:
        try:
            super().disable_torque(motor, num_retry)
        except RuntimeError:  # an overloaded servo obeys, but reports its error status for a while
            if self.sync_read("Torque_Enable", motor, normalize=False, num_retry=num_retry)[motor]:
                raise
            with contextlib.suppress(RuntimeError):
                self.write("Lock", motor, 0, num_retry=num_retry)
