# SPDX-License-Identifier: Apache-2.0
"""imf at its real size: milliseconds by part, memory, a training step, and its checkpoint.

    python -m benchmarks.speed.imf

SigLIP2-base's sizes (93 M parameters), three views of 256x256, two observations. Heads take turns in one
process on the same condition: imf's with attention residuals and without, at 1, 2 and 4 steps, and LeRobot's
U-Net of `diffusion` at its default size with ten steps of DDIM. A training step is one of 64 samples on
cached features. Memory is that of a process of its own. The checkpoint is loaded without the encoder's folder
and compared.
"""

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

from ..lib.clock import Clock, in_turn, peak_memory, percentiles
from ..lib.report import arguments, in_child, save, show
from ..lib.untrained import robot_features, training_step

CAMERAS = ("front", "top", "wrist")
TRAININGS = ("imf", "flow_matching", "diffusion")


def make_imf(encoder: str, **options: Any) -> IMFPolicy:
    """Build the policy at its default size."""
    torch.manual_seed(0)
    features = robot_features((256, 256), CAMERAS)
    options |= {"vision_model_name": encoder, "device": "cpu", "push_to_hub": False}
    # Without steps of plain flow matching, a training step is one of the costlier kind.
    return IMFPolicy(IMFConfig(**features, **options, flow_matching_steps=0))


def make_diffusion() -> DiffusionPolicy:
    """Build LeRobot's, on features as an environment state, with imf's horizon."""
    features = robot_features((256, 256), ())
    features["input_features"][OBS_ENV_STATE] = PolicyFeature(FeatureType.ENV, (768 * len(CAMERAS),))
    options = {"horizon": 16, "n_action_steps": 8, "device": "cpu", "push_to_hub": False}
    options |= {"noise_scheduler_type": "DDIM", "num_inference_steps": 10}
    return DiffusionPolicy(DiffusionConfig(**features, **options))


def cached(size: int) -> dict[str, Tensor]:
    """Return a batch of cached features, under the keys of both policies."""
    torch.manual_seed(0)
    features = torch.randn(size, 2, len(CAMERAS), 768)
    return {
        "observation.state": torch.rand(size, 2, 6) * 2 - 1,
        **{vision_key(camera): features[:, :, i] for i, camera in enumerate(CAMERAS)},
        OBS_ENV_STATE: features.flatten(2),
        "action": torch.rand(size, 16, 6) * 2 - 1,
        "action_is_pad": torch.zeros(size, 16, dtype=torch.bool),
    }


def observation() -> dict[str, Tensor]:
    """Return an observation as a pipeline does."""
    views = {f"observation.images.{camera}": torch.rand(1, 3, 256, 256) for camera in CAMERAS}
    return {"observation.state": torch.zeros(1, 6), **views}


@torch.no_grad()
def heads(encoder: str, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of a chunk from a condition, by each head."""
    noise = torch.randn(1, 16, 6)
    works: dict[str, Callable[[], Any]] = {}
    for name, options in (("imf", {}), ("imf, standard residual", {"residual": "standard"})):
        policy = make_imf(encoder, **options).eval()
        condition = policy._condition(policy.model, cached(1))
        for steps in (1, 2, 4):
            works[f"{name}, {steps}"] = partial(integrate, policy.model.head, noise, condition, steps)
    diffusion = make_diffusion().eval().diffusion
    condition = diffusion._prepare_global_conditioning(cached(1))
    works["diffusion, 10"] = partial(diffusion.conditional_sample, 1, condition, noise=noise)
    return in_turn(works, rounds)


@torch.no_grad()
def parts(encoder: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of a chunk from images, by part."""
    policy, clock = make_imf(encoder).eval(), Clock("vision", "head")
    clock.watch("vision", policy.vision)
    clock.watch("head", policy.model.head)
    for _ in range(rounds + 1):
        policy.reset()
        with clock.phase("total"):
            policy.predict_action_chunk(observation())
        clock.tick()
    return clock.summary(skip=1)


def learner(objective: str, encoder: str) -> Callable[[], None]:
    """Return a training step on cached features."""
    options = {"objective": objective, "num_inference_steps": 1 if objective == "imf" else 2}
    policy: Any = make_diffusion() if objective == "diffusion" else make_imf(encoder, **options)
    return training_step(policy, cached(64))


def checkpoint(encoder: str, folder: Path) -> dict[str, Any]:
    """Save a policy, move the encoder away, load and compare; and compare cached with live features."""
    policy = make_imf(encoder).eval()
    frame, noise = observation(), torch.randn(1, 16, 6)
    chunk = policy.predict_action_chunk(frame, noise=noise)
    features = policy.vision([frame[f"observation.images.{camera}"] for camera in CAMERAS])
    policy.save_pretrained(folder / "checkpoint")
    Path(encoder).rename(folder / "moved")
    begin = time.perf_counter()
    loaded = IMFPolicy.from_pretrained(folder / "checkpoint")
    seconds = time.perf_counter() - begin
    again = loaded.predict_action_chunk(frame, noise=noise)
    loaded.reset()
    views = {vision_key(camera): features[:, i] for i, camera in enumerate(CAMERAS)}
    stored = {"observation.state": frame["observation.state"], **views}
    from_cache = loaded.predict_action_chunk(stored, noise=noise)
    return {
        "part": "checkpoint",
        "megabytes": round((folder / "checkpoint" / "model.safetensors").stat().st_size / 1e6, 1),
        "encoder_parameters": sum(p.numel() for p in policy.vision.parameters()),
        "trained_parameters": sum(p.numel() for p in policy.model.parameters()),
        "load_s": round(seconds, 1),
        "largest_difference_after_loading": float((again - chunk).abs().max()),
        "largest_difference_of_cached": float((from_cache - chunk).abs().max()),
    }


def memory(work: str, encoder: str) -> int:
    """Do one kind of work, and return the peak memory of this process in megabytes."""
    if work == "chunk from images":
        make_imf(encoder).predict_action_chunk(observation())
    else:
        learner(work.removeprefix("training step, "), encoder)()
    return round(peak_memory("cpu"))


def main() -> None:
    options = arguments(__doc__, rounds=20)
    works = ("chunk from images", *(f"training step, {objective}" for objective in TRAININGS))
    with tempfile.TemporaryDirectory() as name:
        encoder = f"{name}/siglip2"
        torch.manual_seed(0)
        # transformers' defaults are the sizes of SigLIP2-base
        hf.SiglipVisionModel(hf.SiglipVisionConfig(image_size=256)).save_pretrained(encoder)
        # First: on Linux a process begins with the peak of its parent.
        peaks = {work: in_child(memory, work, encoder) for work in works}
        head, part = heads(encoder, options.rounds), parts(encoder, max(3, options.rounds // 4))
        training = in_turn({objective: learner(objective, encoder) for objective in TRAININGS}, 3)
        loaded = checkpoint(encoder, Path(name))
    rows = [{"part": "head", "of": of, **percentiles(ms)} for of, ms in head.items()]
    part["all"] = part.pop("total")
    rows += [{"part": "chunk from images", "of": of, **ms} for of, ms in part.items()]
    rows += [{"part": "training step", "of": of, **percentiles(ms)} for of, ms in training.items()]
    rows += [{"part": "peak memory", "of": of, "megabytes": value} for of, value in peaks.items()]
    save("speed/imf", [*rows, loaded], (), {**vars(options), "threads": torch.get_num_threads()})
    show(rows, "part", "of", "p50", "p95", "megabytes")
    print(loaded)


if __name__ == "__main__":
    main()
