# SPDX-License-Identifier: Apache-2.0
"""Find the objects that a task instruction mentions, without a language model.

With a closed vocabulary, `Vocabulary` searches the instruction for class names. With an open one,
`noun_phrases` takes everything between function words and common verbs of manipulation for an object.
"""

import re
from collections.abc import Mapping, Sequence

from lerobot.processor import EnvTransition, TransitionKey

# The words between objects in "Pick up the red cube and put it into the blue bowl on the left."
_WORDS = """
a an the this that these those its it them they one ones all every each any some other another both
and or then so while until before after with without using by from to into onto in on at of off over under
above below behind beside between near next out inside outside up down away back top bottom left right
front side middle center centre corner edge
please now first second finally slowly carefully gently
pick put place move take grab grasp lift hold drop release push pull slide open close turn flip rotate stack
insert pour wipe fold sort bring give hand reach press find look go is are be do
touch touching throw set lay get make let
"""
_NOT_OBJECTS = frozenset(_WORDS.split())


def task_sentences(transition: EnvTransition, missing: str) -> list[str]:
    """Return the task sentence of each sample.

    Raises:
        ValueError: with the message `missing`, if there is none.
    """
    task = (transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get("task")
    if task is None:
        raise ValueError(missing)
    return [task] if isinstance(task, str) else list(task)


def noun_phrases(instruction: str) -> list[str]:
    """Return the objects in an instruction, in order.

    "Put the red cube into the bowl." gives ["red cube", "bowl"].
    """
    phrases: list[str] = []
    words: list[str] = []
    for token in [*re.findall(r"[a-z0-9'-]+|[^\sa-z0-9'-]", instruction.lower()), "."]:
        if token not in _NOT_OBJECTS and token[0].isalnum():
            words.append(token)
        elif words:
            phrases.append(" ".join(words))
            words = []
    return list(dict.fromkeys(phrases))


class Vocabulary:
    """Class names and their synonyms, to find classes in instructions.

    A class is found by its name, by a synonym in the name ("door; double door") or in `synonyms`, each in
    singular or plural, or, where no full name matches, by its last word: "the cube" is every cube.

    Args:
        names: class names; position = id.
        synonyms: more synonyms, by class name.
        option: name of the option with the synonyms, for the message.

    Raises:
        ValueError: if there are synonyms of a class that does not exist.
    """

    def __init__(
        self,
        names: Sequence[str],
        synonyms: Mapping[str, Sequence[str]] | None = None,
        option: str = "synonyms",
    ) -> None:
        synonyms = synonyms or {}
        if unknown := set(synonyms) - set(names):
            raise ValueError(
                f"{option}: found {sorted(unknown)}, expected names of classes: {list(names)[:20]}."
            )
        self._ids: dict[str, list[int]] = {}
        for id_, name in enumerate(names):
            for phrase in [*re.split(r"[;,]", name), *synonyms.get(name, ())]:
                self._ids.setdefault(_normalise(phrase), []).append(id_)
        for id_, name in enumerate(names):  # after all names: a last word never hides a name
            last = _normalise(name).split()[-1:]
            if last and id_ not in self._ids.setdefault(last[0], []) and _normalise(name) != last[0]:
                self._ids[last[0]].append(id_)
        longest_first = sorted((phrase for phrase in self._ids if phrase), key=len, reverse=True)
        self._pattern = re.compile(r"\b(" + "|".join(map(re.escape, longest_first)) + r")(?:e?s)?\b")

    def mentioned(self, instruction: str) -> list[int]:
        """Return the ids of the classes in an instruction, in the order of their first mention."""
        matches = self._pattern.finditer(_normalise(instruction))
        return list(dict.fromkeys(id_ for match in matches for id_ in self._ids[match.group(1)]))


def _normalise(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").split())
