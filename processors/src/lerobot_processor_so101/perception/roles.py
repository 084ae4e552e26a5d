# SPDX-License-Identifier: Apache-2.0
"""Which object plays which role, by the task sentence.

A policy that brings "the target" into "the container" needs to know which classes these are. The mask of a
role looks the same whatever plays it. So one policy serves every sentence, also one about objects that it was
not trained on.
"""

from collections.abc import Mapping, Sequence

from .class_map import normalise_name
from .instruction import Vocabulary


class Roles:
    """Finds the class of each watched object for a task sentence.

    Args:
        watched: roles, whose classes depend on the sentence, and names of other classes.
        roles: what may play a role, by its name: a class name, or the last word of several, such as
            {"target": "cube", "container": "bowl"}.
        class_names: names of the class ids in the masks; position = id.
        synonyms: other words for classes, by class name; those of other classes are not used.

    Raises:
        ValueError: if a watched class does not exist, or no class can play a role.
    """

    def __init__(
        self,
        watched: Sequence[str],
        roles: Mapping[str, str],
        class_names: Sequence[str],
        synonyms: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._watched, self._names = list(watched), list(class_names)
        known = {name: words for name, words in (synonyms or {}).items() if name in class_names}
        self._vocabulary = Vocabulary(class_names, known)
        self._candidates = {
            role: [id_ for id_, name in enumerate(class_names) if _ends_with(name, words)]
            for role, words in roles.items()
        }
        without = [role for role, ids in self._candidates.items() if not ids]
        without += [name for name in watched if name not in roles and name not in self._names]
        if without:
            raise ValueError(
                f"watched_classes: found no class for {without} in {self._names}. What may play a role is a "
                f"class name or the last word of one: found {dict(roles)}."
            )

    def ids(self, sentence: str) -> list[int]:
        """Return the class id of each watched role or class.

        Raises:
            ValueError: if the sentence names no class for a role, or more than one.
        """
        mentioned = self._vocabulary.mentioned(sentence)
        return [
            self._one(sentence, name, mentioned) if name in self._candidates else self._names.index(name)
            for name in self._watched
        ]

    def _one(self, sentence: str, role: str, mentioned: Sequence[int]) -> int:
        found = [id_ for id_ in mentioned if id_ in self._candidates[role]]
        if len(found) == 1:
            return found[0]
        named = f"{[self._names[id_] for id_ in found]}" if found else "none"
        raise ValueError(
            f"task: {sentence!r} names {named} for the role {role!r}, expected one of "
            f"{[self._names[id_] for id_ in self._candidates[role]]}. Name it, or add the word that the "
            "sentence has for it: `--policy.synonyms`."
        )


def _ends_with(name: str, words: str) -> bool:
    return f" {normalise_name(name)}".endswith(f" {normalise_name(words)}")
