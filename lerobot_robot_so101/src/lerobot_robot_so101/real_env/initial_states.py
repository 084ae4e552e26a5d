# SPDX-License-Identifier: Apache-2.0
"""Frozen initial states of an evaluation on hardware: scenes that an operator sets up, for every policy."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InitialState:
    """What the operator sets up before an episode.

    Attributes:
        name: unique key of its results.
        description: positions of the objects, in a few sentences.
        instruction: passed to the policy.
        image: photo or rendering of the scene; None if there is none.
    """

    name: str
    description: str
    instruction: str
    image: Path | None = None


def read_initial_states(path: Path) -> list[InitialState]:
    """Read initial states from JSON: objects with name, description, instruction and, optionally, picture.

    `picture` is the path of an image relative to the file's folder.

    Raises:
        ValueError: if the file, a field or an image is missing, or a name occurs twice.
    """
    if not path.is_file():
        raise ValueError(
            f"--env.starts: found no file {path}. `so101-starts` writes one, with an image for each scene."
        )
    states = []
    for number, entry in enumerate(json.loads(path.read_text())):
        if missing := [key for key in ("name", "description", "instruction") if not entry.get(key)]:
            raise ValueError(f"--env.starts: entry {number} of {path} lacks {', '.join(missing)}.")
        image = path.parent / entry["picture"] if entry.get("picture") else None
        if image is not None and not image.is_file():
            raise ValueError(
                f"--env.starts: entry {number} of {path} names an image that does not exist: {image}."
            )
        states.append(InitialState(entry["name"], entry["description"], entry["instruction"], image))
    names = [state.name for state in states]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not states:
        raise ValueError(
            f"--env.starts: found {len(states)} initial states in {path}, expected at least one, each name "
            f"once ({twice})."
        )
    return states
