# SPDX-License-Identifier: Apache-2.0
"""Regularity of LeRobot's rollout at 30 Hz with two cameras, with inference sync and rtc.

    taskset -c 0,1 python -m benchmarks.speed.control_rate

The emulated arm and its cameras run in a process of their own; `lerobot-rollout`'s own loop runs here with
`so101_guarded`. Policies have random weights, and their segmenter is the workbench's: segdepth (inference
once in four ticks; does not support rtc) and segvla on the small SmolVLA of the learning studies. A tick
begins when the loop reads an observation. Run it on a quiet machine.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lerobot.policies import make_policy_config
from lerobot.policies.factory import get_policy_class
from lerobot.rollout import RolloutConfig
from lerobot.rollout.inference.factory import RTCInferenceConfig, SyncInferenceConfig
from lerobot.scripts.lerobot_rollout import rollout
from lerobot.utils.import_utils import register_third_party_plugins

from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArm, VirtualArmConfig
from lerobot_processor_so101.arm import HOME
from lerobot_robot_so101.so101_guarded import SO101Guarded

from ..lib.clock import percentiles
from ..lib.emulated import close, robot_config
from ..lib.report import arguments, save, show
from ..lib.untrained import SIDE, robot_features, save_policy, small_vlm

FPS, WARM_S = 30, 3.0  # 1/s; s that do not count, while models load
SIZE = {"height": 240, "width": 320}
SENTENCE = "Lift the cube."
SHARES = (50, 95, 99)  # percentiles
RUNS = (("segdepth", "sync"), ("segvla", "sync"), ("segvla", "rtc"))


def make_checkpoint(kind: str, folder: Path) -> Any:
    """Save a policy with random weights, and return its configuration."""
    options: dict[str, Any] = {"segmenter": "workbench", "device": "cpu", "push_to_hub": False}
    if kind == "segdepth":
        options |= {"depth": "segmenter"}
    else:
        vlm = small_vlm(folder / "vlm", [SENTENCE])
        options |= {"vlm_model_name": str(vlm), "resize_imgs_with_padding": (SIDE, SIDE)}
        options |= {"num_vlm_layers": 4, "tokenizer_max_length": 16, "segmentation_task_classes": ["cube"]}
    torch.manual_seed(0)
    config = make_policy_config(kind, **robot_features((SIZE["height"], SIZE["width"])), **options)
    # Actions near the initial pose: elsewhere an untrained policy presses the arm on the table until a servo
    # is overloaded.
    home = torch.tensor(HOME, dtype=torch.float32)
    spread = {"mean": home, "std": torch.full((6,), 5.0), "min": home - 10, "max": home + 10}
    statistics = dict.fromkeys(("observation.state", "action"), spread)
    return save_policy(get_policy_class(kind)(config), folder, statistics)


def emulate(config: VirtualArmConfig, ready: Event, done: Event) -> None:
    """Run an arm in real time."""
    arm = VirtualArm(config)
    with arm:
        ready.set()
        done.wait()
    close(arm)


@contextmanager
def emulated(folder: Path) -> Iterator[Any]:
    """Yield the configuration of the robot on an arm in a process of its own."""
    cameras = ["top", "wrist"]
    arm = VirtualArmConfig(
        leader="none", follower_port=folder / "arm", id=f"rate-{folder.name}", cameras=cameras, **SIZE
    )
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=emulate, args=(arm, ready, done))
    process.start()
    try:
        if not ready.wait(120):
            raise TimeoutError("found no emulated arm after 120 s; its output is above.")
        yield robot_config("so101_guarded", SimpleNamespace(config=arm))
    finally:
        done.set()
        process.join()


def recorded(method: Callable, calls: list[tuple[float, float]]) -> Callable:
    """Return a method that adds the begin and the end of its calls [s] to a list."""

    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = method(*args, **kwargs)
        calls.append((begin, time.perf_counter()))
        return result

    return call


def run(kind: str, engine: str, policy: Any, robot: Any, seconds: float) -> dict[str, Any]:
    """Roll a policy out, and return statistics of its ticks."""
    config = RolloutConfig(
        robot=robot,
        policy=policy,
        inference=SyncInferenceConfig() if engine == "sync" else RTCInferenceConfig(),
        fps=FPS,
        duration=WARM_S + seconds,
        task=SENTENCE,
        return_to_initial_position=False,
        play_sounds=False,
    )
    plan = "_predict" if kind == "segdepth" else "_get_action_chunk"  # with either engine
    calls = {"get_observation": [], "send_action": [], plan: []}
    with ExitStack() as patches:
        for name, found in calls.items():
            owner = get_policy_class(kind) if name == plan else SO101Guarded
            patches.enter_context(patch.object(owner, name, recorded(getattr(owner, name), found)))
        rollout(config)
    read, commanded, chunks = map(np.array, calls.values())  # (N, 2) each
    chunks = 1000 * np.diff(chunks[1:])
    row = {"policy": kind, "engine": engine, **statistics_of(read[1:, 0], commanded[:, 0])}
    return {**row, "chunk_ms": percentiles(chunks, SHARES) if len(chunks) else None}


def statistics_of(read: np.ndarray, commanded: np.ndarray) -> dict[str, Any]:
    """Return statistics of the times [s] at which ticks began and commands were sent."""
    read = read[read > read[0] + WARM_S]
    commanded = commanded[(commanded > read[0]) & (commanded <= read[-1])]
    periods, gaps = np.diff(read), np.diff(commanded)
    return {
        "ticks_due": round((read[-1] - read[0]) * FPS),
        "ticks": len(periods),
        "missed": int(np.maximum(np.round(periods * FPS) - 1, 0).sum()),
        "without_command": max(0, len(periods) - len(commanded)),
        "period_ms": percentiles(1000 * periods, SHARES),
        "longest_ms": round(float(1000 * periods.max()), 1),
        "longest_without_command_ms": round(float(1000 * gaps.max()), 1) if len(gaps) else None,
    }


def main() -> None:
    options = arguments(__doc__, seconds=30.0)  # that count, of each run
    sys.argv = sys.argv[:1]  # LeRobot's configurations read the command line too
    register_third_party_plugins()
    rows = []
    with tempfile.TemporaryDirectory() as name, emulated(Path(name)) as robot:
        policies = {kind: make_checkpoint(kind, Path(name) / kind) for kind in dict(RUNS)}
        for kind, engine in RUNS:
            rows.append(run(kind, engine, policies[kind], robot, options.seconds))
            print(rows[-1], flush=True)
    machine = {"cores_used": len(os.sched_getaffinity(0)), "load": [round(x, 2) for x in os.getloadavg()]}
    save("speed/control_rate", rows, (), {**vars(options), **machine})
    show(rows, "policy", "engine", "period_ms", "missed", "ticks_due", "without_command", "chunk_ms")


if __name__ == "__main__":
    main()
