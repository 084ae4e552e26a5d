# SPDX-License-Identifier: Apache-2.0
"""A renderer without OpenGL: one ray per pixel through `mj_multiRay`, shaded by the surface normal.

Its images are those of the OpenGL renderer without textures and shadows; class ids differ on edge pixels
only. At 84x84 it takes tens of milliseconds per image; it is for machines without a graphics library.
"""

from functools import lru_cache
from typing import NamedTuple

import mujoco
import numpy as np

_VISIBLE_GROUPS = np.array([0, 0, 1, 0, 0, 0], dtype=np.uint8)
_BACKGROUND = 1  # class id of the sky
_SKY_TOP, _SKY_BOTTOM = np.array([0.75, 0.78, 0.82]), np.array([0.45, 0.47, 0.50])


class Frame(NamedTuple):
    """Images of one camera; kinds that were not requested are None."""

    rgb: np.ndarray | None  # (H, W, 3) uint8
    ids: np.ndarray | None  # (H, W) uint8 class ids
    depth: np.ndarray | None  # (H, W) float32, metres along the optical axis


@lru_cache(maxsize=32)
def _pixel_rays(height: int, width: int, fovy: float) -> tuple[np.ndarray, np.ndarray]:
    """Return unit directions (H*W, 3) of the pixels in the camera's frame, and their cosines (H*W,)."""
    focal = height / 2 / np.tan(np.radians(fovy) / 2)
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = -(np.arange(height) + 0.5 - height / 2) / focal
    rays = np.stack([*np.meshgrid(x, y), np.full((height, width), -1.0)], axis=-1).reshape(-1, 3)
    norms = np.linalg.norm(rays, axis=1)
    return rays / norms[:, None], 1.0 / norms


class RayRenderer:
    """Same interface as `rendering.GLRenderer`."""

    name = "the ray-caster"

    def __init__(self, model: mujoco.MjModel, classes: np.ndarray) -> None:
        self._model, self._classes = model, classes

    def render(
        self, data: mujoco.MjData, camera: str, size: tuple[int, int], rgb: bool, ids: bool, depth: bool
    ) -> Frame:
        """Render the images of `camera` at a size (height, width) [pixels]."""
        camera_id = self._model.camera(camera).id
        rays, cosines = _pixel_rays(*size, float(self._model.cam_fovy[camera_id]))
        rays = np.ascontiguousarray(rays @ data.cam_xmat[camera_id].reshape(3, 3).T)
        geoms = np.full(len(rays), -1, np.int32)
        distances = np.full(len(rays), -1.0)
        normals = np.zeros(rays.size) if rgb else None
        origin, found = data.cam_xpos[camera_id], (geoms, distances, normals, len(rays), mujoco.mjMAXVAL)
        mujoco.mj_multiRay(self._model, data, origin, rays.ravel(), _VISIBLE_GROUPS, True, -1, *found)
        hit = geoms >= 0
        pixels = classes = metres = None
        if normals is not None:
            pixels = self._shade(rays, geoms, normals.reshape(-1, 3)).reshape(*size, 3)
        if ids:
            classes = np.where(hit, self._classes[geoms], _BACKGROUND).astype(np.uint8).reshape(size)
        if depth:
            far = self._model.vis.map.zfar * self._model.stat.extent
            metres = np.minimum(np.where(hit, distances * cosines, far), far)
            metres = metres.astype(np.float32).reshape(size)
        return Frame(pixels, classes, metres)

    def close(self) -> None:
        """Nothing to free."""

    def _shade(self, rays: np.ndarray, geoms: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Compute Lambert shading (N, 3) uint8 by the scene's lamp and the headlight, before a graded sky."""
        model = self._model
        material = model.geom_matid
        flat = np.where((material >= 0)[:, None], model.mat_rgba[material, :3], model.geom_rgba[:, :3])
        lamp = model.light_dir[0] / np.linalg.norm(model.light_dir[0])
        facing = np.maximum(0.0, -normals @ lamp)[:, None] * model.light_diffuse[0]
        head = np.abs(np.sum(normals * rays, axis=1))[:, None] * model.vis.headlight.diffuse
        light = model.vis.headlight.ambient + model.light_ambient[0] + facing + head
        height = np.clip(rays[:, 2:3] * 0.5 + 0.5, 0, 1)
        sky = _SKY_BOTTOM + (_SKY_TOP - _SKY_BOTTOM) * height
        colours = np.where((geoms >= 0)[:, None], flat[geoms] * light, sky)
        return (np.clip(colours, 0, 1) * 255).astype(np.uint8)
