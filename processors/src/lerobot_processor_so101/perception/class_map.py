# SPDX-License-Identifier: Apache-2.0
"""Names of a segmenter's classes: users name classes, numbers are looked up."""

import difflib
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Of the workbench and of the segmenter in this package; position = id.
CLASS_NAMES = ("unlabeled", "background", "table", "cube", "static_finger", "moving_finger")

logger = logging.getLogger(__name__)


def ordered_labels(config: Any) -> tuple[str, ...]:
    """Return the class names of a configuration's `id2label`; position = id."""
    return tuple(config.id2label[id_] for id_ in sorted(config.id2label))


class ClassMap:
    """Ordered class names of one segmenter; position = id.

    Names are compared without regard to case. A name may list synonyms ("door; double door", "rug, carpet").

    Args:
        names: class names in the order of their ids.
        owner: segmenter or dataset with these classes, for messages.
    """

    def __init__(self, names: Sequence[str], owner: str = "the segmenter") -> None:
        self.names = tuple(names)
        self.owner = owner
        self._ids: dict[str, int] = {}
        for id_, name in enumerate(self.names):
            self._ids.setdefault(normalise_name(name), id_)
        for id_, name in enumerate(self.names):  # after all names: a synonym never hides a name
            for synonym in re.split(r"[;,]", name):
                self._ids.setdefault(normalise_name(synonym), id_)

    def id(self, wanted: str | int) -> int:
        """Return the id of a class by its name; a number is accepted too, and its name is logged.

        Raises:
            ValueError: if there is no such class; the message lists the nearest names.
        """
        if not isinstance(wanted, str):
            return self._by_number(int(wanted))
        name = normalise_name(wanted)
        if name in self._ids:
            return self._ids[name]
        if name.isdecimal():
            return self._by_number(int(name))
        near = [known for known in self._ids if name and name in known][:5]
        near += [known for known in difflib.get_close_matches(name, self._ids, n=5) if known not in near]
        hint = f"the nearest are {near}" if near else f"it has {list(self.names)[:20]}"
        raise ValueError(
            f"class {wanted!r}: not among the {len(self.names)} classes of {self.owner}; {hint}."
        )

    def ids(self, wanted: Iterable[str | int]) -> list[int]:
        """Return the ids of several classes, in order."""
        return [self.id(name) for name in wanted]

    def _by_number(self, number: int) -> int:
        if not 0 <= number < len(self.names):
            raise ValueError(
                f"class {number}: {self.owner} has ids 0 to {len(self.names) - 1}. Name the class instead."
            )
        logger.warning("class %d of %s is %r; use the name instead.", number, self.owner, self.names[number])
        return number


def normalise_name(name: str) -> str:
    """Return a name in lower case with single spaces."""
    return " ".join(name.lower().split())
