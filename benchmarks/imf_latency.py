# SPDX-License-Identifier: Apache-2.0
"""imf at its real size, with random weights: milliseconds by part, memory, a training step; and that its checkpoint is whole.

    python -m benchmarks.imf_latency

SigLIP2-base's sizes (93 M parameters), three views of 256x256, two observations. Heads are measured in turn in one process on
the same condition: imf's with attention residuals and without, at 1, 2 and 4 steps, and LeRobot's U-Net of `diffusion` at its
default size with ten steps of DDIM. A training step is one of 64 samples on cached features. Memory is that of a process of
its own. Some 20 minutes on two cores. Writes results/imf_latency.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.utils.constants import OBS_ENV_STATE
from torch import Tensor

from lerobot_policy_imf import IMFConfig
from lerobot_policy_imf.configuration_imf import vision_key
from lerobot_policy_imf.modeling_imf import IMFPolicy
from lerobot_policy_imf.objectives import integrate

from .clock import Clock, peak_memory
from .report import save, table

CAMERAS = ("front", "top", "wrist")
MEASURED = (
    "chunk from pictures",
    "training step, imf",
    "training step, flow_matching",
    "training step, diffusion",
)
ACTION = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
STATE = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}


def save_siglip2(folder: Path) -> str:
    """SigLIP2-base-patch16-256's vision half with random weights."""
    torch.manual_seed(0)
    config: Any = hf.SiglipVisionConfig  # its generated constructor confuses mypy
    sizes = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    hf.SiglipVisionModel(config(**sizes, image_size=256, patch_size=16)).save_pretrained(folder)
    return str(folder)


def make_imf(siglip: str, **options: Any) -> IMFPolicy:
    """The policy at the seed's size."""
    pictures = {f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for c in CAMERAS}
    torch.manual_seed(0)
    config = IMFConfig(
        input_features={**STATE, **pictures},
        output_features=dict(ACTION),
        vision_model_name=siglip,
        device="cpu",
        push_to_hub=False,
        flow_matching_steps=0,  # a training step is one of the dearer kind
        **options,
    )
    return IMFPolicy(config)


def make_diffusion() -> DiffusionPolicy:
    """LeRobot's, on features as an environment state, with imf's horizon."""
    features = {OBS_ENV_STATE: PolicyFeature(FeatureType.ENV, (768 * len(CAMERAS),))}
    config = DiffusionConfig(
        input_features={**STATE, **features},
        output_features=dict(ACTION),
        horizon=16,
        n_action_steps=8,
        noise_scheduler_type="DDIM",
        num_inference_steps=10,
        device="cpu",
        push_to_hub=False,
    )
    return DiffusionPolicy(config)


def batch_of(size: int) -> dict[str, Tensor]:
    """Cached features, under the names of both policies."""
    torch.manual_seed(0)
    seen = torch.randn(size, 2, len(CAMERAS), 768)
    return {
        "observation.state": torch.rand(size, 2, 6) * 2 - 1,
        **{vision_key(camera): seen[:, :, i] for i, camera in enumerate(CAMERAS)},
        OBS_ENV_STATE: seen.flatten(2),
        "action": torch.rand(size, 16, 6) * 2 - 1,
        "action_is_pad": torch.zeros(size, 16, dtype=torch.bool),
    }


def pictures_of(size: int) -> dict[str, Tensor]:
    """Observations as a pipeline gives them."""
    views = {f"observation.images.{camera}": torch.rand(size, 3, 256, 256) for camera in CAMERAS}
    return {"observation.state": torch.zeros(size, 6), **views}


def in_turn(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each work, one call of each per round, after one for warming up."""
    clocks = {name: Clock() for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            with clocks[name].phase("total"):
                work()
            clocks[name].tick()
    return {name: clock.summary(skip=1)["total"] for name, clock in clocks.items()}


@torch.no_grad()
def heads(siglip: str, rounds: int) -> dict[str, dict[str, float]]:
    """A chunk from a condition, by each head."""
    noise = torch.randn(1, 16, 6)
    works: dict[str, Callable[[], Any]] = {}
    for name, options in (("imf", {}), ("imf, standard residual", {"residual": "standard"})):
        policy = make_imf(siglip, **options).eval()
        condition = policy._condition(policy.model, batch_of(1))
        head = policy.model.head
        for steps in (1, 2, 4):
            works[f"{name}, {steps}"] = partial(integrate, head, noise, condition, steps)
    diffusion = make_diffusion().eval()
    seen = diffusion.diffusion._prepare_global_conditioning(batch_of(1))
    works["diffusion, 10"] = lambda: diffusion.diffusion.conditional_sample(1, seen, noise=noise)
    return in_turn(works, rounds)


@torch.no_grad()
def parts(siglip: str, rounds: int) -> dict[str, dict[str, float]]:
    """Where the time of a chunk goes that is made from pictures."""
    policy: Any = make_imf(siglip).eval()
    clock = Clock("vision", "head")
    policy.vision.forward = clock.timed("vision", policy.vision.forward)
    policy.model.head.forward = clock.timed("head", policy.model.head.forward)
    for _ in range(rounds + 1):
        policy.reset()
        with clock.phase("total"):
            policy.predict_action_chunk(pictures_of(1))
        clock.tick()
    return clock.summary(skip=1)


def learner(policy: Any) -> Callable[[], None]:
    """A training step on cached features."""
    batch = batch_of(64)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-4)
    policy.train()

    def step() -> None:
        loss, _ = policy.forward(dict(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def child(work: str, siglip: str) -> float:
    """Megabytes at most, in a process of its own."""
    if work == "chunk from pictures":
        make_imf(siglip).predict_action_chunk(pictures_of(1))
    elif work == "training step, diffusion":
        learner(make_diffusion())()
    else:
        objective = "flow_matching" if "flow_matching" in work else "imf"
        learner(make_imf(siglip, objective=objective, num_inference_steps=2))()
    return peak_memory("cpu")


def whole_checkpoint(siglip: str, folder: Path) -> dict[str, Any]:
    """Save a policy, take the encoder away, load it again, and compare; and cached features with live ones."""
    policy = make_imf(siglip).eval()
    frame, noise = pictures_of(1), torch.randn(1, 16, 6)
    chunk = policy.predict_action_chunk(frame, noise=noise)
    seen = policy.vision([frame[f"observation.images.{camera}"] for camera in CAMERAS])
    policy.save_pretrained(folder / "checkpoint")
    Path(siglip).rename(folder / "gone")
    begin = time.perf_counter()
    loaded = IMFPolicy.from_pretrained(folder / "checkpoint")
    seconds = time.perf_counter() - begin
    again = loaded.predict_action_chunk(frame, noise=noise)
    loaded.reset()
    stored = {vision_key(camera): seen[:, i] for i, camera in enumerate(CAMERAS)}
    cached = loaded.predict_action_chunk(
        {"observation.state": frame["observation.state"], **stored}, noise=noise
    )
    return {
        "megabytes": round((folder / "checkpoint" / "model.safetensors").stat().st_size / 1e6, 1),
        "encoder_parameters": sum(p.numel() for p in policy.vision.parameters()),
        "trained_parameters": sum(p.numel() for p in policy.model.parameters()),
        "load_s": round(seconds, 1),
        "largest_difference_after_loading": float((again - chunk).abs().max()),
        "largest_difference_of_cached": float((cached - chunk).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        siglip = save_siglip2(folder / "siglip2")
        memory = {}
        for work in MEASURED:  # first: Linux lets a child begin with the peak of its parent
            command = [sys.executable, "-m", "benchmarks.imf_latency", "--child", work, siglip]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            memory[work] = round(json.loads(answer.splitlines()[-1]))
        by_head, by_part = heads(siglip, options.rounds), parts(siglip, max(3, options.rounds // 4))
        steps = in_turn(
            {
                "training step, imf": learner(make_imf(siglip)),
                "training step, flow_matching": learner(
                    make_imf(siglip, objective="flow_matching", num_inference_steps=2)
                ),
                "training step, diffusion": learner(make_diffusion()),
            },
            3,
        )
        checkpoint = whole_checkpoint(siglip, folder)
    found = {"heads": by_head, "parts of a chunk": by_part, "training": steps}
    for title, values in found.items():
        print(
            table([title, "ms p50", "ms p95"], [[k, f"{v['p50']}", f"{v['p95']}"] for k, v in values.items()])
        )
    print(f"megabytes: {memory}\ncheckpoint: {checkpoint}")
    result = {"threads": torch.get_num_threads(), **found, "megabytes": memory, "checkpoint": checkpoint}
    print("written to", save("imf_latency", result))


if __name__ == "__main__":
    main()
