# SPDX-License-Identifier: Apache-2.0
"""Environment steps per second of the workbench and of two other SO-101 simulators, in one run.

    make bench        (or: .venv/bin/python -m benchmarks.speed.sim --seconds 10)

Every measurement is a process of its own, so that none inherits another's GL contexts, caches or threads;
medians of rounds in turn. A step is one gym step and all images of its observation. Steps differ in simulated
time (33 ms here, 20 ms in so101-nexus, 100 ms in lerobot_env_so101); rates are not corrected for that.

Modes:    `physics` renders nothing; `rgb224` one 224x224 camera outside the arm; `rgb640x2` two
          640x480 cameras; `maskdepth84x2` masks and metric depth of two cameras at 84x84, without RGB.
Settings: `stock` is the default of a user who asks only for images; `best` has shadows and multisampling off.

What a peer's own API cannot give is rendered from its model and data by one `mujoco.Renderer`, as its user
would have to: masks of so101-nexus, and masks, depth and a second view (MuJoCo's free camera) of
lerobot_env_so101.
"""

import ctypes.util
import os
import time
from collections.abc import Callable
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from ..lib.clock import take_turns
from ..lib.report import arguments, in_child, save, table

SETTINGS = ("stock", "best")
# Width, height, and number of images of each mode.
MODES = {
    "physics": (640, 480, 0),
    "rgb224": (224, 224, 1),
    "rgb640x2": (640, 480, 2),
    "maskdepth84x2": (84, 84, 4),
}
MASKS = "maskdepth84x2"
WARM_UP_STEPS = 2
MIN_STEPS = 3


class Peer(NamedTuple):
    """A simulator in one mode: `act` draws a small motion, `images` returns every image of an observation."""

    env: gym.Env
    act: Callable[[np.random.Generator], np.ndarray]
    images: Callable[[Any], list[np.ndarray]]


def make_workbench(mode: str, setting: str) -> Peer:
    """Return the workbench in one mode; its best setting is its stock one, without shadows and MSAA."""
    from lerobot_env_so101_workbench import CameraSetup, gym_id
    from lerobot_processor_so101.arm import HOME

    width, height, _ = MODES[mode]
    cameras = ("top",) if mode == "rgb224" else ("top", "wrist")
    masks = mode == MASKS
    setup = CameraSetup(cameras, height, width, rgb=mode.startswith("rgb"), seg=masks, depth=masks)
    env = gym.make(gym_id("lift_cube"), cameras=setup, disable_env_checker=True)

    def images(obs: dict) -> list[np.ndarray]:
        planes = [value[0] for key, value in obs.items() if key.startswith("images.")]
        return [*obs.get("pixels", {}).values(), *planes]

    # Every joint moves around the ready pose by up to 3 deg.
    return Peer(env, lambda rng: HOME + rng.uniform(-3.0, 3.0, HOME.shape), images)


def outside_view(env: Any, mode: str, shadows: bool) -> Callable[..., list[np.ndarray]]:
    """Return what a user adds to an env without a camera, masks or depth: a `mujoco.Renderer`.

    Returns:
        A function that renders a camera (name, id or `MjvCamera`), updating the scene once. Kinds are `rgb`
        (H, W, 3) uint8; `depth` (H, W) float32, m; `mask` (H, W) int32 body ids, 0 for the background.
    """
    import mujoco

    model, data = env.unwrapped.model, env.unwrapped.data
    renderer = mujoco.Renderer(model, width=MODES[mode][0], height=MODES[mode][1])
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows

    def images(camera: Any, *kinds: str) -> list[np.ndarray]:
        renderer.update_scene(data, camera=camera)
        found = []
        for kind in kinds:
            if kind == "depth":
                renderer.enable_depth_rendering()
            elif kind == "mask":
                renderer.enable_segmentation_rendering()
            found.append(renderer.render())
            renderer.disable_depth_rendering()
            renderer.disable_segmentation_rendering()
            if kind == "mask":
                ids, types = np.moveaxis(found[-1], -1, 0)
                found[-1] = np.where(types == int(mujoco.mjtObj.mjOBJ_GEOM), model.geom_bodyid[ids], 0)
        return found

    return images


def make_les(mode: str, setting: str) -> Peer:
    """Build SO101PickCube-v0. It has one RGB camera and no quality flags, but exposes its model."""
    from lerobot_env_so101 import ENV_ID, GymRenderingSpec

    front, free = "front", -1  # its one camera, and MuJoCo's free one, which its own render spec defaults to
    spec = GymRenderingSpec(width=MODES[mode][0], height=MODES[mode][1], camera_id=front)
    env = gym.make(ENV_ID, render_spec=spec, image_obs=mode.startswith("rgb"))
    if setting == "best":
        env.unwrapped.model.light_castshadow[:] = False
        env.unwrapped.model.vis.quality.offsamples = 0
    if mode in ("rgb640x2", MASKS):
        outside = outside_view(env, mode, shadows=setting == "stock")

    def act(rng: np.random.Generator) -> np.ndarray:
        """Move the hand by up to 1 cm along each axis and the jaw around half open."""
        return np.append(rng.uniform(-0.01, 0.01, 3), rng.uniform(0.4, 0.6)).astype(np.float32)

    def images(obs: dict) -> list[np.ndarray]:
        if mode == "physics":
            return []
        if mode == MASKS:
            return [image for camera in (front, free) for image in outside(camera, "mask", "depth")]
        return [obs["pixels"]["front"], *(outside(free, "rgb") if mode == "rgb640x2" else [])]

    return Peer(env, act, images)


def make_nexus(mode: str, setting: str) -> Peer:
    """Build MuJoCoPickLift-v1. Its API offers both cameras, depth and quality flags, but no masks."""
    import mujoco
    import so101_nexus.mujoco  # noqa: F401  (registers the tasks)
    from so101_nexus import OverheadCamera, PickConfig, RenderConfig, WristCamera
    from so101_nexus.camera_utils import compute_overhead_camera_params
    from so101_nexus.rendering import RenderingQuality

    width, height, _ = MODES[mode]
    modalities = ("depth",) if mode == MASKS else ("rgb",)
    kinds = {"physics": (), "rgb224": (OverheadCamera,)}.get(mode, (OverheadCamera, WristCamera))
    cameras = [kind(width=width, height=height, modalities=modalities) for kind in kinds]
    best = RenderingQuality(msaa_samples=0, shadows=False)
    config = PickConfig(
        observations=[*PickConfig().observations, *cameras],
        obs_mode="visual" if cameras else "state",
        render=RenderConfig(quality=best if setting == "best" else None),
    )
    env = gym.make("MuJoCoPickLift-v1", config=config)
    if mode == MASKS:
        outside = outside_view(env, mode, shadows=setting == "stock")
        overhead = mujoco.MjvCamera()
        params = compute_overhead_camera_params(config.spawn_center, config.spawn_max_radius, aspect=1.0)
        for name, value in params.items():
            setattr(overhead, name, value)
    home, space = np.asarray(config.robot.rest_qpos_rad), env.action_space

    def act(rng: np.random.Generator) -> np.ndarray:
        """Move every joint around its rest pose by up to 0.05 rad."""
        target = home + rng.uniform(-0.05, 0.05, home.shape)
        return np.clip(target, space.low, space.high).astype(np.float32)

    def images(obs: Any) -> list[np.ndarray]:
        if mode == MASKS:
            depth = [obs[f"{camera.name}_depth"] for camera in cameras]
            return [*depth, *outside(overhead, "mask"), *outside("wrist_cam", "mask")]
        return [obs[camera.name] for camera in cameras]

    return Peer(env, act, images)


MAKERS = {"workbench": make_workbench, "so101-nexus": make_nexus, "lerobot_env_so101": make_les}
# Closing one mujoco.Renderer while others live disturbs them: the end of the process frees all.
ALIVE: list[Peer] = []


def measure(name: str, mode: str, setting: str, seconds: float) -> float:
    """Return the steps per second of a simulator, over some seconds in its steps, but at least MIN_STEPS."""
    if name != "workbench":  # MuJoCo reads this when it is first imported, which the makers do
        os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "osmesa")
    peer = MAKERS[name](mode, setting)
    ALIVE.append(peer)
    rng = np.random.default_rng(0)
    peer.env.reset(seed=0)
    steps, wall = -WARM_UP_STEPS, 0.0
    while steps < MIN_STEPS or wall < seconds:
        action = peer.act(rng)
        begin = time.perf_counter()
        obs, _, terminated, truncated, _ = peer.env.step(action)
        frames = peer.images(obs)
        if steps >= 0:
            wall += time.perf_counter() - begin
        elif len(frames) != MODES[mode][2] or any(frame.min() == frame.max() for frame in frames):
            raise RuntimeError("found images that are missing or empty: does rendering work here?")
        steps += 1
        if terminated or truncated:
            peer.env.reset()
    return steps / wall


def main() -> None:
    options = arguments(__doc__, seconds=5.0, rounds=3)  # seconds of steps in every measurement

    def run(case: tuple[str, str, str]) -> float:
        mode, setting, name = case
        rate = in_child(measure, name, mode, setting, options.seconds)
        print(f"{mode}, {setting}, {name}: {rate:.2f}/s", flush=True)
        return rate

    runs = take_turns(product(MODES, SETTINGS, MAKERS), options.rounds, run)
    rates = {case: round(median(found), 2) for case, found in runs.items()}
    keys = ("mode", "setting", "peer", "steps_per_s")
    rows = [dict(zip(keys, (*case, rate), strict=True)) for case, rate in rates.items()]
    save("speed/sim", rows, (), vars(options))
    cells = []
    for mode, setting in product(MODES, SETTINGS):
        ours, *others = (rates[mode, setting, name] for name in MAKERS)
        cells.append([mode, setting, ours, *others, f"{ours / max(others):.1f}x"])
    print(table(["mode", "setting", *MAKERS, "workbench / faster peer"], cells))


if __name__ == "__main__":
    main()
