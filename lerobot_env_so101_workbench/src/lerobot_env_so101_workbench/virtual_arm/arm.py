# SPDX-License-Identifier: Apache-2.0
"""A follower and a leader arm on emulated serial ports, for LeRobot's `so101_follower` and `so101_leader`.

The follower's servos move the simulated arm on its table. The leader is moved by the scripted expert or by a
recording. Physics, servos and cameras run in one thread in real time; each port has a thread of its own.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from lerobot_processor_so101 import arm
from lerobot_processor_so101.config_checks import check_choices, check_id

from ..names import FOLLOWER_PORT, check_cameras, check_level, check_size, check_task
from ..sim.scene import SUBSTEPS
from ..sim.scene_reset import SceneReset
from ..sim.world import World
from .bus import VirtualBus
from .calibration import FOLLOWER, LEADER, calibrate, encoder_zeros, set_up, write_calibration_file
from .camera import ArmCamera
from .faults import Faults
from .frame_file import frame_path
from .joints import STEP, Hand, Joints, LeaderJoints, WorldJoints, hold, move_and_follow, sweep, to_middle
from .leader import expert_moves, interpolated, read_actions, recorded_moves
from .sts_servo import Servo

logger = logging.getLogger(__name__)

SERVOS = ("ready", "assembled", "new")
LEADERS = ("expert", "recording", "still", "none")
_MAX_DELAY = 0.25  # s that the simulation may be behind real time; the rest is skipped


@dataclass
class VirtualArmConfig:
    """Options of `so101-virtual-arm`.

    Args:
        task: task of the scene.
        level: level of the scene.
        seed: training seed of the first initial state, and of the servos' mounting.
        servos: ready (ids and calibration as LeRobot expects them, calibration files written), assembled (ids
            only: try lerobot-calibrate) or new (all have id 1, none is on the cable: lerobot-setup-motors).
        leader: what moves the leader arm: expert, recording or still; none for no leader arm.
        recording: folder of a LeRobotDataset, for --leader=recording.
        episode: index of the episode in `recording`.
        id: name of the calibration files, for --robot.id and --teleop.id.
        follower_port: path of the link to the follower's port.
        leader_port: path of the link to the leader's port.
        cameras: views to publish for `so101_virtual` cameras: top, wrist, front.
        height, width: frame size [pixels].
        camera_fps: frames per second of each camera [1/s].
    """

    task: str = "lift_cube"
    level: str = "clean"
    seed: int = 0
    servos: str = "ready"
    leader: str = "expert"
    recording: Path | None = None
    episode: int = 0
    id: str = "virtual"
    follower_port: Path = Path(FOLLOWER_PORT)
    leader_port: Path = Path("/tmp/so101_leader")
    cameras: list[str] = field(default_factory=list)
    height: int = 240
    width: int = 320
    camera_fps: int = 30

    def check(self) -> None:
        """Raise ValueError if an option is not supported, or the recording is missing."""
        check_id(self.id, "--id")
        check_task(self.task, "--task")
        check_level(self.level, "--level")
        check_choices(self, {"servos": SERVOS, "leader": LEADERS}, "--")
        if (self.leader == "recording") != (self.recording is not None):
            raise ValueError(
                f"--recording: found {self.recording} with --leader={self.leader}; --leader=recording needs "
                "the folder of a LeRobotDataset, and nothing else does."
            )
        if self.cameras:
            check_cameras(self.cameras, "--cameras")
        check_size(self.height, self.width, "--width and --height")
        if not 1 <= self.camera_fps <= round(1 / STEP):
            raise ValueError(f"--camera_fps: found {self.camera_fps}, expected 1 to {round(1 / STEP)}.")


class EmulatedArm:
    """One of the two arms: joints, servos and port.

    Attributes:
        bus: the servos on their port.
        moves: poses of the hand that moves a leader, if any.
    """

    def __init__(self, joints: Joints, port: Path, servos: str, seed: int) -> None:
        self.joints, self.faults = joints, joints.faults
        made = [Servo(*parts) for parts in zip(arm.JOINTS, joints.shafts, encoder_zeros(seed), strict=True)]
        if servos != "new":
            set_up(made)
        if servos == "ready":
            calibrate(made)
        self.bus = VirtualBus(made, port, self.faults)
        self.bus.attach(*(arm.JOINTS if servos != "new" else ()))
        self.moves: Hand | None = None

    def step(self) -> None:
        """Advance by one physics step."""
        self.bus.tick(STEP)
        self.joints.step()

    def hold_middle(self) -> None:
        """Move joints without torque to the middle of their ranges by hand and hold them there."""
        self.joints.hand = to_middle(self.joints.radians.copy())

    def move_through_ranges(self) -> None:
        """Move joints without torque through their ranges by hand, one after the other."""
        self.joints.hand = sweep(self.joints.radians.copy())

    def let_go(self) -> None:
        """Release the arm; a leader returns to its own moves."""
        self.joints.hand = move_and_follow(self.joints.radians.copy(), self.moves) if self.moves else None


class VirtualArm:
    """The two arms and the thread that simulates them.

    As a context manager it runs in real time. Or call `plug_in`, and `advance` for each period to simulate.

    Attributes:
        world: the follower's world; only the simulation's thread may use it.
        follower, leader: the arms; `leader` is None for `--leader=none`.
        cameras: by name.

    Raises:
        ValueError, FileNotFoundError: if the configuration is not valid.
    """

    def __init__(self, config: VirtualArmConfig) -> None:
        config.check()
        actions = read_actions(config.recording, config.episode) if config.recording else None
        self.config = config
        # 1. the follower in its world; a hand holds it until its servos do
        self._scene_reset = SceneReset(config.task, config.level, config.seed)
        self.world = World(config.task, config.level)
        self.world.reset(self._scene_reset.present())
        joints = WorldJoints(self.world, Faults(config.seed))
        self.follower = EmulatedArm(joints, config.follower_port, config.servos, 2 * config.seed)
        joints.hand = hold(joints.radians.copy())
        self.arms = [self.follower]
        # 2. the leader, at the follower's pose
        self.leader: EmulatedArm | None = None
        if config.leader != "none":
            leader_joints = LeaderJoints(joints.radians, Faults(config.seed + 1))
            self.leader = EmulatedArm(leader_joints, config.leader_port, config.servos, 2 * config.seed + 1)
            if config.leader != "still":
                moves = expert_moves(self.world) if actions is None else recorded_moves(actions)
                self.leader.moves = interpolated(moves)
            self.leader.let_go()
            self.arms.append(self.leader)
        # 3. the cameras
        size = (config.height, config.width, config.camera_fps)
        self.cameras = {
            view: ArmCamera(view, frame_path(config.follower_port, view), *size, config.seed + index)
            for index, view in enumerate(config.cameras)
        }
        self._steps = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- ports -------------------------------------------------------------------------------------

    def plug_in(self) -> None:
        """Open ports and frame files; if the servos are ready, write LeRobot's calibration files.

        Raises:
            FileExistsError: if the path of a port, a frame file or a calibration file is taken.
        """
        try:
            for each, folder in zip(self.arms, (FOLLOWER, LEADER), strict=False):
                if self.config.servos == "ready":
                    write_calibration_file(each.bus.servos, folder, self.config.id)
                each.bus.plug_in()
            for camera in self.cameras.values():
                camera.plug_in()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the simulation and close the ports."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._unplug()
        self.world.close()

    def _unplug(self) -> None:
        for camera in self.cameras.values():
            camera.unplug()
        for each in self.arms:
            each.bus.unplug()

    def __enter__(self) -> Self:
        self.plug_in()
        self._thread = threading.Thread(target=self._run, name="virtual-arm", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # -- time --------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Simulate a period as fast as possible. Not while the arm runs in real time."""
        for _ in range(round(seconds / STEP)):
            self._step()
            self._update_cameras()

    def _run(self) -> None:
        """Simulate in real time; skip what a busy machine cannot make up for."""
        try:
            self._update_cameras()  # starts the renderer, which may take a second
            due = time.monotonic()
            while not self._stop.is_set():
                now = time.monotonic()
                due = max(due, now - _MAX_DELAY)
                while due <= now:
                    self._step()
                    due += STEP
                self._update_cameras()  # once for all steps: a slow renderer must not slow the servos
                self._stop.wait(max(0.0, due - time.monotonic()))
        except Exception:
            # A closed port is better than servos that respond for a world that no longer moves.
            logger.exception("so101-virtual-arm: the simulation failed, the ports are closed.")
            self._unplug()
        finally:
            self.world.close()  # the renderer's context belongs to this thread

    def _update_cameras(self) -> None:
        for camera in self.cameras.values():
            camera.update(self.world, self._steps)

    def _step(self) -> None:
        for each in self.arms:
            each.step()
        self._steps += 1
        if self._steps % SUBSTEPS:
            return
        # at the end of a control period, reset a diverged world, or the scene if it is due
        if not self.world.is_finite():
            self.world.reset(self._scene_reset.next())
        elif self._scene_reset.is_due(self.world.joints()):
            self.world.place(self._scene_reset.next())
            logger.info("so101-virtual-arm: scene reset, seed %d.", self._scene_reset.seed)
