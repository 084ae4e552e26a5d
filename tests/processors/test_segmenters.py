# SPDX-License-Identifier: Apache-2.0
"""Fixed-class segmenters from transformers, as random tiny models through the real Auto classes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image

from lerobot_processor_so101.models import make_segmenter, registry
from lerobot_processor_so101.models.base import crop_interpolated, run_batched
from lerobot_processor_so101.models.efficientvit_fpn import CLASS_NAMES
from lerobot_processor_so101.models.huggingface import query_scores
from lerobot_processor_so101.perception.scores import Scores
from tests import tiny

MODELS = {
    "mask2former": tiny.tiny_mask2former,
    "maskformer": tiny.tiny_maskformer,
    "eomt": tiny.tiny_eomt,
    "eomt_padded": lambda folder: tiny.tiny_eomt(folder, windows=False),
    "segformer": tiny.tiny_segformer,
    "efficientvit_fpn": tiny.tiny_efficientvit_fpn,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MODELS.items()}


@pytest.fixture(scope="module")
def segmenters(folders):
    return {name: make_segmenter(folder) for name, folder in folders.items()}


@pytest.fixture(params=MODELS)
def segmenter(request, segmenters):
    return segmenters[request.param]


def random_images(batch=1, size=(48, 64), seed=0):
    """Smooth random images of multiples of 1/255, (B, 3, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 6, 8, generator=generator)
    return (F.interpolate(coarse, size=size, mode="bilinear") * 255).round() / 255


def as_pil(images):
    return [
        Image.fromarray((255 * image.permute(1, 2, 0)).round().numpy().astype(np.uint8)) for image in images
    ]


class Calls:
    """Count the calls of a model and the images of each."""

    def __init__(self, segmenter, monkeypatch):
        self.batches = []
        forward = segmenter.model.forward

        def counted(*args, **kwargs):
            self.batches.append(len(kwargs["pixel_values"]))
            return forward(*args, **kwargs)

        monkeypatch.setattr(segmenter.model, "forward", counted)


GRIDS = {
    "mask2former": (16, 16),
    "maskformer": (16, 16),
    "eomt": (32, 42),
    "eomt_padded": (24, 32),
    "segformer": (16, 16),
    "efficientvit_fpn": (16, 24),
}


def test_scores_lie_on_the_models_own_grid(segmenters):
    for name, segmenter in segmenters.items():
        scores = segmenter(random_images(2))
        names = CLASS_NAMES if name == "efficientvit_fpn" else tiny.LABELS
        assert scores.class_names == segmenter.class_names == names
        assert scores.kind == ("logits" if name in ("segformer", "efficientvit_fpn") else "probs")
        assert scores.values.shape == (2, len(names), *GRIDS[name])
        assert scores.values.dtype == torch.float32
        assert scores.ids((48, 64)).shape == (2, 48, 64)
        assert scores.values.flatten(2).std(-1).min() > 1e-4, f"{name} has a constant output"


def test_ids_by_class_name(segmenters):
    assert segmenters["mask2former"].class_map.ids(["plate", "flask"]) == [3, 5]
    with pytest.raises(ValueError, match=r"class 'bowl'.*6 classes of .*the nearest are \['bottle'\]"):
        segmenters["mask2former"].class_map.id("bowl")


def test_normalisation_is_that_of_the_image_processor_for_uint8_images(segmenter):
    images = random_images(2)
    ordinary = segmenter.processor(images=as_pil(images), return_tensors="pt")["pixel_values"]
    ours = segmenter.prepare(images)["pixel_values"]
    # uint8 images are resized as uint8; ours are not. One level of 255, over a deviation of at least 0.224.
    torch.testing.assert_close(ours, ordinary, atol=1.01 / 255 / 0.224, rtol=0)
    assert (ours - ordinary).abs().mean() < 0.5 / 255 / 0.224


def test_without_a_resize_the_input_is_that_of_the_image_processor(tmp_path):
    segmenter = make_segmenter(tiny.tiny_mask2former(tmp_path, size=64))
    images = random_images(2, (64, 64))
    ordinary = segmenter.processor(images=as_pil(images), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(segmenter.prepare(images)["pixel_values"], ordinary, atol=1e-5, rtol=0)


def test_the_layout_in_memory_does_not_matter(segmenter):
    images = random_images(2)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not strided.is_contiguous()
    torch.testing.assert_close(segmenter(strided).values, segmenter(images).values)


def test_a_batch_equals_its_images(segmenter):
    images = random_images(3)
    one_by_one = torch.cat([segmenter(image[None]).values for image in images])
    torch.testing.assert_close(segmenter(images).values, one_by_one, atol=1e-4, rtol=1e-4)


def test_one_call_for_cameras_and_stacked_frames(segmenter, monkeypatch):
    calls = Calls(segmenter, monkeypatch)
    top, wrist = random_images(2, seed=1), random_images(3, seed=2)
    scores = segmenter.segment([top, wrist])
    windows = 2 if type(segmenter).__name__ == "SlidingWindowSegmenter" else 1
    assert calls.batches == [5 * windows]
    for images, found in zip((top, wrist), scores, strict=True):
        torch.testing.assert_close(found.values, segmenter(images).values, atol=1e-4, rtol=1e-4)


def test_cameras_of_different_shape(segmenter, monkeypatch):
    cameras = [random_images(2, (48, 64), 1), random_images(1, (64, 48), 2), random_images(1, (40, 40), 3)]
    expected = [segmenter(images).values for images in cameras]
    calls = Calls(segmenter, monkeypatch)
    scores = segmenter.segment(cameras)
    assert len(calls.batches) == 1  # windows and padded squares are of one size too
    for found, values in zip(scores, expected, strict=True):
        torch.testing.assert_close(found.values, values, atol=1e-4, rtol=1e-4)


def test_images_of_different_prepared_size_are_separate_batches():
    shapes = []

    def run(inputs):
        shapes.append(tuple(inputs["pixel_values"].shape))
        return inputs["pixel_values"]

    batches = [torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 8), torch.rand(3, 3, 4, 4)]
    outputs = run_batched(
        run, lambda output, a, b: output[a:b], [{"pixel_values": batch} for batch in batches]
    )
    assert shapes == [(5, 3, 4, 4), (1, 3, 4, 8)]
    for output, batch in zip(outputs, batches, strict=True):
        assert torch.equal(output, batch)


def test_nothing_to_segment(segmenter):
    assert segmenter.segment([]) == []


# Parity with transformers' own post-processing


def mask2former_outputs(segmenter, images):
    with torch.no_grad():
        return segmenter.model(pixel_values=segmenter.prepare(images)["pixel_values"])


def test_mask2former_evidence_has_the_argmax_of_transformers(segmenters):
    """On the same enlarged masks, since transformers enlarges mask logits to 384 x 384 first."""
    segmenter = segmenters["mask2former"]
    outputs = mask2former_outputs(segmenter, random_images(2))
    expected = torch.stack(segmenter.processor.post_process_semantic_segmentation(outputs))
    masks = F.interpolate(outputs.masks_queries_logits, size=(384, 384), mode="bilinear", align_corners=False)
    ours = query_scores(outputs.class_queries_logits, masks).argmax(1)
    assert len(expected.unique()) > 2
    assert torch.equal(ours, expected)


def test_mask2former_ids_are_those_of_transformers(tmp_path):
    """End to end: at an input of 1536 the model's own grid is the 384 x 384 that transformers enlarges to."""
    segmenter = make_segmenter(tiny.tiny_mask2former(tmp_path, size=1536))
    images = random_images(1, (96, 128))
    outputs = mask2former_outputs(segmenter, images)
    scores = segmenter(images)
    assert len(scores.ids().unique()) > 2
    for size in (None, (96, 128), (480, 640)):
        expected = segmenter.processor.post_process_semantic_segmentation(
            outputs, target_sizes=None if size is None else [size]
        )
        assert torch.equal(scores.ids(size)[0].long(), expected[0])


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (40, 40), (32, 150), (37, 61)])
def test_eomt_windows_are_merged_as_in_transformers(segmenters, size):
    segmenter = segmenters["eomt"]
    images = random_images(2, size)
    inputs = segmenter.prepare(images)
    with torch.no_grad():
        outputs = segmenter.model(pixel_values=inputs["pixel_values"])
    outputs.patch_offsets = inputs["patch_offsets"]
    evidence = query_scores(outputs.class_queries_logits, outputs.masks_queries_logits)
    merged = segmenter.processor.merge_image_patches(
        evidence, inputs["patch_offsets"], [size] * 2, segmenter.processor.size
    )
    ids = segmenter.processor.post_process_semantic_segmentation(outputs, target_sizes=[size] * 2)
    scores = segmenter(images)
    ours = F.interpolate(scores.values, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, torch.stack(merged), atol=1e-4, rtol=1e-3)
    assert (scores.ids(size).long() == torch.stack(ids)).float().mean() > 0.999


def test_coarse_windows_are_merged_within_a_cell(tmp_path):
    """With ordinary patches masks are coarser than pixels and windows begin between cells."""
    segmenter = make_segmenter(tiny.tiny_eomt(tmp_path, patch_size=8))
    ramp = torch.linspace(0, 1, 75)  # prepared images are 32 x 75, three windows of 32

    def looked_at(inputs):
        """The ramp itself, on the grid of the masks: evidence that is the position of a cell."""
        cells = F.avg_pool2d(inputs["pixel_values"][:, :1], 2)
        return Scores(cells.expand(-1, 6, -1, -1), "probs", tiny.LABELS)

    segmenter.score = looked_at
    segmenter.processor.do_normalize = False
    images = ramp.expand(1, 3, 32, 75).contiguous()
    values = segmenter(images).values[0, 0]
    assert values.shape == (16, 38)
    expected = F.interpolate(ramp[None, None], size=38, mode="linear", align_corners=False)[0, 0]
    torch.testing.assert_close(values[0], expected, atol=1.1 / 75, rtol=0)


# Padding


def test_padding_is_cropped(tmp_path):
    """A Mask2Former that pads to a fixed size has the output of one that does not, on the same grid."""
    folder = tiny.tiny_mask2former(tmp_path, pad_size={"height": 96, "width": 128})
    segmenter = make_segmenter(folder)
    images = random_images(2)
    inputs = segmenter.prepare(images)
    assert inputs["pixel_values"].shape[-2:] == (96, 128)
    with torch.no_grad():
        padded = segmenter.score(inputs).values
    torch.testing.assert_close(segmenter(images).values, padded[..., :16, :16], atol=1e-4, rtol=1e-3)


def test_the_padding_of_eomt_is_cropped(segmenters):
    segmenter = segmenters["eomt_padded"]
    images = random_images(1)
    with torch.no_grad():
        padded = segmenter.score(segmenter.prepare(images)).values
    assert padded.shape[-2:] == (32, 32)
    torch.testing.assert_close(segmenter(images).values, padded[..., :24, :], atol=1e-4, rtol=1e-3)


def test_the_centre_is_not_cropped(tmp_path):
    """An image processor that crops the centre would misalign the scores with the image."""
    segmenter = make_segmenter(tiny.tiny_efficientvit_fpn(tmp_path))
    expected = segmenter(random_images(1)).values
    segmenter.processor.do_center_crop = True
    segmenter.processor.crop_size = {"height": 32, "width": 32}
    torch.testing.assert_close(segmenter(random_images(1)).values, expected)


def test_a_region_between_cells_is_cropped_in_place():
    ramp = torch.arange(16.0).expand(2, 3, 8, 16)
    cropped = crop_interpolated(ramp, (0.0, 0.1, 1.0, 0.6))
    assert cropped.shape == (2, 3, 8, 10)
    step = 16 * 0.6 / 10
    expected = 16 * 0.1 + step * (torch.arange(10) + 0.5) - 0.5
    torch.testing.assert_close(cropped[0, 0, 0], expected, atol=1e-4, rtol=0)


# Weights and identity


def test_half_precision_weights_work_on_the_cpu_and_keep_their_identity(tmp_path):
    folder = tiny.tiny_mask2former(tmp_path / "half", dtype=torch.float16)
    half = make_segmenter(folder)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    model = hf.Mask2FormerForUniversalSegmentation.from_pretrained(folder, dtype=torch.float32)
    full = make_segmenter(tiny.save(tmp_path / "full", model, half.processor, gain=None))
    images = random_images(1)
    torch.testing.assert_close(half(images).values, full(images).values)
    assert half.weights != full.weights
    assert make_segmenter(folder).identity == half.identity


def test_a_copy_is_the_same_model_and_a_changed_weight_is_not(folders, tmp_path):
    original = make_segmenter(folders["segformer"])
    model = hf.AutoModelForSemanticSegmentation.from_pretrained(folders["segformer"])
    copy = make_segmenter(tiny.save(tmp_path / "copy", model, original.processor, gain=None))
    original.identity.check(copy.identity, "this test")
    next(model.parameters()).data.flatten()[0] += 1e-3
    changed = make_segmenter(tiny.save(tmp_path / "changed", model, original.processor, gain=None))
    with pytest.raises(ValueError, match=r"this test expects .* with weights"):
        original.identity.check(changed.identity, "this test")


def test_identity_names_classes_and_input_size(segmenters):
    assert segmenters["mask2former"].identity.class_names == tiny.LABELS
    assert segmenters["mask2former"].identity.input_size == (64, 64)
    assert segmenters["efficientvit_fpn"].identity.input_size == (64, 96)
    assert segmenters["eomt"].identity.input_size == (32,)


def test_a_segmenter_is_frozen(segmenter):
    segmenter.train()
    assert not any(module.training for module in segmenter.modules())
    assert not any(parameter.requires_grad for parameter in segmenter.parameters())
    images = random_images(1).requires_grad_()
    scores = segmenter(images)
    assert not scores.values.requires_grad
    assert not scores.values.is_inference()


def test_scores_contain_disparity(tmp_path):
    segmenter = make_segmenter(tiny.tiny_efficientvit_fpn(tmp_path, disparity_head=True))
    assert segmenter.predicts_disparity
    both = segmenter.segment([random_images(2), random_images(1)])
    assert [scores.disparity.shape for scores in both] == [(2, 16, 24), (1, 16, 24)]
    assert both[0].disparity_map((48, 64)).shape == (2, 48, 64)


def test_bfloat16_autocast_changes_little(segmenter):
    """As on a GPU, but on the CPU: every model must get through autocast, with float32 outputs."""
    inputs = segmenter.prepare(random_images(1))
    with torch.no_grad():
        exact = segmenter.score(inputs).values
        with torch.autocast("cpu", torch.bfloat16):
            rough = segmenter.score(inputs).values
    assert rough.dtype == torch.float32
    assert torch.isfinite(rough).all()
    assert (rough - exact).abs().mean() < 0.2 * exact.std()


# Bad input


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.full((1, 3, 8, 8), float("nan")), "without NaN"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide uint8 by 255"),
        (torch.full((1, 3, 8, 8), 255.0), r"values from 255 to 255, expected \[0, 1\]"),
        (torch.full((1, 3, 8, 8), -1.0), r"expected \[0, 1\]"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\), expected \(B, 3, H, W\)"),
        (torch.zeros(1, 8, 8, 3), r"expected \(B, 3, H, W\)"),
        (torch.zeros(0, 3, 8, 8), "found none"),
    ],
)
def test_invalid_images_are_refused(segmenters, images, match):
    with pytest.raises(ValueError, match=match):
        segmenters["segformer"].segment([random_images(1), images])


def test_a_missing_folder_is_named():
    with pytest.raises(ValueError, match="'/no/such/folder': there is no such folder"):
        make_segmenter("/no/such/folder")
    with pytest.raises(ValueError, match="'no/such-model': found neither a folder"):
        make_segmenter("no/such-model")


def test_missing_weights_are_named(folders, tmp_path):
    shutil.copy(f"{folders['segformer']}/config.json", tmp_path)
    with pytest.raises(ValueError, match=r"perception model .*(safetensors|no file named)"):
        make_segmenter(str(tmp_path))


@pytest.mark.parametrize("name", registry.PACKAGED)
def test_the_segmenters_of_the_package_have_weights_and_a_card(name):
    segmenter = make_segmenter(name)
    scores = segmenter(torch.rand(2, 3, 120, 160))
    assert scores.values.shape[:2] == (2, len(segmenter.class_names))
    assert segmenter.predicts_disparity
    card = Path(registry._folder(name), "README.md").read_text()
    assert all(named in card for named in segmenter.class_names)


def test_the_workbench_segmenter_without_weights_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_WEIGHTS", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"segmenter 'workbench': found no weights in .*gone/workbench"):
        make_segmenter("workbench")


def test_a_depth_model_does_not_segment(tmp_path):
    with pytest.raises(ValueError, match="found a 'depth_anything' model, expected a semantic one"):
        make_segmenter(tiny.tiny_depth_anything(tmp_path))


def test_weights_of_another_task_are_refused_not_completed_randomly(tmp_path):
    with pytest.raises(ValueError, match=r"lack .* parameters of DPTForSemanticSegmentation.*another task"):
        make_segmenter(tiny.tiny_dpt(tmp_path))


def test_fixed_classes_cannot_be_chosen(folders):
    with pytest.raises(ValueError, match=r"\(segformer\) has fixed classes, found classes = \['cube'\]"):
        make_segmenter(folders["segformer"], ["cube"])
