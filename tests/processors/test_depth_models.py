# SPDX-License-Identifier: Apache-2.0
"""Depth models: every prediction becomes inverse depth aligned with the image, near = large."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from lerobot_processor_so101.models.depth import DEPTH_ANYTHING, make_depth_estimator, predicted_quantity
from lerobot_processor_so101.perception.disparity import inverse_to_disparity
from tests import tiny

MODELS = {
    "depth_anything": tiny.tiny_depth_anything,
    "depth_anything_metric": lambda folder: tiny.tiny_depth_anything(folder, "metric"),
    "dpt": tiny.tiny_dpt,
    "glpn": tiny.tiny_glpn,
    "zoedepth": tiny.tiny_zoedepth,
    "depth_pro": tiny.tiny_depth_pro,
}
INVERTED = ("depth_anything_metric", "glpn", "zoedepth")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MODELS.items()}


@pytest.fixture(scope="module")
def estimators(folders):
    return {name: make_depth_estimator(folder) for name, folder in folders.items()}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def random_images(batch=1, size=(48, 64), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(batch, 3, 6, 8, generator=generator), size=size, mode="bilinear")


def predicted(folder, images):
    """What transformers' own classes predict for the prepared image."""
    model = hf.AutoModelForDepthEstimation.from_pretrained(folder).eval()
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        return model(**processor(images=images, do_rescale=False, return_tensors="pt")).predicted_depth


def test_near_is_large_whatever_the_model_predicts(folders, estimators, name):
    estimator = estimators[name]
    inverse = estimator(random_images(2))
    assert inverse.dtype == torch.float32
    assert inverse.ndim == 3
    assert len(inverse) == 2
    assert inverse.flatten(1).std(-1).min() > 0, "a constant output tests nothing"
    assert estimator.quantity == ("depth" if name in INVERTED else "inverse")
    if name == "zoedepth":
        return  # has a border, see below
    raw = predicted(folders[name], random_images(2))
    expected = raw.clamp(min=1e-3).reciprocal() if name in INVERTED else raw
    torch.testing.assert_close(inverse, expected, atol=1e-3, rtol=1e-3)


def test_the_grid_of_depth_anything_keeps_the_aspect_ratio(estimators):
    assert estimators["depth_anything"](random_images(1, (48, 64))).shape == (1, 42, 56)


def test_depth_pro_orders_pixels_as_its_post_processing(folders, estimators):
    model = hf.AutoModelForDepthEstimation.from_pretrained(folders["depth_pro"]).eval()
    processor = hf.AutoImageProcessor.from_pretrained(folders["depth_pro"])
    with torch.no_grad():
        outputs = model(**processor(images=random_images(), do_rescale=False, return_tensors="pt"))
    depth = processor.post_process_depth_estimation(outputs)[0]["predicted_depth"]
    inverse = estimators["depth_pro"](random_images())[0]
    torch.testing.assert_close(depth.reciprocal(), inverse.clamp(1e-4, 1e4), atol=1e-3, rtol=1e-3)


def test_the_border_of_zoedepth_is_cropped_as_by_its_post_processing(folders, estimators):
    images = random_images(1, (48, 64))
    model = hf.AutoModelForDepthEstimation.from_pretrained(folders["zoedepth"]).eval()
    processor = hf.AutoImageProcessor.from_pretrained(folders["zoedepth"])
    with torch.no_grad():
        outputs = model(**processor(images=images, do_rescale=False, return_tensors="pt"))
    depth = processor.post_process_depth_estimation(outputs, source_sizes=[(48, 64)])[0]["predicted_depth"]
    inverse = estimators["zoedepth"](images)
    assert inverse.shape[-2] < outputs.predicted_depth.shape[-2]
    ours = inverse_to_disparity(inverse, (12, 16))
    theirs = inverse_to_disparity(depth.clamp(min=1e-3).reciprocal()[None], (12, 16))
    # They interpolate depth by cubics and we inverse depth linearly.
    assert (ours - theirs).abs().mean() < 8
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.97


def test_one_call_for_cameras_and_stacked_frames(estimators, name, monkeypatch):
    estimator = estimators[name]
    forward, batches = estimator.model.forward, []

    def counted(pixel_values):
        batches.append(len(pixel_values))
        return forward(pixel_values)

    monkeypatch.setattr(estimator.model, "forward", counted)
    top, wrist = random_images(2, seed=1), random_images(1, seed=2)
    together = estimator.estimate([top, wrist])
    assert batches == [3]
    for images, found in zip((top, wrist), together, strict=True):
        torch.testing.assert_close(found, estimator(images), atol=1e-3, rtol=1e-3)


def test_identity_and_frozen(folders, estimators):
    estimator = estimators["dpt"]
    assert estimator.identity.class_names == ()
    assert estimator.identity.input_size == (56, 56)
    assert make_depth_estimator(folders["dpt"]).identity == estimator.identity
    assert not any(module.training for module in estimator.train().modules())
    assert not estimator(random_images().requires_grad_()).requires_grad


def test_half_precision_weights_work_on_the_cpu(tmp_path):
    estimator = make_depth_estimator(tiny.tiny_depth_anything(tmp_path, dtype=torch.float16))
    assert torch.isfinite(estimator(random_images())).all()
    assert {parameter.dtype for parameter in estimator.parameters()} == {torch.float32}


def test_bfloat16_autocast_works(estimators, name):
    inputs = estimators[name].prepare(random_images())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inverse = estimators[name].inverse_depth(inputs)
    assert inverse.dtype == torch.float32
    assert torch.isfinite(inverse).all()


def test_the_default_is_the_freely_licensed_depth_anything():
    assert DEPTH_ANYTHING == "depth-anything/Depth-Anything-V2-Small-hf"
    with pytest.raises(ValueError, match=r"found neither a folder .* nor a model on the Hub or in its cache"):
        make_depth_estimator()


def test_models_with_an_unknown_output_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 heads selects one by a majority of the batch"):
        make_depth_estimator(tiny.tiny_zoedepth(tmp_path / "two", heads=2))
    with pytest.raises(ValueError, match="found a 'segformer' model, expected one of depth_anything"):
        make_depth_estimator(tiny.tiny_segformer(tmp_path / "segformer"))
    with pytest.raises(ValueError, match="found a 'dpt' model, expected one of"):
        predicted_quantity("facebook/dpt-dinov2", hf.DPTConfig(add_projection=True))


def test_nan_images_are_refused(estimators):
    with pytest.raises(ValueError, match="without NaN"):
        estimators["dpt"].estimate([torch.full((1, 3, 8, 8), float("nan"))])
