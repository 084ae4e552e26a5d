# SPDX-License-Identifier: Apache-2.0
"""One emulated Feetech STS3215: a control table, and a shaft that does what the table says.

A servo knows nothing of the wire (see `virtual_bus`) nor of physics: it drives a `Shaft`. What the maker's
control table leaves open was decided like this:

- EEPROM written while Lock is 1 counts until the power goes, as the table says; with Lock 0 it is kept.
- Torque that is switched on holds the present position, whatever goal was written before.
- Writing a goal does not switch torque on.
- An overload ends when torque is switched off, or when the goal is on the other side. The answer to the write
  that switches torque off still reports it.
- P, I and D are kept and have no effect; operating modes other than position hold the shaft where it is.
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
_SET_MIDDLE = 128  # written to Torque_Enable: from now on this position is 2048
_COUNT_TURNS = 0x10  # in Phase
_OTHER_SIDE = 10.0  # steps from where it is to a goal that ends an overload
_STILL = 5.0  # steps/s, below which a shaft does not move


@dataclass(frozen=True)
class ShaftState:
    """What a servo can measure.

    Args:
        position: steps, counted on over full turns.
        velocity: steps/s.
        load: torque as a share of the stall torque, -1 to 1.
    """

    position: float
    velocity: float = 0.0
    load: float = 0.0


class Shaft(Protocol):
    """What a servo turns."""

    def read(self) -> ShaftState:
        """The shaft's present state."""

    def drive(self, goal: float, torque: float) -> None:
        """From now on drive the shaft to `goal` [steps] with at most `torque`, 0 (limp) to 1 (stall torque)."""


class Servo:
    """An STS3215.

    Args:
        name: what people call it (the joint's name); it is not on the wire.
        shaft: what it turns.
        zero: encoder step at the shaft's position 0; it depends on how the horn was put on.
        id: its number on the bus; new servos have 1.

    Attributes:
        powered: whether it has power: without, it is limp and silent.
        temperature: deg C.
        voltage: V.
    """

    def __init__(self, name: str, shaft: Shaft, zero: float = 2048.0, id: int = 1) -> None:
        self.name, self.shaft, self.zero = name, shaft, zero
        self.temperature, self.voltage = 30.0, 12.0
        self._table = bytearray(TABLE_SIZE)
        for register in REGISTERS.values():
            self._table[register.address : register.address + register.size] = pack(
                register, register.default
            )
        self.set("ID", id)
        self._saved = bytes(self._table)
        self._state = shaft.read()
        self.powered = False
        self.power_on()

    # -- power -----------------------------------------------------------------------------------------------

    def power_off(self) -> None:
        """Limp and silent from the next tick on."""
        self.powered = False

    def power_on(self) -> None:
        """Start up: EEPROM as it was saved, RAM as delivered, torque off."""
        self._table[:] = self._saved
        self.set("Torque_Limit", self.get("Max_Torque_Limit"))
        self._prepared: tuple[int, bytes] | None = None
        self._latched = 0  # OVERLOAD and OVERCURRENT, until torque is switched off
        self._clocks = {OVERLOAD: 0.0, OVERCURRENT: 0.0}  # s that a load or current has been too high
        self._pushed = 0.0  # direction in which it pushed when it was overloaded
        self._setpoint, self._speed = self._state.position, 0.0
        self.powered = True
        self._report()

    # -- the host's side -------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self.get("ID")

    @property
    def baud_rate(self) -> int | None:
        """Baud rate it listens at; None for a number that stands for none."""
        number = self.get("Baud_Rate")
        return BAUD_RATES[number] if number < len(BAUD_RATES) else None

    @property
    def has_torque(self) -> bool:
        return self.powered and self.get("Torque_Enable") == 1

    def get(self, name: str) -> int:
        """The value of a register."""
        register = REGISTERS[name]
        return unpack(register, bytes(self._table[register.address : register.address + register.size]))

    def set(self, name: str, value: int) -> None:
        """Change a register from inside the servo, writable or not; EEPROM is changed until the power goes."""
        register = REGISTERS[name]
        self._table[register.address : register.address + register.size] = pack(register, value)

    def save(self) -> None:
        """Keep the EEPROM as it is now for the next time the power comes."""
        self._saved = bytes(self._table[i] if is_saved(i) else self._saved[i] for i in range(TABLE_SIZE))

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes from `address` on; addresses without a register read as 0."""
        return bytes(self._table[address : address + size]).ljust(size, b"\0")

    def write(self, address: int, data: bytes) -> None:
        """Write bytes from `address` on; what is not writable stays as it is."""
        had_torque = self.has_torque
        for where, value in enumerate(data, address):
            if where in WRITABLE:
                self._table[where] = value
        if not self.get("Lock"):
            self.save()
        if REGISTERS["Torque_Enable"].address in range(address, address + len(data)):
            self._switch_torque(had_torque)
        self._report()

    def prepare(self, address: int, data: bytes) -> None:
        """Keep a write until `act`."""
        self._prepared = address, data
        self.set("Registered_Write", 1)

    def act(self) -> None:
        """Do the write that was prepared, if there is one."""
        if self._prepared is not None:
            prepared, self._prepared = self._prepared, None
            self.set("Registered_Write", 0)
            self.write(*prepared)

    def _switch_torque(self, had_torque: bool) -> None:
        asked = self.get("Torque_Enable")
        if asked == _SET_MIDDLE:
            self.set("Homing_Offset", round(self._state.position + self.zero) % STEPS_PER_TURN - 2048)
            self.set("Torque_Enable", int(had_torque))
            if not self.get("Lock"):
                self.save()
        else:
            self.set("Torque_Enable", int(asked != 0))
        if self.has_torque and (not had_torque or asked == _SET_MIDDLE):
            self._setpoint, self._speed = self._state.position, 0.0
            self.set("Goal_Position", self._present())
        if not self.has_torque:
            self._latched, self._clocks = 0, {OVERLOAD: 0.0, OVERCURRENT: 0.0}

    # -- the shaft's side ------------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """Measure, protect, drive and report: one round of the servo's own control loop."""
        self._state = self.shaft.read()
        self._protect(seconds)
        torque = self._torque()
        if torque == 0.0:
            self._setpoint, self._speed = self._state.position, 0.0
        elif self.get("Operating_Mode") == 0:
            self._follow(self._goal(), seconds)
        self.shaft.drive(self._setpoint, torque)
        self._report()

    def _protect(self, seconds: float) -> None:
        """Run the clocks of overload and overcurrent, and set the bits of Status."""
        load = abs(self._state.load)
        current = load * _STALL_CURRENT / _CURRENT_UNIT
        limits = {
            OVERLOAD: (load * 100 > self.get("Overload_Torque"), self.get("Protection_Time")),
            OVERCURRENT: (current > self.get("Protection_Current"), self.get("Over_Current_Protection_Time")),
        }
        for bit, (is_over, patience) in limits.items():
            self._clocks[bit] = self._clocks[bit] + seconds if is_over else 0.0
            if self._clocks[bit] > 0.01 * patience:
                self._latched |= bit
                self._pushed = math.copysign(1.0, self._state.load)
        if self._pushed * (self._goal() - self._state.position) < -_OTHER_SIDE:
            self._latched &= ~OVERLOAD
        low, high = self.get("Min_Voltage_Limit") / 10, self.get("Max_Voltage_Limit") / 10
        status = self._latched
        status |= VOLTAGE * (not low <= self.voltage <= high)
        status |= OVERHEAT * (self.temperature > self.get("Max_Temperature_Limit"))
        self.set("Status", status)

    def _torque(self) -> float:
        """The most it may push with, as a share of the stall torque."""
        if not self.has_torque:
            return 0.0
        alarms = self.get("Status") & self.get("Unloading_Condition")
        if alarms & (VOLTAGE | ANGLE | OVERHEAT | OVERCURRENT):
            return 0.0
        limit = min(self.get("Max_Torque_Limit"), self.get("Torque_Limit"), 1000) / 1000
        return min(limit, self.get("Protective_Torque") / 100) if alarms & OVERLOAD else limit

    def _present(self) -> int:
        """Position in steps as the host sees it: 0 to 4095, unless Phase says to count turns."""
        position = round(self._state.position + self.zero) - self.get("Homing_Offset")
        return position if self.get("Phase") & _COUNT_TURNS else position % STEPS_PER_TURN

    def _goal(self) -> float:
        """The host's goal, within the position limits, as a position of the shaft."""
        goal, low, high = (self.get(n) for n in ("Goal_Position", "Min_Position_Limit", "Max_Position_Limit"))
        if low < high:
            goal = min(max(goal, low), high)
        turns = round(self._state.position + self.zero) - self.get("Homing_Offset") - self._present()
        return goal + turns + self.get("Homing_Offset") - self.zero

    def _follow(self, goal: float, seconds: float) -> None:
        """Move the setpoint towards `goal` within speed and acceleration, braking in time."""
        fastest = min(abs(self.get("Goal_Velocity")) or NO_LOAD_SPEED, NO_LOAD_SPEED)
        limits = [100.0 * value for n in ("Acceleration", "Maximum_Acceleration") if (value := self.get(n))]
        away = goal - self._setpoint
        if not limits:
            self._speed = math.copysign(min(fastest, abs(away) / seconds), away)
        else:
            change = min(limits) * seconds
            # The speed from which it can still stop at the goal, one tick of delay included.
            braking = math.sqrt((change / 2) ** 2 + 2 * min(limits) * abs(away)) - change / 2
            wanted = math.copysign(min(fastest, braking, abs(away) / seconds), away)
            self._speed += min(max(wanted - self._speed, -change), change)
        self._setpoint += self._speed * seconds

    def _report(self) -> None:
        """Bring the registers that only the servo writes up to date."""
        state = self._state
        self.set("Present_Position", self._present())
        self.set("Present_Velocity", round(state.velocity))
        self.set("Present_Load", round(state.load * 1000))
        self.set("Present_Current", round(abs(state.load) * _STALL_CURRENT / _CURRENT_UNIT))
        self.set("Present_Voltage", round(self.voltage * 10))
        self.set("Present_Temperature", round(self.temperature))
        self.set("Goal_Position_2", self.get("Goal_Position"))
        moving = abs(state.velocity) > _STILL or abs(self._speed) > _STILL
        self.set("Moving", int(moving))
