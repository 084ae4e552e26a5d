# SPDX-License-Identifier: Apache-2.0
"""The control table of a Feetech STS3215: address, size, sign bit and default of every register.

Names are LeRobot's. Addresses below 40 and from 80 on are EEPROM; 40 to 79 are RAM.
Units: a step is 1/4096 turn; torques are thousandths of the stall torque unless marked as percent.
"""

from dataclasses import dataclass

MODEL_NUMBER = 777
STEPS_PER_TURN = 4096
TABLE_SIZE = 128
# Baud rate [1/s] by the value of the register Baud_Rate, as the vendor lists it (LeRobot: 57600 at 5).
BAUD_RATES = (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400)
# Bits of the register Status and of the error byte in every response.
VOLTAGE, ANGLE, OVERHEAT, OVERCURRENT, OVERLOAD = 1, 2, 4, 8, 32

_RAM_BEGIN, _RAM_END = 40, 80


@dataclass(frozen=True)
class Register:
    """One entry of the control table.

    Args:
        address, size: first byte and number of bytes (1 or 2, little endian).
        default: factory value (EEPROM) or value after power-up (RAM).
        sign_bit: the bit set for negative values; the bits below it are the magnitude. None for unsigned.
        writable: whether the host can write it.
    """

    address: int
    size: int = 1
    default: int = 0
    sign_bit: int | None = None
    writable: bool = True

    @property
    def addresses(self) -> range:
        return range(self.address, self.address + self.size)


REGISTERS = {
    "Firmware_Major_Version": Register(0, default=3, writable=False),
    "Firmware_Minor_Version": Register(1, default=10, writable=False),
    "Model_Number": Register(3, 2, MODEL_NUMBER, writable=False),
    "ID": Register(5, default=1),
    "Baud_Rate": Register(6),
    "Return_Delay_Time": Register(7, default=250),  # 2 us
    "Response_Status_Level": Register(8, default=1),  # 0: responds to reads and pings only
    "Min_Position_Limit": Register(9, 2, 0),
    "Max_Position_Limit": Register(11, 2, 4095),
    "Max_Temperature_Limit": Register(13, default=70),  # deg C
    "Max_Voltage_Limit": Register(14, default=140),  # 0.1 V
    "Min_Voltage_Limit": Register(15, default=40),  # 0.1 V
    "Max_Torque_Limit": Register(16, 2, 1000),
    "Phase": Register(18, default=12),  # bit 4: positions count turns
    "Unloading_Condition": Register(19, default=OVERHEAT | OVERCURRENT | OVERLOAD),
    "LED_Alarm_Condition": Register(20, default=47),
    "P_Coefficient": Register(21, default=32),
    "D_Coefficient": Register(22, default=32),
    "I_Coefficient": Register(23),
    "Minimum_Startup_Force": Register(24, 2, 16),
    "CW_Dead_Zone": Register(26, default=1),
    "CCW_Dead_Zone": Register(27, default=1),
    "Protection_Current": Register(28, 2, 500),  # 6.5 mA
    "Angular_Resolution": Register(30, default=1),
    "Homing_Offset": Register(31, 2, 0, sign_bit=11),  # steps
    "Operating_Mode": Register(33),
    "Protective_Torque": Register(34, default=20),  # percent: torque limit after an overload
    "Protection_Time": Register(35, default=200),  # 10 ms
    "Overload_Torque": Register(36, default=80),  # percent: load above which Protection_Time runs
    "Velocity_closed_loop_P_proportional_coefficient": Register(37, default=10),
    "Over_Current_Protection_Time": Register(38, default=200),  # 10 ms
    "Velocity_closed_loop_I_integral_coefficient": Register(39, default=10),
    "Torque_Enable": Register(40),
    "Acceleration": Register(41),  # 100 steps/s^2; 0: no limit
    "Goal_Position": Register(42, 2, 0, sign_bit=15),
    "Goal_Time": Register(44, 2),
    "Goal_Velocity": Register(46, 2, 0, sign_bit=15),  # steps/s; 0: maximum
    "Torque_Limit": Register(48, 2, 1000),
    "Lock": Register(55),
    "Present_Position": Register(56, 2, 0, sign_bit=15, writable=False),
    "Present_Velocity": Register(58, 2, 0, sign_bit=15, writable=False),  # steps/s
    "Present_Load": Register(60, 2, 0, sign_bit=10, writable=False),
    "Present_Voltage": Register(62, writable=False),  # 0.1 V
    "Present_Temperature": Register(63, writable=False),  # deg C
    "Registered_Write": Register(64, writable=False),  # 1: a REG_WRITE is pending
    "Status": Register(65, writable=False),
    "Moving": Register(66, writable=False),
    "Present_Current": Register(69, 2, writable=False),  # 6.5 mA
    "Goal_Position_2": Register(71, 2, writable=False),
    "Moving_Velocity_Threshold": Register(80),
    "DTs": Register(81),
    "Velocity_Unit_factor": Register(82),
    "Hts": Register(83),
    "Maximum_Velocity_Limit": Register(84),
    "Maximum_Acceleration": Register(85),
    "Acceleration_Multiplier": Register(86),
}
WRITABLE = frozenset(a for register in REGISTERS.values() if register.writable for a in register.addresses)


def is_saved(address: int) -> bool:
    """Whether the byte at `address` is EEPROM."""
    return not _RAM_BEGIN <= address < _RAM_END


def pack(register: Register, value: int) -> bytes:
    """Encode a value as the register's bytes, clipped to the register's range."""
    bits = 8 * register.size if register.sign_bit is None else register.sign_bit
    magnitude = min(abs(value), (1 << bits) - 1)
    if register.sign_bit is None:
        magnitude = magnitude if value >= 0 else 0
    elif value < 0:
        magnitude |= 1 << register.sign_bit
    return magnitude.to_bytes(register.size, "little")


def unpack(register: Register, data: bytes) -> int:
    """Decode the register's bytes."""
    value = int.from_bytes(data, "little")
    if register.sign_bit is None:
        return value
    magnitude = value & ((1 << register.sign_bit) - 1)
    return -magnitude if value >> register.sign_bit & 1 else magnitude
