# SPDX-License-Identifier: Apache-2.0
"""`so101-virtual-arm`: emulated SO-101 arms on serial ports, for LeRobot's commands in another terminal.

so101-virtual-arm
lerobot-teleoperate --robot.type=so101_follower --robot.port=/tmp/so101_follower --robot.id=virtual ...
"""

from __future__ import annotations

import inspect
import logging
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import draccus

from .arm import JOINTS
from .arm_camera import CAMERA_KINDS, ArmCamera
from .bus_faults import KINDS
from .names import CAMERA_NAMES, FOLLOWER_PORT
from .virtual_arm import Side, VirtualArm, VirtualArmConfig

HELP = f"""\
Commands (begin with "leader" for the leader arm):
  attach JOINT ...     only these servos are on the cable; "attach all", "attach none"
  middle               hold limp joints in the middle of their ranges
  ranges               move limp joints through their ranges
  release              let go of the arm
  fault KIND [COUNT]   the next COUNT packets: {", ".join(KINDS)}
  rate KIND CHANCE     each packet from now on, with this chance
  silence [JOINT ...]  these servos do not answer
  jam [JOINT ...]      these joints are stuck
  brownout [SECONDS]   the power fails for a moment
  pull, plug           the USB cable
  well                 end all faults
  status               what the servos say
  help, quit
Joints: {", ".join(JOINTS)}
Commands for a camera (begin with its name, for example "top latency 150"):
  latency MS           pictures arrive so much later
  fault KIND [COUNT]   the next COUNT pictures: {", ".join(CAMERA_KINDS)}
  rate KIND CHANCE     each picture from now on, with this chance
  pull, plug           its cable
  well                 end all its faults
  status               how many pictures it sent"""

_CAMERA_COMMANDS: dict[str, Callable[..., str | None]] = {
    "latency": lambda camera, ms: camera.faults.delay(_number(ms) / 1000.0),
    "fault": lambda camera, kind, count="1": camera.faults.next(kind, int(_number(count))),
    "rate": lambda camera, kind, chance: camera.faults.rate(kind, _number(chance)),
    "pull": lambda camera: camera.pull_cable(),
    "plug": lambda camera: camera.plug_in(),
    "well": lambda camera: camera.faults.clear(),
    "status": lambda camera: f"{camera.delivered} pictures sent, {camera.skipped} skipped by a busy machine.",
}


class Console:
    """Understands the commands that a person types beside a running virtual arm."""

    def __init__(self, virtual_arm: VirtualArm) -> None:
        self._arm = virtual_arm
        self._commands: dict[str, Callable[..., str | None]] = {
            "attach": self._attach,
            "middle": lambda side: side.hold_middle(),
            "ranges": lambda side: side.move_through_ranges(),
            "release": lambda side: side.let_go(),
            "fault": lambda side, kind, count="1": side.faults.next(kind, int(_number(count))),
            "rate": lambda side, kind, chance: side.faults.rate(kind, _number(chance)),
            "silence": lambda side, *joints: side.faults.silence(*_check(side, joints)),
            "jam": lambda side, *joints: side.faults.jam(*_check(side, joints)),
            "brownout": lambda side, seconds="0.2": side.bus.brown_out(_number(seconds)),
            "pull": lambda side: side.bus.pull_cable(),
            "plug": lambda side: side.bus.plug_in(),
            "well": self._well,
            "status": _status,
            "help": lambda side: HELP,
        }

    def do(self, line: str) -> str:
        """Carry out a line; what there is to say about it.

        Raises:
            EOFError: it was "quit".
        """
        words = shlex.split(line)
        whose = words.pop(0) if words and words[0] in ("follower", "leader", *CAMERA_NAMES) else "follower"
        if not words:
            return ""
        if whose in CAMERA_NAMES:
            if whose not in self._arm.cameras:
                return f"There is no camera {whose}: start with --cameras=[{whose}]."
            return _carry_out(_CAMERA_COMMANDS, self._arm.cameras[whose], words)
        side = self._arm.follower if whose == "follower" else self._arm.leader
        if side is None:
            return "There is no leader: start with --leader=expert, recording or still."
        return _carry_out(self._commands, side, words)

    def _well(self, side: Side) -> None:
        """End all faults of an arm; the cameras belong to the follower."""
        side.faults.clear()
        for camera in self._arm.cameras.values() if side is self._arm.follower else ():
            camera.faults.clear()

    @staticmethod
    def _attach(side: Side, *joints: str) -> str:
        wanted = JOINTS if joints == ("all",) else () if joints == ("none",) else joints
        side.bus.attach(*wanted)
        return f"On the cable: {', '.join(wanted) or 'none'}."


def _carry_out(commands: dict[str, Callable[..., str | None]], on: Side | ArmCamera, words: list[str]) -> str:
    """Do the command in `words`; what there is to say about it. Raises EOFError for "quit"."""
    name, *arguments = words
    if name in ("quit", "exit"):
        raise EOFError
    if name not in commands:
        return f"Found {name!r}, expected a command.\n{HELP}"
    command = commands[name]
    try:
        inspect.signature(command).bind(on, *arguments)
    except TypeError:
        return f"{name}: found {' '.join(arguments) or 'nothing'} behind it, expected other words.\n{HELP}"
    try:
        return command(on, *arguments) or "ok"
    except (ValueError, FileExistsError) as error:
        return str(error)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"found {word!r}, expected a number.") from None


def _check(side: Side, joints: tuple[str, ...]) -> tuple[str, ...]:
    """`joints`, if each is one; raises ValueError."""
    return tuple(side.bus.servo(joint).name for joint in joints)


def _status(side: Side) -> str:
    names = ("ID", "Torque_Enable", "Present_Position", "Goal_Position", "Present_Load", "Status")
    with side.bus.lock:
        rows = [[s.name, *(str(s.get(name)) for name in names)] for s in side.bus.servos if s.powered]
    table = [["servo", "id", "torque", "position", "goal", "load", "status"], *rows]
    return "\n".join("".join(f"{cell:>15}" for cell in row) for row in table)


def describe(virtual_arm: VirtualArm) -> str:
    """The ports and LeRobot's commands for them."""
    config, leader = virtual_arm.config, virtual_arm.leader
    robot = f"--robot.type=so101_follower --robot.port={config.follower_port} --robot.id={config.id}"
    teleop = f"--teleop.type=so101_leader --teleop.port={config.leader_port} --teleop.id={config.id}"
    command = {"new": "lerobot-setup-motors", "assembled": "lerobot-calibrate"}.get(config.servos)
    lines = [f"follower  {config.follower_port}"] + ([f"leader    {config.leader_port}"] if leader else [])
    if command:
        lines += [f"{command} {robot}"] + ([f"{command} {teleop}"] if leader else [])
    elif leader:
        lines.append(f"lerobot-teleoperate {robot}{_camera_option(config)} {teleop}")
    else:
        lines.append(f"lerobot-rollout --policy.path=... {robot}{_camera_option(config)}")
    return "\n".join([*lines, 'Type "help" for what can be done to the arms, Ctrl-C to stop.'])


def _camera_option(config: VirtualArmConfig) -> str:
    """What LeRobot's commands are to be told about the cameras; nothing if there are none."""
    port = "" if config.follower_port == Path(FOLLOWER_PORT) else f"port: {config.follower_port}, "
    size = f"width: {config.width}, height: {config.height}, fps: {config.camera_fps}"
    cameras = [f"{view}: {{type: so101_virtual, view: {view}, {port}{size}}}" for view in config.cameras]
    return f' --robot.cameras="{{{", ".join(cameras)}}}"' if cameras else ""


def _listen(console: Console) -> None:
    """Carry out what is typed until "quit"; where nobody can type, wait for a signal."""
    for line in sys.stdin:
        try:
            print(console.do(line), flush=True)
        except EOFError:
            return
    threading.Event().wait()


def main() -> None:
    own = logging.getLogger(__package__)
    own.setLevel(logging.INFO)
    own.addHandler(logging.StreamHandler())
    own.propagate = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with VirtualArm(draccus.parse(VirtualArmConfig)) as virtual_arm:
            print(describe(virtual_arm), flush=True)
            _listen(Console(virtual_arm))
    except KeyboardInterrupt:
        pass
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        raise SystemExit(f"so101-virtual-arm: {error}") from None


if __name__ == "__main__":
    main()
