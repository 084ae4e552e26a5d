# SPDX-License-Identifier: Apache-2.0
"""The segmenter by ONNX Runtime: equal outputs, and PyTorch wherever that does not hold."""

import copy
import logging

import pytest
import torch

from lerobot_processor_so101.models import onnx_runtime
from lerobot_processor_so101.models.efficientvit_fpn import (
    EfficientViTFPNConfig,
    EfficientViTFPNForSemanticSegmentation,
)
from lerobot_processor_so101.models.onnx_runtime import OnnxRuntimeModel
from lerobot_processor_so101.models.registry import make_segmenter


@pytest.fixture(scope="module", params=[False, True], ids=["classes", "classes and disparity"])
def model(request):
    torch.manual_seed(0)
    config = EfficientViTFPNConfig(disparity_head=request.param)
    return EfficientViTFPNForSemanticSegmentation(config).eval().requires_grad_(False)


@pytest.fixture
def sessions(monkeypatch):
    """Counts sessions."""
    made, session = [], onnx_runtime._session
    monkeypatch.setattr(onnx_runtime, "_session", lambda *args: made.append(args[1].shape) or session(*args))
    return made


@torch.no_grad()
def test_outputs_equal_those_of_pytorch_in_any_batch(model, sessions):
    faster = OnnxRuntimeModel(model)
    for count in (2, 1, 5):
        images = torch.randn(count, 3, 64, 96).to(memory_format=torch.channels_last)
        found, expected = faster(pixel_values=images), model(pixel_values=images)
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name].shape == expected[name].shape
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)
        assert (found.logits.argmax(1) == expected.logits.argmax(1)).float().mean() > 0.999
    assert len(sessions) == 1  # one per image size


@torch.no_grad()
def test_wrong_outputs_and_failures_fall_back_to_pytorch(model, monkeypatch, caplog):
    images = torch.randn(1, 3, 32, 32)
    other = EfficientViTFPNForSemanticSegmentation(model.config).eval()
    session = onnx_runtime._session
    for broken, message in (
        (lambda _, pixels: session(other, pixels), "differ from PyTorch's by"),
        (lambda *_: 1 / 0, "ZeroDivisionError"),
    ):
        monkeypatch.setattr(onnx_runtime, "_session", broken)
        faster = OnnxRuntimeModel(model)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                torch.testing.assert_close(faster(pixel_values=images).logits, model(images).logits)
        assert [message in record.message for record in caplog.records] == [True]
        caplog.clear()


def test_gradients_need_pytorch(model, sessions):
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    OnnxRuntimeModel(model)(pixel_values=images).logits.sum().backward()
    assert images.grad is not None
    assert sessions == []


@torch.no_grad()
def test_a_copy_makes_its_own_session(model, sessions):
    faster, images = OnnxRuntimeModel(model), torch.randn(1, 3, 32, 32)
    faster(pixel_values=images)
    torch.testing.assert_close(copy.deepcopy(faster)(images).logits, model(images).logits)
    assert len(sessions) == 2


def test_the_segmenter_uses_it_unless_it_is_switched_off(monkeypatch):
    images = torch.rand(1, 3, 48, 64)
    segmenters = []
    for switch in ("0", "1"):
        monkeypatch.setenv("SO101_ONNX_RUNTIME", switch)
        segmenters.append(make_segmenter())
    assert [segmenter._faster is not None for segmenter in segmenters] == [False, True]
    scores = [segmenter(images) for segmenter in segmenters]
    torch.testing.assert_close(scores[0].values, scores[1].values, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(scores[0].disparity, scores[1].disparity, atol=1e-3, rtol=1e-3)
    assert segmenters[0].identity == segmenters[1].identity
    assert segmenters[1]._faster._sessions.keys() == {(120, 160)}
