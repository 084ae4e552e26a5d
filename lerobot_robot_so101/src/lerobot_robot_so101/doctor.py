# SPDX-License-Identifier: Apache-2.0
"""`so101-doctor`: is this machine, and the arm on it, ready? A line for each thing, ok or what to do.

    so101-doctor
    so101-doctor --port=/dev/ttyACM0 --id=my_arm --root=outputs/demos

Nothing is moved, and nothing is written.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import draccus
from draccus.utils import DraccusException
from lerobot.utils.constants import HF_LEROBOT_HOME

ENTRY_POINTS = "so101_doctor"  # other packages' checks: functions of the same kind
_PREFIXES = tuple(f"lerobot_{kind}_" for kind in ("policy", "env", "robot", "teleoperator", "camera"))
_LEAST_DISK = 10.0  # GB


class Finding(NamedTuple):
    """A line of the page.

    Attributes:
        what: was looked at.
        found: in a few words.
        fix: what to do; empty if all is well.
    """

    what: str
    found: str
    fix: str = ""


@dataclass
class DoctorConfig:
    """Options of `so101-doctor`.

    Args:
        port: of an arm, to ask its servos.
        id: of the arm, by which its calibration is kept.
        root: folder of a dataset, to see which units it is in, and with `id` whether it is of this arm.
        checkpoint: `pretrained_model` folder of a policy, likewise.
        cameras: whether to open the cameras.
    """

    port: str = ""
    id: str = ""
    root: Path | None = None
    checkpoint: Path | None = None
    cameras: bool = True


def software(config: DoctorConfig) -> Iterator[Finding]:
    """Python, LeRobot and torch."""
    version = platform.python_version()
    wrong = "" if sys.version_info[:2] == (3, 12) else "Use Python 3.12."
    yield Finding("python", f"{version} in {sys.prefix}", wrong)
    for name in ("lerobot", "torch"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "none", f"pip install -c constraints.txt {name}")
            continue
        fits = name != "lerobot" or found.startswith("0.6.")
        yield Finding(name, found, "" if fits else "pip install 'lerobot>=0.6.1,<0.7'")


def device(config: DoctorConfig) -> Iterator[Finding]:
    """What policies run on."""
    import torch

    if torch.cuda.is_available():
        found = torch.cuda.get_device_name()
    elif torch.backends.mps.is_available():
        found = "Apple's GPU (mps)"
    else:
        found = f"no GPU; {os.cpu_count()} cores: pass --policy.device=cpu"
    yield Finding("device", found)


def plugins(config: DoctorConfig) -> Iterator[Finding]:
    """Whether LeRobot finds the plugins, and if not why."""
    names = sorted({dist.metadata["Name"] or "" for dist in importlib.metadata.distributions()})
    for name in names:
        spelled = name.replace("-", "_")
        if not spelled.startswith(_PREFIXES):
            continue
        if spelled != name:
            yield Finding("plugin", name, f"LeRobot passes it by: its name must be spelled {spelled}.")
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a plugin raises, LeRobot only logs it
            yield Finding("plugin", name, f"it cannot be imported: {type(error).__name__}: {error}")
        else:
            yield Finding("plugin", f"{name} {importlib.metadata.version(name)}")


def codecs(config: DoctorConfig) -> Iterator[Finding]:
    """What reads and writes video."""
    import av
    from lerobot.configs import RGBEncoderConfig

    wanted = RGBEncoderConfig().vcodec
    try:
        av.codec.Codec(wanted, "w")
        yield Finding("video writing", f"{wanted}, by PyAV {av.__version__}")
    except ValueError:
        fix = (
            "Record with another: --dataset.rgb_encoder.vcodec=h264, or with pictures: --dataset.video=false."
        )
        yield Finding("video writing", f"PyAV {av.__version__} without {wanted}", fix)
    try:
        importlib.import_module("torchcodec")
        yield Finding("video reading", "torchcodec")
    except (ImportError, OSError, RuntimeError):
        yield Finding("video reading", "PyAV (torchcodec does not load here; LeRobot says so and goes on)")


def disk(config: DoctorConfig) -> Iterator[Finding]:
    """Room for datasets."""
    folder = next(path for path in (HF_LEROBOT_HOME, *HF_LEROBOT_HOME.parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    fix = "" if free > _LEAST_DISK else "Make room, or set HF_LEROBOT_HOME to a larger disk."
    yield Finding("disk", f"{free:.0f} GB free in {folder}", fix)


def serial_ports(config: DoctorConfig) -> Iterator[Finding]:
    """Ports that may be an arm's, and whether this user may open them."""
    from serial.tools import list_ports

    ports = [config.port] if config.port else [port.device for port in list_ports.comports() if port.vid]
    if not ports:
        fix = "" if not config.id else "Plug in the arm's USB cable and switch on its supply."
        yield Finding("serial", "no arm plugged in", fix)
    for port in ports:
        if not Path(port).exists():
            yield Finding(
                "serial", port, "There is no such port. `lerobot-find-port` tells which one is the arm's."
            )
        elif not os.access(port, os.R_OK | os.W_OK):
            fix = "sudo usermod -aG dialout $USER, then log out and in again."
            yield Finding("serial", f"{port}, which this user may not open", fix)
        else:
            yield Finding("serial", port)


def _follower(config: DoctorConfig) -> Any:
    """LeRobot's driver, not connected."""
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    return SO101Follower(SO101FollowerConfig(port=config.port or "none", id=config.id or None))


def servos(config: DoctorConfig) -> Iterator[Finding]:
    """Whether six servos answer, what supplies them, and how warm they are."""
    if not config.port or not os.access(config.port, os.R_OK | os.W_OK):
        return
    from .patient_bus import PatientBus, troubles

    bus = PatientBus(config.port, _follower(config).bus.motors, {}, retries=2)
    try:
        bus.connect(handshake=False)
    except ConnectionError as error:
        yield Finding("servos", "none", " ".join(str(error).split()))
        return
    try:
        for name, motor in bus.motors.items():
            who = f"{name} (id {motor.id})"
            if bus.ping(name, num_retry=1) is None:
                fix = "Check its cable and the supply; a new servo gets its id by `lerobot-setup-motors`."
                yield Finding("servo", f"no answer from {who}", fix)
                continue
            registers = ("Present_Voltage", "Present_Temperature", "Status")
            # Not `read`, which raises an error where a servo complains.
            found = [
                bus.sync_read(register, name, normalize=False, num_retry=2)[name] for register in registers
            ]
            volts, degrees, reports = found[0] / 10, found[1], troubles(int(found[2]))
            fix = "" if volts >= 4.5 else "Switch on the supply: USB alone does not move servos."
            fix = fix or ("" if degrees < 60 else "Let it cool down, and see what it pushes against.")
            fix = fix or (
                "" if not reports else "See what it pushes against, then switch its supply off and on."
            )
            reports = f", reports: {reports}" if reports else ""
            yield Finding("servo", f"{who}: {volts:.1f} V, {degrees} °C{reports}", fix)
    finally:
        bus.disconnect(disable_torque=False)


def calibration(config: DoctorConfig) -> Iterator[Finding]:
    """Whether the arm is calibrated, and whether that can be right."""
    if not config.id:
        return
    robot = _follower(config)
    if not robot.calibration:
        fix = f"lerobot-calibrate --robot.type=so101_follower --robot.port=... --robot.id={config.id}"
        yield Finding("calibration", f"no {robot.calibration_fpath}", fix)
        return
    narrow = [
        f"{name} {360 * (joint.range_max - joint.range_min) / 4095:.0f} deg"
        for name, joint in robot.calibration.items()
        if joint.range_max - joint.range_min < 4095 * 60 / 360
    ]
    fix = (
        f"Calibrate again and move every joint through all of its range: {', '.join(narrow)}."
        if narrow
        else ""
    )
    yield Finding("calibration", str(robot.calibration_fpath), fix)


def units(config: DoctorConfig) -> Iterator[Finding]:
    """Whether a dataset and a checkpoint are in degrees, as arms are by default, or in -100..100; and of this arm."""
    import numpy as np
    from lerobot.utils.constants import OBS_STATE

    from .recorded_on import checkpoint_extremes

    if config.root is not None:
        statistics = config.root / "meta" / "stats.json"
        if not statistics.is_file():
            yield Finding("dataset", f"none in {config.root}", "Give the folder that holds meta/stats.json.")
        else:
            joints = json.loads(statistics.read_text()).get(OBS_STATE, {"min": [], "max": []})
            yield _units_of("dataset", config, np.array([joints["min"], joints["max"]], np.float64))
    if config.checkpoint is not None:
        yield _units_of("checkpoint", config, checkpoint_extremes(config.checkpoint))


def _units_of(what: str, config: DoctorConfig, extremes: Any) -> Finding:
    from .recorded_on import DEGREES, other_joints, units_of

    if extremes is None or extremes.shape != (2, 6):
        return Finding(what, "no smallest and largest positions of six joints in observation.state")
    units = units_of(extremes)
    if units is None:
        return Finding(what, "degrees or -100..100: its numbers do not tell")
    own = _follower(config).calibration if config.id else None
    others = other_joints(extremes, own) if own else []
    fix = "" if units == DEGREES else "Run the arm with --robot.use_degrees=false."
    fix = fix or (
        f"Recorded with another calibration than {config.id}'s: {', '.join(others)}." if others else ""
    )
    of_this_arm = f", with the calibration of {config.id}" if own and not others else ""
    return Finding(what, f"{units}{of_this_arm}", fix)


def cameras(config: DoctorConfig) -> Iterator[Finding]:
    """Cameras that OpenCV opens."""
    if not config.cameras:
        return
    from lerobot.cameras.opencv import OpenCVCamera

    found = OpenCVCamera.find_cameras()
    if not found:
        yield Finding("camera", "none plugged in")
    for camera in found:
        profile = camera["default_stream_profile"]
        yield Finding(
            "camera", f"{camera['id']}: {profile['width']}x{profile['height']}, {profile['fps']:.0f} Hz"
        )


CHECKS: tuple[Callable[[DoctorConfig], Iterator[Finding]], ...] = (
    software, device, plugins, codecs, disk, serial_ports, servos, calibration, units, cameras,
)  # fmt: skip


def examine(config: DoctorConfig) -> list[Finding]:
    """All findings; a check that fails is one."""
    others = [point.load() for point in importlib.metadata.entry_points(group=ENTRY_POINTS)]
    findings: list[Finding] = []
    for check in (*CHECKS, *others):
        try:
            findings += [Finding(*finding) for finding in check(config)]
        except Exception as error:  # the page is for machines on which things do not work
            findings.append(Finding(check.__name__, "not found out", f"{type(error).__name__}: {error}"))
    return findings


def page(findings: list[Finding]) -> str:
    """The findings as text."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for what, found, fix in findings:
        lines.append(f"{'fix' if fix else 'ok ':3}  {what:{width}}  {found}")
        if fix:
            lines.append(f"{'':5}{'':{width}}  -> {fix}")
    return "\n".join(lines)


def main() -> None:
    """The console script; ends with 1 if there is something to do."""
    try:
        config = draccus.parse(DoctorConfig)
    except DraccusException as error:
        print(f"so101-doctor: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    findings = examine(config)
    print(page(findings))
    raise SystemExit(any(finding.fix for finding in findings))


if __name__ == "__main__":
    main()
