# SPDX-License-Identifier: Apache-2.0
"""Environment steps per second: the workbench beside two other SO-101 simulators, in one run.

    make bench        (or: .venv/bin/python -m benchmarks.sim_speed --seconds 10)

Every measurement is a process of its own (see `sim_peers`), three rounds of all of them in turn, medians reported.
A step is one environment step with all its pictures. Steps differ in simulated time (workbench 33 ms, so101-nexus
20 ms, lerobot_env_so101 100 ms); rates are not corrected for that. About 10 minutes; writes results/sim_speed.json.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from statistics import median

import numpy as np

from .report import save, table
from .sim_peers import IMAGES, MODES, SETTINGS, SIZES, Peer, measure

PEERS = {"workbench": "workbench", "nexus": "so101-nexus", "les": "lerobot_env_so101"}


def make_workbench(mode: str, setting: str) -> Peer:
    """The workbench in one mode; its best setting is its stock one."""
    import gymnasium as gym

    from lerobot_env_so101_workbench import View, gym_id
    from lerobot_env_so101_workbench.arm import HOME

    width, height = SIZES[mode]
    masks, pictures = mode == "maskdepth84x2", mode != "physics"
    cameras = ("top",) if mode == "rgb224" else ("top", "wrist")
    view = View(cameras, height, width, rgb=pictures and not masks, seg=masks, depth=masks)
    env = gym.make(gym_id("lift_cube"), view=view, disable_env_checker=True)

    def act(rng: np.random.Generator) -> np.ndarray:
        """Move every joint around the ready pose by up to 3 deg."""
        return HOME + rng.uniform(-3.0, 3.0, HOME.shape)

    def look(obs: dict) -> list[np.ndarray]:
        planes = [value[0] for key, value in obs.items() if key.startswith("images.")]
        return [*obs.get("pixels", {}).values(), *planes]

    return Peer(env, act, look, "33 ms per step; stock has neither shadows nor MSAA")


def run_once(peer: str, mode: str, setting: str, seconds: float) -> dict:
    """Measure in a fresh process."""
    module = "benchmarks.sim_speed" if peer == "workbench" else "benchmarks.sim_peers"
    command = [sys.executable, "-m", module, "--peer", peer, "--mode", mode, "--setting", setting]
    child = subprocess.run(
        [*command, "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        env={**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")},
    )
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{child.stderr[-2000:]}")
    return json.loads(child.stdout.strip().splitlines()[-1])


def compare(seconds: float, rounds: int) -> list[dict]:
    """Medians over rounds for every peer, mode and setting."""
    keys = list(product(MODES, SETTINGS, PEERS))
    runs: dict[tuple, list[dict]] = {key: [] for key in keys}
    for number in range(rounds):
        for mode, setting, peer in keys:
            runs[mode, setting, peer].append(run_once(peer, mode, setting, seconds))
            print(
                f"round {number + 1}: {mode}, {setting}, {peer}: {runs[mode, setting, peer][-1]['steps_per_s']}/s"
            )
    return [
        {
            "mode": mode,
            "setting": setting,
            "peer": PEERS[peer],
            "steps_per_s": round(median(run["steps_per_s"] for run in runs[mode, setting, peer]), 2),
            "steps_per_cpu_s": round(
                median(run["steps"] / run["cpu_s"] for run in runs[mode, setting, peer]), 2
            ),
            "note": runs[mode, setting, peer][0]["note"],
        }
        for mode, setting, peer in keys
    ]


def ratios(rows: list[dict]) -> list[list[str]]:
    """One line per mode and setting: rates, and how many times the workbench is ahead of the faster peer."""
    rate = {(row["mode"], row["setting"], row["peer"]): row["steps_per_s"] for row in rows}
    lines = []
    for mode, setting in product(MODES, SETTINGS):
        ours, *others = (rate[mode, setting, name] for name in PEERS.values())
        lines.append(
            [
                mode,
                setting,
                f"{ours:.1f}",
                *(f"{other:.1f}" for other in others),
                f"{ours / max(others):.1f}x",
            ]
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of steps in every measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", choices=["workbench"], help="measure one combination and print JSON")
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--setting", choices=SETTINGS)
    args = parser.parse_args()
    if args.peer:
        workbench = make_workbench(args.mode, args.setting)
        result = measure(workbench, args.seconds, IMAGES[args.mode])
        print(json.dumps({**result, "note": workbench.note}), flush=True)
        return
    rows = compare(args.seconds, args.rounds)
    header = ["mode", "setting", *PEERS.values(), "workbench / faster peer"]
    print(table(header, ratios(rows)))
    print("env steps per second; written to", save("sim_speed", {"rows": rows}))


if __name__ == "__main__":
    main()
