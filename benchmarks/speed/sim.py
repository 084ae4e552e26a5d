# SPDX-License-Identifier: Apache-2.0
"""Environment steps per second of the workbench and of two other SO-101 simulators, in one run.

    make bench        (or: .venv/bin/python -m benchmarks.speed.sim --seconds 10)

Every measurement is a process of its own (see `sim_peers`), three rounds of all of them in turn, medians
reported. A step is one environment step with all its images. Steps differ in simulated time (workbench 33 ms,
so101-nexus 20 ms, lerobot_env_so101 100 ms); rates are not corrected for that. 10 minutes; writes
results/speed/sim.json.
"""

import json
from itertools import product
from statistics import median

import numpy as np

from ..lib.report import arguments, in_child, save, table
from .sim_peers import IMAGES, MODES, SETTINGS, SIZES, Peer, measure

PEERS = {"workbench": "workbench", "nexus": "so101-nexus", "les": "lerobot_env_so101"}


def make_workbench(mode: str) -> Peer:
    """Return the workbench in one mode; its best setting is its stock one."""
    import gymnasium as gym

    from lerobot_env_so101_workbench import CameraSetup, gym_id
    from lerobot_processor_so101.arm import HOME

    width, height = SIZES[mode]
    masks = mode == "maskdepth84x2"
    cameras = ("top",) if mode == "rgb224" else ("top", "wrist")
    setup = CameraSetup(cameras, height, width, rgb=mode.startswith("rgb"), seg=masks, depth=masks)
    env = gym.make(gym_id("lift_cube"), cameras=setup, disable_env_checker=True)

    def act(rng: np.random.Generator) -> np.ndarray:
        """Move every joint around the ready pose by up to 3 deg."""
        return HOME + rng.uniform(-3.0, 3.0, HOME.shape)

    def images(obs: dict) -> list[np.ndarray]:
        planes = [value[0] for key, value in obs.items() if key.startswith("images.")]
        return [*obs.get("pixels", {}).values(), *planes]

    return Peer(env, act, images, "33 ms per step; stock has neither shadows nor MSAA")


def compare(seconds: float, rounds: int) -> list[dict]:
    """Return medians over rounds for every peer, mode and setting."""
    cases = list(product(MODES, SETTINGS, PEERS))
    runs: dict[tuple, list[dict]] = {case: [] for case in cases}
    for number, case in product(range(rounds), cases):
        mode, setting, peer = case
        module = f"benchmarks.speed.{'sim' if peer == 'workbench' else 'sim_peers'}"
        options = ("--peer", peer, "--mode", mode, "--setting", setting, "--seconds", seconds)
        runs[case].append(in_child(module, *options))
        print(f"round {number + 1}: {mode}, {setting}, {peer}: {runs[case][-1]['steps_per_s']}/s", flush=True)
    return [
        {
            "mode": mode,
            "setting": setting,
            "peer": PEERS[peer],
            "steps_per_s": round(median(run["steps_per_s"] for run in found), 2),
            "steps_per_cpu_s": round(median(run["steps"] / run["cpu_s"] for run in found), 2),
            "note": found[0]["note"],
        }
        for (mode, setting, peer), found in runs.items()
    ]


def main() -> None:
    # Seconds of steps in every measurement. With --peer: measure one combination and print JSON.
    options = arguments(__doc__, seconds=5.0, rounds=3, peer="", mode="", setting="")
    if options.peer:
        workbench = make_workbench(options.mode)
        result = measure(workbench, options.seconds, IMAGES[options.mode])
        print(json.dumps({**result, "note": workbench.note}), flush=True)
        return
    settings = {"seconds": options.seconds, "rounds": options.rounds}
    rows = save("speed/sim", compare(options.seconds, options.rounds), (), settings)
    rate = {(row["mode"], row["setting"], row["peer"]): row["steps_per_s"] for row in rows}
    cells = []
    for mode, setting in product(MODES, SETTINGS):
        ours, *others = (rate[mode, setting, name] for name in PEERS.values())
        cells.append([mode, setting, ours, *others, f"{ours / max(others):.1f}x"])
    print(table(["mode", "setting", *PEERS.values(), "workbench / faster peer"], cells))


if __name__ == "__main__":
    main()
