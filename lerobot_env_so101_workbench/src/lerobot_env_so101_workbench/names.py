# SPDX-License-Identifier: Apache-2.0
"""Names that a user may give on a command line, and checks of them; importable without MuJoCo."""

import difflib
from collections.abc import Sequence

TASK_NAMES = ("lift_cube", "place_cube", "sort_cubes", "pass_post")
STARTS = ("eval", "validation", "train")  # sets of initial states of an environment
LEVELS = ("clean", "distractors", "randomised")
CAMERA_NAMES = ("top", "wrist", "front")
FOLLOWER_PORT = "/tmp/so101_follower"  # default port of the virtual arm's follower
MIN_SIDE, MAX_SIDE = 16, 2048  # pixels


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


def check_cameras(names: Sequence[str], flag: str = "cameras") -> tuple[str, ...]:
    """Return `names` if they are cameras, at least one and each once, else raise ValueError."""
    if not names:
        raise ValueError(f"{flag}: found none, expected at least one of {', '.join(CAMERA_NAMES)}.")
    for name in names:
        _check("camera", flag, name, CAMERA_NAMES)
    if len(set(names)) != len(names):
        raise ValueError(f"{flag}: found {list(names)}, expected each camera once.")
    return tuple(names)


def check_size(height: int, width: int, flag: str = "width and height") -> tuple[int, int]:
    """Return the image size if both sides are 16 to 2048 pixels, else raise ValueError."""
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise ValueError(
            f"{flag}: found {width}x{height} pixels, expected each side between {MIN_SIDE} and {MAX_SIDE}."
        )
    return height, width


def check_disturbance(degrees: float, flag: str = "disturbance") -> float:
    """Return the strength of the expert's disturbance if it is 0 to 10 deg, else raise ValueError."""
    if not 0.0 <= degrees <= 10.0:
        raise ValueError(f"{flag}: found {degrees}, expected 0 to 10 degrees.")
    return degrees
