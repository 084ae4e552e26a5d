# SPDX-License-Identifier: Apache-2.0
"""A renderer without OpenGL: one ray per pixel through `mj_multiRay`, shaded by the surface normal.

It draws what the OpenGL renderer draws, with plain colours in place of textures and no shadows. Class ids agree
with OpenGL's but for pixels on edges. At 84x84 it takes tens of milliseconds per picture; it exists so that
everything runs on a machine that has no graphics library.
"""

from functools import lru_cache

import mujoco
import numpy as np

_VISIBLE_GROUPS = np.array([0, 0, 1, 0, 0, 0], dtype=np.uint8)
_BACKGROUND = 1  # class id of the sky
_SKY_TOP, _SKY_BOTTOM = np.array([0.75, 0.78, 0.82]), np.array([0.45, 0.47, 0.50])


@lru_cache(maxsize=32)
def _pixel_rays(height: int, width: int, fovy: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions (H*W, 3) through the pixel centres in the camera's frame, and their cosines (H*W,)."""
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
        self,
        data: mujoco.MjData,
        camera: str,
        height: int,
        width: int,
        *,
        rgb: bool = True,
        ids: bool = False,
        depth: bool = False,
    ):
        """Draw what `camera` sees; see `rendering.Frame` for shapes and units."""
        from .rendering import Frame

        camera_id = self._model.camera(camera).id
        rays, cosines = _pixel_rays(height, width, float(self._model.cam_fovy[camera_id]))
        rays = np.ascontiguousarray(rays @ data.cam_xmat[camera_id].reshape(3, 3).T)
        geoms = np.full(len(rays), -1, np.int32)
        distances = np.full(len(rays), -1.0)
        normals = np.zeros(rays.size) if rgb else None
        mujoco.mj_multiRay(
            self._model,
            data,
            data.cam_xpos[camera_id],
            rays.ravel(),
            _VISIBLE_GROUPS,
            True,
            -1,
            geoms,
            distances,
            normals,
            len(rays),
            mujoco.mjMAXVAL,
        )
        hit = geoms >= 0
        shape = (height, width)
        colours = (
            self._shade(rays, geoms, normals.reshape(-1, 3)).reshape(*shape, 3)
            if normals is not None
            else None
        )
        classes = (
            np.where(hit, self._classes[geoms], _BACKGROUND).astype(np.uint8).reshape(shape) if ids else None
        )
        metres = None
        if depth:
            far = self._model.vis.map.zfar * self._model.stat.extent
            metres = (
                np.minimum(np.where(hit, distances * cosines, far), far).astype(np.float32).reshape(shape)
            )
        return Frame(colours, classes, metres)

    def close(self) -> None:
        """Nothing to free."""

    def _shade(self, rays: np.ndarray, geoms: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Lambert shading (N, 3) uint8 by the scene's lamp and the headlight, over a graded sky."""
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
