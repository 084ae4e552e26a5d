# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own Feetech driver on a bus of emulated servos, well and with every fault."""

import os
import select
import termios
import threading
import time

import pytest
import serial
from lerobot.motors import Motor, MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus, feetech
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from lerobot_env_so101_workbench.virtual_arm import bus as virtual_bus
from lerobot_env_so101_workbench.virtual_arm.bus import VirtualBus
from lerobot_env_so101_workbench.virtual_arm.faults import KINDS, Faults
from lerobot_env_so101_workbench.virtual_arm.sts_protocol import BROADCAST, PING, READ, WRITE, Packet
from lerobot_processor_so101.arm import JOINTS
from tests.workbench.virtual import let_pass, six_servos, write

POSITIONS = {joint: 2090 + 10 * number for number, joint in enumerate(JOINTS, 1)}


def motors():
    return {joint: Motor(i, "sts3215", MotorNormMode.DEGREES) for i, joint in enumerate(JOINTS, 1)}


@pytest.fixture(autouse=True)
def driver_timeout(monkeypatch):
    """`driver_timeout(ms)`: set the driver's timeout; its 50 ms are short on a busy machine."""

    def wait(milliseconds: float) -> None:
        def set_timeout(self, packet_length):
            self.packet_start_time = self.getCurrentTime()
            self.packet_timeout = milliseconds

        monkeypatch.setattr(feetech, "patch_setPacketTimeout", set_timeout)

    wait(2000)
    return wait


@pytest.fixture
def bus():
    with VirtualBus(six_servos()) as bus:
        yield bus


@pytest.fixture
def connect(bus):
    """`connect()`: LeRobot's driver on the bus, connected."""
    drivers = []

    def connect():
        driver = FeetechMotorsBus(bus.port, motors())
        driver.connect()
        drivers.append(driver)
        return driver

    yield connect
    for driver in drivers:
        if driver.is_connected:
            driver.port_handler.closePort()


def positions(driver, **kwargs):
    return driver.sync_read("Present_Position", normalize=False, **kwargs)


# -- the driver as it is ---------------------------------------------------------------------------


def test_connecting_finds_six_servos(connect):
    driver = connect()
    assert driver.broadcast_ping() == dict.fromkeys(range(1, 7), 777)
    assert driver.ping("gripper") == 777


def test_registers_are_read_and_written(bus, connect):
    driver = connect()
    driver.write("P_Coefficient", "elbow_flex", 16)
    assert driver.read("P_Coefficient", "elbow_flex") == bus.servo("elbow_flex").get("P_Coefficient") == 16
    driver.write("Homing_Offset", "elbow_flex", -300)
    assert driver.read("Homing_Offset", "elbow_flex") == -300
    assert driver.read("Present_Position", "elbow_flex", normalize=False) == POSITIONS["elbow_flex"] + 300


def test_all_are_read_and_written_at_once(bus, connect):
    driver = connect()
    assert positions(driver) == POSITIONS
    driver.enable_torque()
    goals = {joint: 2000 + i for i, joint in enumerate(JOINTS)}
    driver.sync_write("Goal_Position", goals, normalize=False)
    assert driver.sync_read("Goal_Position", normalize=False) == goals  # comes after the writing
    let_pass(bus, 1.0)
    assert positions(driver) == goals


def test_the_follower_configures_its_servos(bus):
    follower = SO101Follower(SO101FollowerConfig(port=bus.port, id="none"))
    follower.connect(calibrate=False)
    gripper = bus.servo("gripper")
    assert [gripper.get(name) for name in ("Max_Torque_Limit", "Protection_Current", "Overload_Torque")] == [
        500,
        250,
        25,
    ]
    assert all(servo.get("Return_Delay_Time") == 0 for servo in bus.servos)
    assert all(servo.get("Acceleration") == servo.get("Maximum_Acceleration") == 254 for servo in bus.servos)
    assert all(servo.has_torque and servo.get("Lock") for servo in bus.servos)
    follower.disconnect()
    assert not any(servo.has_torque or servo.get("Lock") for servo in bus.servos)


def test_homing_makes_the_present_position_the_middle(bus, connect):
    driver = connect()
    driver.disable_torque()
    offsets = driver.set_half_turn_homings()
    assert offsets == {joint: position - 2047 for joint, position in POSITIONS.items()}
    assert set(positions(driver).values()) == {2047}
    bus.brown_out(0.1)
    let_pass(bus, 0.2)
    assert set(positions(driver).values()) == {2047}  # it was saved


def test_limits_that_calibration_writes_stop_a_goal(bus, connect):
    driver = connect()
    driver.disable_torque()
    driver.write("Max_Position_Limit", "wrist_flex", 2200)
    driver.enable_torque()
    driver.sync_write("Goal_Position", {"wrist_flex": 4000}, normalize=False)
    assert driver.read("Goal_Position", "wrist_flex", normalize=False) == 4000
    let_pass(bus, 1.0)
    assert positions(driver)["wrist_flex"] == 2200


def test_servos_are_set_up_one_at_a_time(monkeypatch):
    with VirtualBus(six_servos(set_up=False)) as bus:
        write(bus.servo("elbow_flex"), Baud_Rate=1)  # a used servo
        driver = FeetechMotorsBus(bus.port, motors())
        for joint in ("elbow_flex", "shoulder_lift"):
            bus.attach(joint)
            driver.setup_motor(joint)
            assert bus.servo(joint).id == driver.motors[joint].id
        bus.attach("shoulder_lift", "elbow_flex")  # both start up again: the ids were saved
        assert driver.broadcast_ping() == {2: 777, 3: 777}
        driver.port_handler.closePort()


def test_responses_of_two_servos_with_one_id_collide():
    with VirtualBus(six_servos(set_up=False)) as bus:
        bus.attach("shoulder_pan", "gripper")
        assert bus.respond(Packet(1, PING)) == [
            Packet(1, 0).encode()
        ]  # identical bytes combine to the same bytes
        (received,) = bus.respond(Packet(1, READ, bytes([56, 2])))
        assert sum(received[2:]) & 0xFF != 0xFF  # 2100 and 2150: the checksum is wrong


def test_servos_ignore_other_baud_rates(bus):
    with serial.Serial(bus.port, 500_000, timeout=0.2) as port:
        port.write(Packet(1, PING).encode())
        assert port.read(6) == b""
        port.baudrate = 1_000_000
        port.timeout = 2
        port.write(Packet(1, PING).encode())
        assert port.read(6) == Packet(1, 0).encode()


def test_noise_on_the_wire_is_survived(bus):
    with serial.Serial(bus.port, 1_000_000, timeout=2) as port:
        port.write(b"\xff\xff\x01\xf0\x03")  # announces 240 bytes that never arrive
        time.sleep(0.1)
        port.write(b"\x00\xff" + Packet(2, PING).encode())
        assert port.read(6) == Packet(2, 0).encode()


def test_broadcasts_are_executed_without_response(bus):
    assert bus.respond(Packet(BROADCAST, WRITE, bytes([41, 50]))) == []
    assert {servo.get("Acceleration") for servo in bus.servos} == {50}
    assert bus.respond(Packet(BROADCAST, READ, bytes([56, 2]))) == []
    assert [response[2] for response in bus.respond(Packet(BROADCAST, PING))] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("code", "params"), [(READ, b"\x38"), (WRITE, b"\x2a"), (0x82, b""), (0x83, b"\x2a"), (0x55, b"")]
)
def test_invalid_instructions_get_no_response(bus, code, params):
    assert bus.respond(Packet(1, code, params)) == []


def test_a_servo_can_be_set_to_respond_to_reads_only(bus):
    write(bus.servo("shoulder_pan"), Response_Status_Level=0)
    assert bus.respond(Packet(1, WRITE, bytes([41, 50]))) == []
    assert len(bus.respond(Packet(1, READ, bytes([41, 1])))) == 1


def test_responses_take_as_long_as_on_the_wire(bus):
    write(bus.servo("shoulder_pan"), Return_Delay_Time=250)  # 500 us, and 120 us for 12 bytes
    with serial.Serial(bus.port, 1_000_000, timeout=2) as port:
        begin = time.perf_counter()
        port.write(Packet(1, PING).encode())
        port.read(6)
        assert time.perf_counter() - begin > 620e-6


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unheard", "There is no status packet"),
        ("lost", "There is no status packet"),
        ("late", "There is no status packet"),
        ("corrupted", "status packet"),
        ("checksum", "Incorrect status packet"),
    ],
)
def test_a_bad_response_raises_and_a_second_try_succeeds(
    bus, connect, driver_timeout, monkeypatch, kind, message
):
    driver_timeout(150)
    monkeypatch.setattr(virtual_bus, "_LATE", 0.25)
    driver = connect()
    bus.faults.next(kind)
    with pytest.raises(ConnectionError, match=rf"Failed to read 'Present_Position' on id_=3.*{message}"):
        driver.read("Present_Position", "elbow_flex", normalize=False)
    bus.faults.next(kind)
    assert driver.read("Present_Position", "elbow_flex", normalize=False, num_retry=1) == 2120


def test_one_lost_response_fails_the_sync_read_and_the_driver_names_no_servo(bus, connect, driver_timeout):
    driver_timeout(150)
    driver = connect()
    bus.faults.silence("elbow_flex")
    with pytest.raises(ConnectionError, match=r"on ids=\[1, 2, 3, 4, 5, 6\] after 2 tries.*no status packet"):
        positions(driver, num_retry=1)
    bus.faults.clear()
    assert positions(driver) == POSITIONS


def test_a_silent_servo_is_missing_when_connecting(bus, driver_timeout):
    driver_timeout(150)
    bus.faults.silence("elbow_flex")
    with pytest.raises(RuntimeError, match=r"Missing motor IDs:\s+- 3 \(expected model: 777\)"):
        FeetechMotorsBus(bus.port, motors()).connect()


def test_a_silent_servo_still_executes(bus, connect):
    driver = connect()
    driver.enable_torque()
    bus.faults.silence("elbow_flex")
    driver.sync_write("Goal_Position", {"elbow_flex": 2000}, normalize=False)
    assert driver.ping("gripper") == 777  # comes after the writing
    assert bus.servo("elbow_flex").get("Goal_Position") == 2000


def test_an_overload_raises_in_writes_but_not_in_sync_reads(bus, connect):
    driver = connect()
    driver.enable_torque()
    bus.servo("shoulder_pan").shaft.stuck = True
    driver.sync_write("Goal_Position", {"shoulder_pan": 3000}, normalize=False)
    assert driver.ping("gripper") == 777
    let_pass(bus, 2.2)
    assert positions(driver)["shoulder_pan"] == POSITIONS["shoulder_pan"]
    with pytest.raises(RuntimeError, match=r"Failed to read 'Present_Load' on id_=1.*Overload error"):
        driver.read("Present_Load", "shoulder_pan")
    # Switching torque off reports the overload for the last time, and the driver gives up on the others.
    with pytest.raises(RuntimeError, match=r"Failed to write 'Torque_Enable' on id_=1.*Overload error"):
        driver.disconnect()
    assert [servo.has_torque for servo in bus.servos] == [False] + [True] * 5
    let_pass(bus, 0.1)
    driver.disconnect()
    assert not any(servo.has_torque for servo in bus.servos)


def test_after_a_brown_out_servos_have_no_torque_and_nothing_reports_it(bus, connect, driver_timeout):
    driver_timeout(150)
    driver = connect()
    driver.enable_torque()
    driver.write("Acceleration", "gripper", 254)
    bus.brown_out(0.2)
    let_pass(bus, 0.1)
    with pytest.raises(ConnectionError, match="no status packet"):
        positions(driver)
    let_pass(bus, 0.2)
    assert positions(driver) == POSITIONS
    driver.sync_write("Goal_Position", dict.fromkeys(JOINTS, 2000), normalize=False)
    let_pass(bus, 0.5)
    assert positions(driver) == POSITIONS
    assert driver.read("Torque_Enable", "gripper") == driver.read("Acceleration", "gripper") == 0


def test_an_unplugged_cable_fails_at_once_and_servos_keep_their_torque(bus, connect):
    driver = connect()
    driver.enable_torque()
    bus.unplug()
    with pytest.raises(termios.error, match="Input/output error"):  # no OSError, and it names no port
        positions(driver)
    with pytest.raises(ConnectionError, match=r"plug_in\(\)"):
        _ = bus.port
    assert all(servo.has_torque for servo in bus.servos)
    bus.plug_in()
    assert positions(connect()) == POSITIONS


def test_random_faults_follow_the_seed():
    def arrived(seed):
        faults = Faults(seed)
        faults.rate("lost", 0.3)
        faults.rate("corrupted", 0.3)
        return [faults.deliver(Packet(1, 0, b"\x00\x08").encode()) for _ in range(300)]

    assert arrived(1) == arrived(1) != arrived(2)
    assert 60 < arrived(1).count(b"") < 120


def test_the_driver_gets_through_a_noisy_line(bus, connect, driver_timeout):
    driver = connect()
    driver_timeout(100)
    driver.port_handler.setPacketTimeout = feetech.patch_setPacketTimeout.__get__(driver.port_handler)
    bus.faults.rate("checksum", 0.05)
    for _ in range(30):
        assert positions(driver, num_retry=20) == POSITIONS


def test_invalid_faults_are_refused():
    with pytest.raises(ValueError, match=f"found 'rust', expected one of {', '.join(KINDS)}"):
        Faults().next("rust")
    with pytest.raises(ValueError, match="probability of lost: found 2, expected 0 to 1"):
        Faults().rate("lost", 2)
    with pytest.raises(ValueError, match="servo: found 'knee', expected one of shoulder_pan"):
        VirtualBus(six_servos()).attach("knee")


# -- the port --------------------------------------------------------------------------------------


def open_files():
    return set(os.listdir("/dev/fd"))


def test_nothing_is_left_behind(tmp_path):
    files = len(open_files())
    link = tmp_path / "port"
    for _ in range(3):
        with VirtualBus(six_servos(), link) as bus:
            assert link.is_symlink()
            bus.plug_in()  # once more does nothing
            with serial.Serial(str(link), 1_000_000, timeout=2) as port:
                port.write(Packet(1, PING).encode())
                assert port.read(6)
        bus.unplug()
    assert not link.is_symlink()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virtual-")]
    assert len(open_files()) <= files


def test_a_host_that_never_reads_does_not_stop_the_bus(bus):
    write(bus.servo("shoulder_pan"), Return_Delay_Time=0)
    with serial.Serial(bus.port, 1_000_000, timeout=2, write_timeout=5) as port:
        for _ in range(600):  # 127 kB of responses, more than the terminal holds
            port.write(Packet(1, READ, bytes([0, 206])).encode())
        time.sleep(0.2)
        port.reset_input_buffer()
        port.write(Packet(2, PING).encode())
        deadline = time.monotonic() + 5
        received = b""
        while Packet(2, 0).encode() not in received and time.monotonic() < deadline:
            select.select([port.fileno()], [], [], 0.1)
            received += port.read(port.in_waiting)
        assert Packet(2, 0).encode() in received


def test_a_path_that_is_taken_is_left_alone(tmp_path):
    path = tmp_path / "port"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is no link; choose another path"):
        VirtualBus([], path).plug_in()
    path.unlink()
    path.symlink_to("/dev/pts/does-not-exist")
    with (
        VirtualBus(six_servos(), path),
        pytest.raises(FileExistsError, match="perhaps of another virtual arm"),
    ):
        VirtualBus([], path).plug_in()
