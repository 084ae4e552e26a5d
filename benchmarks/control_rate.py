# SPDX-License-Identifier: Apache-2.0
"""How evenly LeRobot's rollout ticks at 30 Hz with two cameras of 320x240, with inference in the loop (sync) and beside it (rtc).

    taskset -c 0,1 python -m benchmarks.control_rate

The emulated arm and its cameras run in a process of their own; `lerobot-rollout`'s own loop runs here with `so101_guarded`.
Policies have random weights, their segmenter is the workbench's: segdepth (looks once in four ticks; has no rtc) and segvla on the
small SmolVLA of the learning studies. A tick begins when the loop asks the robot for an observation. On a quiet machine; some
three minutes; writes results/control_rate.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
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

from lerobot_env_so101_workbench import SO101VirtualCameraConfig
from lerobot_env_so101_workbench.arm import HOME
from lerobot_env_so101_workbench.virtual_calibration import FOLLOWER, calibration_file
from lerobot_robot_so101 import SO101GuardedConfig
from lerobot_robot_so101.so101_guarded import SO101Guarded
from tests.tiny import robot_features, save_policy

from .clock import percentiles
from .report import save, table
from .small_smolvla import SIDE, small_vlm

FPS, WARM_S = 30, 3.0  # 1/s; s in which models load and nothing is counted
SIZE = {"height": 240, "width": 320, "fps": 30}
SENTENCE = "Lift the cube."
SHARES = (50, 95, 99)  # percentiles
RUNS = (("segdepth", "sync"), ("segvla", "sync"), ("segvla", "rtc"))


def make_checkpoint(kind: str, folder: Path) -> Any:
    """The configuration of a policy with random weights that is saved in a folder."""
    options: dict[str, Any] = {"segmenter": "workbench", "device": "cpu", "push_to_hub": False}
    if kind == "segdepth":
        options |= {"depth": "segmenter"}
    else:
        vlm = small_vlm(folder / "vlm", [SENTENCE])
        options |= {
            "vlm_model_name": str(vlm),
            "resize_imgs_with_padding": (SIDE, SIDE),
            "num_vlm_layers": 4,
            "tokenizer_max_length": 16,
            "segmentation_task_classes": ["cube"],
        }
    torch.manual_seed(0)
    config = make_policy_config(kind, **robot_features((SIZE["height"], SIZE["width"])), **options)
    # Around the pose it begins in: elsewhere an untrained policy presses the arm on the table until a servo gives up.
    home = torch.tensor(HOME, dtype=torch.float32)
    spread = {"mean": home, "std": torch.full((6,), 5.0), "min": home - 10, "max": home + 10}
    statistics = dict.fromkeys(("observation.state", "action"), spread)
    return save_policy(get_policy_class(kind)(config), folder, statistics)


class Arm:
    """An emulated arm with two cameras, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.id = folder / "arm", f"rate-{folder.name}"
        options = [
            "--leader=none",
            f"--follower_port={self.port}",
            f"--id={self.id}",
            "--cameras=[top,wrist]",
        ]
        options += [f"--width={SIZE['width']}", f"--height={SIZE['height']}", f"--camera_fps={SIZE['fps']}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lerobot_env_so101_workbench.virtual_arm_console", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("Type"):
                return
        raise RuntimeError("so101-virtual-arm did not start; its own words are above.")

    def ask(self, line: str) -> str:
        """Type a line, and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()
        calibration_file(FOLLOWER, self.id).unlink(missing_ok=True)


class Watched(SO101Guarded):
    """The guarded robot, which keeps when it was asked and told."""

    asked: list[float] = []
    told: list[float] = []
    guard_report = ""

    def get_observation(self) -> dict[str, Any]:
        Watched.asked.append(time.perf_counter())
        return super().get_observation()

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        Watched.told.append(time.perf_counter())
        return super().send_action(action)

    def disconnect(self) -> None:
        Watched.guard_report = self.guard.report() if self.guard is not None else ""
        super().disconnect()


def run(kind: str, engine: str, config: Any, arm: Arm, seconds: float) -> dict[str, Any]:
    """Roll a policy out, and say how its ticks came."""
    import lerobot_robot_so101

    Watched.asked, Watched.told, chunks = [], [], []
    policy_class = get_policy_class(kind)
    # What plans a chunk, with either engine.
    method = "_predict" if kind == "segdepth" else "_get_action_chunk"
    plan = getattr(policy_class, method)

    def planning(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return plan(*args, **kwargs)
        finally:
            chunks.append(1000 * (time.perf_counter() - begin))

    cameras = {view: SO101VirtualCameraConfig(view=view, port=arm.port, **SIZE) for view in ("top", "wrist")}
    with (
        patch.object(lerobot_robot_so101, "SO101Guarded", Watched, create=True),  # where LeRobot looks for it
        patch.object(policy_class, method, planning),
    ):
        rollout(
            RolloutConfig(
                robot=SO101GuardedConfig(port=str(arm.port), id=arm.id, cameras=cameras),
                policy=config,
                inference=SyncInferenceConfig() if engine == "sync" else RTCInferenceConfig(),
                fps=FPS,
                duration=WARM_S + seconds,
                task=SENTENCE,
                return_to_initial_position=False,
                play_sounds=False,
            )
        )
    return {"policy": kind, "engine": engine, **figures(np.array(Watched.asked[1:]), np.array(Watched.told)),
            "chunk_ms": percentiles(chunks[1:], SHARES) if len(chunks) > 1 else None,
            "guard": Watched.guard_report, "cameras": [arm.ask(f"{view} status") for view in ("top", "wrist")]}  # fmt: skip


def figures(asked: np.ndarray, told: np.ndarray) -> dict[str, Any]:
    """Of times [s] at which ticks began and commands were sent."""
    asked = asked[asked > asked[0] + WARM_S]
    told = told[(told > asked[0]) & (told <= asked[-1])]
    periods = np.diff(asked)
    due = round((asked[-1] - asked[0]) * FPS)
    return {
        "ticks_due": due,
        "ticks": len(periods),
        "missed": int(np.maximum(np.round(periods * FPS) - 1, 0).sum()),
        "without_command": max(0, len(periods) - len(told)),
        "period_ms": percentiles((1000 * periods).tolist(), SHARES),
        "longest_ms": round(float(1000 * periods.max()), 1),
        "longest_without_command_ms": round(float(1000 * np.diff(told).max()), 1) if len(told) > 1 else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="counted, of each run")
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # LeRobot's configurations read the command line too
    register_third_party_plugins()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configs = {kind: make_checkpoint(kind, folder / kind) for kind in dict(RUNS)}
        arm = Arm(folder)
        try:
            for kind, engine in RUNS:
                rows.append(run(kind, engine, configs[kind], arm, options.seconds))
                print(rows[-1], flush=True)
        finally:
            arm.close()
    header = [
        "policy",
        "engine",
        "period p50 / p95 / p99 [ms]",
        "missed",
        "without command",
        "chunk p50 / p95 [ms]",
    ]
    cells = [
        [
            row["policy"],
            row["engine"],
            " / ".join(str(value) for value in row["period_ms"].values()),
            f"{row['missed']} of {row['ticks_due']}",
            str(row["without_command"]),
            f"{row['chunk_ms']['p50']} / {row['chunk_ms']['p95']}" if row["chunk_ms"] else "-",
        ]
        for row in rows
    ]
    print(table(header, cells))
    loads = [round(load, 2) for load in os.getloadavg()]
    print(
        "written to",
        save("control_rate", {"rows": rows, "cores_used": len(os.sched_getaffinity(0)), "load": loads}),
    )


if __name__ == "__main__":
    main()
