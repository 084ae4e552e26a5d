# SPDX-License-Identifier: Apache-2.0
"""One training step of hlrp on half a batch per process, for `accelerate launch`; writes loss and gradients.

accelerate launch --multi_gpu --num_processes=2 -m tests.policy_hlrp.two_processes <vlm> <output>
"""

import sys
from typing import Any

import torch
from accelerate import Accelerator

from lerobot_policy_hlrp import HLRPConfig
from lerobot_policy_hlrp.latent_sources import Latents
from lerobot_policy_hlrp.modeling_hlrp import HLRPPolicy
from tests.policy_hlrp.conftest import training_batch
from tests.tiny import robot_features, tiny_smolvla

WATCHED = ("model.action_out_proj.weight", "model.latent_out_proj.weight", "model.action_in_proj.weight")


def policy_of(vlm: str) -> HLRPPolicy:
    """Build a policy with fixed latent actions, times and noise."""
    torch.manual_seed(0)
    config = HLRPConfig(
        **robot_features(),
        **tiny_smolvla(vlm),
        gap_s=0.1,
        stage="foundation",
        labelled_episodes=[0, 1, 3],
        laq_identity={"codes": 4, "dim": 3, "codebook_size": 8, "gap_s": 0.1},
    )
    policy: Any = HLRPPolicy(config)
    policy._sources = [fixed_latents]
    policy.model.sample_noise = lambda shape, device: sample_noise(shape)
    policy.model.sample_time = lambda size, device: torch.full((size,), 0.6)
    return policy


def sample_noise(shape: Any) -> torch.Tensor:
    """Return the same noise for each sample, so that halves of a batch get that of the batch."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, *shape[1:], generator=generator).expand(shape)


def fixed_latents(batch: dict[str, Any]) -> Latents:
    """Return latent actions by index; sample 2 has none."""
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(4, 4, 3, generator=generator)
    index = batch["index"]
    return Latents(vectors[index], torch.zeros(len(index), 4).long(), index != 2)


def uneven_batch() -> dict[str, Any]:
    """Return four samples of which the second half has fewer actions."""
    batch = training_batch(4)
    batch["action_is_pad"][2, 1:] = True
    batch["action_is_pad"][3, 3:] = True
    return batch


def gradients(policy: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of some layers."""
    found = {name.removeprefix("module."): p.grad for name, p in policy.named_parameters()}
    return {name: found[name].clone() for name in WATCHED}


def main() -> None:
    vlm, output = sys.argv[1:]
    accelerator = Accelerator(cpu=True)
    policy = accelerator.prepare(policy_of(vlm))
    half = slice(2 * accelerator.process_index, 2 * accelerator.process_index + 2)
    loss, _ = policy({key: value[half] for key, value in uneven_batch().items()})
    accelerator.backward(loss)
    joint = accelerator.reduce(loss.detach(), "mean")
    if accelerator.is_main_process:
        torch.save({"processes": accelerator.num_processes, "loss": joint, **gradients(policy)}, output)


if __name__ == "__main__":
    main()
