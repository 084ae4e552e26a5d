# SPDX-License-Identifier: Apache-2.0
"""Objects in an instruction: classes of a closed vocabulary, phrases of an open one."""

import pytest

from lerobot_processor_so101.perception.instruction import Vocabulary, noun_phrases

NAMES = [
    "background",
    "table",
    "red cube",
    "green cube",
    "blue bowl",
    "white bowl",
    "door; double door",
    "box",
]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Put the red cube into the blue bowl.", [2, 4]),
        ("Into the WHITE bowl put the green  cube", [5, 3]),
        ("Take the cube.", [2, 3]),  # no full name: every cube
        ("Put the red cube beside the other cube.", [2, 3]),
        ("Sort red cubes and green cubes into boxes.", [2, 3, 7]),
        ("Open the double door, then the door.", [6]),
        ("Wave at the tablet.", []),  # not a table
        ("", []),
    ],
)
def test_closed_vocabulary(instruction, expected):
    assert Vocabulary(NAMES).mentioned(instruction) == expected


def test_synonyms():
    vocabulary = Vocabulary(NAMES, {"red cube": ["red block", "strawberry"], "blue bowl": ["blue dish"]})
    assert vocabulary.mentioned("Drop the strawberry into the blue dish") == [2, 4]
    assert vocabulary.mentioned("stack red blocks") == [2]
    with pytest.raises(ValueError, match=r"segmentation_synonyms: found \['cup'\]"):
        Vocabulary(NAMES, {"cup": ["mug"]}, "segmentation_synonyms")


def test_names_with_underscores():
    assert Vocabulary(["static_finger", "cube"]).mentioned("Close the static finger on the cube") == [0, 1]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Put the red cube into the blue bowl.", ["red cube", "blue bowl"]),
        ("Pick up a screwdriver, then place it in the tool box", ["screwdriver", "tool box"]),
        ("push the red cube to the red cube", ["red cube"]),
        ("Go.", []),
        ("", []),
    ],
)
def test_open_vocabulary(instruction, expected):
    assert noun_phrases(instruction) == expected
