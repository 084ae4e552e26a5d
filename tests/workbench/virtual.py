# SPDX-License-Identifier: Apache-2.0
"""Servos without physics, for tests of the servo and of its bus."""

import math

from lerobot_env_so101_workbench.virtual_arm.bus import VirtualBus
from lerobot_env_so101_workbench.virtual_arm.sts_registers import REGISTERS, pack
from lerobot_env_so101_workbench.virtual_arm.sts_servo import Servo, ShaftState
from lerobot_processor_so101.arm import JOINTS

DT = 1 / 180  # s


class FreeShaft:
    """A shaft without mass that is where it is driven to, unless it is stuck."""

    def __init__(self):
        self.position, self.velocity, self.load = 0.0, 0.0, 0.0
        self.goal, self.torque, self.stuck = 0.0, 0.0, False

    def read(self):
        return ShaftState(self.position, self.velocity, self.load)

    def drive(self, goal, torque):
        self.goal, self.torque = goal, torque

    def turn(self, seconds):
        away = self.goal - self.position if self.torque else 0.0
        self.velocity = 0.0 if self.stuck else away / seconds
        self.load = math.copysign(self.torque, away) if self.stuck and abs(away) > 1 else 0.0
        self.position += self.velocity * seconds


def write(servo, **values):
    """Write registers as a host does."""
    for name, value in values.items():
        servo.write(REGISTERS[name].address, pack(REGISTERS[name], value))


def turn(servo, shaft, seconds):
    """Let a servo and its shaft run."""
    for _ in range(round(seconds / DT)):
        shaft.turn(DT)
        servo.tick(DT)


def six_servos(set_up=True):
    """An arm's servos, put together a little off: 2100 for the first, 2110 for the second..."""
    return [
        Servo(joint, FreeShaft(), zero=2090.0 + 10 * number, id=number if set_up else 1)
        for number, joint in enumerate(JOINTS, 1)
    ]


def let_pass(bus: VirtualBus, seconds):
    """Let the servos of a bus and their shafts run."""
    for _ in range(round(seconds / DT)):
        for servo in bus.servos:
            servo.shaft.turn(DT)
        bus.tick(DT)
