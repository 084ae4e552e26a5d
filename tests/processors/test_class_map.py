# SPDX-License-Identifier: Apache-2.0
"""Ids by class name; numbers are accepted, and an unknown name lists the near ones."""

import logging

import numpy as np
import pytest

from lerobot_processor_so101.perception.class_map import ClassMap

NAMES = ("wall", "door; double door", "pool table", "table", "plate", "rug, carpet", "double door")


@pytest.fixture
def classes():
    return ClassMap(NAMES, "tiny")


@pytest.mark.parametrize(
    ("wanted", "id_"),
    [("table", 3), ("Table ", 3), ("pool  table", 2), ("carpet", 5), ("door", 1), ("door; double door", 1)],
)
def test_names_and_synonyms_without_regard_to_case(classes, wanted, id_):
    assert classes.id(wanted) == id_


def test_a_synonym_never_hides_a_name(classes):
    assert classes.id("double door") == 6


def test_several_in_order(classes):
    assert classes.ids(["plate", "wall"]) == [4, 0]


@pytest.mark.parametrize("number", [4, "4", np.int64(4)])
def test_a_number_is_accepted_and_its_name_logged(classes, number, caplog):
    with caplog.at_level(logging.WARNING):
        assert classes.id(number) == 4
    assert "'plate'" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "near"), [("tabel", "table"), ("plates", "plate"), ("pool", "pool table")]
)
def test_an_unknown_name_lists_the_near_ones(classes, wanted, near):
    with pytest.raises(ValueError, match=f"class '{wanted}'.*7 classes of tiny.*'{near}'"):
        classes.id(wanted)


@pytest.mark.parametrize("wanted", ["zzzz", ""])
def test_a_name_without_near_ones_lists_the_classes(classes, wanted):
    with pytest.raises(ValueError, match=r"it has .*'wall'"):
        classes.id(wanted)


@pytest.mark.parametrize("number", [-1, 7, "7"])
def test_a_number_out_of_range_is_refused(classes, number):
    with pytest.raises(ValueError, match="ids 0 to 6"):
        classes.id(number)
