# SPDX-License-Identifier: Apache-2.0
"""The identity of a perception model: another model is refused, a copy is not."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from lerobot_processor_so101.perception.identity import ModelIdentity, weights_hash

IDENTITY = ModelIdentity("models/a", "5c" * 32, ("table", "cube"), (480, 640))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_json_round_trip():
    assert ModelIdentity.from_dict(json.loads(json.dumps(IDENTITY.to_dict()))) == IDENTITY


@pytest.mark.parametrize("values", [{"name": "a"}, {**IDENTITY.to_dict(), "revision": 1}])
def test_missing_or_unknown_entries_are_refused(values):
    with pytest.raises(ValueError, match=r"identity of a perception model: found .*name"):
        ModelIdentity.from_dict(values)


def test_the_same_model_in_another_folder_is_the_same():
    IDENTITY.check(replace(IDENTITY, name="elsewhere"), "checkpoint")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weights": "00" * 32}, r"weights = 5c5c5c5c5c5c\.\.\., found 'other' with weights = 0000"),
        ({"class_names": ("table", "mug")}, r"class_names = \['table', 'cube'\].*\['table', 'mug'\]"),
        ({"input_size": (84, 84)}, r"input_size = \[480, 640\].*\[84, 84\]"),
    ],
)
def test_another_model_is_refused(change, match):
    with pytest.raises(ValueError, match=f"checkpoint x expects the perception model 'models/a'.*{match}"):
        IDENTITY.check(replace(IDENTITY, name="other", **change), "checkpoint x")


def test_the_message_shows_the_first_of_many_classes_that_differ():
    names = tuple(f"class {i}" for i in range(150))
    other = (*names[:57], "bowl", *names[58:])
    with pytest.raises(ValueError, match=r"150 entries, from 57 on .*class 57") as error:
        replace(IDENTITY, class_names=names).check(replace(IDENTITY, class_names=other), "checkpoint")
    assert "'bowl'" in str(error.value)
    assert "'class 3'" not in str(error.value)


def test_hash_depends_on_each_parameter_buffer_dtype_and_name():
    hashes = {weights_hash(network())}
    for change in ("weight", "buffer", "dtype", "name"):
        model = network()
        if change == "weight":
            model[0].weight.data[3, 2, 2, 2] += 1e-6
        elif change == "buffer":
            model[1].running_mean[1] = 1e-6
        elif change == "dtype":
            model.half()
        else:
            model = nn.ModuleDict({"a": model[0], "b": model[1]})
        hashes.add(weights_hash(model))
    assert len(hashes) == 5
    assert weights_hash(network()) in hashes
    assert weights_hash(network(seed=1)) not in hashes


def test_hash_does_not_depend_on_the_memory_layout():
    model = network()
    expected = weights_hash(model)
    assert weights_hash(model.to(memory_format=torch.channels_last)) == expected
