# SPDX-License-Identifier: Apache-2.0
"""The transformer: its residual connections, with and without gradients, and its embeddings."""

import pytest
import torch

from lerobot_policy_imf.head import AttentionResidual, Rotary, VelocityHead, rotate

A, T, D = 3, 5, 8


def make(residual="attnres_full", seed=0, **options) -> VelocityHead:
    torch.manual_seed(seed)
    head = VelocityHead(
        A, T, D, residual=residual, **{"width": 16, "layers": 3, "heads": 2, "blocks": 3, **options}
    )
    if head.residual is not None:
        torch.nn.init.normal_(head.residual.queries)
    return head


def point(batch=4):
    torch.manual_seed(3)
    r, t = torch.rand(batch, 2).sort(1).values.T
    return torch.randn(batch, T, A), r, t, torch.randn(batch, 2, D)


def test_a_query_of_zero_reads_the_mean():
    residual = AttentionResidual(sublayers=4, width=6)
    sources = torch.randn(3, 2, 5, 6) * torch.tensor([1.0, 10.0, 0.1])[:, None, None, None]
    stream = residual.stream(sources[0])
    stream.add(sources[1])
    stream.add(sources[2])
    torch.testing.assert_close(stream.read(), sources.mean(0))


def test_a_query_weighs_sources_by_direction_and_not_by_size():
    residual = AttentionResidual(sublayers=1, width=6)
    torch.nn.init.normal_(residual.queries)
    first, second = torch.randn(2, 2, 5, 6)
    stream = residual.stream(first)
    stream.add(1000 * second)
    keys = torch.stack([torch.nn.functional.rms_norm(x, (6,)) for x in (first, second)])
    weights = (keys @ residual.queries[1]).softmax(0)
    expected = weights[0][..., None] * first + weights[1][..., None] * 1000 * second
    torch.testing.assert_close(stream.read(), expected, rtol=1e-4, atol=1e-3)


def test_blocks_of_one_sublayer_are_the_full_variant():
    full, block = make("attnres_full"), make("attnres_block", blocks=6)
    block.load_state_dict(full.state_dict())
    assert torch.equal(full(*point()), block(*point()))


def test_a_block_is_a_sum():
    residual = AttentionResidual(sublayers=4, width=6, size=2)
    x, a, b, c = torch.randn(4, 2, 5, 6)
    stream = residual.stream(x)
    stream.add(a)
    torch.testing.assert_close(stream.read(), (x + a) / 2)  # an incomplete block is read too
    stream.add(b)
    torch.testing.assert_close(stream.read(), (x + (a + b)) / 2)
    stream.add(c)
    torch.testing.assert_close(stream.read(), (x + (a + b) + c) / 3)


@pytest.mark.parametrize("residual", ["attnres_full", "attnres_block", "standard"])
def test_outputs_with_and_without_gradients_are_equal(residual):
    head = make(residual)
    with torch.no_grad():
        without = head(*point())
    torch.testing.assert_close(without, head(*point()))


def test_rotated_products_depend_on_the_distance_of_tokens_only():
    rotary = Rotary(8)
    q, k = torch.randn(2, 1, 8)
    near, far = rotary(12), rotary(30)

    def product(rotation, i, j):
        cos, sin = rotation
        return (
            rotate(q, (cos[i : i + 1], sin[i : i + 1])) * rotate(k, (cos[j : j + 1], sin[j : j + 1]))
        ).sum()

    torch.testing.assert_close(product(near, 3, 7), product(far, 23, 27))


def test_the_output_depends_on_the_condition_and_both_times():
    head = make()
    z, r, t, condition = point()
    before = head(z, r, t, condition)
    for changed in ((z, r / 2, t, condition), (z, r, t / 2 + 0.5, condition), (z, r, t, condition + 1)):
        assert not torch.allclose(head(*changed), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 18, "heads": 4}, r"n_head: found 4 of n_emb = 18"),
        ({"width": 12, "heads": 4}, r"n_head: found 4 of n_emb = 12.*even width"),
        ({"residual": "attnres_block", "blocks": 4}, r"attnres_blocks: found 4, expected a divisor of 6"),
        ({"residual": "highway"}, "residual: found 'highway'"),
    ],
)
def test_invalid_shapes_are_rejected_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
