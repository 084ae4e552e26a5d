# SPDX-License-Identifier: Apache-2.0
"""Segmenters with free-text classes."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file, save_file

from lerobot_processor_so101.models import make_segmenter
from lerobot_processor_so101.models.open_vocabulary import BACKGROUND
from tests import tiny

MODELS = {"clipseg": tiny.tiny_clipseg, "sam3": tiny.tiny_sam3}
GRIDS = {"clipseg": (32, 32), "sam3": (16, 16)}
TEXTS = ["red cube", "gripper"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MODELS.items()}


@pytest.fixture(scope="module")
def segmenters(folders):
    return {name: make_segmenter(folder, TEXTS) for name, folder in folders.items()}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def random_images(batch=2, size=(48, 64)):
    generator = torch.Generator().manual_seed(0)
    return F.interpolate(torch.rand(batch, 3, 6, 8, generator=generator), size=size, mode="bilinear")


def test_classes_are_the_background_and_the_texts(segmenters, name):
    scores = segmenters[name](random_images())
    assert scores.class_names == (BACKGROUND, *TEXTS)
    assert scores.kind == "probs"
    assert scores.values.shape == (2, 3, *GRIDS[name])
    assert scores.values.dtype == torch.float32
    assert scores.values.flatten(2).std(-1).min() > 1e-4, "a constant output tests nothing"
    assert segmenters[name].class_map.id("red cube") == 1


def test_background_is_the_remaining_probability(segmenters, name):
    values = segmenters[name](random_images()).values
    assert values.min() >= 0
    assert values.max() <= 1
    torch.testing.assert_close(values[:, 0], 1 - values[:, 1:].amax(1))
    claimed = values[:, 1:].amax(1) > 0.5
    assert torch.equal(segmenters[name](random_images()).ids() > 0, claimed)


def test_clipseg_equals_transformers(folders, segmenters):
    model = hf.CLIPSegForImageSegmentation.from_pretrained(folders["clipseg"]).eval()
    tokens = hf.AutoProcessor.from_pretrained(folders["clipseg"]).tokenizer(
        TEXTS, padding=True, return_tensors="pt"
    )
    prepared = segmenters["clipseg"].prepare(random_images())["pixel_values"]
    values = segmenters["clipseg"](random_images()).values
    with torch.no_grad():
        for image, found in zip(prepared, values, strict=True):
            expected = model(pixel_values=image.expand(2, -1, -1, -1), **tokens).logits.sigmoid()
            torch.testing.assert_close(found[1:], expected, atol=1e-5, rtol=1e-4)


def test_sam3_equals_transformers(folders, segmenters):
    model = hf.Sam3Model.from_pretrained(folders["sam3"]).eval()
    processor = hf.AutoProcessor.from_pretrained(folders["sam3"])
    prepared = segmenters["sam3"].prepare(random_images())["pixel_values"]
    values = segmenters["sam3"](random_images()).values
    for index, text in enumerate(TEXTS, 1):
        # Padding to a length: another one than ours, which must not matter.
        tokens = processor.tokenizer([text] * 2, padding="max_length", max_length=16, return_tensors="pt")
        with torch.no_grad():
            outputs = model(pixel_values=prepared, **tokens)
        expected = outputs.semantic_seg[:, 0].sigmoid() * outputs.presence_logits.sigmoid()[..., None]
        torch.testing.assert_close(values[:, index], expected, atol=1e-4, rtol=1e-3)


def test_sam3_is_published_inside_a_model_for_videos(folders, segmenters, tmp_path):
    shutil.copytree(folders["sam3"], tmp_path, dirs_exist_ok=True)
    detector = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "sam3_video", "detector_config": detector})
    )
    weights = load_file(tmp_path / "model.safetensors")
    inside = {f"detector_model.{key}": value for key, value in weights.items()}
    save_file(inside, tmp_path / "model.safetensors", metadata={"format": "pt"})
    segmenter = make_segmenter(str(tmp_path), TEXTS)
    torch.testing.assert_close(segmenter(random_images()).values, segmenters["sam3"](random_images()).values)


def test_images_are_encoded_once_for_all_texts_and_cameras(segmenters, name, monkeypatch):
    segmenter = segmenters[name]
    vision = segmenter.model.clip.vision_model if name == "clipseg" else segmenter.model.vision_encoder
    forward, batches = vision.forward, []

    def counted(pixel_values, *args, **kwargs):
        batches.append(len(pixel_values))
        return forward(pixel_values, *args, **kwargs)

    monkeypatch.setattr(vision, "forward", counted)
    top, wrist = segmenter.segment([random_images(2), random_images(1)])
    assert batches == [3]
    torch.testing.assert_close(top.values[:1], wrist.values, atol=1e-4, rtol=1e-4)


def test_the_output_for_a_text_does_not_depend_on_the_other_texts(folders, segmenters, name):
    alone = make_segmenter(folders[name], ["gripper"])(random_images()).values[:, 1]
    torch.testing.assert_close(segmenters[name](random_images()).values[:, 2], alone, atol=1e-4, rtol=1e-3)


def test_texts_are_part_of_the_identity(folders, segmenters, name):
    other = make_segmenter(folders[name], ["plate"])
    assert other.identity.weights == segmenters[name].identity.weights
    with pytest.raises(ValueError, match="class_names"):
        segmenters[name].identity.check(other.identity, "this test")


def test_bfloat16_autocast_works(segmenters, name):
    inputs = segmenters[name].prepare(random_images(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        values = segmenters[name].score(inputs).values
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        ([], "takes free text: found classes = "),
        (["cube", "cube "], "expected different texts"),
        (["cube", " "], "none empty"),
        ([BACKGROUND], "which is class 0"),
        (["red cube table plate bowl gripper"], "at most 24 tokens per text, found"),
    ],
)
def test_invalid_texts_are_refused(folders, name, classes, match):
    with pytest.raises(ValueError, match=match):
        make_segmenter(folders[name], classes)
