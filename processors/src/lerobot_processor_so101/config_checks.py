# SPDX-License-Identifier: Apache-2.0
"""Checks shared by configurations."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch


def check_choices(config: Any, choices: Mapping[str, Collection[Any]], prefix: str = "") -> None:
    """Refuse values of a configuration that are not among the choices, by name.

    Raises:
        ValueError: if a value is not allowed; the message lists the choices. The prefix is that of the names
            in it, such as "--" for options of a command.
    """
    for name, allowed in choices.items():
        found = getattr(config, name)
        if found not in allowed:
            expected = ", ".join(str(choice) or "''" for choice in allowed)
            raise ValueError(f"{prefix}{name}: found {found!r}, expected one of {expected}.")


def check_smallest(config: Any, smallest: Mapping[str, float], prefix: str = "") -> None:
    """Refuse values of a configuration that are less than the smallest, by name.

    Raises:
        ValueError: if a value is; see `check_choices` for the prefix.
    """
    for name, least in smallest.items():
        found = getattr(config, name)
        if found < least:
            raise ValueError(f"{prefix}{name}: found {found}, expected {least} or more.")


def check_device(device: str | None, flag: str = "--device") -> None:
    """Refuse a torch device that cannot be used here; None and "auto" choose one.

    Raises:
        ValueError: if there is no such device; the message names the flag.
    """
    if device in (None, "auto"):
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{flag}: found {device!r}, which cannot be used here ({reason}). Use cpu."
        ) from error


def check_id(name: str | None, flag: str) -> None:
    """Refuse the name of a device that LeRobot would not store its calibration file under; None is no name.

    Raises:
        ValueError: if the file would lie in another folder; the message names the flag.
    """
    if name is not None and (not name or name.startswith(".") or {"/", "\\", "\0"} & set(name)):
        raise ValueError(
            f"{flag}: found {name!r}, expected a name without '/' or '\\', not beginning with '.'."
        )


def check_dataset_folder(root: Path, flag: str = "--root") -> None:
    """Refuse a folder without a dataset, before LeRobot looks for it on the Hub.

    Raises:
        ValueError: if there is no `meta/info.json`.
    """
    if not (root / "meta" / "info.json").is_file():
        raise ValueError(
            f"{flag}: found no dataset in {root} (no meta/info.json), expected a LeRobotDataset's folder."
        )
