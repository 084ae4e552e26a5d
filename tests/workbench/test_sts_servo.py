# SPDX-License-Identifier: Apache-2.0
"""One emulated servo: its control table, its shaft, its protection."""

from itertools import pairwise

import pytest
from lerobot.motors.encoding_utils import decode_sign_magnitude, encode_sign_magnitude
from lerobot.motors.feetech.tables import (
    MODEL_NUMBER_TABLE,
    STS_SMS_SERIES_BAUDRATE_TABLE,
    STS_SMS_SERIES_CONTROL_TABLE,
    STS_SMS_SERIES_ENCODINGS_TABLE,
)

from lerobot_env_so101_workbench.virtual_arm.sts_registers import (
    BAUD_RATES,
    MODEL_NUMBER,
    REGISTERS,
    pack,
    unpack,
)
from lerobot_env_so101_workbench.virtual_arm.sts_servo import NO_LOAD_SPEED, Servo
from tests.workbench.virtual import DT, FreeShaft, turn, write


@pytest.fixture
def shaft():
    return FreeShaft()


@pytest.fixture
def servo(shaft):
    """A servo with torque whose encoder reads 2048 at the shaft's position 0."""
    servo = Servo("test", shaft)
    write(servo, Torque_Enable=1)
    return servo


# -- the control table -----------------------------------------------------------------------------


def test_the_control_table_is_lerobots():
    ours = {name: (register.address, register.size) for name, register in REGISTERS.items()}
    theirs = {name.strip(): entry for name, entry in STS_SMS_SERIES_CONTROL_TABLE.items()}
    theirs.pop("Moving_Velocity")  # LeRobot's second name for Moving_Velocity_Threshold
    assert theirs.items() <= ours.items()
    assert set(ours) - set(theirs) == {"Registered_Write"}
    assert MODEL_NUMBER_TABLE["sts3215"] == MODEL_NUMBER
    signs = {name: REGISTERS[name].sign_bit for name in REGISTERS if REGISTERS[name].sign_bit}
    assert signs.items() <= STS_SMS_SERIES_ENCODINGS_TABLE.items()
    for rate, number in STS_SMS_SERIES_BAUDRATE_TABLE.items():
        if number < 5:  # LeRobot's table leaves out the vendor's 76800 and is one off behind it
            assert BAUD_RATES[number] == rate


def test_no_two_registers_overlap():
    addresses = [address for register in REGISTERS.values() for address in register.addresses]
    assert len(addresses) == len(set(addresses))


@pytest.mark.parametrize("name", ["Homing_Offset", "Present_Load", "Goal_Position"])
def test_signs_are_lerobots(name):
    register = REGISTERS[name]
    for value in (0, 1, -1, 700, -700, 1023, -1023):
        data = pack(register, value)
        assert int.from_bytes(data, "little") == encode_sign_magnitude(value, register.sign_bit)
        assert (
            unpack(register, data)
            == value
            == decode_sign_magnitude(int.from_bytes(data, "little"), register.sign_bit)
        )


def test_values_out_of_range_are_clipped():
    assert unpack(REGISTERS["Homing_Offset"], pack(REGISTERS["Homing_Offset"], -2048)) == -2047
    assert unpack(REGISTERS["Present_Voltage"], pack(REGISTERS["Present_Voltage"], 300)) == 255
    assert unpack(REGISTERS["Present_Current"], pack(REGISTERS["Present_Current"], -1)) == 0


def test_words_are_little_endian(servo):
    assert servo.read(3, 2) == bytes([777 & 0xFF, 777 >> 8])
    assert servo.read(56, 2) == bytes([0x00, 0x08])  # 2048


def test_read_only_bytes_do_not_change(servo):
    before = servo.read(0, 128)
    servo.write(0, b"\x07" * 5)
    servo.write(56, b"\x07" * 15)
    servo.write(110, b"\x07")
    assert servo.read(0, 128) == before
    assert servo.read(120, 20) == bytes(20)


def test_with_lock_1_eeprom_changes_are_lost_with_the_power(servo):
    write(servo, Lock=0, P_Coefficient=16)
    write(servo, Lock=1, P_Coefficient=17, Acceleration=50)
    assert servo.get("P_Coefficient") == 17
    servo.power_off()
    servo.power_on()
    assert servo.get("P_Coefficient") == 16
    assert servo.get("Acceleration") == servo.get("Torque_Enable") == servo.get("Lock") == 0


def test_the_torque_limit_starts_at_the_saved_maximum(servo):
    write(servo, Max_Torque_Limit=500)
    assert servo.get("Torque_Limit") == 1000
    servo.power_on()
    assert servo.get("Torque_Limit") == 500


def test_a_prepared_write_waits_for_its_action(servo):
    servo.prepare(42, bytes([0, 4]))
    assert servo.get("Registered_Write") == 1
    assert servo.get("Goal_Position") != 1024
    servo.act()
    assert servo.get("Registered_Write") == 0
    assert servo.get("Goal_Position") == 1024
    servo.act()


# -- positions -------------------------------------------------------------------------------------


def test_the_homing_offset_is_subtracted(servo, shaft):
    write(servo, Homing_Offset=100)
    assert servo.get("Present_Position") == 1948
    write(servo, Homing_Offset=-100)
    assert servo.get("Present_Position") == 2148
    write(servo, Goal_Position=2148 + 50)
    turn(servo, shaft, 1.0)
    assert shaft.position == pytest.approx(50.0, abs=0.5)
    assert servo.get("Present_Position") == 2198


def test_positions_wrap_unless_turns_are_counted(servo, shaft):
    shaft.position = 2100.0
    servo.tick(DT)
    assert servo.get("Present_Position") == 2048 + 2100 - 4096
    write(servo, Phase=12 | 0x10)
    assert servo.get("Present_Position") == 2048 + 2100
    write(servo, Homing_Offset=2047)
    shaft.position = -100.0
    servo.tick(DT)
    assert servo.get("Present_Position") == -99


def test_a_goal_is_reached_beyond_the_wrap_too(servo, shaft):
    shaft.position = 2100.0
    servo.tick(DT)
    write(servo, Torque_Enable=0)
    write(servo, Torque_Enable=1)
    write(servo, Goal_Position=152)
    turn(servo, shaft, 1.0)
    assert shaft.position == pytest.approx(2200.0, abs=0.5)


def test_128_makes_this_position_the_middle(servo, shaft):
    shaft.position = 333.0
    servo.tick(DT)
    write(servo, Torque_Enable=128)
    assert servo.get("Homing_Offset") == 333
    assert servo.get("Present_Position") == 2048
    assert servo.get("Torque_Enable") == 1
    turn(servo, shaft, 0.5)
    assert shaft.position == pytest.approx(333.0)
    servo.power_on()
    assert servo.get("Homing_Offset") == 333


@pytest.mark.parametrize(("goal", "reached"), [(0, 1000), (1500, 1500), (4000, 3000)])
def test_goals_are_clipped_to_the_limits(servo, shaft, goal, reached):
    write(servo, Min_Position_Limit=1000, Max_Position_Limit=3000, Goal_Position=goal)
    turn(servo, shaft, 1.5)
    assert servo.get("Present_Position") == reached
    assert servo.get("Goal_Position") == servo.get("Goal_Position_2") == goal


# -- motion ----------------------------------------------------------------------------------------


def test_enabling_torque_holds_the_present_position(servo, shaft):
    write(servo, Torque_Enable=0)
    write(servo, Goal_Position=3000)
    turn(servo, shaft, 0.2)
    assert shaft.torque == 0
    shaft.position = -200.0
    servo.tick(DT)
    write(servo, Torque_Enable=1)
    turn(servo, shaft, 0.5)
    assert servo.get("Present_Position") == servo.get("Goal_Position") == 1848
    assert shaft.torque == 1


def test_the_fastest_turn_of_60_degrees_takes_222_ms(servo, shaft):
    write(servo, Goal_Position=4000)
    turn(servo, shaft, 0.222 + DT)
    assert shaft.position == pytest.approx(4096 / 6, rel=0.02)
    assert servo.get("Present_Velocity") == pytest.approx(NO_LOAD_SPEED, rel=0.01)


def test_speed_and_acceleration_follow_the_registers(servo, shaft):
    # 1000 steps/s^2, 500 steps/s, 1000 steps
    write(servo, Acceleration=10, Goal_Velocity=500, Goal_Position=3048)
    positions = [turn(servo, shaft, DT) or shaft.position for _ in range(int(3 / DT))]
    speeds = [(b - a) / DT for a, b in pairwise(positions)]
    changes = [(b - a) / DT for a, b in pairwise(speeds)]
    assert max(speeds) == pytest.approx(500, abs=1)
    assert max(map(abs, changes)) < 1100
    assert max(positions) <= 1000.5
    # Half a second up, 1.5 s at speed, half a second down.
    reached = next(i for i, position in enumerate(positions) if position > 999) * DT
    assert reached == pytest.approx(2.5, abs=0.1)


def test_the_lower_of_two_accelerations_counts(servo, shaft):
    write(servo, Acceleration=254, Maximum_Acceleration=10, Goal_Position=4000)
    turn(servo, shaft, 0.5)
    assert servo.get("Present_Velocity") == pytest.approx(500, abs=30)


def test_a_new_goal_while_moving_is_followed_without_a_jump(servo, shaft):
    write(servo, Acceleration=50, Goal_Position=3500)
    turn(servo, shaft, 0.3)
    write(servo, Goal_Position=1500)
    last = shaft.position
    for _ in range(int(2.0 / DT)):
        turn(servo, shaft, DT)
        assert abs(shaft.position - last) <= NO_LOAD_SPEED * DT * 1.01
        last = shaft.position
    assert servo.get("Present_Position") == 1500
    assert servo.get("Moving") == 0


def test_moving_is_reported(servo, shaft):
    assert servo.get("Moving") == 0
    write(servo, Goal_Position=3000)
    turn(servo, shaft, 0.1)
    assert servo.get("Moving") == 1


def test_other_operating_modes_hold_the_position(servo, shaft):
    write(servo, Operating_Mode=1, Goal_Velocity=1000, Goal_Position=3000)
    turn(servo, shaft, 0.5)
    assert shaft.position == 0
    assert shaft.torque == 1


# -- protection ------------------------------------------------------------------------------------


def test_torque_limits_reach_the_shaft(servo, shaft):
    for limits, expected in (
        ({"Torque_Limit": 300}, 0.3),
        ({"Torque_Limit": 1000, "Max_Torque_Limit": 500}, 0.5),
    ):
        write(servo, **limits)
        servo.tick(DT)
        assert shaft.torque == expected


def test_a_jam_ends_in_overload(servo, shaft):
    shaft.stuck = True
    write(servo, Goal_Position=3000)
    turn(servo, shaft, 1.95)
    assert servo.get("Present_Load") == 1000
    assert servo.get("Present_Current") == round(2.7 / 0.0065)
    assert servo.get("Status") == 0
    turn(servo, shaft, 0.1)
    assert servo.get("Status") == 32
    assert shaft.torque == 0.2
    assert servo.get("Present_Load") == 200
    shaft.stuck = False
    turn(servo, shaft, 1.0)  # it stays so though the jam is gone
    assert servo.get("Status") == 32
    write(servo, Torque_Enable=0)
    assert servo.get("Status") == 32  # in the response to this write
    servo.tick(DT)
    assert servo.get("Status") == 0
    write(servo, Torque_Enable=1)
    servo.tick(DT)
    assert shaft.torque == 1


def test_a_goal_on_the_other_side_ends_an_overload(servo, shaft):
    shaft.stuck = True
    write(servo, Goal_Position=3000)
    turn(servo, shaft, 2.1)
    write(servo, Goal_Position=2500)
    turn(servo, shaft, 0.1)
    assert servo.get("Status") == 32
    write(servo, Goal_Position=2000)
    turn(servo, shaft, 0.1)
    assert servo.get("Status") == 0
    assert shaft.torque == 1


def test_the_time_and_torque_of_an_overload_are_registers(servo, shaft):
    shaft.stuck = True
    write(
        servo, Torque_Limit=300, Overload_Torque=25, Protection_Time=20, Protective_Torque=10, Goal_Position=0
    )
    turn(servo, shaft, 0.15)
    assert servo.get("Present_Load") == -300
    assert servo.get("Status") == 0
    turn(servo, shaft, 0.1)
    assert servo.get("Status") == 32
    assert shaft.torque == 0.1


def test_a_short_load_is_no_overload(servo, shaft):
    write(servo, Goal_Position=3000)
    for _ in range(4):
        shaft.stuck = True
        turn(servo, shaft, 1.5)
        shaft.stuck = False
        turn(servo, shaft, 0.5)
        write(servo, Goal_Position=3000 if servo.get("Goal_Position") == 1000 else 1000)
    assert servo.get("Status") == 0


def test_overload_without_unloading_is_only_reported(servo, shaft):
    shaft.stuck = True
    write(servo, Unloading_Condition=0, Goal_Position=3000)
    turn(servo, shaft, 2.1)
    assert servo.get("Status") == 32
    assert shaft.torque == 1


def test_overcurrent_disables_the_torque(servo, shaft):
    shaft.stuck = True
    write(servo, Protection_Current=100, Over_Current_Protection_Time=50, Goal_Position=3000)
    turn(servo, shaft, 0.6)
    assert servo.get("Status") == 8
    assert shaft.torque == 0


def test_overheating_disables_the_torque_and_voltage_is_reported(servo, shaft):
    servo.temperature, servo.voltage = 71.0, 3.9
    servo.tick(DT)
    assert servo.get("Status") == 4 | 1
    assert (servo.get("Present_Temperature"), servo.get("Present_Voltage")) == (71, 39)
    assert shaft.torque == 0
    servo.temperature, servo.voltage = 40.0, 12.0
    servo.tick(DT)
    assert servo.get("Status") == 0
    assert shaft.torque == 1


def test_without_power_there_is_no_torque(servo, shaft):
    servo.power_off()
    servo.tick(DT)
    assert shaft.torque == 0
