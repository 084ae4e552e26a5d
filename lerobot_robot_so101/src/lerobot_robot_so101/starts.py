# SPDX-License-Identifier: Apache-2.0
"""Frozen starts of an evaluation on hardware: what a person lays out before each episode, the same for every policy."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SceneStart:
    """A start.

    Attributes:
        name: unique among the starts; results are kept by it.
        description: what lies where, in a sentence or a few.
        instruction: what the policy is told.
        picture: what it should look like; None if there is no picture.
    """

    name: str
    description: str
    instruction: str
    picture: Path | None = None


def read_starts(path: Path) -> list[SceneStart]:
    """Starts from a JSON file: a list of objects with name, description, instruction and, if there is one, picture.

    Pictures are paths from the file's folder.

    Raises:
        ValueError: the file, a field or a picture is missing, or two starts have one name; the message says which.
    """
    if not path.is_file():
        raise ValueError(
            f"--env.starts: found no file {path}. `so101-starts` writes one, with a picture for each start."
        )
    starts = []
    for number, entry in enumerate(json.loads(path.read_text())):
        missing = [key for key in ("name", "description", "instruction") if not entry.get(key)]
        if missing:
            raise ValueError(f"--env.starts: entry {number} of {path} lacks {', '.join(missing)}.")
        picture = path.parent / entry["picture"] if entry.get("picture") else None
        if picture is not None and not picture.is_file():
            raise ValueError(
                f"--env.starts: entry {number} of {path} names a picture that is not there, {picture}."
            )
        starts.append(SceneStart(entry["name"], entry["description"], entry["instruction"], picture))
    names = [start.name for start in starts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not starts:
        raise ValueError(
            f"--env.starts: found {len(starts)} starts in {path}, expected some, each name once ({twice})."
        )
    return starts
