# SPDX-License-Identifier: Apache-2.0
"""Which things a task sentence talks about.

No language model and no grammar: for a closed vocabulary the labels themselves are looked for, for an open one
everything between function words and the usual verbs of manipulation is taken to be a thing.
"""

import re
from collections.abc import Mapping, Sequence

# What stands between things in "Pick up the red cube and put it into the blue bowl on the left."
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
_NOT_THINGS = frozenset(_WORDS.split())


def noun_phrases(sentence: str) -> list[str]:
    """Things in a sentence, in order: "Put the red cube into the bowl." gives ["red cube", "bowl"]."""
    phrases: list[str] = []
    words: list[str] = []
    for word in [*re.findall(r"[a-z0-9'-]+|[^\sa-z0-9'-]", sentence.lower()), "."]:
        if word in _NOT_THINGS or not word[0].isalnum():
            phrase = " ".join(words)
            if phrase and phrase not in phrases:
                phrases.append(phrase)
            words = []
        else:
            words.append(word)
    return phrases


class Vocabulary:
    """Class names, and what else a sentence may call them.

    A class is mentioned by its name, by one of the synonyms in the name ("door; double door"), by one of `synonyms`,
    each in singular or plural, or, where no full name fits, by its last word: "the cube" is every cube.

    Args:
        names: class names; position = id.
        synonyms: other words for some of them.

    Raises:
        ValueError: synonyms of a class that does not exist.
    """

    def __init__(self, names: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> None:
        self._ids: dict[str, list[int]] = {}
        unknown = set(synonyms or {}) - set(names)
        if unknown:
            raise ValueError(
                f"segmentation_synonyms: found {sorted(unknown)}, expected names of classes: {list(names)[:20]}."
            )
        for id_, name in enumerate(names):
            for phrase in [*re.split(r"[;,]", name), *(synonyms or {}).get(name, ())]:
                self._ids.setdefault(_plain(phrase), []).append(id_)
        for id_, name in enumerate(names):  # after all names: a last word never hides a name
            last = _plain(name).split()[-1:]
            if last and id_ not in self._ids.setdefault(last[0], []) and _plain(name) != last[0]:
                self._ids[last[0]].append(id_)
        longest_first = sorted((p for p in self._ids if p), key=len, reverse=True)
        self._pattern = re.compile(r"\b(" + "|".join(map(re.escape, longest_first)) + r")(?:e?s)?\b")

    def mentioned(self, sentence: str) -> list[int]:
        """Ids of the classes in a sentence, in the order of their first mention."""
        found = [
            id_ for match in self._pattern.finditer(_plain(sentence)) for id_ in self._ids[match.group(1)]
        ]
        return list(dict.fromkeys(found))


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").split())
