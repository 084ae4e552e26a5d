# SPDX-License-Identifier: Apache-2.0
"""Names a user may write on a command line, and the errors for those that do not exist.

Kept apart from the simulator so that LeRobot's commands can import the configurations without MuJoCo.
"""

import difflib
from collections.abc import Sequence

TASK_NAMES = ("lift_cube", "place_cube", "sort_cubes", "pass_post")
LEVELS = ("clean", "distractors", "randomised")
CAMERA_NAMES = ("top", "wrist", "front")
FOLLOWER_PORT = "/tmp/so101_follower"  # of the virtual arm, where nothing else is asked for
MIN_SIDE, MAX_SIDE = 16, 2048  # pixels


def _check(kind: str, flag: str, found: str, expected: Sequence[str]) -> str:
    if found in expected:
        return found
    near = difflib.get_close_matches(str(found), expected, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{flag}: found {kind} {found!r}, expected one of {', '.join(expected)}.{hint}")


def check_task(name: str, flag: str = "task") -> str:
    """Return `name` if it is a task.

    Raises:
        ValueError: it is not; the message lists the tasks.
    """
    return _check("task", flag, name, TASK_NAMES)


def check_level(name: str, flag: str = "level") -> str:
    """Return `name` if it is a level.

    Raises:
        ValueError: it is not; the message lists the levels.
    """
    return _check("level", flag, name, LEVELS)


def check_cameras(names: Sequence[str], flag: str = "cameras") -> tuple[str, ...]:
    """Return `names` if each is a camera of the workbench and none is repeated.

    Raises:
        ValueError: an unknown or repeated camera, or none at all.
    """
    if not names:
        raise ValueError(f"{flag}: found none, expected at least one of {', '.join(CAMERA_NAMES)}.")
    for name in names:
        _check("camera", flag, name, CAMERA_NAMES)
    if len(set(names)) != len(names):
        raise ValueError(f"{flag}: found {list(names)}, expected each camera once.")
    return tuple(names)


def check_size(height: int, width: int, flag: str = "width and height") -> tuple[int, int]:
    """Return the picture size if it can be rendered.

    Raises:
        ValueError: a side is outside 16 to 2048 pixels.
    """
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise ValueError(
            f"{flag}: found {width}x{height} pixels, expected each side between {MIN_SIDE} and {MAX_SIDE}."
        )
    return height, width


def check_disturbance(degrees: float, flag: str = "disturbance") -> float:
    """Return the strength of the shaking if it leaves the expert a chance.

    Raises:
        ValueError: it is negative or stronger than 10 deg.
    """
    if not 0.0 <= degrees <= 10.0:
        raise ValueError(f"{flag}: found {degrees}, expected 0 to 10 degrees.")
    return degrees
