# SPDX-License-Identifier: Apache-2.0
"""The encoders of segdepth."""

import pytest
import torch

from lerobot_policy_segdepth.encoders import ConvEncoder, GeometryEncoder, RunningStandardizer
from lerobot_processor_so101 import class_masks


def test_statistics_are_those_of_all_batches():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 3, generator=generator) * 2 + offset for offset in range(20)]
    standardize = RunningStandardizer(3).train()
    for batch in batches:
        standardize(batch)
    features = torch.cat(batches)
    torch.testing.assert_close(standardize.mean, features.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(standardize.var, features.var(0, correction=0), rtol=1e-4, atol=1e-4)


def test_training_and_inference_apply_the_same_function():
    standardize = RunningStandardizer(4).train()
    features = torch.randn(8, 4)
    trained = standardize(features)
    torch.testing.assert_close(standardize.eval()(features), trained, rtol=0, atol=0)
    standardize(features + 100)
    torch.testing.assert_close(standardize(features), trained, rtol=0, atol=0)


def test_a_feature_that_never_changed_is_not_amplified():
    standardize = RunningStandardizer(1).train()
    for _ in range(10):
        standardize(torch.ones(8, 1))
    standardize.eval()
    assert standardize(torch.ones(1, 1)).abs() < 1e-4
    assert standardize(torch.full((1, 1), 1.001)).abs() < 1
    assert standardize(torch.zeros(1, 1)) == -RunningStandardizer.LIMIT


@pytest.mark.parametrize("side", [84, 96])
@pytest.mark.parametrize("encoder", [GeometryEncoder(2), ConvEncoder(2, 8)])
def test_any_image_size_gives_one_code_per_frame(encoder, side):
    ids = torch.randint(0, 6, (5, side, side), dtype=torch.uint8)
    code = encoder(class_masks(ids, [3, 4]), torch.rand(5, side, side))
    assert code.shape == (5, encoder.output_dim)
    assert torch.isfinite(code).all()
