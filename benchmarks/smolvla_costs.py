# SPDX-License-Identifier: Apache-2.0
"""What policies that are built on SmolVLA cost beside it at the real size: a chunk of actions, a training step, peak memory.

SmolVLM2-500M's sizes with random weights, two 640x480 cameras. The policies are measured in turn in one process, so that
whatever else the machine does meets all of them; memory is that of a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from lerobot_policy_segvla.small_vlm import save_published_vlm

from .clock import peak_memory
from .report import save, table

SMOLVLA = "smolvla"
CAMERAS = ("top", "wrist")
SENTENCE = "Put the red cube into the blue bowl."

type Batch = dict[str, torch.Tensor]
type Make = Callable[[str, dict[str, Any]], Any]  # a policy by its name, with options that all have in common


class Costs:
    """A benchmark of some policies beside SmolVLA.

    Args:
        name: of the module in benchmarks/, and of its file of results.
        arms: names of the policies.
        make: builds one.
        more: what a batch has beside pictures, state, sentence and actions, of a number of samples.
    """

    def __init__(
        self, name: str, arms: Sequence[str], make: Make, more: Callable[[int], Batch] = lambda size: {}
    ) -> None:
        self.name, self.arms, self._make, self._more = name, (SMOLVLA, *arms), make, more
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def policy(self, arm: str, vlm: str) -> Any:
        """A policy with random weights."""
        picture = PolicyFeature(FeatureType.VISUAL, (3, 480, 640))
        pictures = {f"observation.images.{camera}": picture for camera in CAMERAS}
        options: dict[str, Any] = {
            "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **pictures},
            "output_features": {"action": PolicyFeature(FeatureType.ACTION, (6,))},
            "vlm_model_name": vlm,
            "device": self.device,
            "push_to_hub": False,
        }
        torch.manual_seed(0)
        made = SmolVLAPolicy(SmolVLAConfig(**options)) if arm == SMOLVLA else self._make(arm, options)
        return made.to(self.device)

    def batch(self, size: int) -> Batch:
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
        return {key: value.to(self.device) for key, value in {**batch, **self._more(size)}.items()}

    def seconds(self, work: Callable[[], Any]) -> float:
        """Wall time of a call."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def in_turn(self, vlm: str, rounds: int, batch_size: int) -> dict[str, dict[str, list[float]]]:
        """Seconds of each arm and kind of work, `rounds` each, after a round of warming up."""
        policies = {arm: self.policy(arm, vlm) for arm in self.arms}
        optimizers = {arm: optimizer_of(policy) for arm, policy in policies.items()}
        one, many = self.batch(1), self.batch(batch_size)
        times: dict[str, dict[str, list[float]]] = {
            kind: {arm: [] for arm in self.arms} for kind in ("chunk", "step")
        }
        for turn in range(rounds + 1):
            for arm, policy in policies.items():
                found = {
                    "chunk": self.seconds(partial(act, policy, one)),
                    "step": self.seconds(partial(learn, policy, many, optimizers[arm])),
                }
                for kind, value in found.items():
                    if turn:
                        times[kind][arm].append(value)
        return times

    def needs(self, arm: str, work: str, vlm: str, batch_size: int) -> float:
        """Megabytes that one kind of work needs at most, in this process."""
        policy = self.policy(arm, vlm)
        if work == "chunk":
            act(policy, self.batch(1))
        else:
            learn(policy, self.batch(batch_size), optimizer_of(policy))
        return peak_memory(self.device)

    def memories(self, vlm: str, batch_size: int) -> dict[str, dict[str, float]]:
        """Peak memory of each arm and kind of work, each in a process of its own."""
        found: dict[str, dict[str, float]] = {"chunk": {}, "step": {}}
        for work, by_arm in found.items():
            for arm in self.arms:
                command = [
                    sys.executable,
                    "-m",
                    f"benchmarks.{self.name}",
                    "--child",
                    arm,
                    work,
                    vlm,
                    str(batch_size),
                ]
                child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                by_arm[arm] = round(json.loads(child.stdout.splitlines()[-1]))
        return found

    def main(self, description: str | None) -> None:
        """The command: measure everything, print a table, save it."""
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument("--batch_size", type=int, default=1, help="of a training step")
        parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
        options = parser.parse_args()
        if options.child:
            *arguments, batch_size = options.child
            print(json.dumps(self.needs(*arguments, batch_size=int(batch_size))))
            return
        with tempfile.TemporaryDirectory() as folder:
            vlm = save_published_vlm(Path(folder), [SENTENCE])
            memory = self.memories(vlm, options.batch_size)
            times = self.in_turn(vlm, options.rounds, options.batch_size)
        rows = [cost(work, arm, times[work], memory[work]) for work in times for arm in self.arms]
        print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
        result = {"device": self.device, "batch_size": options.batch_size, "rows": rows}
        print("written to", save(self.name, result))


def cost(work: str, arm: str, times: dict[str, list[float]], memory: dict[str, float]) -> dict[str, Any]:
    """A row: what one kind of work costs with one policy, and over what it does with SmolVLA."""
    values, base = times[arm], times[SMOLVLA]
    return {
        "work": work,
        "policy": arm,
        "ms": round(1000 * statistics.median(values), 1),
        "ms_fastest": round(1000 * min(values), 1),
        "ratio": round(
            statistics.median(mine / theirs for mine, theirs in zip(values, base, strict=True)), 3
        ),
        "ratio_of_fastest": round(min(values) / min(base), 3),
        "memory_mb": memory[arm],
        "memory_ratio": round(memory[arm] / memory[SMOLVLA], 3),
    }


def act(policy: Any, batch: Batch) -> None:
    """Predict a chunk."""
    policy.eval()
    policy.predict_action_chunk(dict(batch))


def learn(policy: Any, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
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
