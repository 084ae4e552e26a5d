# SPDX-License-Identifier: Apache-2.0
"""`so101-doctor`: each finding is a line with its fix, and a check that fails does not stop the others."""

import json
import sys
from types import SimpleNamespace

import pytest

from lerobot_robot_so101 import doctor
from lerobot_robot_so101.doctor import DoctorConfig, Finding, report


def findings(check, **options):
    return list(check(DoctorConfig(**options)))


def test_the_report_has_a_line_for_each_finding_and_each_fix():
    lines = report([Finding("python", "3.12"), Finding("serial", "/dev/x", "do this")]).splitlines()
    assert lines == ["ok   python  3.12", "fix  serial  /dev/x", "             -> do this"]


def test_a_check_that_raises_is_a_finding(monkeypatch):
    def broken(config):
        raise OSError("no such thing")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.disk))
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: [])
    first, second = doctor.run_checks(DoctorConfig())
    assert first == Finding("broken", "the check failed", "OSError: no such thing")
    assert second.what == "disk"


def test_plugins_that_lerobot_does_not_discover_or_cannot_import_are_named(monkeypatch):
    names = ["lerobot_policy_hlrp", "lerobot-policy-dashed", "lerobot_robot_absent", "numpy"]
    found = [SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(doctor.importlib.metadata, "distributions", lambda: found)
    dashed, good, absent = findings(doctor.plugins)
    assert "spelled lerobot_policy_dashed" in dashed.fix
    assert good.found.startswith("lerobot_policy_hlrp")
    assert not good.fix
    assert "ModuleNotFoundError" in absent.fix


def test_a_port_that_is_missing_or_forbidden(tmp_path, monkeypatch):
    (absent,) = findings(doctor.serial_ports, port=str(tmp_path / "ttyACM0"))
    assert "lerobot-find-port" in absent.fix
    port = tmp_path / "ttyACM1"
    port.touch()
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    (forbidden,) = findings(doctor.serial_ports, port=str(port))
    assert "dialout" in forbidden.fix


def test_files_are_checked_without_an_arm(tmp_path, monkeypatch):
    monkeypatch.setattr("serial.tools.list_ports.comports", list)
    (wanted,) = findings(doctor.serial_ports, id="my_arm")
    assert "Plug in" in wanted.fix
    for files in ({"root": tmp_path}, {"checkpoint": tmp_path}):
        (absent,) = findings(doctor.serial_ports, id="my_arm", **files)
        assert not absent.fix


@pytest.fixture
def calibrations(tmp_path, monkeypatch):
    from lerobot.robots import robot

    monkeypatch.setattr(robot, "HF_LEROBOT_CALIBRATION", tmp_path)
    folder = tmp_path / "robots" / "so_follower"
    folder.mkdir(parents=True)
    return folder


def write_calibration(folder, **ranges):
    joints = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    content = {
        joint: {
            "id": number,
            "drive_mode": 0,
            "homing_offset": 0,
            "range_min": ranges.get(joint, (800, 3200))[0],
            "range_max": ranges.get(joint, (800, 3200))[1],
        }
        for number, joint in enumerate(joints, 1)
    }
    (folder / "arm.json").write_text(json.dumps(content))


def test_calibration_is_missing_narrow_or_good(calibrations):
    (missing,) = findings(doctor.calibration, id="arm")
    assert "lerobot-calibrate" in missing.fix
    write_calibration(calibrations, elbow_flex=(2000, 2200))
    (narrow,) = findings(doctor.calibration, id="arm")
    assert "elbow_flex 18 deg" in narrow.fix
    write_calibration(calibrations)
    (good,) = findings(doctor.calibration, id="arm")
    assert not good.fix


def test_units_of_a_dataset_are_inferred(tmp_path, calibrations):
    (absent,) = findings(doctor.units, root=tmp_path)
    assert "meta/stats.json" in absent.fix
    (tmp_path / "meta").mkdir()
    step = 360 / 4095

    def units(low, high, **options):
        ends = {"min": [low * size for size in (1, 2, 3, 4, 5)] + [0.0], "max": [high] * 5 + [100.0]}
        (tmp_path / "meta" / "stats.json").write_text(json.dumps({"observation.state": ends}))
        (found,) = findings(doctor.units, root=tmp_path, **options)
        return found

    assert units(-100 * step, 200 * step)[1:] == ("degrees", "")
    assert units(-1.234, 5.678).found == "unknown units: degrees or -100..100"
    percent = units(-100.5 * 200 / 4095, 5.5 * 200 / 4095)
    assert "--robot.use_degrees=false" in percent.fix
    write_calibration(calibrations)
    assert "shoulder_pan" in units(-100.5 * step, 200 * step, id="arm").fix
    assert "consistent with the calibration of arm" in units(-100 * step, 200 * step, id="arm").found


def test_the_exit_code_is_1_if_a_finding_has_a_fix(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["so101-doctor", "--cameras=false"])
    monkeypatch.setattr(doctor, "CHECKS", (lambda config: iter([Finding("a", "b")]),))
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: [])
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    assert not ended.value.code
    monkeypatch.setattr(doctor, "CHECKS", (lambda config: iter([Finding("a", "b", "c")]),))
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    assert ended.value.code == 1
    assert "-> c" in capsys.readouterr().out


def test_the_workbench_adds_its_own_check():
    from lerobot_env_so101_workbench.sim.rendering import doctor_check

    (line,) = doctor_check(DoctorConfig())
    what, found, fix = Finding(*line)
    assert what == "rendering"
    assert bool(fix) == (found == "the ray-caster")
