# SPDX-License-Identifier: Apache-2.0
"""LeRobot's servo bus, for a line on which now and then an answer is lost.

What is unusual about it: registers are read and written with more than one try (a lost answer at the end of
`lerobot-calibrate` costs the whole calibration), and a servo that will not let go does not keep those behind it from it.
"""

import contextlib

from lerobot.motors import Motor, MotorCalibration
from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.motors.motors_bus import Value


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
