# SPDX-License-Identifier: Apache-2.0
"""The segmentation step of segvla: equal scores online and offline, and classes that sentences mention."""

import pytest
import torch

from lerobot_policy_segvla.segmentation_step import MENTIONED, SegVLAAddSegmentationStep
from lerobot_processor_so101 import resolve_perception
from lerobot_processor_so101.models import class_names_of, make_segmenter
from lerobot_processor_so101.precompute.columns import Column
from lerobot_processor_so101.precompute.perception import stored_form
from tests.tiny import tiny_clipseg, tiny_efficientvit_fpn, tiny_mask2former

KEYS = {"top": "observation.seg.top", "wrist": "observation.my_scores"}
FORMS = {
    "ids": ([24, 32], (24, 32, 1)),
    "top_k": ([8, 8], (4, 65, 1)),
    "logits": ([32, 32], (6, 32, 32)),
}


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    return tiny_mask2former(tmp_path_factory.mktemp("mask2former"))


def images_of(batch=2):
    generator = torch.Generator().manual_seed(0)
    return {
        f"observation.images.{camera}": torch.rand(batch, 3, 48, 64, generator=generator) for camera in KEYS
    }


def run(step, observation, task="Put the red cube into the bowl."):
    sentences = [task] * 2 if isinstance(task, str) else task
    transition = {"observation": observation, "complementary_data": {"task": sentences}}
    return resolve_perception(step(transition)["observation"])


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_online_equals_offline(kind, mask2former):
    size, shape = FORMS[kind]
    names = list(class_names_of(mask2former))
    step = SegVLAAddSegmentationStep(
        list(KEYS), size, segmenter=mask2former, keys=KEYS, kind=kind, class_names=names, top_k=4
    )
    observation = images_of()
    online = run(step, observation)
    scores = make_segmenter(mask2former).segment(list(observation.values()))
    for key, output in zip(KEYS.values(), scores, strict=True):
        column = Column(key, "", kind, tuple(size), shape, step.live.model.identity, (32, 32))
        stored = stored_form(column, output, None)
        if kind == "logits":
            stored = stored.float()  # as LeRobot reads it back
        offline = run(step, {**observation, **dict.fromkeys(KEYS.values(), stored)})
        assert torch.equal(offline[key].to(online[key]), online[key])


@pytest.mark.parametrize("kind", ["probs", "log_scores"])
def test_live_kinds(kind, mask2former):
    names = list(class_names_of(mask2former))
    step = SegVLAAddSegmentationStep(
        list(KEYS), segmenter=mask2former, keys=KEYS, kind=kind, class_names=names
    )
    found = run(step, images_of())[KEYS["top"]]
    expected = make_segmenter(mask2former).segment(list(images_of().values()))[0]
    if kind == "probs":
        assert torch.equal(found, expected.as_probs())
    else:
        assert torch.allclose(found.softmax(1), expected.as_probs(), atol=1e-5)


def test_a_time_dimension_is_kept(mask2former):
    names = list(class_names_of(mask2former))
    step = SegVLAAddSegmentationStep(
        list(KEYS), [8, 8], segmenter=mask2former, keys=KEYS, kind="top_k", class_names=names
    )
    observation = {key: value[:, None] for key, value in images_of().items()}
    assert run(step, observation)[KEYS["top"]].shape == (2, 1, 6, 8, 8)


def test_the_models_run_once_and_deferred(tmp_path, monkeypatch):
    folder = tiny_efficientvit_fpn(tmp_path)
    step = SegVLAAddSegmentationStep(
        list(KEYS), segmenter=folder, keys=KEYS, class_names=list(class_names_of(folder))
    )
    calls = []
    segment = type(step.live.model).segment
    monkeypatch.setattr(
        type(step.live.model), "segment", lambda self, images: calls.append(1) or segment(self, images)
    )
    deferred = step({"observation": images_of(), "complementary_data": {"task": ""}})["observation"]
    assert not calls
    first, second = resolve_perception(deferred), resolve_perception(deferred)
    assert len(calls) == 1
    assert torch.equal(first[KEYS["wrist"]], second[KEYS["wrist"]])


def test_the_sentence_chooses_among_names():
    names = ["background", "red cube", "blue bowl", "white bowl"]
    step = SegVLAAddSegmentationStep(
        ["top"], keys={"top": "observation.seg.top"}, class_names=names, from_instruction=True, max_mentions=3
    )
    ids = {"observation.seg.top": torch.zeros(2, 1, 24, 32)}
    found = run(step, ids, ["Put the red cube into the white bowl.", "Wave."])
    assert found[MENTIONED].tolist() == [[1, 3, -1], [-1, -1, -1]]


def test_the_sentence_is_the_prompt_of_an_open_vocabulary_segmenter(tmp_path):
    folder = tiny_clipseg(tmp_path)
    step = SegVLAAddSegmentationStep(
        list(KEYS),
        segmenter=folder,
        keys=KEYS,
        kind="probs",
        class_names=["thing 1", "thing 2", "thing 3"],
        from_instruction=True,
        max_mentions=3,
    )
    observation = images_of()
    found = run(step, observation, ["Put the red cube into the bowl.", "Lift the table."])
    assert found[MENTIONED].tolist() == [[0, 1, -1], [0, -1, -1]]
    for camera, key in KEYS.items():
        images = observation[f"observation.images.{camera}"]
        first = make_segmenter(folder, ["red cube", "bowl"])(images[:1]).values[:, 1:]
        second = make_segmenter(folder, ["table"])(images[1:]).values[:, 1:]
        assert torch.allclose(found[key][0, :2], first[0], atol=1e-5)
        assert torch.allclose(found[key][1, :1], second[0], atol=1e-5)
        assert not found[key][0, 2].any()
        assert not found[key][1, 1:].any()
    nothing = run(step, observation, ["Go.", "Go."])
    assert not nothing[KEYS["top"]].any()


def test_missing_scores(caplog):
    options = {"keys": {"top": "observation.seg.top"}, "class_names": ["a"]}
    with pytest.raises(ValueError, match=r"found no 'observation.seg.top'.*segmentation_required=false"):
        run(SegVLAAddSegmentationStep(["top"], **options), images_of())
    step = SegVLAAddSegmentationStep(["top"], required=False, **options)
    for _ in range(3):
        assert set(run(step, images_of())) == set(images_of())
    assert len([record for record in caplog.records if "acts as SmolVLA" in record.message]) == 1


def test_no_sentence():
    step = SegVLAAddSegmentationStep(
        ["top"], keys={"top": "observation.seg.top"}, class_names=["a"], from_instruction=True
    )
    with pytest.raises(ValueError, match="segmentation_from_instruction: found no task sentence"):
        step({"observation": {"observation.seg.top": torch.zeros(1, 1, 4, 4)}, "complementary_data": {}})


def test_ids_outside_the_map():
    step = SegVLAAddSegmentationStep(["top"], keys={"top": "observation.seg.top"}, class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"observation.seg.top: found class id 7, expected 0 to 1"):
        run(step, {"observation.seg.top": torch.full((2, 1, 8, 8), 7.0)})


def test_rebuilt_from_json(mask2former):
    import json

    step = SegVLAAddSegmentationStep(
        list(KEYS),
        [8, 8],
        segmenter=mask2former,
        keys=KEYS,
        kind="top_k",
        class_names=["x"] * 6,
        top_k=4,
        synonyms={"x": ["y"]},
        from_instruction=True,
        max_mentions=2,
        required=False,
    )
    again = SegVLAAddSegmentationStep(**json.loads(json.dumps(step.get_config())))
    assert again.get_config() == step.get_config()
    assert "model" not in vars(again.live)
