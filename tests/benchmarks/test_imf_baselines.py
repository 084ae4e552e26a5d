# SPDX-License-Identifier: Apache-2.0
"""The baselines of imf's study."""

import torch
from benchmarks.learning import imf_baselines

from lerobot_policy_imf import IMFConfig, modeling_imf
from tests.tiny import robot_features, tiny_siglip

SMALL = {"n_emb": 16, "n_layer": 2, "n_head": 2, "cond_dim": 12, "per_view_output_dim": 4}
SMALL |= {"horizon": 6, "n_action_steps": 3, "flow_matching_steps": 0}


def test_imf_can_be_trained_as_a_regressor(tmp_path, monkeypatch):
    monkeypatch.setattr(modeling_imf, "velocity_error", modeling_imf.velocity_error)
    monkeypatch.setattr(modeling_imf.IMFPolicy, "_logs", modeling_imf.IMFPolicy._logs)
    imf_baselines.install_regression()
    torch.manual_seed(0)
    options = {"vision_model_name": tiny_siglip(tmp_path), "device": "cpu", "push_to_hub": False}
    made = modeling_imf.IMFPolicy(IMFConfig(**robot_features((32, 32), ("top",)), **options, **SMALL))
    torch.nn.init.normal_(made.model.head.out.weight)
    batch = {
        "observation.state": torch.rand(4, 2, 6) * 2 - 1,
        "observation.images.top": torch.rand(4, 2, 3, 32, 32),
        "action": torch.rand(4, 6, 6) * 2 - 1,
        "action_is_pad": torch.zeros(4, 6, dtype=torch.bool),
    }
    optimizer, losses = torch.optim.Adam(made.get_optim_params(), 1e-2), []
    for _ in range(30):
        loss, logs = made(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert logs.keys() == {"loss"}
    assert losses[-1] < 0.5 * losses[0]
