# SPDX-License-Identifier: Apache-2.0
"""Measure one SO-101 simulator of another project, in one mode, at one setting, in this process.

    python -m benchmarks.speed.sim_peers --peer nexus --mode rgb224 --setting stock --seconds 20

prints one JSON line. `benchmarks.speed.sim` starts it once per measurement, so that no measurement inherits
another's GL contexts, caches or threads.

Peers:    `les`, lerobot_env_so101's SO101PickCube-v0, and `nexus`, so101-nexus's MuJoCoPickLift-v1.
Modes:    `physics` renders nothing; `rgb224` one 224x224 camera outside the arm; `rgb640x2` two
          640x480 cameras; `maskdepth84x2` masks and metric depth of two cameras at 84x84, without RGB.
Settings: `stock` is the default of a user who asks only for images; `best` has shadows and multisampling off.
    The
          meshes stay as the peer ships them.

A step is one gym step and all images of its observation. What a peer's own API cannot give is rendered from
its model and data by one `mujoco.Renderer`, as its user would have to; the note of the row then contains "via
mujoco.Renderer". Peers differ in how much time they simulate per step, which the note contains too. Resets
are not part of the measurement. `cpu_s` counts all threads, a software rasteriser's included.
"""

import ctypes.util
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from ..lib.report import arguments

MODES = ("physics", "rgb224", "rgb640x2", "maskdepth84x2")
SETTINGS = ("stock", "best")
SIZES = {"physics": (640, 480), "rgb224": (224, 224), "rgb640x2": (640, 480), "maskdepth84x2": (84, 84)}
IMAGES = {"physics": 0, "rgb224": 1, "rgb640x2": 2, "maskdepth84x2": 4}
WARM_UP_STEPS = 2
MIN_STEPS = 3


@dataclass(frozen=True)
class Peer:
    """A simulator in one mode.

    `act` draws a small motion, `images` returns every image of a step: those of its observation and, where
    the API lacks some, those rendered beside it.
    """

    env: gym.Env
    act: Callable[[np.random.Generator], np.ndarray]
    images: Callable[[Any], list[np.ndarray]]
    note: str


class OutsideView:
    """What a user adds to an env without a camera, masks or depth: a `mujoco.Renderer`.

    Args:
        env: exposes its model and data.
        mode: whose image size it has.
        shadows: whether to render them.
    """

    def __init__(self, env: Any, mode: str, shadows: bool) -> None:
        import mujoco

        self.model, self.data, (width, height) = env.unwrapped.model, env.unwrapped.data, SIZES[mode]
        self.renderer = mujoco.Renderer(self.model, width=width, height=height)
        self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self.geom_type = int(mujoco.mjtObj.mjOBJ_GEOM)

    def images(self, camera: Any, *kinds: str) -> list[np.ndarray]:
        """Render a camera (name, id or `MjvCamera`), updating the scene once.

        Args:
            camera: of the scene.
            kinds: `rgb` (H, W, 3) uint8; `depth` (H, W) float32, m; `mask` (H, W) int32 body ids, 0 for the
                background.
        """
        self.renderer.update_scene(self.data, camera=camera)
        return [getattr(self, f"_{kind}")() for kind in kinds]

    def _rgb(self) -> np.ndarray:
        return self.renderer.render()

    def _depth(self) -> np.ndarray:
        self.renderer.enable_depth_rendering()
        image = self.renderer.render()
        self.renderer.disable_depth_rendering()
        return image

    def _mask(self) -> np.ndarray:
        self.renderer.enable_segmentation_rendering()
        ids, types = np.moveaxis(self.renderer.render(), -1, 0)
        self.renderer.disable_segmentation_rendering()
        return np.where(types == self.geom_type, self.model.geom_bodyid[ids], 0)


# The one camera of its scene, and MuJoCo's free camera, which is what its own render spec defaults to.
LES_CAMERAS = ("front", -1)


def make_les(mode: str, setting: str) -> Peer:
    """Build SO101PickCube-v0. It has one RGB camera and no quality flags, but exposes its model."""
    from lerobot_env_so101 import ENV_ID, GymRenderingSpec

    width, height = SIZES[mode]
    spec = GymRenderingSpec(width=width, height=height, camera_id=LES_CAMERAS[0])
    env = gym.make(ENV_ID, render_spec=spec, image_obs=mode.startswith("rgb"))
    notes = ["100 ms per step"]
    if setting == "best":
        env.unwrapped.model.light_castshadow[:] = False
        env.unwrapped.model.vis.quality.offsamples = 0
        notes.append("shadows and MSAA off through env.model")
    if mode in ("rgb640x2", "maskdepth84x2"):
        outside = OutsideView(env, mode, shadows=setting == "stock")
    views = {
        "rgb224": ["front camera"],
        "rgb640x2": ["front camera", "free camera via mujoco.Renderer"],
        "maskdepth84x2": ["front and free camera", "masks and depth via mujoco.Renderer"],
    }
    notes += views.get(mode, [])

    def act(rng: np.random.Generator) -> np.ndarray:
        """Move the hand by up to 1 cm along each axis and the jaw around half open."""
        return np.append(rng.uniform(-0.01, 0.01, 3), rng.uniform(0.4, 0.6)).astype(np.float32)

    def images(obs: dict) -> list[np.ndarray]:
        if mode == "physics":
            return []
        if mode == "maskdepth84x2":
            return [image for camera in LES_CAMERAS for image in outside.images(camera, "mask", "depth")]
        second = outside.images(LES_CAMERAS[1], "rgb") if mode == "rgb640x2" else []
        return [obs["pixels"]["front"], *second]

    return Peer(env, act, images, "; ".join(notes))


def make_nexus(mode: str, setting: str) -> Peer:
    """Build MuJoCoPickLift-v1. Its API offers both cameras, depth and quality flags, but no masks."""
    import mujoco
    import so101_nexus.mujoco  # noqa: F401  (registers the tasks)
    from so101_nexus import OverheadCamera, PickConfig, RenderConfig, WristCamera
    from so101_nexus.camera_utils import compute_overhead_camera_params
    from so101_nexus.rendering import RenderingQuality

    width, height = SIZES[mode]
    modalities = ("depth",) if mode == "maskdepth84x2" else ("rgb",)
    kinds = {"physics": (), "rgb224": (OverheadCamera,)}.get(mode, (OverheadCamera, WristCamera))
    cameras = [kind(width=width, height=height, modalities=modalities) for kind in kinds]
    best = RenderingQuality(msaa_samples=0, shadows=False)
    config = PickConfig(
        observations=[*PickConfig().observations, *cameras],
        obs_mode="visual" if cameras else "state",
        render=RenderConfig(quality=best if setting == "best" else None),
    )
    env = gym.make("MuJoCoPickLift-v1", config=config)
    keys = [camera.name + ("_depth" if mode == "maskdepth84x2" else "") for camera in cameras]
    notes = ["20 ms per step"]
    if setting == "best":
        notes.append("RenderingQuality(msaa_samples=0, shadows=False)")
    if cameras:
        notes.append(" and ".join(camera.name.replace("_", " ") for camera in cameras))
    if mode == "maskdepth84x2":
        notes.append("masks via mujoco.Renderer")
        outside = OutsideView(env, mode, shadows=setting == "stock")
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
        frames = [obs[key] for key in keys]
        if mode == "maskdepth84x2":
            frames += [*outside.images(overhead, "mask"), *outside.images("wrist_cam", "mask")]
        return frames

    return Peer(env, act, images, "; ".join(notes))


MAKERS = {"les": make_les, "nexus": make_nexus}


def measure(peer: Peer, seconds: float, images: int, seed: int = 0) -> dict[str, float]:
    """Step `peer` for `seconds` in its steps, but at least MIN_STEPS; `images` per step."""
    rng = np.random.default_rng(seed)
    peer.env.reset(seed=seed)
    steps, wall, cpu = -WARM_UP_STEPS, 0.0, 0.0
    while steps < MIN_STEPS or wall < seconds:
        action = peer.act(rng)
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        obs, _, terminated, truncated, _ = peer.env.step(action)
        frames = peer.images(obs)
        wall_end, cpu_end = time.perf_counter(), time.process_time()
        if steps < 0:
            check_frames(frames, images)
        else:
            wall, cpu = wall + wall_end - wall_start, cpu + cpu_end - cpu_start
        steps += 1
        if terminated or truncated:
            peer.env.reset()
    return {"steps": steps, "cpu_s": round(cpu, 4), "steps_per_s": round(steps / wall, 4)}


def check_frames(frames: list[np.ndarray], expected: int) -> None:
    """Refuse to time a renderer that returns too few images, or images without content."""
    if len(frames) != expected:
        raise RuntimeError(f"expected {expected} images per step, got {len(frames)}")
    for index, frame in enumerate(frames):
        if frame.min() == frame.max():
            raise RuntimeError(f"image {index} is {frame.min()} everywhere: does rendering work here?")


def main() -> None:
    options = arguments(__doc__, {"peer": MAKERS}, peer="nexus", mode="rgb224", setting="stock", seconds=20.0)
    # MuJoCo reads this when it is first imported, which the makers do.
    os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "osmesa")
    peer = MAKERS[options.peer](options.mode, options.setting)
    print(json.dumps({**measure(peer, options.seconds, IMAGES[options.mode]), "note": peer.note}), flush=True)
    # The process ends here: closing one mujoco.Renderer while others live disturbs them, and exit frees them
    # all.


if __name__ == "__main__":
    main()
