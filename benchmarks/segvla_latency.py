# SPDX-License-Identifier: Apache-2.0
"""segvla beside SmolVLA at the real size: a chunk of actions, a training step, peak memory.

    python -m benchmarks.segvla_latency

SmolVLM2-500M's sizes with random weights, two 640x480 cameras, class ids at 84x84 in the batch: what a segmenter costs
is in perception.json. The policies are measured in turn in one process, so that whatever else the machine does
meets all of them; memory is that of a process of its own. On two cores about 20 minutes and 15 GB.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from lerobot_policy_segvla import SegVLAConfig
from lerobot_policy_segvla.configuration_segvla import INJECTIONS
from lerobot_policy_segvla.modeling_segvla import SegVLAPolicy
from lerobot_policy_segvla.small_vlm import save_published_vlm

from .report import save, table

SMOLVLA = "smolvla"
ARMS = (SMOLVLA, *INJECTIONS)
CLASSES = ["background", "table", "red cube", "green cube", "blue bowl", "white bowl"]
CAMERAS = ("top", "wrist")
SENTENCE = "Put the red cube into the blue bowl."


def make_policy(arm: str, vlm: str, device: str) -> Any:
    """A policy with random weights."""
    pictures = {
        f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, 480, 640)) for camera in CAMERAS
    }
    options: dict[str, Any] = {
        "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **pictures},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (6,))},
        "vlm_model_name": vlm,
        "device": device,
        "push_to_hub": False,
    }
    torch.manual_seed(0)
    if arm == SMOLVLA:
        return SmolVLAPolicy(SmolVLAConfig(**options)).to(device)
    config = SegVLAConfig(
        **options,
        segmentation_feature_map={key: key.replace("images", "seg") for key in pictures},
        segmentation_class_names=CLASSES,
        segmentation_task_classes=["red cube", "blue bowl"],
        segmentation_geometry_classes=["red cube", "blue bowl"],
        segmentation_injection=arm,
    )
    return SegVLAPolicy(config).to(device)


def make_batch(size: int, device: str) -> dict[str, torch.Tensor]:
    """What a pipeline gives, for training and acting."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "observation.state": torch.randn(size, 6, generator=generator),
        "action": torch.randn(size, 50, 6, generator=generator),
        "observation.language.tokens": torch.randint(2, 200, (size, 12), generator=generator),
        "observation.language.attention_mask": torch.ones(size, 12, dtype=torch.bool),
    }
    for camera in CAMERAS:
        batch[f"observation.images.{camera}"] = torch.rand(size, 3, 480, 640, generator=generator)
        blocks = torch.randint(0, len(CLASSES), (size, 6, 6), generator=generator, dtype=torch.uint8)
        batch[f"observation.seg.{camera}"] = blocks.repeat_interleave(14, 1).repeat_interleave(14, 2)
    return {key: value.to(device) for key, value in batch.items()}


def act(policy: Any, batch: dict[str, torch.Tensor]) -> None:
    """Predict a chunk."""
    policy.eval()
    policy.predict_action_chunk(dict(batch))


def learn(policy: Any, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One step of training, as LeRobot takes it; in bfloat16 on a GPU."""
    policy.train()
    device = batch["action"].device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss, _ = policy.forward(dict(batch))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def optimizer_of(policy: Any) -> torch.optim.Optimizer:
    """AdamW on what is trained."""
    return torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-4)


def seconds(work: Any, device: str) -> float:
    """Wall time of a call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(vlm: str, device: str, rounds: int, batch_size: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each arm and kind of work, `rounds` each, after a round of warming up."""
    policies = {arm: make_policy(arm, vlm, device) for arm in ARMS}
    optimizers = {arm: optimizer_of(policy) for arm, policy in policies.items()}
    one, many = make_batch(1, device), make_batch(batch_size, device)
    times: dict[str, dict[str, list[float]]] = {kind: {arm: [] for arm in ARMS} for kind in ("chunk", "step")}
    for turn in range(rounds + 1):
        for arm, policy in policies.items():
            found = {
                "chunk": seconds(partial(act, policy, one), device),
                "step": seconds(partial(learn, policy, many, optimizers[arm]), device),
            }
            for kind, value in found.items():
                if turn:
                    times[kind][arm].append(value)
    return times


def peak_memory(arm: str, work: str, vlm: str, device: str, batch_size: int) -> float:
    """Megabytes that one kind of work needs at most, in this process."""
    policy = make_policy(arm, vlm, device)
    if work == "chunk":
        act(policy, make_batch(1, device))
    else:
        learn(policy, make_batch(batch_size, device), optimizer_of(policy))
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e6


def memories(vlm: str, device: str, batch_size: int) -> dict[str, dict[str, float]]:
    """Peak memory of each arm and kind of work, each in a process of its own."""
    found: dict[str, dict[str, float]] = {"chunk": {}, "step": {}}
    for work, by_arm in found.items():
        for arm in ARMS:
            command = [sys.executable, "-m", "benchmarks.segvla_latency", "--child", arm, work, vlm, device]
            child = subprocess.run([*command, str(batch_size)], check=True, stdout=subprocess.PIPE, text=True)
            by_arm[arm] = round(json.loads(child.stdout.splitlines()[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=1, help="of a training step")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        *arguments, batch_size = options.child
        print(json.dumps(peak_memory(*arguments, batch_size=int(batch_size))))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        vlm = save_published_vlm(Path(folder), [SENTENCE])
        memory = memories(vlm, device, options.batch_size)
        times = in_turn(vlm, device, options.rounds, options.batch_size)
    rows = []
    for work, by_arm in times.items():
        for arm, values in by_arm.items():
            ratios = [mine / theirs for mine, theirs in zip(values, by_arm[SMOLVLA], strict=True)]
            rows.append(
                {
                    "work": work,
                    "policy": arm,
                    "ms": round(1000 * statistics.median(values), 1),
                    "ms_fastest": round(1000 * min(values), 1),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratio_of_fastest": round(min(values) / min(by_arm[SMOLVLA]), 3),
                    "memory_mb": memory[work][arm],
                    "memory_ratio": round(memory[work][arm] / memory[work][SMOLVLA], 3),
                }
            )
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    path = save("segvla_latency", {"device": device, "batch_size": options.batch_size, "rows": rows})
    print("written to", path)


if __name__ == "__main__":
    main()
