# SPDX-License-Identifier: Apache-2.0
"""Checks that configurations have in common."""

from collections.abc import Collection, Mapping
from typing import Any


def check_choices(config: Any, choices: Mapping[str, Collection[Any]], prefix: str = "") -> None:
    """Refuse values that are none of those there are.

    Args:
        config: with an attribute of each name.
        choices: what each may be.
        prefix: of the names in messages, such as "--" for options of a command.

    Raises:
        ValueError: one is not; the message lists the choices.
    """
    for name, allowed in choices.items():
        found = getattr(config, name)
        if found not in allowed:
            expected = ", ".join(str(choice) or "''" for choice in allowed)
            raise ValueError(f"{prefix}{name}: found {found!r}, expected one of {expected}.")
