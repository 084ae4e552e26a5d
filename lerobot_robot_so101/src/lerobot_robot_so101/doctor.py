# SPDX-License-Identifier: Apache-2.0
"""`so101-doctor`: check this machine and its arm, one line per finding: ok, or what to do.

    so101-doctor
    so101-doctor --port=/dev/ttyACM0 --id=my_arm --root=outputs/demos

It moves nothing and writes nothing.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lerobot.utils.constants import HF_LEROBOT_HOME, OBS_STATE

from lerobot_processor_so101.cli import run_command

from .calibration_check import DEGREES, checkpoint_extremes, infer_units, mismatched_joints

_PREFIXES = tuple(f"lerobot_{kind}_" for kind in ("policy", "env", "robot", "teleoperator", "camera"))
_MIN_DISK_GB = 10.0
_MIN_VOLTS, _MAX_CELSIUS = 4.5, 60
_MIN_RANGE_DEG = 60  # of a calibrated joint


class Finding(NamedTuple):
    """A line of the report.

    Attributes:
        what: subject of the check.
        found: result in a few words.
        fix: what to do; empty if nothing.
    """

    what: str
    found: str
    fix: str = ""


@dataclass
class DoctorConfig:
    """Options of `so101-doctor`.

    Args:
        port: serial port of an arm; its servos are checked.
        id: name of the arm's calibration file, which is checked.
        root: dataset folder; its units are inferred and, with `id`, compared with the calibration.
        checkpoint: `pretrained_model` folder of a policy, checked like `root`.
        cameras: open the cameras.
    """

    port: str = ""
    id: str = ""
    root: Path | None = None
    checkpoint: Path | None = None
    cameras: bool = True


def software(config: DoctorConfig) -> Iterator[Finding]:
    """Check the versions of Python, LeRobot and torch."""
    wrong = "" if sys.version_info[:2] == (3, 12) else "Use Python 3.12."
    yield Finding("python", f"{platform.python_version()} in {sys.prefix}", wrong)
    for name in ("lerobot", "torch"):
        found = importlib.metadata.version(name)
        supported = name != "lerobot" or found.startswith("0.6.")
        yield Finding(name, found, "" if supported else "pip install 'lerobot>=0.6.1,<0.7'")


def device(config: DoctorConfig) -> Iterator[Finding]:
    """Report the device that policies run on."""
    import torch

    if torch.cuda.is_available():
        found = torch.cuda.get_device_name()
    elif torch.backends.mps.is_available():
        found = "Apple's GPU (mps)"
    else:
        found = f"no GPU; {os.cpu_count()} cores: pass --policy.device=cpu"
    yield Finding("device", found)


def plugins(config: DoctorConfig) -> Iterator[Finding]:
    """Check that LeRobot discovers and imports every plugin."""
    names = sorted({dist.metadata["Name"] or "" for dist in importlib.metadata.distributions()})
    for name in names:
        module = name.replace("-", "_")
        if not module.startswith(_PREFIXES):
            continue
        if module != name:
            yield Finding("plugin", name, f"LeRobot does not discover it: its name must be spelled {module}.")
            continue
        try:
            importlib.import_module(name)
            yield Finding("plugin", f"{name} {importlib.metadata.version(name)}")
        except Exception as error:  # LeRobot only logs whatever a plugin raises
            yield Finding("plugin", name, f"it cannot be imported: {type(error).__name__}: {error}")


def codecs(config: DoctorConfig) -> Iterator[Finding]:
    """Check the libraries that read and write video."""
    import av
    from lerobot.configs import RGBEncoderConfig

    wanted = RGBEncoderConfig().vcodec
    try:
        av.codec.Codec(wanted, "w")
        yield Finding("video writing", f"{wanted}, by PyAV {av.__version__}")
    except ValueError:
        fix = "Record with --dataset.rgb_encoder.vcodec=h264, or record images: --dataset.video=false."
        yield Finding("video writing", f"PyAV {av.__version__} without {wanted}", fix)
    try:
        importlib.import_module("torchcodec")
        yield Finding("video reading", "torchcodec")
    except (ImportError, OSError, RuntimeError):
        yield Finding("video reading", "PyAV (torchcodec does not load here; LeRobot logs it and uses PyAV)")


def disk(config: DoctorConfig) -> Iterator[Finding]:
    """Check the free space for datasets."""
    folder = next(path for path in (HF_LEROBOT_HOME, *HF_LEROBOT_HOME.parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    fix = "" if free > _MIN_DISK_GB else "Free some space, or set HF_LEROBOT_HOME to a larger disk."
    yield Finding("disk", f"{free:.0f} GB free in {folder}", fix)


def serial_ports(config: DoctorConfig) -> Iterator[Finding]:
    """Check that this user may open the serial ports that may belong to an arm."""
    from serial.tools import list_ports

    ports = [config.port] if config.port else [port.device for port in list_ports.comports() if port.vid]
    if not ports:
        files_only = config.root is not None or config.checkpoint is not None
        fix = "Plug in the arm's USB cable and switch on its supply."
        yield Finding("serial", "no arm plugged in", fix if config.id and not files_only else "")
    for port in ports:
        if not Path(port).exists():
            yield Finding("serial", port, "There is no such port. `lerobot-find-port` finds the arm's.")
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
    """Check that six servos reply, with voltage, temperature and error status."""
    if not config.port or not os.access(config.port, os.R_OK | os.W_OK):
        return
    from .bus import RetryingFeetechBus

    bus = RetryingFeetechBus(config.port, _follower(config).bus.motors, {}, retries=2)
    try:
        bus.connect(handshake=False)
    except ConnectionError as error:
        yield Finding("servos", "none", " ".join(str(error).split()))
        return
    try:
        for name, motor in bus.motors.items():
            yield _servo(bus, name, f"{name} (id {motor.id})")
    finally:
        bus.disconnect(disable_torque=False)


def _servo(bus: Any, name: str, label: str) -> Finding:
    from .bus import describe_status

    if bus.ping(name, num_retry=1) is None:
        fix = "Check its cable and the supply; `lerobot-setup-motors` gives a new servo its id."
        return Finding("servo", f"no reply from {label}", fix)
    # `sync_read`, because `read` raises if the servo reports an error status.
    registers = ("Present_Voltage", "Present_Temperature", "Status")
    found = [bus.sync_read(register, name, normalize=False, num_retry=2)[name] for register in registers]
    volts, celsius, errors = found[0] / 10, found[1], describe_status(int(found[2]))
    fix = ""
    if volts < _MIN_VOLTS:
        fix = "Switch on the supply: USB alone does not move servos."
    elif celsius >= _MAX_CELSIUS:
        fix = "Let it cool down, and check what it pushes against."
    elif errors:
        fix = "Check what it pushes against, then switch its supply off and on."
    reports = f", reports: {errors}" if errors else ""
    return Finding("servo", f"{label}: {volts:.1f} V, {celsius} °C{reports}", fix)


def calibration(config: DoctorConfig) -> Iterator[Finding]:
    """Check that the arm is calibrated, and that the joints' ranges are plausible."""
    if not config.id:
        return
    robot = _follower(config)
    if not robot.calibration:
        fix = f"lerobot-calibrate --robot.type=so101_follower --robot.port=... --robot.id={config.id}"
        yield Finding("calibration", f"no {robot.calibration_fpath}", fix)
        return
    ranges = {name: 360 / 4095 * (c.range_max - c.range_min) for name, c in robot.calibration.items()}
    narrow = [f"{name} {degrees:.0f} deg" for name, degrees in ranges.items() if degrees < _MIN_RANGE_DEG]
    fix = f"Calibrate again and move these joints through their entire ranges: {', '.join(narrow)}."
    yield Finding("calibration", str(robot.calibration_fpath), fix if narrow else "")


def units(config: DoctorConfig) -> Iterator[Finding]:
    """Infer the units of a dataset and a checkpoint, and compare them with the arm's calibration."""
    if config.root is not None:
        statistics = config.root / "meta" / "stats.json"
        if statistics.is_file():
            joints = json.loads(statistics.read_text()).get(OBS_STATE, {"min": [], "max": []})
            yield _units("dataset", config, np.array([joints["min"], joints["max"]], np.float64))
        else:
            yield Finding("dataset", f"none in {config.root}", "Give the folder with meta/stats.json.")
    if config.checkpoint is not None:
        yield _units("checkpoint", config, checkpoint_extremes(config.checkpoint))


def _units(what: str, config: DoctorConfig, extremes: Any) -> Finding:
    if extremes is None or extremes.shape != (2, 6):
        return Finding(what, "no smallest and largest positions of six joints in observation.state")
    units = infer_units(extremes)
    if units is None:
        return Finding(what, "unknown units: degrees or -100..100")
    calibration = _follower(config).calibration if config.id else None
    mismatched = mismatched_joints(extremes, calibration) if calibration else []
    fix = ""
    if units != DEGREES:
        fix = "Run the arm with --robot.use_degrees=false."
    elif mismatched:
        fix = f"Recorded with another calibration than that of {config.id}: {', '.join(mismatched)}."
    matches = f", consistent with the calibration of {config.id}" if calibration and not mismatched else ""
    return Finding(what, f"{units}{matches}", fix)


def cameras(config: DoctorConfig) -> Iterator[Finding]:
    """List the cameras that OpenCV opens."""
    if not config.cameras:
        return
    from lerobot.cameras.opencv import OpenCVCamera

    connected = OpenCVCamera.find_cameras()
    if not connected:
        yield Finding("camera", "none plugged in")
    for camera in connected:
        profile = camera["default_stream_profile"]
        found = f"{profile['width']}x{profile['height']}, {profile['fps']:.0f} Hz"
        yield Finding("camera", f"{camera['id']}: {found}")


CHECKS = (software, device, plugins, codecs, disk, serial_ports, servos, calibration, units, cameras)


def run_checks(config: DoctorConfig) -> list[Finding]:
    """Run all checks and return their findings; a check that raises is a finding."""
    others = [point.load() for point in importlib.metadata.entry_points(group="so101_doctor")]
    findings: list[Finding] = []
    for check in (*CHECKS, *others):
        try:
            findings += [Finding(*finding) for finding in check(config)]
        except Exception as error:  # the other checks still run: this is for machines on which things fail
            findings.append(Finding(check.__name__, "the check failed", f"{type(error).__name__}: {error}"))
    return findings


def report(findings: list[Finding]) -> str:
    """Format findings, one line each and one for each fix."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for what, found, fix in findings:
        lines.append(f"{'fix' if fix else 'ok ':3}  {what:{width}}  {found}")
        if fix:
            lines.append(f"{'':5}{'':{width}}  -> {fix}")
    return "\n".join(lines)


def main() -> None:
    """Run `so101-doctor`; exit code 1 if a finding has a fix."""
    findings: list[Finding] = []

    def command(config: DoctorConfig) -> str:
        findings.extend(run_checks(config))
        return report(findings)

    run_command("so101-doctor", DoctorConfig, command)
    raise SystemExit(any(finding.fix for finding in findings))


if __name__ == "__main__":
    main()
