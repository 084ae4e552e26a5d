# SPDX-License-Identifier: Apache-2.0
"""One emulated Feetech STS3215: a control table, and a control loop that drives a shaft as the table demands.

A servo is independent of the bus (see `bus`) and of physics: it drives a `Shaft`. Behaviour that the vendor's
control table leaves open:

- EEPROM written while Lock is 1 is lost with the power, as the table says; with Lock 0 it is saved.
- Enabling torque holds the present position, whatever goal was written before.
- Writing a goal does not enable torque.
- An overload ends when torque is disabled, or when the goal is on the other side. The response to the write
  that disables torque still reports it.
- P, I and D are stored and have no effect; operating modes other than position hold the present position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from .sts_registers import (
    ANGLE,
    BAUD_RATES,
    OVERCURRENT,
    OVERHEAT,
    OVERLOAD,
    REGISTERS,
    STEPS_PER_TURN,
    TABLE_SIZE,
    VOLTAGE,
    WRITABLE,
    is_saved,
    pack,
    unpack,
)

NO_LOAD_SPEED = STEPS_PER_TURN / 6 / 0.222  # steps/s: 0.222 s for 60 deg at 12 V
_STALL_CURRENT = 2.7  # A at 12 V
_CURRENT_UNIT = 0.0065  # A
_SET_MIDDLE = 128  # written to Torque_Enable: the present position becomes 2048
_COUNT_TURNS = 0x10  # in Phase
_OTHER_SIDE = 10.0  # steps from the position to a goal that ends an overload
_STILL = 5.0  # steps/s, below which the shaft counts as still


@dataclass(frozen=True)
class ShaftState:
    """What a servo measures.

    Args:
        position: steps, continuous over turns.
        velocity: steps/s.
        load: torque as a share of the stall torque, -1 to 1.
    """

    position: float
    velocity: float = 0.0
    load: float = 0.0


class Shaft(Protocol):
    """What a servo turns."""

    def read(self) -> ShaftState:
        """Return the present state."""

    def drive(self, goal: float, torque: float) -> None:
        """Drive the shaft to `goal` [steps] with at most `torque`, 0 (no torque) to 1 (stall torque)."""


class Servo:
    """An STS3215.

    Args:
        name: the joint's name; the protocol does not carry it.
        shaft: what it turns.
        zero: encoder step at the shaft's position 0, which depends on how the horn is mounted.
        id: its number on the bus; new servos have 1.

    Attributes:
        powered: whether it has power; without, it has no torque and does not respond.
        temperature: deg C.
        voltage: V.
    """

    def __init__(self, name: str, shaft: Shaft, zero: float = 2048.0, id: int = 1) -> None:
        self.name, self.shaft, self.zero = name, shaft, zero
        self.temperature, self.voltage = 30.0, 12.0
        self._table = bytearray(TABLE_SIZE)
        for name_, register in REGISTERS.items():
            self.set(name_, register.default)
        self.set("ID", id)
        self._saved = bytes(self._table)
        self._state = shaft.read()
        self.powered = False
        self.power_on()

    # -- power -------------------------------------------------------------------------------------

    def power_off(self) -> None:
        """Switch off: no torque and no response from the next tick on."""
        self.powered = False

    def power_on(self) -> None:
        """Start up: EEPROM as saved, RAM at its defaults, torque disabled."""
        self._table[:] = self._saved
        self.set("Torque_Limit", self.get("Max_Torque_Limit"))
        self._prepared: tuple[int, bytes] | None = None
        self._overload_direction = 0.0
        self._setpoint, self._speed = self._state.position, 0.0
        self._clear_alarms()
        self.powered = True
        self._update_registers()

    def _clear_alarms(self) -> None:
        self._latched = 0  # OVERLOAD and OVERCURRENT stay set until torque is disabled
        self._exceeded_for = {OVERLOAD: 0.0, OVERCURRENT: 0.0}  # s that a load or current has been too high

    # -- host interface ----------------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self.get("ID")

    @property
    def baud_rate(self) -> int | None:
        """Baud rate at which it receives; None if the register's value has no meaning."""
        value = self.get("Baud_Rate")
        return BAUD_RATES[value] if value < len(BAUD_RATES) else None

    @property
    def has_torque(self) -> bool:
        return self.powered and self.get("Torque_Enable") == 1

    def get(self, name: str) -> int:
        """Return the value of a register."""
        register = REGISTERS[name]
        return unpack(register, bytes(self._table[register.address : register.address + register.size]))

    def set(self, name: str, value: int) -> None:
        """Set a register from inside the servo, writable or not; EEPROM changes until the next power loss."""
        register = REGISTERS[name]
        self._table[register.address : register.address + register.size] = pack(register, value)

    def save(self) -> None:
        """Save the EEPROM's present values."""
        self._saved = bytes(self._table[i] if is_saved(i) else self._saved[i] for i in range(TABLE_SIZE))

    def read(self, address: int, size: int) -> bytes:
        """Read `size` bytes from `address` on; addresses without a register read as 0."""
        return bytes(self._table[address : address + size]).ljust(size, b"\0")

    def write(self, address: int, data: bytes) -> None:
        """Write bytes from `address` on; read-only bytes are skipped."""
        had_torque = self.has_torque
        for index, value in enumerate(data, address):
            if index in WRITABLE:
                self._table[index] = value
        if not self.get("Lock"):
            self.save()
        if REGISTERS["Torque_Enable"].address in range(address, address + len(data)):
            self._switch_torque(had_torque)
        self._update_registers()

    def prepare(self, address: int, data: bytes) -> None:
        """Store a write until `act`."""
        self._prepared = address, data
        self.set("Registered_Write", 1)

    def act(self) -> None:
        """Execute the stored write, if there is one."""
        if self._prepared is not None:
            prepared, self._prepared = self._prepared, None
            self.set("Registered_Write", 0)
            self.write(*prepared)

    def _switch_torque(self, had_torque: bool) -> None:
        value = self.get("Torque_Enable")
        if value == _SET_MIDDLE:
            self.set("Homing_Offset", round(self._state.position + self.zero) % STEPS_PER_TURN - 2048)
            self.set("Torque_Enable", int(had_torque))
            if not self.get("Lock"):
                self.save()
        else:
            self.set("Torque_Enable", int(value != 0))
        if self.has_torque and (not had_torque or value == _SET_MIDDLE):
            self._setpoint, self._speed = self._state.position, 0.0
            self.set("Goal_Position", self._present())
        if not self.has_torque:
            self._clear_alarms()

    # -- control loop ------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """Run the control loop once: measure, protect, drive the shaft, update the registers."""
        self._state = self.shaft.read()
        self._protect(seconds)
        torque = self._torque()
        if torque == 0.0:
            self._setpoint, self._speed = self._state.position, 0.0
        elif self.get("Operating_Mode") == 0:
            self._follow(self._goal(), seconds)
        self.shaft.drive(self._setpoint, torque)
        self._update_registers()

    def _protect(self, seconds: float) -> None:
        """Set the bits of Status; overload and overcurrent after their protection times."""
        load = abs(self._state.load)
        current = load * _STALL_CURRENT / _CURRENT_UNIT
        limits = {
            OVERLOAD: (load * 100 > self.get("Overload_Torque"), self.get("Protection_Time")),
            OVERCURRENT: (current > self.get("Protection_Current"), self.get("Over_Current_Protection_Time")),
        }
        for bit, (is_exceeded, protection_time) in limits.items():
            self._exceeded_for[bit] = self._exceeded_for[bit] + seconds if is_exceeded else 0.0
            if self._exceeded_for[bit] > 0.01 * protection_time:
                self._latched |= bit
                self._overload_direction = math.copysign(1.0, self._state.load)
        if self._overload_direction * (self._goal() - self._state.position) < -_OTHER_SIDE:
            self._latched &= ~OVERLOAD
        low, high = self.get("Min_Voltage_Limit") / 10, self.get("Max_Voltage_Limit") / 10
        status = self._latched
        status |= VOLTAGE * (not low <= self.voltage <= high)
        status |= OVERHEAT * (self.temperature > self.get("Max_Temperature_Limit"))
        self.set("Status", status)

    def _torque(self) -> float:
        """Return the torque limit as a share of the stall torque."""
        if not self.has_torque:
            return 0.0
        alarms = self.get("Status") & self.get("Unloading_Condition")
        if alarms & (VOLTAGE | ANGLE | OVERHEAT | OVERCURRENT):
            return 0.0
        limit = min(self.get("Max_Torque_Limit"), self.get("Torque_Limit"), 1000) / 1000
        return min(limit, self.get("Protective_Torque") / 100) if alarms & OVERLOAD else limit

    def _present(self) -> int:
        """Return the position that the host reads: 0 to 4095, or continuous if Phase counts turns."""
        position = round(self._state.position + self.zero) - self.get("Homing_Offset")
        return position if self.get("Phase") & _COUNT_TURNS else position % STEPS_PER_TURN

    def _goal(self) -> float:
        """Return the host's goal, within the position limits, as a position of the shaft."""
        goal, low, high = (self.get(n) for n in ("Goal_Position", "Min_Position_Limit", "Max_Position_Limit"))
        if low < high:
            goal = min(max(goal, low), high)
        turns = round(self._state.position + self.zero) - self.get("Homing_Offset") - self._present()
        return goal + turns + self.get("Homing_Offset") - self.zero

    def _follow(self, goal: float, seconds: float) -> None:
        """Move the setpoint towards `goal` within the speed and acceleration limits."""
        max_speed = min(abs(self.get("Goal_Velocity")) or NO_LOAD_SPEED, NO_LOAD_SPEED)
        limits = [100.0 * value for n in ("Acceleration", "Maximum_Acceleration") if (value := self.get(n))]
        distance = goal - self._setpoint
        if not limits:
            self._speed = math.copysign(min(max_speed, abs(distance) / seconds), distance)
        else:
            change = min(limits) * seconds
            # The highest speed from which it can still stop at the goal, including one tick of delay.
            braking = math.sqrt((change / 2) ** 2 + 2 * min(limits) * abs(distance)) - change / 2
            wanted = math.copysign(min(max_speed, braking, abs(distance) / seconds), distance)
            self._speed += min(max(wanted - self._speed, -change), change)
        self._setpoint += self._speed * seconds

    def _update_registers(self) -> None:
        """Update the read-only registers."""
        state = self._state
        moving = abs(state.velocity) > _STILL or abs(self._speed) > _STILL
        for name, value in (
            ("Present_Position", self._present()),
            ("Present_Velocity", round(state.velocity)),
            ("Present_Load", round(state.load * 1000)),
            ("Present_Current", round(abs(state.load) * _STALL_CURRENT / _CURRENT_UNIT)),
            ("Present_Voltage", round(self.voltage * 10)),
            ("Present_Temperature", round(self.temperature)),
            ("Goal_Position_2", self.get("Goal_Position")),
            ("Moving", int(moving)),
        ):
            self.set(name, value)
