# SPDX-License-Identifier: Apache-2.0
"""Names of a segmenter's classes: users name classes, numbers are looked up."""

import difflib
import logging
import re
from collections.abc import Iterable, Sequence

# Of seed 001 and of the simulated workbench; position = id.
CLASS_NAMES = ("unlabeled", "background", "table", "cube", "static_finger", "moving_finger")

logger = logging.getLogger(__name__)


class ClassMap:
    """The ordered class names of one segmenter; position = id.

    Names are compared without regard to case, and a name that lists synonyms ("door; double door", "rug, carpet")
    answers to each of them.

    Args:
        names: class names in the order of their ids.
        owner: who has these classes, for messages.
    """

    def __init__(self, names: Sequence[str], owner: str = "the segmenter") -> None:
        self.names = tuple(names)
        self.owner = owner
        self._ids: dict[str, int] = {}
        for id_, name in enumerate(self.names):
            self._ids.setdefault(_plain(name), id_)
        for id_, name in enumerate(self.names):  # after all names: a synonym never hides a name
            for synonym in re.split(r"[;,]", name):
                self._ids.setdefault(_plain(synonym), id_)

    def id(self, wanted: str | int) -> int:
        """Look a class up by name; a number is taken too, and its name is logged.

        Raises:
            ValueError: there is no such class; the message lists the nearest names.
        """
        if not isinstance(wanted, str):
            return self._by_number(int(wanted))
        plain = _plain(wanted)
        if plain in self._ids:
            return self._ids[plain]
        if plain.isdecimal():
            return self._by_number(int(plain))
        near = [name for name in self._ids if plain and plain in name][:5]
        near += [name for name in difflib.get_close_matches(plain, self._ids, n=5) if name not in near]
        hint = f"the nearest are {near}" if near else f"it has {list(self.names)[:20]}"
        raise ValueError(
            f"class {wanted!r}: not among the {len(self.names)} classes of {self.owner}; {hint}."
        )

    def ids(self, wanted: Iterable[str | int]) -> list[int]:
        """Look several classes up, in order."""
        return [self.id(name) for name in wanted]

    def _by_number(self, number: int) -> int:
        if not 0 <= number < len(self.names):
            raise ValueError(
                f"class {number}: {self.owner} has ids 0 to {len(self.names) - 1}. Name the class instead."
            )
        logger.warning("class %d of %s is %r; name it so.", number, self.owner, self.names[number])
        return number


def _plain(name: str) -> str:
    return " ".join(name.lower().split())
