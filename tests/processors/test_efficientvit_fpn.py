# SPDX-License-Identifier: Apache-2.0
"""The suite's own segmenter: layers, losses, saving, and checkpoints of the original layout."""

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSemanticSegmentation

from lerobot_processor_so101.models.efficientvit_fpn import (
    CLASS_NAMES,
    EfficientViTFPNConfig,
    EfficientViTFPNForSemanticSegmentation,
    soft_iou_loss,
)
from lerobot_processor_so101.models.efficientvit_fpn.initial_weights import initialise
from lerobot_processor_so101.models.efficientvit_fpn.lightning import import_lightning, training_image_size


def make(**options) -> EfficientViTFPNForSemanticSegmentation:
    torch.manual_seed(0)
    return EfficientViTFPNForSemanticSegmentation(EfficientViTFPNConfig(**options)).eval()


@pytest.fixture(scope="module")
def original() -> EfficientViTFPNForSemanticSegmentation:
    """A model with the original's parameters, with statistics that are not the defaults."""
    model = make(unused_convs=True)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running" in name:
                tensor.add_(torch.rand_like(tensor) / 2)
    return model


@pytest.fixture
def checkpoint(original) -> dict:
    hyper = {
        "num_classes": 6,
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "img_height": 84,
        "img_width": 96,
        "loss_type": "iou",
    }
    return {"state_dict": dict(original.state_dict()), "hyper_parameters": hyper, "epoch": 3}


def test_parameter_counts_of_the_original():
    assert sum(p.numel() for p in make(unused_convs=True).parameters()) == 846_838
    assert sum(p.numel() for p in make().parameters()) == 735_670


@torch.no_grad()
def test_classifying_before_enlarging_gives_the_original_order(original):
    images = torch.randn(1, 3, 480, 640)
    enlarged = F.interpolate(original(images).logits, size=(480, 640), mode="bilinear")
    features = original.decode(original.backbone(images))
    expected = original.seg_head(F.interpolate(features, size=(480, 640), mode="bilinear"))
    torch.testing.assert_close(enlarged, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_saved_and_loaded_through_the_auto_class(tmp_path):
    model = make(disparity_head=True, id2label={0: "nothing", 1: "cube"}, training={"iou": 0.9})
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert loaded.config.id2label == {0: "nothing", 1: "cube"}
    assert loaded.config.training == {"iou": 0.9}
    images = torch.randn(2, 3, 84, 84)
    for key, value in model(images).items():
        torch.testing.assert_close(loaded(images)[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(84, 84), (97, 61), (33, 32)])
@torch.no_grad()
def test_any_size_gives_stride_four(size):
    outputs = make(disparity_head=True)(torch.randn(2, 3, *size))
    expected = tuple(-(-side // 4) for side in size)
    assert outputs.logits.shape == (2, 6, *expected)
    assert outputs.disparity.shape == (2, *expected)
    assert 0 <= outputs.disparity.min() <= outputs.disparity.max() <= 1


def test_soft_iou_is_that_of_the_formula_over_present_classes():
    logits, labels = torch.randn(3, 4, 5, 6), torch.randint(0, 3, (3, 5, 6))  # class 3 is nowhere
    labels[0] = 1
    exp = np.exp(logits.numpy())
    p = exp / exp.sum(1, keepdims=True)
    values = []
    for predicted, truth in zip(p, labels.numpy(), strict=True):
        for class_id in np.unique(truth):
            y = truth == class_id
            inter = (predicted[class_id] * y).sum()
            values.append(inter / (predicted[class_id].sum() + y.sum() - inter))
    assert soft_iou_loss(logits, labels).item() == pytest.approx(1 - np.mean(values), abs=1e-6)


def test_a_false_object_costs_the_same_where_there_is_none():
    """Images of a cube and of none; 100 pixels of a false cube in either."""
    labels = torch.zeros(2, 40, 40, dtype=torch.long)
    labels[0, 5:15, 5:15] = 1

    def cost(image: int | None, over_batch: bool) -> float:
        found = labels.clone()
        if image is not None:
            found[image, 25:35, 25:35] = 1
        return soft_iou_loss(20.0 * F.one_hot(found, 2).movedim(-1, 1), labels, over_batch).item()

    per_image, per_batch = (
        [cost(image, kind) - cost(None, kind) for image in (0, 1)] for kind in (False, True)
    )
    assert per_image[0] > 5 * per_image[1]
    assert per_batch[0] == pytest.approx(per_batch[1], abs=1e-6)


def test_a_perfect_output_has_no_loss():
    labels = torch.randint(0, 6, (2, 8, 8))
    assert soft_iou_loss(100.0 * F.one_hot(labels, 6).movedim(-1, 1), labels).item() == pytest.approx(
        0, abs=1e-5
    )


def test_losses_add_up():
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 6, (2, 64, 64))
    disparity = torch.rand(2, 64, 64)
    model = make(loss="batch_iou+ce", disparity_head=True)
    outputs = model(images, labels=labels.to(torch.uint8), disparity_labels=disparity)
    logits = F.interpolate(outputs.logits, size=(64, 64), mode="bilinear")
    predicted = F.interpolate(outputs.disparity[:, None], size=(64, 64), mode="bilinear")[:, 0]
    expected = F.cross_entropy(logits, labels) + (predicted - disparity).abs().mean()
    expected = expected + soft_iou_loss(logits, labels, over_batch=True)
    torch.testing.assert_close(outputs.loss, expected)


def test_disparity_needs_the_head():
    labels = torch.zeros(1, 32, 32)
    with pytest.raises(ValueError, match="disparity_head"):
        make()(torch.zeros(1, 3, 32, 32), labels=labels, disparity_labels=labels)


def test_unknown_loss_is_named():
    with pytest.raises(ValueError, match="'dice'"):
        EfficientViTFPNConfig(loss="dice")


# --- checkpoints of the original
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("unused_convs", [True, False])
@torch.no_grad()
def test_an_original_checkpoint_gives_the_same_output(original, checkpoint, tmp_path, unused_convs):
    torch.save(checkpoint, tmp_path / "best.ckpt")
    model = import_lightning(tmp_path / "best.ckpt", unused_convs=unused_convs)
    images = torch.randn(1, 3, 84, 96)
    torch.testing.assert_close(model(images).logits, original(images).logits, rtol=0, atol=0)
    assert training_image_size(model) == (84, 96)
    assert tuple(model.config.id2label.values()) == CLASS_NAMES
    assert sum(p.numel() for p in model.parameters()) == (846_838 if unused_convs else 735_670)


def test_a_training_starts_from_an_original_checkpoint(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "best.ckpt")
    model = make()
    initialise(model, str(tmp_path / "best.ckpt"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, checkpoint["state_dict"][name])


def test_a_head_of_other_classes_stays_random(tmp_path):
    torch.manual_seed(1)
    source = EfficientViTFPNForSemanticSegmentation(EfficientViTFPNConfig())
    source.save_pretrained(tmp_path)
    model = make(id2label={0: "nothing", 1: "cup"}, disparity_head=True)
    head = model.seg_head.weight.clone()
    initialise(model, str(tmp_path))
    torch.testing.assert_close(model.seg_head.weight, head)
    torch.testing.assert_close(model.lateral_convs[0].weight, source.lateral_convs[0].weight)


def test_missing_initial_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="--init_from: 'no/such-model'"):
        initialise(make(), "no/such-model")
    with pytest.raises(ValueError, match="--init_from=none"):  # tests are offline
        initialise(make(), "imagenet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("state_dict"), "'state_dict'"),
        (lambda c: c.pop("hyper_parameters"), "'hyper_parameters'"),
        (lambda c: c["hyper_parameters"].update(backbone="x"), "'backbone'"),
        (lambda c: c["hyper_parameters"].update(num_classes=7), "num_classes: found 7, expected 6"),
        (lambda c: c["hyper_parameters"].update(lr="fast"), "lr: found 'fast'"),
        (lambda c: c["hyper_parameters"].update(loss_type="dice"), "loss_type: found 'dice'"),
        (lambda c: c["state_dict"].update({"extra.weight": torch.zeros(1)}), "'extra.weight'"),
        (lambda c: c["state_dict"].update({"seg_head.bias": 1.0}), "seg_head.bias: found float"),
        (lambda c: c["state_dict"].update({"seg_head.bias": torch.zeros(5)}), "found shape \\(5,\\)"),
        (lambda c: c["state_dict"].update({"seg_head.bias": torch.full((6,), torch.nan)}), "not finite"),
        (lambda c: c["state_dict"].pop("lateral_convs.2.bias"), "no 'lateral_convs.2.bias'"),
    ],
)
def test_unknown_entries_are_named(checkpoint, tmp_path, change, message):
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=message):
        import_lightning(tmp_path / "best.ckpt")


class _Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["SO101_TEST_TRAP"],)


def test_pickled_code_is_refused_and_never_runs(checkpoint, tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    monkeypatch.setenv("SO101_TEST_TRAP", str(trap))
    torch.save({**checkpoint, "callbacks": _Malicious()}, tmp_path / "torch.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({**checkpoint, "callbacks": _Malicious()}))
    for name in ("torch.ckpt", "plain.ckpt"):
        with pytest.raises(ValueError, match=f"{name}: refused"):
            import_lightning(tmp_path / name)
    assert not trap.exists()


def test_harmless_objects_are_refused_too(checkpoint, tmp_path):
    checkpoint["hyper_parameters"] = argparse.Namespace(**checkpoint["hyper_parameters"])
    torch.save(checkpoint, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=r"argparse\.Namespace"):
        import_lightning(tmp_path / "best.ckpt")


def test_a_damaged_checkpoint_is_named(checkpoint, tmp_path):
    path = tmp_path / "best.ckpt"
    torch.save(checkpoint, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"best\.ckpt: refused"):
        import_lightning(path)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        import_lightning(tmp_path / "none.ckpt")
