# SPDX-License-Identifier: Apache-2.0
"""LeRobot's servo bus, for a line on which now and then an answer is lost.

What is unusual about it:
- Registers are read and written with more than one try: a lost answer at the end of `lerobot-calibrate` costs the whole
  calibration.
- An answer that comes too late is forgotten. Answers carry no register's name, so it would be taken for the answer to the
  next question, and that one's for the answer to the one after it, without end.
- A servo that complains is there.
- A servo that will not let go does not keep those behind it from it.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from lerobot.motors import Motor, MotorCalibration
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.motors.motors_bus import NameOrID, Value

_LATE_S = 0.05  # how long answers that did not come in time are waited for, so that they can be forgotten

_TROUBLES = {
    1: "voltage",
    2: "sensor",
    4: "too hot",
    8: "too much current",
    32: "overloaded",
}  # bits of Status


def troubles(status: int) -> str:
    """What a servo reports in its register Status, in words; empty if it is well."""
    told = [words for bit, words in _TROUBLES.items() if status & bit]
    return ", ".join(told) or (f"status {status}" if status else "")


class PatientBus(FeetechMotorsBus):
    """The bus of an arm.

    Args:
        port, motors, calibration: as LeRobot's.
        retries: after a first try that failed.
    """

    def __init__(
        self, port: str, motors: dict[str, Motor], calibration: dict[str, MotorCalibration], retries: int
    ) -> None:
        super().__init__(port=port, motors=motors, calibration=calibration)
        self._retries = retries
        self.port_handler.clearPort = self._clear_port  # called before every instruction

    def _clear_port(self) -> None:
        """Wait until everything is sent, as the maker's library does, and forget what nobody has asked for."""
        self.port_handler.ser.flush()
        self.port_handler.ser.reset_input_buffer()

    def _patiently(self, ask: Callable[..., Any], *args: Any, num_retry: int, **kwargs: Any) -> Any:
        """What `ask` returns at the first try that is answered. After one that is not, what comes late may arrive."""
        for retries_left in range(num_retry, -1, -1):
            try:
                return ask(*args, num_retry=0, **kwargs)
            except ConnectionError:
                time.sleep(_LATE_S)
                if not retries_left:
                    raise

    def _read(self, *args: Any, num_retry: int = 0, **kwargs: Any) -> tuple[int, int, int]:
        return self._patiently(super()._read, *args, num_retry=num_retry, **kwargs)

    def _sync_read(self, *args: Any, num_retry: int = 0, **kwargs: Any) -> tuple[dict[int, int], int]:
        return self._patiently(super()._sync_read, *args, num_retry=num_retry, **kwargs)

    def ping(self, motor: NameOrID, num_retry: int = 0, raise_on_error: bool = False) -> int | None:
        """The model number of a servo that answers, whatever it complains of; None if it does not answer.

        Raises:
            ConnectionError: it does not answer, and `raise_on_error`.
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

    def disable_torque(self, motors: int | str | list[str] | None = None, num_retry: int = 0) -> None:
        """Let go of servos, of as many as hear it.

        Raises:
            ConnectionError: some did not; the message names them.
        """
        if motors is None:
            self.sync_write("Torque_Enable", 0, normalize=False)  # all that hear it, at once; none answers
        holding = {}
        for motor in self._get_motors_list(motors):
            try:
                self._let_go(motor, min(num_retry, self._retries))
            except (ConnectionError, RuntimeError) as error:
                holding[motor] = error
        if holding:
            reasons = "; ".join(dict.fromkeys(map(str, holding.values())))
            raise ConnectionError(f"{', '.join(holding)} may still have torque: {reasons}")

    def _let_go(self, motor: str, num_retry: int) -> None:
        """Let go of a servo. One that is overloaded obeys, and complains for a while."""
        try:
            super().disable_torque(motor, num_retry)
        except RuntimeError:
            if self.sync_read("Torque_Enable", motor, normalize=False, num_retry=num_retry)[motor]:
                raise
            with contextlib.suppress(RuntimeError):
                self.write("Lock", motor, 0, num_retry=num_retry)
