# SPDX-License-Identifier: Apache-2.0
"""Run the suite's own segmenter by ONNX Runtime, 2 to 4 times as fast on a CPU as by PyTorch.

Used where `onnx` and `onnxruntime` are installed (`pip install 'lerobot_processor_so101[onnx]'`) and images
are on a CPU, unless the environment variable SO101_ONNX_RUNTIME is 0. The first image of a size is run by
both; if their outputs differ, PyTorch stays in use.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .efficientvit_fpn import EfficientViTFPNForSemanticSegmentation, SegmenterOutput

TOLERANCE = 1e-3  # of logits and disparity, relative and absolute

logger = logging.getLogger(__name__)


def is_available() -> bool:
    """Return whether both packages are installed, and not switched off."""
    if os.environ.get("SO101_ONNX_RUNTIME") == "0":
        return False
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


class OnnxRuntimeModel:
    """A frozen segmenter, in evaluation mode, with the same call as `model` itself."""

    def __init__(self, model: EfficientViTFPNForSemanticSegmentation) -> None:
        self._model = model
        self._sessions: dict[tuple[int, ...], Any] = {}  # by (H, W); None: use PyTorch

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxRuntimeModel, (self._model,)  # sessions cannot be pickled or copied

    def __call__(self, pixel_values: Tensor) -> SegmenterOutput:
        """Segment normalised images (B, 3, H, W)."""
        size = tuple(pixel_values.shape[-2:])
        if pixel_values.device.type != "cpu" or torch.is_grad_enabled():
            return self._model(pixel_values=pixel_values)
        if size not in self._sessions:
            self._sessions[size] = self._checked_session(pixel_values)
        session = self._sessions[size]
        return self._model(pixel_values=pixel_values) if session is None else _run(session, pixel_values)

    def _checked_session(self, pixel_values: Tensor) -> Any:
        """Return a session for images of this size; None if it fails or its outputs are others."""
        expected = self._model(pixel_values=pixel_values)
        try:
            session = _session(self._model, pixel_values)
            found = _run(session, pixel_values)
        except Exception as error:  # both packages raise many types
            logger.warning("ONNX Runtime is not used: %s: %s", type(error).__name__, str(error)[:200])
            return None
        for name in expected:
            if not torch.allclose(found[name], expected[name], TOLERANCE, TOLERANCE):
                difference = float((found[name] - expected[name]).abs().max())
                logger.warning(
                    "ONNX Runtime is not used: its %s differ from PyTorch's by %.2g, expected %.2g or less.",
                    *(name, difference, TOLERANCE),
                )
                return None
        return session


class _Outputs(nn.Module):
    """A segmenter that returns a tuple, for the export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return self.model(pixel_values=pixel_values).to_tuple()


def _session(model: EfficientViTFPNForSemanticSegmentation, pixel_values: Tensor) -> Any:
    import onnxruntime

    exported = io.BytesIO()
    with warnings.catch_warnings():
        # The newer exporter takes twenty times as long and needs one more package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Outputs(model).eval(),  # the exporter restores this mode, of the model too
            (pixel_values.contiguous(),),
            exported,  # type: ignore[arg-type]  # a stream is fine for this exporter
            input_names=["pixel_values"],
            output_names=["logits", "disparity"] if model.config.disparity_head else ["logits"],
            dynamic_axes={"pixel_values": {0: "batch"}},
            dynamo=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(exported.getvalue(), options, providers=["CPUExecutionProvider"])


def _run(session: Any, pixel_values: Tensor) -> SegmenterOutput:
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {"pixel_values": pixel_values.contiguous().numpy()})
    return SegmenterOutput(**dict(zip(names, map(torch.from_numpy, values), strict=True)))
