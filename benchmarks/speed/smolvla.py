# SPDX-License-Identifier: Apache-2.0
"""Cost of policies built on SmolVLA beside it at real size: a chunk, a training step, memory.

    python -m benchmarks.speed.smolvla --study segvla      (or hlrp)

SmolVLM2-500M sizes with random weights, two 640x480 cameras. All policies start from one checkpoint with the
layout of `lerobot/smolvla_base`: the language model in bfloat16, the action expert in float32. The policies
take turns in one process, so that all of them are exposed to whatever else the machine does; memory is that
of a process of its own.

segvla has class ids at 84x84 in the batch: the cost of a segmenter is in results/speed/perception.json.
hlrp's latent actions come from a file, as `so101-laq-label` writes it; a live model costs its own forward
pass. With `pooled_mlp` the trunk is trained, with SmolVLA and the others the expert alone. Needs 15 GB.
"""

import argparse
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from lerobot_policy_hlrp import HLRPConfig
from lerobot_policy_hlrp.latent_sources import Latents
from lerobot_policy_hlrp.modeling_hlrp import HLRPPolicy
from lerobot_policy_segvla import SegVLAConfig
from lerobot_policy_segvla.configuration_segvla import INJECTIONS
from lerobot_policy_segvla.modeling_segvla import SegVLAPolicy
from lerobot_policy_segvla.small_vlm import save_published_vlm
from lerobot_processor_so101 import image_key, seg_key

from ..lib.clock import in_turn, peak_memory
from ..lib.report import arguments, in_child, save, show
from ..lib.untrained import robot_features, training_step

SMOLVLA = "smolvla"
CAMERAS = ("top", "wrist")
SENTENCE = "Put the red cube into the blue bowl."
CLASSES = ["background", "table", "red cube", "green cube", "blue bowl", "white bowl"]
LAQ = {"codes": 4, "dim": 3, "codebook_size": 125}
HLRP: dict[str, dict[str, str]] = {
    "actions": {"training_mode": "actions"},
    "multitask": {"training_mode": "multitask"},
    "multitask, pooled_mlp": {"training_mode": "multitask", "head": "pooled_mlp"},
}
STUDIES: dict[str, tuple[str, ...]] = {"segvla": INJECTIONS, "hlrp": tuple(HLRP)}

type Batch = dict[str, torch.Tensor]


def make_segvla(injection: str, options: dict[str, Any]) -> SegVLAPolicy:
    """Build segvla with one of its injections."""
    cues = {"class_names": CLASSES, "injection": injection}
    cues |= {"task_classes": ["red cube", "blue bowl"], "geometry_classes": ["red cube", "blue bowl"]}
    cues["feature_map"] = {image_key(camera): seg_key(camera) for camera in CAMERAS}
    options |= {f"segmentation_{name}": value for name, value in cues.items()}
    return SegVLAPolicy(SegVLAConfig(**options))


def make_hlrp(variant: str, options: dict[str, Any]) -> HLRPPolicy:
    """Build hlrp, trained in one of its ways, with latent actions as from a file."""
    policy = HLRPPolicy(HLRPConfig(**options, **HLRP[variant], laq_identity=dict(LAQ)))

    def stored(batch: dict[str, Any]) -> Latents:
        size, device = len(batch["action"]), batch["action"].device
        codes = torch.zeros(size, LAQ["codes"], dtype=torch.long, device=device)
        vectors = torch.zeros(size, LAQ["codes"], LAQ["dim"], device=device)
        return Latents(vectors, codes, torch.ones(size, dtype=torch.bool, device=device))

    policy._sources = [stored]
    return policy


def save_published(folder: Path) -> tuple[str, str]:
    """Save a SmolVLA with random weights, laid out as published; return the folders of its VLM and of it."""
    vlm, checkpoint = save_published_vlm(folder / "vlm", [SENTENCE]), str(folder / "smolvla")
    policy = SmolVLAPolicy(SmolVLAConfig(**robot_features((480, 640)), vlm_model_name=vlm, device="cpu"))
    policy.model.vlm_with_expert.vlm.bfloat16().save_pretrained(vlm)
    policy.config.load_vlm_weights = True  # as published; SmolVLA then keeps the language model in bfloat16
    policy.save_pretrained(checkpoint)
    return vlm, checkpoint


def make_policy(name: str, published: tuple[str, str], options: argparse.Namespace) -> Any:
    """Build a policy that starts from the published checkpoint."""
    vlm, checkpoint = published
    if name == SMOLVLA:
        return SmolVLAPolicy.from_pretrained(checkpoint).to(options.device)
    fields = {**robot_features((480, 640)), "vlm_model_name": vlm, "init_from": checkpoint}
    fields |= {"device": options.device, "push_to_hub": False}
    torch.manual_seed(0)
    make = make_segvla if options.study == "segvla" else make_hlrp
    return make(name, fields).to(options.device)


def make_batch(study: str, size: int, device: str) -> Batch:
    """Return a batch as a pipeline does, for training and inference."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "observation.state": torch.randn(size, 6, generator=generator),
        "action": torch.randn(size, 50, 6, generator=generator),
        "observation.language.tokens": torch.randint(2, 200, (size, 12), generator=generator),
        "observation.language.attention_mask": torch.ones(size, 12, dtype=torch.bool),
    }
    for camera in CAMERAS:
        batch[image_key(camera)] = torch.rand(size, 3, 480, 640, generator=generator)
        if study == "segvla":
            blocks = torch.randint(0, len(CLASSES), (size, 6, 6), generator=generator, dtype=torch.uint8)
            batch[seg_key(camera)] = blocks.repeat_interleave(14, 1).repeat_interleave(14, 2)
    return {key: value.to(device) for key, value in batch.items()}


def work_of(work: str, policy: Any, options: argparse.Namespace) -> Callable[[], Any]:
    """Return one kind of work of a policy: `chunk` or `step`."""
    batch = make_batch(options.study, 1 if work == "chunk" else options.batch_size, options.device)
    if work == "step":
        return training_step(policy, batch)
    return lambda: policy.eval().predict_action_chunk(dict(batch))


def memory_of(work: str, name: str, published: tuple[str, str], options: argparse.Namespace) -> int:
    """Do some work once, and return the peak memory in megabytes."""
    work_of(work, make_policy(name, published, options), options)()
    return round(peak_memory(options.device))


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # the batch size is that of a training step
    options = arguments(__doc__, {"study": STUDIES}, study="segvla", rounds=5, batch_size=1, device=device)
    names = (SMOLVLA, *STUDIES[options.study])
    cases = list(product(("chunk", "step"), names))
    with tempfile.TemporaryDirectory() as folder:
        published = in_child(save_published, Path(folder))
        # First: on Linux a process begins with the peak of its parent.
        memory = {case: in_child(memory_of, *case, published, options) for case in cases}
        policies = {name: make_policy(name, published, options) for name in names}
    times = in_turn({case: work_of(case[0], policies[case[1]], options) for case in cases}, options.rounds)
    rows, shown = [], []
    for work, name in cases:
        own, base, peak = times[work, name], times[work, SMOLVLA], memory[work, name]
        ratio = median(a / b for a, b in zip(own, base, strict=True))
        row = {"study": options.study, "work": work, "policy": name, "ms": round(median(own), 1)}
        row |= {"ms_fastest": round(min(own), 1), "ratio": round(ratio, 3), "memory_mb": peak}
        rows.append(row)
        shown.append({**row, "memory ratio": round(peak / memory[work, SMOLVLA], 3)})
    save("speed/smolvla", rows, ("study", "work", "policy"), vars(options))
    show(shown)


if __name__ == "__main__":
    main()
