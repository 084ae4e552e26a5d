# SPDX-License-Identifier: Apache-2.0
"""A follower and a leader arm on emulated serial ports: LeRobot's `so101_follower` and `so101_leader` without an arm.

The follower's servos move the simulated arm on its table, the leader is moved by the scripted expert or by a
recording. Physics, servos and cameras live on one thread, in real time; each port has a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import arm
from .arm_camera import ArmCamera
from .bus_faults import Faults
from .home_rule import HomeRule
from .leader_moves import by_hand, expert_moves, read_actions, recorded_moves
from .names import FOLLOWER_PORT, check_cameras, check_level, check_size, check_task
from .picture_file import picture_path
from .scene import SUBSTEPS
from .start import Start, training_start
from .sts_servo import Servo
from .virtual_bus import VirtualBus
from .virtual_calibration import (
    FOLLOWER,
    LEADER,
    assembly,
    calibrate,
    set_up,
    write_calibration_file,
)
from .virtual_joints import (
    MIDDLE,
    STEP,
    Hand,
    Joints,
    LeaderJoints,
    WorldJoints,
    carry,
    join,
    stay,
    through_ranges,
)
from .world import World

logger = logging.getLogger(__name__)

SERVOS = ("ready", "assembled", "new")
LEADERS = ("expert", "recording", "still", "none")
_LATE = 0.25  # s that the simulation may be behind; what is more is left out


@dataclass
class VirtualArmConfig:
    """Options of `so101-virtual-arm`.

    Args:
        task, level: what lies on the table.
        seed: the first start, and how the servos were put together.
        servos: ready (ids and calibration as LeRobot wants them, calibration files written), assembled (ids only:
            try lerobot-calibrate) or new (all have id 1, none is on the cable: try lerobot-setup-motors).
        leader: what moves the leader arm: expert, recording, still; or none, for no leader.
        recording, episode: folder of the LeRobotDataset, and the episode in it, for --leader=recording.
        id: name of the calibration files, for --robot.id and --teleop.id.
        follower_port, leader_port: paths that lead to the ports.
        cameras: whose pictures are published for `so101_virtual` cameras: top, wrist, front. None costs nothing.
        height, width: of the pictures [pixels].
        camera_fps: pictures per second of each camera.
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
        """Say what cannot be.

        Raises:
            ValueError: a name that does not exist, or a recording that is missing.
        """
        check_task(self.task, "--task")
        check_level(self.level, "--level")
        for flag, found, expected in (("servos", self.servos, SERVOS), ("leader", self.leader, LEADERS)):
            if found not in expected:
                raise ValueError(f"--{flag}: found {found!r}, expected one of {', '.join(expected)}.")
        if (self.leader == "recording") != (self.recording is not None):
            raise ValueError(
                f"--recording: found {self.recording} with --leader={self.leader}; --leader=recording needs the "
                "folder of a LeRobotDataset, and nothing else does."
            )
        if self.cameras:
            check_cameras(self.cameras, "--cameras")
        check_size(self.height, self.width, "--width and --height")
        if not 1 <= self.camera_fps <= round(1 / STEP):
            raise ValueError(f"--camera_fps: found {self.camera_fps}, expected 1 to {round(1 / STEP)}.")


class Side:
    """One of the two arms: joints, servos, port.

    Attributes:
        joints: what the servos turn.
        faults: what goes wrong with it.
        bus: the servos on their port.
    """

    def __init__(self, joints: Joints, port: Path, servos: str, seed: int) -> None:
        self.joints, self.faults = joints, joints.faults
        zeros = map(float, assembly(seed))
        made = [Servo(*parts) for parts in zip(arm.JOINTS, joints.shafts, zeros, strict=True)]
        if servos != "new":
            set_up(made)
        if servos == "ready":
            calibrate(made)
        self.bus = VirtualBus(made, port, self.faults)
        self.bus.attach(*(arm.JOINTS if servos != "new" else ()))
        self.moves: Hand | None = None  # what its hand does when nobody asks for anything else

    def step(self) -> None:
        """Let a physics step's time pass."""
        self.bus.tick(STEP)
        self.joints.step()

    def hold_middle(self) -> None:
        """Somebody brings all limp joints to the middle of their ranges and holds them there."""
        self.joints.hand = carry(self.joints.radians.copy(), MIDDLE)

    def move_through_ranges(self) -> None:
        """Somebody moves the limp joints through their whole ranges, one after the other."""
        self.joints.hand = through_ranges(self.joints.radians.copy())

    def let_go(self) -> None:
        """Nobody holds the arm any more, except for what always moves a leader."""
        self.joints.hand = join(self.joints.radians.copy(), self.moves) if self.moves else None


class VirtualArm:
    """The two arms, and the thread that lets their time pass.

    As a context manager it runs in real time. Or call `plug_in`, and `advance` whenever time is to pass.

    Attributes:
        world: the follower's world; it belongs to the thread that lets time pass.
        follower, leader: the arms; `leader` is None where none was asked for.
        cameras: by name, those that were asked for.

    Raises:
        ValueError, FileNotFoundError: the configuration cannot be.
    """

    def __init__(self, config: VirtualArmConfig) -> None:
        config.check()
        actions = read_actions(config.recording, config.episode) if config.recording else None
        self.config = config
        self._seed, self._home_rule = config.seed, HomeRule()
        self.world = World(config.task, config.level)
        self.world.reset(self._start())
        joints = WorldJoints(self.world, Faults(config.seed))
        self.follower = Side(joints, config.follower_port, config.servos, 2 * config.seed)
        joints.hand = stay(joints.radians.copy())  # until the servos hold it
        self.leader = None if config.leader == "none" else self._make_leader(joints.radians, actions)
        self.cameras = {
            view: ArmCamera(
                view,
                picture_path(config.follower_port, view),
                config.height,
                config.width,
                config.camera_fps,
                config.seed + number,
            )
            for number, view in enumerate(config.cameras)
        }
        self._steps = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _make_leader(self, radians: np.ndarray, actions: np.ndarray | None) -> Side:
        config = self.config
        joints = LeaderJoints(radians, Faults(config.seed + 1))
        leader = Side(joints, config.leader_port, config.servos, 2 * config.seed + 1)
        if config.leader != "still":
            moves = expert_moves(self.world) if actions is None else recorded_moves(actions)
            leader.moves = by_hand(moves)
        leader.let_go()
        return leader

    @property
    def sides(self) -> list[Side]:
        return [self.follower] + ([self.leader] if self.leader else [])

    # -- ports -----------------------------------------------------------------------------------------------

    def plug_in(self) -> None:
        """Open ports and picture files; where servos are ready, write the calibration files that LeRobot looks for.

        Raises:
            FileExistsError: a port's path, a picture file's or a calibration file is taken.
        """
        try:
            for side, folder in zip(self.sides, (FOLLOWER, LEADER), strict=False):
                if self.config.servos == "ready":
                    write_calibration_file(side.bus.servos, folder, self.config.id)
                side.bus.plug_in()
            for camera in self.cameras.values():
                camera.plug_in()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop time and close the ports."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._pull_cables()
        self.world.close()

    def _pull_cables(self) -> None:
        for camera in self.cameras.values():
            camera.pull_cable()
        for side in self.sides:
            side.bus.pull_cable()

    def __enter__(self) -> VirtualArm:
        self.plug_in()
        self._thread = threading.Thread(target=self._run, name="virtual-arm", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # -- time ------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let this much time pass, as fast as it goes. Not while the arm runs in real time."""
        for _ in range(round(seconds / STEP)):
            self._step()
            self._look()

    def _run(self) -> None:
        """Keep up with the clock on the wall; what a busy machine cannot make up for is left out."""
        try:
            self._look()  # the first pictures, for which the renderer starts: that may take a second
            due = time.monotonic()
            while not self._stop.is_set():
                now = time.monotonic()
                due = max(due, now - _LATE)
                while due <= now:
                    self._step()
                    due += STEP
                self._look()  # once for all steps that were due: a slow renderer must not slow the servos
                self._stop.wait(max(0.0, due - time.monotonic()))
        except Exception:
            # Better a port that is gone than servos that answer for a world that stands still.
            logger.exception("so101-virtual-arm: the simulation failed, the ports are closed.")
            self._pull_cables()
        finally:
            self.world.close()  # the renderer's context belongs to this thread

    def _look(self) -> None:
        for camera in self.cameras.values():
            camera.look(self.world, self._steps)

    def _step(self) -> None:
        for side in self.sides:
            side.step()
        self._steps += 1
        if self._steps % SUBSTEPS == 0:
            self._lay_table_anew_when_home()

    def _start(self) -> Start:
        return training_start(self.config.task, self.config.level, self._seed)

    def _lay_table_anew_when_home(self) -> None:
        if not self.world.is_finite():
            self._seed += 1
            self.world.reset(self._start())
        elif self._home_rule.came_home(self.world.joints()):
            self._seed += 1
            self.world.place(self._start())
            logger.info("so101-virtual-arm: home again, start %d laid out.", self._seed)
