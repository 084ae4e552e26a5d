# SPDX-License-Identifier: Apache-2.0
"""`so101-virtual-arm`: emulated SO-101 arms on serial ports, for LeRobot's commands in another terminal.

so101-virtual-arm
lerobot-teleoperate --robot.type=so101_follower --robot.port=/tmp/so101_follower --robot.id=virtual ...
"""

import contextlib
import inspect
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from lerobot_processor_so101.arm import JOINTS
from lerobot_processor_so101.cli import run_command

from ..names import CAMERA_NAMES, FOLLOWER_PORT
from .arm import EmulatedArm, VirtualArm, VirtualArmConfig
from .camera import ArmCamera, CameraFaults
from .faults import KINDS

HELP = f"""\
Commands (start with "leader" for the leader arm):
  attach JOINT ...     connect only these servos to the cable; "attach all", "attach none"
  middle               hold joints without torque in the middle of their ranges
  ranges               move joints without torque through their ranges
  release              let go of the arm
  fault KIND [COUNT]   fault of the next COUNT packets: {", ".join(KINDS)}
  rate KIND P          fault of each packet with probability P
  silence [JOINT ...]  these servos do not respond
  jam [JOINT ...]      these joints are stuck
  brownout [SECONDS]   interrupt the power
  pull, plug           unplug, plug in the USB cable
  well                 end all faults
  status               registers of the servos
  help, quit
Joints: {", ".join(JOINTS)}
Commands for a camera (start with its name, for example "top latency 150"):
  latency MS           delay frames
  fault KIND [COUNT]   fault of the next COUNT frames: {", ".join(CameraFaults.kinds)}
  rate KIND P          fault of each frame with probability P
  pull, plug           unplug, plug in its cable
  well                 end all its faults
  status               number of frames sent"""


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"found {word!r}, expected a number.") from None


def _check(arm: EmulatedArm, joints: tuple[str, ...]) -> list[str]:
    """Return `joints` if each is one, else raise ValueError."""
    return [arm.bus.servo(joint).name for joint in joints]


def _attach(arm: EmulatedArm, *joints: str) -> str:
    names = JOINTS if joints == ("all",) else () if joints == ("none",) else joints
    arm.bus.attach(*names)
    return f"On the cable: {', '.join(names) or 'none'}."


def _status(arm: EmulatedArm) -> str:
    names = ("ID", "Torque_Enable", "Present_Position", "Goal_Position", "Present_Load", "Status")
    with arm.bus.lock:
        rows = [[s.name, *(str(s.get(name)) for name in names)] for s in arm.bus.servos if s.powered]
    table = [["servo", "id", "torque", "position", "goal", "load", "status"], *rows]
    return "\n".join("".join(f"{cell:>15}" for cell in row) for row in table)


_CAMERA_COMMANDS: dict[str, Callable[..., str | None]] = {
    "latency": lambda camera, ms: camera.faults.delay(_number(ms) / 1000.0),
    "fault": lambda camera, kind, count="1": camera.faults.next(kind, int(_number(count))),
    "rate": lambda camera, kind, probability: camera.faults.rate(kind, _number(probability)),
    "pull": lambda camera: camera.unplug(),
    "plug": lambda camera: camera.plug_in(),
    "well": lambda camera: camera.faults.clear(),
    "status": lambda camera: f"{camera.delivered} frames sent, {camera.skipped} skipped by a busy machine.",
}
_ARM_COMMANDS: dict[str, Callable[..., str | None]] = {
    "attach": _attach,
    "middle": lambda arm: arm.hold_middle(),
    "ranges": lambda arm: arm.move_through_ranges(),
    "release": lambda arm: arm.let_go(),
    "fault": lambda arm, kind, count="1": arm.faults.next(kind, int(_number(count))),
    "rate": lambda arm, kind, probability: arm.faults.rate(kind, _number(probability)),
    "silence": lambda arm, *joints: arm.faults.silence(*_check(arm, joints)),
    "jam": lambda arm, *joints: arm.faults.jam(*_check(arm, joints)),
    "brownout": lambda arm, seconds="0.2": arm.bus.brown_out(_number(seconds)),
    "pull": lambda arm: arm.bus.unplug(),
    "plug": lambda arm: arm.bus.plug_in(),
    "well": lambda arm: arm.faults.clear(),
    "status": _status,
    "help": lambda arm: HELP,
}


class Console:
    """Executes commands that are typed while a virtual arm runs."""

    def __init__(self, virtual_arm: VirtualArm) -> None:
        self._arm = virtual_arm

    def do(self, line: str) -> str:
        """Execute a line and return its output.

        Raises:
            EOFError: if it is "quit".
        """
        words = shlex.split(line)
        target = words.pop(0) if words and words[0] in ("follower", "leader", *CAMERA_NAMES) else "follower"
        if not words:
            return ""
        if target in CAMERA_NAMES:
            if target not in self._arm.cameras:
                return f"There is no camera {target}: start with --cameras=[{target}]."
            return _execute(_CAMERA_COMMANDS, self._arm.cameras[target], words)
        arm = self._arm.follower if target == "follower" else self._arm.leader
        if arm is None:
            return "There is no leader: start with --leader=expert, recording or still."
        if words == ["well"] and target == "follower":  # the cameras belong to the follower
            for camera in self._arm.cameras.values():
                camera.faults.clear()
        return _execute(_ARM_COMMANDS, arm, words)


def _execute(
    commands: dict[str, Callable[..., str | None]], target: EmulatedArm | ArmCamera, words: list[str]
) -> str:
    """Execute the command in `words` and return its output; raise EOFError for "quit"."""
    name, *arguments = words
    if name in ("quit", "exit"):
        raise EOFError
    if name not in commands:
        return f"Found {name!r}, expected a command.\n{HELP}"
    command = commands[name]
    try:
        inspect.signature(command).bind(target, *arguments)
    except TypeError:
        return f"{name}: found arguments {' '.join(arguments) or 'none'}, expected others.\n{HELP}"
    try:
        return command(target, *arguments) or "ok"
    except (ValueError, FileExistsError) as error:
        return str(error)


def describe(virtual_arm: VirtualArm) -> str:
    """Describe the ports and LeRobot's commands for them."""
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
    return "\n".join([*lines, 'Type "help" for commands, Ctrl-C to stop.'])


def _camera_option(config: VirtualArmConfig) -> str:
    """Return the option of LeRobot's commands for the cameras; empty if there are none."""
    port = "" if config.follower_port == Path(FOLLOWER_PORT) else f"port: {config.follower_port}, "
    size = f"width: {config.width}, height: {config.height}, fps: {config.camera_fps}"
    cameras = [f"{view}: {{type: so101_virtual, view: {view}, {port}{size}}}" for view in config.cameras]
    return f' --robot.cameras="{{{", ".join(cameras)}}}"' if cameras else ""


def main() -> None:
    """Run `so101-virtual-arm` until "quit", Ctrl-C or SIGTERM."""

    def command(config: VirtualArmConfig) -> None:
        with contextlib.suppress(KeyboardInterrupt), VirtualArm(config) as virtual_arm:
            print(describe(virtual_arm), flush=True)
            for line in sys.stdin:
                try:
                    print(Console(virtual_arm).do(line), flush=True)
                except EOFError:  # "quit"
                    return
            threading.Event().wait()  # standard input has ended: wait for a signal

    run_command("so101-virtual-arm", VirtualArmConfig, command, log="lerobot_env_so101_workbench")


if __name__ == "__main__":
    main()
