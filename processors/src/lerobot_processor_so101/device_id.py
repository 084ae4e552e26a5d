# SPDX-License-Identifier: Apache-2.0
"""Names of devices, which LeRobot uses as file names of their calibrations."""


def check_id(name: str | None, flag: str) -> None:
    """Validate a name.

    Args:
        name: of a device; None for none.
        flag: option to name in the error.

    Raises:
        ValueError: if the calibration file would lie in another folder.
    """
    if name is not None and (not name or name.startswith(".") or {"/", "\\", "\0"} & set(name)):
        raise ValueError(
            f"{flag}: found {name!r}, expected a name without '/' or '\\', not beginning with '.'."
        )
