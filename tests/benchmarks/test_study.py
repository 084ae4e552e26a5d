# SPDX-License-Identifier: Apache-2.0
"""What studies compare, and that their own arms can be trained."""

import torch
from benchmarks import imf_regression
from benchmarks.study import compare, with_earlier

from lerobot_policy_imf import modeling_imf
from tests.policy_imf.conftest import config, policy, siglip, training_batch  # noqa: F401  fixtures


def rows(arm, **by_seed):
    return [
        {
            "arm": arm,
            "seed": int(seed[1:]),
            "per_start": found,
            "rate": 0.5,
            "wilson95": [0, 1],
            "successes": 1,
            "n": 2,
        }
        for seed, found in by_seed.items()
    ]


def test_arms_are_compared_over_the_seeds_that_both_have():
    made = rows("a", s0=[1, 1], s1=[0, 0]) + rows("b", s0=[1, 0]) + rows("c", s2=[1, 1])
    (gain,) = compare(made, (), [("a", "b"), ("a", "c")])
    assert gain["seeds"] == [0]
    assert gain["gain"] == 0.5


def test_earlier_rows_stay_unless_they_are_made_anew():
    before = {"rows": [{"arm": "a", "seed": 0, "rate": 1}, {"arm": "b", "seed": 0, "rate": 2}]}
    merged = with_earlier(before, [{"arm": "a", "seed": 0, "rate": 3}], ("arm", "seed"))
    assert [(row["arm"], row["rate"]) for row in merged] == [("b", 2), ("a", 3)]
    assert "commit" in merged[1]


def test_imf_can_be_trained_as_a_regressor(policy, monkeypatch):  # noqa: F811  a fixture
    monkeypatch.setattr(modeling_imf, "velocity_error", modeling_imf.velocity_error)
    monkeypatch.setattr(modeling_imf.IMFPolicy, "_logs", modeling_imf.IMFPolicy._logs)
    imf_regression.install()
    made, batch = policy(), training_batch()
    optimizer, losses = torch.optim.Adam(made.get_optim_params(), 1e-2), []
    for _ in range(30):
        loss, logs = made(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert logs.keys() == {"loss"}
    assert losses[-1] < 0.5 * losses[0]
