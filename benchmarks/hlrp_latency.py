# SPDX-License-Identifier: Apache-2.0
"""hlrp beside SmolVLA at the real size: a chunk of actions, a training step, peak memory.

    python -m benchmarks.hlrp_latency

As `benchmarks.smolvla_costs` says. Latent actions come from a file, as `so101-laq-label` writes it; a model that looks costs its own
forward pass. With `pooled_mlp` the trunk is trained, with SmolVLA and the others the expert alone. On two cores about 15 minutes
and 15 GB.
"""

from typing import Any

import torch

from lerobot_policy_hlrp import HLRPConfig
from lerobot_policy_hlrp.latent_targets import Latents
from lerobot_policy_hlrp.modeling_hlrp import HLRPPolicy

from .smolvla_costs import Costs

ARMS: dict[str, dict[str, str]] = {
    "actions": {"training_mode": "actions"},
    "multitask": {"training_mode": "multitask"},
    "multitask, pooled_mlp": {"training_mode": "multitask", "head": "pooled_mlp"},
}
LAQ = {"codes": 4, "dim": 3, "codebook_size": 125}


def make_policy(arm: str, options: dict[str, Any]) -> HLRPPolicy:
    """hlrp, trained in one of its ways."""
    policy = HLRPPolicy(HLRPConfig(**options, **ARMS[arm], laq_identity=dict(LAQ)))
    policy._sources = [written]
    return policy


def written(batch: dict[str, Any]) -> Latents:
    """In the place of a file."""
    size, device = len(batch["action"]), batch["action"].device
    return Latents(
        torch.zeros(size, LAQ["codes"], LAQ["dim"], device=device),
        torch.zeros(size, LAQ["codes"], dtype=torch.long, device=device),
        torch.ones(size, dtype=torch.bool, device=device),
    )


if __name__ == "__main__":
    Costs("hlrp_latency", tuple(ARMS), make_policy).main(__doc__)
