# SPDX-License-Identifier: Apache-2.0
"""What users and checkpoints rely on, frozen in `public_surface.txt`: a change shows as a diff.

Write the file anew, after a change that is meant, with `python -m tests.test_public_surface`.
"""

import dataclasses
import difflib
import importlib
import json
import sys
from enum import Enum
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import draccus
from lerobot.cameras.configs import CameraConfig
from lerobot.configs import PreTrainedConfig
from lerobot.envs.configs import EnvConfig
from lerobot.processor import ProcessorStepRegistry
from lerobot.robots.config import RobotConfig
from lerobot.teleoperators.config import TeleoperatorConfig

FILE = Path(__file__).with_name("public_surface.txt")
PACKAGES = (
    "lerobot_processor_so101",
    "lerobot_policy_segdepth",
    "lerobot_policy_segvla",
    "lerobot_policy_imf",
    "lerobot_policy_hlrp",
    "lerobot_robot_so101",
    "lerobot_env_so101_workbench",
)
CHOICES = {
    "policy": PreTrainedConfig,
    "env": EnvConfig,
    "robot": RobotConfig,
    "teleop": TeleoperatorConfig,
    "camera": CameraConfig,
}
KEYS = (
    *("image_key", "seg_image_key", "depth_image_key", "disparity_key"),
    *("seg_key", "seg_logits_key", "seg_top_k_key"),
)


def ours(cls: type) -> bool:
    """Whether a class belongs to one of the packages."""
    return cls.__module__.partition(".")[0] in PACKAGES


def text(value: Any) -> str:
    """A default in one line, without addresses in memory or places on a machine."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return text({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text, value)) + "]"
    if isinstance(value, Enum):
        return json.dumps(value.value)
    if isinstance(value, PurePath):
        return json.dumps(str(value))
    return json.dumps(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__


def default(field: dataclasses.Field) -> str:
    """The default of a dataclass field."""
    if field.default is not dataclasses.MISSING:
        return text(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return text(field.default_factory())
    return "required"


def options(cls: type) -> list[str]:
    """One line for each option that a class of ours adds to its base class, or whose default it changes."""
    inherited = {
        field.name: default(field)
        for base in cls.__mro__[1:]
        if dataclasses.is_dataclass(base) and not ours(base)
        for field in reversed(dataclasses.fields(base))
    }
    found = {field.name: default(field) for field in dataclasses.fields(cls) if field.init}
    lines = [f"    {name} = {value}" for name, value in found.items() if inherited.get(name) != value]
    return sorted(lines)


def command_options(target: metadata.EntryPoint) -> list[str]:
    """Options of a console command: those of the dataclass that its `main` parses, if it does."""
    parsed: list[type] = []

    def record(config_class: type, *_: Any, **__: Any) -> None:
        parsed.append(config_class)
        raise SystemExit(0)

    (original, draccus.parse), arguments = (draccus.parse, record), sys.argv
    sys.argv = [target.name]
    try:
        target.load()()
    except SystemExit:
        pass
    finally:
        draccus.parse, sys.argv = original, arguments
    return [line for config_class in parsed for line in options(config_class)]


def surface() -> str:
    """Everything that is frozen, as text."""
    for name in PACKAGES:
        importlib.import_module(name)
    lines = ["# distributions"]
    lines += [f"{name}" for name in sorted(PACKAGES)]
    for kind, base in CHOICES.items():
        for name, cls in sorted(base.get_known_choices().items()):
            if ours(cls):
                lines += ["", f"# --{kind}.type={name} ({cls.__name__})", *options(cls)]
    lines += ["", "# processor steps: constructor arguments, which are also the keys of a checkpoint's JSON"]
    for name in sorted(ProcessorStepRegistry.list()):
        cls = ProcessorStepRegistry.get(name)
        if ours(cls):
            lines += ["", f"# {name}"]
            lines += options(cls) if dataclasses.is_dataclass(cls) else []
    scripts = [point for point in metadata.entry_points(group="console_scripts") if point.dist is not None]
    for point in sorted((p for p in scripts if p.dist.name in PACKAGES), key=lambda point: point.name):
        lines += ["", f"# console command {point.name}", *command_options(point)]
    shared = importlib.import_module("lerobot_processor_so101")
    lines += ["", "# feature keys of a camera `top`"]
    lines += [f"{name}: {getattr(shared, name)('top')}" for name in KEYS]
    return "\n".join(lines) + "\n"


def test_the_public_surface_is_as_frozen(monkeypatch):
    found, frozen = surface().splitlines(), FILE.read_text().splitlines()
    changes = "\n".join(difflib.unified_diff(frozen, found, "frozen", "found", lineterm="", n=2))
    assert not changes, f"{changes}\nIf this is meant: python -m tests.test_public_surface"


if __name__ == "__main__":
    FILE.write_text(surface())
    print(f"written to {FILE}")
