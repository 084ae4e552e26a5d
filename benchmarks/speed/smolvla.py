# SPDX-License-Identifier: Apache-2.0
"""Cost of policies built on SmolVLA beside it at real size: a chunk, a training step, memory.

    python -m benchmarks.speed.smolvla --study segvla      (or hlrp)

SmolVLM2-500M's sizes with random weights, two 640x480 cameras. The policies take turns in one process, so
that all of them are exposed to whatever else the machine does; memory is that of a process of its own.

segvla has class ids at 84x84 in the batch: the cost of a segmenter is in results/speed/perception.json.
    hlrp's latent actions come from a file, as `so101-laq-label` writes it; a live model costs its own forward
    pass. With `pooled_mlp` the trunk is trained, with SmolVLA and the others the expert alone. On two cores
    20 minutes and 15 GB; writes results/speed/smolvla.json.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
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

from ..lib.clock import finish_gpu, in_turn, peak_memory
from ..lib.report import arguments, in_child, save, table
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
    keys = {f"observation.images.{camera}": f"observation.seg.{camera}" for camera in CAMERAS}
    config = SegVLAConfig(
        **options,
        segmentation_feature_map=keys,
        segmentation_class_names=CLASSES,
        segmentation_task_classes=["red cube", "blue bowl"],
        segmentation_geometry_classes=["red cube", "blue bowl"],
        segmentation_injection=injection,
    )
    return SegVLAPolicy(config)


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


def make_policy(study: str, name: str, vlm: str, device: str) -> Any:
    """Build a policy with random weights."""
    options = {**robot_features((480, 640)), "vlm_model_name": vlm, "device": device, "push_to_hub": False}
    torch.manual_seed(0)
    if name == SMOLVLA:
        policy: Any = SmolVLAPolicy(SmolVLAConfig(**options))
    else:
        policy = {"segvla": make_segvla, "hlrp": make_hlrp}[study](name, options)
    return policy.to(device)


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
        batch[f"observation.images.{camera}"] = torch.rand(size, 3, 480, 640, generator=generator)
        if study == "segvla":
            blocks = torch.randint(0, len(CLASSES), (size, 6, 6), generator=generator, dtype=torch.uint8)
            batch[f"observation.seg.{camera}"] = blocks.repeat_interleave(14, 1).repeat_interleave(14, 2)
    return {key: value.to(device) for key, value in batch.items()}


def act(policy: Any, batch: Batch) -> None:
    """Predict a chunk."""
    policy.eval()
    policy.predict_action_chunk(dict(batch))


def work_of(work: str, policy: Any, study: str, options: argparse.Namespace) -> Callable[[], None]:
    """Return one kind of work of a policy: `chunk` or `step`."""
    if work == "chunk":
        return partial(act, policy, make_batch(study, 1, options.device))
    return training_step(policy, make_batch(study, options.batch_size, options.device))


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"rounds": 5, "batch_size": 1}  # of a training step
    options = arguments(__doc__, {"study": STUDIES}, study="segvla", **sizes, device=device, child=None)
    study, names = options.study, (SMOLVLA, *STUDIES[options.study])
    if options.child:
        name, work, vlm = options.child
        work_of(work, make_policy(study, name, vlm, options.device), study, options)()
        print(json.dumps(round(peak_memory(options.device))))
        return
    with tempfile.TemporaryDirectory() as folder:
        vlm = save_published_vlm(Path(folder), [SENTENCE])
        shared = ["--study", study, "--batch_size", options.batch_size, "--device", options.device]
        memory = {  # first: on Linux a process begins with the peak of its parent
            (work, name): in_child("benchmarks.speed.smolvla", *shared, "--child", name, work, vlm)
            for work in ("chunk", "step")
            for name in names
        }
        policies = {name: make_policy(study, name, vlm, options.device) for name in names}
    works = {
        (work, name): work_of(work, policies[name], study, options)
        for name in names
        for work in ("chunk", "step")
    }
    times = in_turn(works, options.rounds, finish_gpu)
    rows = []
    for work, name in memory:
        own, base = times[work, name], times[work, SMOLVLA]
        ratio = median(a / b for a, b in zip(own, base, strict=True))
        row = {"study": study, "work": work, "policy": name, "ms": round(median(own), 1)}
        row |= {"ms_fastest": round(min(own), 1), "ratio": round(ratio, 3), "memory_mb": memory[work, name]}
        rows.append(row)
    save("speed/smolvla", rows, ("study", "work", "policy"), vars(options))
    base = {work: memory[work, SMOLVLA] for work in ("chunk", "step")}
    cells = [[*row.values(), round(row["memory_mb"] / base[row["work"]], 3)] for row in rows]
    print(table([*rows[0], "memory ratio"], cells))


if __name__ == "__main__":
    main()
