# SPDX-License-Identifier: Apache-2.0
"""Quantisers, usage of codes, and the floor of the latent loss."""

import math

import pytest
import torch

from lerobot_policy_hlrp.laq.loss_floor import unconditional_floor
from lerobot_policy_hlrp.laq.quantizers import FSQ, NSVQ, Quantized, Usage


@pytest.mark.parametrize("make", [lambda: FSQ([5, 4, 3]), lambda: NSVQ(3, 20)])
def test_codes_match_their_vectors_and_gradients_pass(make):
    torch.manual_seed(0)
    quantizer = make()
    delta = torch.randn(6, 4, 3, requires_grad=True)
    found = quantizer(delta)
    assert found.codes.shape == (6, 4)
    assert int(found.codes.max()) < quantizer.codebook_size
    if isinstance(quantizer, NSVQ):
        known = quantizer.codebook[found.codes]
    else:
        known = quantizer.rounding.indices_to_codes(found.codes)
    torch.testing.assert_close(known.detach(), found.vectors)
    assert not found.vectors.requires_grad
    found.passed.sum().backward()
    assert float(delta.grad.abs().min()) > 0


def test_fsq_has_the_product_of_its_levels_as_codes():
    quantizer = FSQ([5, 4, 3])
    found = quantizer(3 * torch.randn(4000, 1, 3))
    assert quantizer.codebook_size == 60
    assert found.codes.unique().numel() == 60


def test_nsvq_substitutes_noise_of_the_size_of_the_error():
    torch.manual_seed(0)
    quantizer = NSVQ(3, 5)
    quantizer(torch.randn(8, 1, 3))  # places the codebook
    delta = torch.randn(50, 2, 3)
    found = quantizer(delta)
    torch.testing.assert_close((found.passed - delta).norm(dim=-1), (delta - found.vectors).norm(dim=-1))
    nearest = (delta[..., None, :] - quantizer.codebook).norm(dim=-1).argmin(-1)
    assert torch.equal(found.codes, nearest)
    still = quantizer.eval()(delta)
    assert torch.equal(still.passed.detach(), still.vectors)


def test_nsvq_moves_entries_that_are_never_chosen():
    torch.manual_seed(0)
    quantizer = NSVQ(2, 8, replace_every=5)
    quantizer(torch.randn(64, 1, 2))
    with torch.no_grad():
        quantizer.codebook[4:] = 100.0
    far = torch.cat([torch.randn(32, 1, 2), torch.randn(32, 1, 2) + 10])
    for _ in range(10):
        quantizer(far)
    assert float(quantizer.codebook.detach().max()) < 50
    assert quantizer(far).codes.unique().numel() > 4


def test_usage_reports_perplexity_share_and_statistics():
    usage = Usage(16, 2)
    vectors = torch.randn(400, 1, 2) * torch.tensor([2.0, 0.5]) + 3
    codes = torch.arange(4).repeat(100)[:, None]
    for _ in range(3):
        usage.count(Quantized(vectors, vectors, codes))
    assert usage.perplexity == pytest.approx(4, rel=1e-4)
    assert usage.used == pytest.approx(4 / 16)
    standardised = usage.standardised(vectors)
    torch.testing.assert_close(standardised.mean(0), torch.zeros(1, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised.std(0, correction=0), torch.ones(1, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised * usage.std + usage.mean, vectors)


def test_floor_of_a_gaussian_equals_the_closed_form():
    """For z ~ N(0, 1) the variance given x_t is t² / ((1 - t)² + t²); divided by t² its mean is pi / 2."""
    torch.manual_seed(0)
    times = torch.linspace(0.02, 1, 8000)
    exact = float((1 / ((1 - times) ** 2 + times**2)).mean())
    assert exact == pytest.approx(math.pi / 2, rel=0.02)
    vectors = torch.randn(4000, 1, 1)
    assert unconditional_floor(vectors, times) == pytest.approx(exact, rel=0.05)


def test_floor_is_lower_for_fewer_different_codes():
    times = torch.linspace(0.01, 1, 2000)
    one = torch.ones(10, 2, 3)
    assert unconditional_floor(one, times) == pytest.approx(0, abs=1e-9)
    few, many = torch.randn(4, 2, 3), torch.randn(1000, 2, 3)
    assert unconditional_floor(few, times) < unconditional_floor(many, times)


def test_floor_does_not_memorise_the_sample():
    """Independent parts rarely repeat a combination, so a small sample gives the floor of a large one."""
    torch.manual_seed(0)
    times = torch.linspace(0.02, 1, 8000)
    kinds = torch.randn(20, 3)
    small, large = (kinds[torch.randint(20, (count, 4))] for count in (300, 20000))
    floor = unconditional_floor(large, times)
    assert unconditional_floor(small, times) == pytest.approx(floor, rel=0.05)
    assert unconditional_floor(large[:, :1], times) == pytest.approx(floor, rel=0.05)
