# SPDX-License-Identifier: Apache-2.0
"""Names that a user may give on a command line, and checks of them; importable without MuJoCo."""

import difflib
from collections.abc import Sequence

TASK_NAMES = ("lift_cube", "place_cube", "sort_cubes", "pass_post")
STARTS = ("eval", "validation", "train")  # sets of initial states of an environment
LEVELS = ("clean", "distractors", "randomised")
CAMERA_NAMES = ("top", "wrist", "front")
FOLLOWER_PORT = "/tmp/so101_follower"  # default port of the virtual arm's follower
_MIN_SIDE, _MAX_SIDE = 16, 2048  # pixels


def _check(kind: str, flag: str, found: str, expected: Sequence[str]) -> str:
    if found in expected:
        return found
    near = difflib.get_close_matches(str(found), expected, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{flag}: found {kind} {found!r}, expected one of {', '.join(expected)}.{hint}")


def check_task(name: str, flag: str = "task") -> str:
    """Return `name` if it is a task, else raise ValueError."""
    return _check("task", flag, name, TASK_NAMES)


def check_level(name: str, flag: str = "level") -> str:
    """Return `name` if it is a level, else raise ValueError."""
    return _check("level", flag, name, LEVELS)


def check_cameras(names: Sequence[str], flag: str = "cameras") -> None:
    """Raise ValueError unless `names` are cameras, at least one and each once."""
    if not names:
        raise ValueError(f"{flag}: found none, expected at least one of {', '.join(CAMERA_NAMES)}.")
    for name in names:
        _check("camera", flag, name, CAMERA_NAMES)
    if len(set(names)) != len(names):
        raise ValueError(f"{flag}: found {list(names)}, expected each camera once.")


def check_size(height: int, width: int, flag: str = "width and height") -> None:
    """Raise ValueError unless both sides of an image are 16 to 2048 pixels."""
    if min(height, width) < _MIN_SIDE or max(height, width) > _MAX_SIDE:
        expected = f"expected each side between {_MIN_SIDE} and {_MAX_SIDE}"
        raise ValueError(f"{flag}: found {width}x{height} pixels, {expected}.")


def check_disturbance(degrees: float, flag: str) -> None:
    """Raise ValueError unless the strength of the expert's disturbance is 0 to 10 deg."""
    if not 0.0 <= degrees <= 10.0:
        raise ValueError(f"{flag}: found {degrees}, expected 0 to 10 degrees.")
