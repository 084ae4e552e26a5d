# SPDX-License-Identifier: Apache-2.0
"""LeRobot's cameras on the emulated arm: frames, latency and errors."""

import multiprocessing
import os
import threading
import time
import types
from pathlib import Path

import draccus
import numpy as np
import pytest
from lerobot.cameras import CameraConfig, make_cameras_from_configs
from lerobot.motors.feetech import feetech
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from lerobot_env_so101_workbench import SO101VirtualCameraConfig, camera
from lerobot_env_so101_workbench.virtual_arm import calibration as virtual_calibration, frame_file
from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArm, VirtualArmConfig
from lerobot_env_so101_workbench.virtual_arm.console import Console, describe
from lerobot_env_so101_workbench.virtual_arm.frame_file import FrameReader, FrameWriter, frame_path
from lerobot_env_so101_workbench.virtual_arm.joints import STEP, hold
from tests.slow_machine import set_timeout

SIZE = {"width": 32, "height": 24, "fps": 30}
FRAME = 1 / 30  # s


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """The ray-caster, files of this test only, and a driver that waits for a busy machine."""
    from lerobot.robots import robot

    monkeypatch.setattr(feetech, "patch_setPacketTimeout", set_timeout)
    monkeypatch.setenv("MUJOCO_GL", "disable")
    for module in (robot, virtual_calibration):
        monkeypatch.setattr(module, "HF_LEROBOT_CALIBRATION", tmp_path / "calibration")


@pytest.fixture
def options(tmp_path):
    """`options(...)`: a configuration with two small cameras."""
    defaults = {
        "leader": "none",
        "follower_port": tmp_path / "follower",
        "cameras": ["top", "wrist"],
        "width": SIZE["width"],
        "height": SIZE["height"],
    }
    return lambda **kwargs: VirtualArmConfig(**{**defaults, **kwargs})


@pytest.fixture
def plugged(options, monkeypatch):
    """`plugged(...)`: a virtual arm whose time, and that of frames, passes in `advance` only."""
    arms = []

    def plug(**kwargs):
        arms.append(VirtualArm(options(**kwargs)))
        arms[-1].plug_in()
        monkeypatch.setattr(frame_file, "now", lambda: arms[-1]._steps * STEP)
        return arms[-1]

    yield plug
    for virtual_arm in arms:
        virtual_arm.close()


@pytest.fixture
def camera_of(tmp_path):
    """`camera_of(view, ...)`: a camera made as LeRobot makes it."""
    made = []

    def make(view="top", **changes):
        config = SO101VirtualCameraConfig(**{"view": view, "port": tmp_path / "follower", **SIZE, **changes})
        made.append(make_cameras_from_configs({"device": config})["device"])
        return made[-1]

    yield make
    for each in made:
        if each.is_connected:
            each.disconnect()


def connected(virtual_arm, camera_of, view="top"):
    """A connected camera of an arm that has sent its first frame."""
    virtual_arm.advance(FRAME)
    device = camera_of(view)
    device.connect()
    return device


def turn(virtual_arm, degrees=20):
    """Turn the arm by hand, so that frames change."""
    side = virtual_arm.follower
    radians = side.joints.radians.copy()
    radians[0] += np.radians(degrees)
    side.joints.hand = hold(radians)


def truth(virtual_arm, view="top"):
    return virtual_arm.world.render(view, SIZE["height"], SIZE["width"]).rgb


# -- frames ----------------------------------------------------------------------------------------


def test_lerobot_parses_the_option_and_makes_the_camera():
    config = draccus.decode(CameraConfig, {"type": "so101_virtual", "view": "wrist", **SIZE})
    device = make_cameras_from_configs({"wrist": config})["wrist"]
    assert type(device) is camera.SO101VirtualCamera
    assert (device.width, device.height, device.fps) == (32, 24, 30)
    assert config.port == Path("/tmp/so101_follower")
    with pytest.raises(ValueError, match=r"view: found camera 'tpo'.*Did you mean 'top'"):
        make_cameras_from_configs({"top": SO101VirtualCameraConfig(view="tpo")})


def test_frames_are_images_of_the_world(plugged, camera_of):
    virtual_arm = plugged()
    devices = [connected(virtual_arm, camera_of, view) for view in ("top", "wrist")]
    before = devices[0].read_latest()
    virtual_arm.follower.joints.hand = None  # the arm falls
    virtual_arm.advance(10 * FRAME)
    for device, view in zip(devices, ("top", "wrist"), strict=True):
        frame = device.read_latest()
        assert frame.dtype == np.uint8
        assert frame.flags.writeable
        np.testing.assert_array_equal(frame, truth(virtual_arm, view))
    assert not np.array_equal(devices[0].read_latest(), before)
    assert not np.array_equal(devices[0].read_latest(), devices[1].read_latest())


@pytest.mark.parametrize("fps", [30, 25, 60])
def test_frames_arrive_at_the_cameras_rate(plugged, fps):
    virtual_arm = plugged(cameras=["top"], camera_fps=fps)
    virtual_arm.advance(1.0)
    assert abs(virtual_arm.cameras["top"].delivered - fps) <= 1
    assert virtual_arm.cameras["top"].skipped == 0


def test_the_followers_observation_has_both_images(plugged, tmp_path):
    virtual_arm = plugged()
    virtual_arm.advance(FRAME)
    port = tmp_path / "follower"
    cameras = {view: SO101VirtualCameraConfig(view=view, port=port, **SIZE) for view in ("top", "wrist")}
    robot = SO101Follower(SO101FollowerConfig(port=str(port), id="virtual", cameras=cameras))
    assert robot.observation_features["wrist"] == (24, 32, 3)
    robot.connect()
    observation = robot.get_observation()
    np.testing.assert_array_equal(observation["top"], truth(virtual_arm, "top"))
    np.testing.assert_array_equal(observation["wrist"], truth(virtual_arm, "wrist"))
    assert len(observation) == 8
    robot.disconnect()
    assert not any(each.is_connected for each in robot.cameras.values())


# -- reading, as LeRobot's cameras do --------------------------------------------------------------


def test_async_read_returns_each_frame_once_and_read_waits_for_a_new_one(plugged, camera_of, monkeypatch):
    virtual_arm = plugged(cameras=["top"])
    device = connected(virtual_arm, camera_of)
    device.async_read()
    with pytest.raises(TimeoutError, match="found no new frame in 5 ms, expected 30 per second"):
        device.async_read(timeout_ms=5)
    virtual_arm.advance(FRAME)
    device.read_latest()  # does not mark the frame as read
    np.testing.assert_array_equal(device.async_read(timeout_ms=0), truth(virtual_arm))
    virtual_arm.advance(FRAME)
    monkeypatch.setattr(camera, "_READ_MS", 5)
    with pytest.raises(TimeoutError):
        device.read()  # the one that is there is not new
    sleep = types.SimpleNamespace(sleep=lambda seconds: virtual_arm.advance(FRAME), monotonic=lambda: 0.0)
    monkeypatch.setattr(camera, "time", sleep)
    turn(virtual_arm)
    assert device.read().shape == (24, 32, 3)


def test_connecting_and_disconnecting(plugged, camera_of, monkeypatch):
    virtual_arm = plugged(cameras=["top"])
    device = camera_of(width=None, height=None, fps=None)
    with pytest.raises(DeviceNotConnectedError):
        device.read_latest()
    with pytest.raises(DeviceNotConnectedError):
        device.disconnect()
    monkeypatch.setattr(camera, "_WARMUP_S", 0.01)
    with pytest.raises(ConnectionError, match=r"found no frame in 0\.01 s"):
        device.connect()
    assert not device.is_connected
    device.connect(warmup=False)
    assert (device.width, device.height, device.fps) == (32, 24, 30)
    with pytest.raises(DeviceAlreadyConnectedError):
        device.connect()
    with pytest.raises(RuntimeError, match="found no frame yet"):
        device.read_latest()
    virtual_arm.advance(FRAME)
    device.read_latest()
    device.disconnect()
    with device:
        assert device.is_connected
    assert not device.is_connected


def test_find_cameras_lists_running_arms(plugged, tmp_path, monkeypatch):
    monkeypatch.setattr(camera, "FOLLOWER_PORT", str(tmp_path / "usual"))
    (tmp_path / "other.top").write_text("a note")
    os.mkfifo(tmp_path / "other.wrist")
    assert camera.SO101VirtualCamera.find_cameras() == []
    virtual_arm = plugged()
    found = camera.SO101VirtualCamera.find_cameras()
    assert [each["view"] for each in found] == ["top", "wrist"]
    assert found[0]["port"] == str(tmp_path / "follower")
    assert found[0]["default_stream_profile"] == {"format": "RGB", **SIZE}
    virtual_arm.close()
    assert camera.SO101VirtualCamera.find_cameras() == []


# -- faults ----------------------------------------------------------------------------------------


def test_latency_delays_frames(plugged, camera_of):
    virtual_arm = plugged(cameras=["top"])
    device = connected(virtual_arm, camera_of)
    before = truth(virtual_arm)
    Console(virtual_arm).do("top latency 100")
    virtual_arm.advance(STEP)
    turn(virtual_arm, 40)
    changed = []
    for _ in range(30):
        virtual_arm.advance(STEP)
        changed.append(not np.array_equal(device.read_latest(), before))
    # The turned arm's first frame is rendered at the fifth step and arrives 18 steps later.
    assert changed.index(True) + 1 == 5 + 18
    Console(virtual_arm).do("well")
    assert virtual_arm.cameras["top"].faults.latency == 0


def test_dropped_frames_do_not_arrive_and_those_of_a_hanging_camera_are_too_old(plugged, camera_of):
    virtual_arm = plugged(cameras=["top"])
    device, console = connected(virtual_arm, camera_of), Console(virtual_arm)
    delivered = virtual_arm.cameras["top"].delivered
    console.do("top fault dropped 2")
    virtual_arm.advance(4 * FRAME)
    assert virtual_arm.cameras["top"].delivered == delivered + 2
    console.do("top rate dropped 1")
    virtual_arm.advance(0.4)
    device.read_latest()
    virtual_arm.advance(0.2)
    with pytest.raises(TimeoutError, match=r"\d+ ms old, expected at most 500 ms"):
        device.read_latest()
    device.read_latest(max_age_ms=1000)
    console.do("top well")
    virtual_arm.advance(FRAME)
    device.read_latest()
    console.do("top rate dropped 0.5")
    before = virtual_arm.cameras["top"].delivered
    virtual_arm.advance(4.0)
    assert 40 < virtual_arm.cameras["top"].delivered - before < 80


def test_a_frozen_camera_sends_the_same_frame_as_a_new_one(plugged, camera_of):
    virtual_arm = plugged(cameras=["top"])
    device = connected(virtual_arm, camera_of)
    before = device.async_read()
    Console(virtual_arm).do("top rate frozen 1")
    turn(virtual_arm, 40)
    for _ in range(20):
        virtual_arm.advance(FRAME)
        np.testing.assert_array_equal(device.async_read(timeout_ms=0), before)
        device.read_latest(max_age_ms=1)
    Console(virtual_arm).do("top well")
    virtual_arm.advance(FRAME)
    assert not np.array_equal(device.async_read(timeout_ms=0), before)


def test_an_unplugged_camera_is_gone_until_it_is_connected_again(plugged, camera_of):
    virtual_arm = plugged()
    top, wrist = connected(virtual_arm, camera_of), connected(virtual_arm, camera_of, "wrist")
    console = Console(virtual_arm)
    assert console.do("top pull") == "ok"
    for read in (top.read, top.async_read, top.read_latest):
        with pytest.raises(DeviceNotConnectedError, match="the camera is unplugged"):
            read()
    wrist.read_latest()
    with pytest.raises(ConnectionError, match="does not show 'top'"):
        camera_of().connect()
    assert console.do("top plug") == "ok"
    virtual_arm.advance(FRAME)
    with pytest.raises(DeviceNotConnectedError):
        top.read_latest()
    assert top.is_connected
    top.disconnect()
    top.connect()
    top.read_latest()
    assert virtual_arm.cameras["top"].skipped == 0


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"width": 64}, RuntimeError, "found width 32.*expected 64.*--width=64"),
        ({"height": 48}, RuntimeError, "found height 24.*expected 48.*--height=48"),
        ({"fps": 60}, RuntimeError, "found fps 30.*expected 60.*--camera_fps=60"),
        ({"view": "front"}, ConnectionError, r"does not show 'front'.*--cameras=\[front\]"),
        (
            {"port": Path("/nowhere/arm")},
            ConnectionError,
            "no virtual arm is running.*--follower_port=/nowhere",
        ),
    ],
)
def test_a_camera_that_the_arm_lacks_is_refused_with_the_flag(plugged, camera_of, changes, error, message):
    plugged().advance(FRAME)
    device = camera_of(**changes)
    with pytest.raises(error, match=message):
        device.connect()
    assert not device.is_connected


@pytest.mark.parametrize(
    ("options_", "message"),
    [
        ({"cameras": ["tpo"]}, "--cameras: found camera 'tpo'"),
        ({"width": 4}, "--width and --height: found 4x24"),
        ({"camera_fps": 0}, "--camera_fps: found 0, expected 1 to 180"),
    ],
)
def test_the_arm_refuses_impossible_cameras(options, options_, message):
    with pytest.raises(ValueError, match=message):
        VirtualArm(options(**options_))


def test_the_console_executes_camera_commands(plugged):
    console = Console(plugged(cameras=["top"]))
    assert console.do("wrist pull") == "There is no camera wrist: start with --cameras=[wrist]."
    assert "found 9000 ms, expected 0 to 2000 ms" in console.do("top latency 9000")
    assert "found 'lost', expected one of dropped, frozen" in console.do("top fault lost")
    assert "expected one of unheard" in console.do("fault dropped")
    assert console.do("top status") == "0 frames sent, 0 skipped by a busy machine."
    assert "expected a command" in console.do("top jam")


def test_the_suggested_commands_have_the_cameras(options):
    config = options(cameras=["top"])
    printed = describe(types.SimpleNamespace(config=config, leader=None))
    option = printed.split('--robot.cameras="')[1].split('"')[0]
    robot = draccus.parse(SO101FollowerConfig, args=["--port=none", f"--cameras={option}"])
    assert robot.cameras == {"top": SO101VirtualCameraConfig(view="top", port=config.follower_port, **SIZE)}
    assert "robot.cameras" not in describe(types.SimpleNamespace(config=options(cameras=[]), leader=None))


# -- files -----------------------------------------------------------------------------------------


def test_files_belong_to_the_user_and_are_removed_with_the_arm(plugged, camera_of, options, tmp_path):
    virtual_arm = plugged()
    path = frame_path(tmp_path / "follower", "top")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError, match="in use"):
        FrameWriter(path, 24, 32, 30)
    device = connected(virtual_arm, camera_of)
    virtual_arm.close()
    assert not [each for each in tmp_path.iterdir() if each.name != "calibration"]
    with pytest.raises(DeviceNotConnectedError, match="the virtual arm is gone"):
        device.read_latest()
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is no frame file"):
        VirtualArm(options()).plug_in()
    assert path.read_text() == "mine"


def test_a_reader_never_returns_a_torn_frame(tmp_path):
    writer = FrameWriter(tmp_path / "p", 120, 160, 30)
    reader, torn, changed = FrameReader(tmp_path / "p"), [], set()
    assert reader.latest() is None
    stop = threading.Event()

    def read():
        while not stop.is_set():
            if (latest := reader.latest()) is not None:
                changed.add(latest[0])
                if (latest[2] != latest[0] % 256).any():
                    torn.append(latest[0])

    thread = threading.Thread(target=read)
    thread.start()
    number, deadline = 0, time.monotonic() + 60
    # A writer without pauses, or a busy machine, may keep the reader from any frame.
    while (number < 1000 or len(changed) < 20) and time.monotonic() < deadline:
        number += 1
        writer.write(np.full((120, 160, 3), number % 256, np.uint8))
        if number % 10 == 0:
            time.sleep(0.001)
    stop.set()
    thread.join()
    with pytest.raises(ValueError, match="expected \\(120, 160, 3\\) uint8"):
        writer.write(np.zeros((3, 3), np.uint8))
    reader.close(), writer.close()
    assert torn == []
    assert len(changed) >= 20


def _run_arm(config, started):
    with VirtualArm(config):
        started.set()
        threading.Event().wait()


def test_frames_of_another_process_arrive_and_its_end_is_noticed(camera_of, options):
    config, fork = options(servos="assembled", cameras=["top"]), multiprocessing.get_context("fork")
    started = fork.Event()
    process = fork.Process(target=_run_arm, args=(config, started), daemon=True)
    process.start()
    fds, threads = os.listdir("/dev/fd"), threading.active_count()
    try:
        assert started.wait(30)
        device = camera_of()
        device.connect()
        first = device.async_read(timeout_ms=5000)
        assert device.read().shape == first.shape == (24, 32, 3)
        device.read_latest(max_age_ms=5000)
    finally:
        process.kill()
        process.join()
    with pytest.raises(DeviceNotConnectedError, match="the virtual arm is gone"):
        device.read_latest()
    device.disconnect()
    assert (len(os.listdir("/dev/fd")), threading.active_count()) == (len(fds), threads)
    with pytest.raises(ConnectionError, match="no virtual arm is running there"):
        device.connect()
    path = frame_path(config.follower_port, "top")
    assert path.exists()
    FrameWriter(path, 24, 32, 30).close()  # what was left is replaced
    assert not path.exists()


def test_in_real_time_no_file_or_thread_is_left(options, camera_of, tmp_path):
    fds = len(os.listdir("/dev/fd"))
    with VirtualArm(options(servos="assembled")) as virtual_arm:
        device = camera_of("wrist")
        device.connect()
        assert device.read().shape == (24, 32, 3)
        device.disconnect()
    assert virtual_arm.world._renderer is None
    assert len(os.listdir("/dev/fd")) == fds
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virtual-")]
    assert list(tmp_path.iterdir()) == []
