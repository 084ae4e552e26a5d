# SPDX-License-Identifier: Apache-2.0
"""Renders RGB images, class ids and metric depth, with or without a graphics library.

`make_renderer` uses the first backend that works and logs it in one line: EGL, then OSMesa (on macOS and
Windows the native context), then a ray-caster that needs no graphics library. `MUJOCO_GL` (egl, osmesa, glfw,
disable) or the `backend` argument overrides this.

Differences from `mujoco.Renderer`:
- class ids and depth come from one pass and one read-back;
- `close` makes its own context current first. Freeing a context while another one is current deletes the
  other one's OpenGL objects, so a closed renderer would silently corrupt every other one.
"""

from __future__ import annotations

import atexit
import ctypes.util
import logging
import os
import platform
import weakref
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import mujoco
import numpy as np

from . import scene
from .raycast import RayRenderer

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "egl", "osmesa", "glfw", "ray")
_VISIBLE_GROUP = 2
_MUJOCO_GL = {name: name for name in ("egl", "osmesa", "glfw")} | dict.fromkeys(
    ("disable", "disabled", "off"), "ray"
)


class Frame(NamedTuple):
    """Images of one camera; kinds that were not requested are None."""

    rgb: np.ndarray | None  # (H, W, 3) uint8
    ids: np.ndarray | None  # (H, W) uint8 class ids
    depth: np.ndarray | None  # (H, W) float32, metres along the optical axis


def make_renderer(model: mujoco.MjModel, classes: np.ndarray, backend: str = "auto") -> Renderer:
    """Create a renderer for `model`.

    Args:
        model: compiled scene.
        classes: class id of every geom, (ngeom,) uint8.
        backend: one of `BACKENDS`; `auto` for `MUJOCO_GL` or the first that works.

    Raises:
        ValueError: if the backend is unknown.
        RuntimeError: if a backend other than `auto` does not work on this machine.
    """
    if backend not in BACKENDS:
        raise ValueError(f"renderer: found {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if backend == "auto":
        backend = _MUJOCO_GL.get(os.environ.get("MUJOCO_GL", "").strip().lower(), "auto")
    candidates = _automatic_backends() if backend == "auto" else [backend]
    failures = []
    for name in candidates:
        if name == "ray":
            break
        try:
            renderer = GLRenderer(model, classes, name)
        except Exception as error:  # a broken driver may raise anything; the next backend may work
            failures.append(f"{name}: {error}")
            if backend != "auto":
                raise RuntimeError(
                    f"renderer: {name} does not work on this machine ({error}). "
                    "Install its library or choose another, for example MUJOCO_GL=disable for the ray-caster."
                ) from error
        else:
            _log_once(f"rendering with {renderer.name}")
            return renderer
    reason = f" ({'; '.join(failures)})" if failures else ""
    _log_once(f"rendering with the ray-caster: slower, but it needs no graphics library{reason}")
    return RayRenderer(model, classes)


@cache
def _log_once(line: str) -> None:
    logger.info("so101 workbench: %s", line)


def _automatic_backends() -> list[str]:
    """List the backends whose libraries are installed: importing a missing one would break PyOpenGL."""
    if platform.system() != "Linux":
        return ["glfw", "ray"]
    found = [
        name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(library)
    ]
    # PyOpenGL binds to one platform per process, so only the first can be tried.
    return [*found[:1], "ray"]


def _make_context(backend: str, width: int, height: int):
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco.gl_context import GLContext
    return GLContext(width, height)


_alive: weakref.WeakSet[GLRenderer] = weakref.WeakSet()


def _close_all() -> None:
    for renderer in list(_alive):
        renderer.close()


@cache
def _close_all_at_exit() -> None:
    """Call after the first context exists: exit handlers run in reverse, and EGL's own ends its display."""
    atexit.register(_close_all)


class GLRenderer:
    """Renders with OpenGL into an off-screen buffer that grows with the largest image requested."""

    def __init__(self, model: mujoco.MjModel, classes: np.ndarray, backend: str) -> None:
        self._model, self._classes = model, classes
        self._gl = None
        self._gl = _make_context(backend, 640, 480)
        _close_all_at_exit()
        self._gl.make_current()
        self._size = (480, 640)
        model.vis.global_.offheight, model.vis.global_.offwidth = self._size
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        if self._context.currentBuffer != mujoco.mjtFramebuffer.mjFB_OFFSCREEN:
            raise RuntimeError("no off-screen framebuffer")
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 16)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = model.vis.quality.shadowsize > 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[_VISIBLE_GROUP] = 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._class_of_segment: np.ndarray | None = None
        self.name = {"egl": "EGL", "osmesa": "OSMesa", "glfw": "OpenGL"}[backend]
        _alive.add(self)

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
    ) -> Frame:
        """Render the images of `camera`; see `Frame` for shapes and units."""
        if self._gl is None:
            raise RuntimeError("This renderer is closed.")
        self._gl.make_current()
        self._ensure_size(height, width)
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        rect = mujoco.MjrRect(0, 0, width, height)
        pixels = self._render_rgb(rect) if rgb else None
        return Frame(
            pixels, *(self._render_ids_and_depth(rect, ids, depth) if ids or depth else (None, None))
        )

    def close(self) -> None:
        if self._gl is None:
            return
        self._gl.make_current()  # see the module's docstring
        self._context.free()
        self._gl.free()
        self._gl = None
        _alive.discard(self)

    def __del__(self) -> None:
        if getattr(self, "_gl", None) is not None:
            self.close()

    def _ensure_size(self, height: int, width: int) -> None:
        size = (max(height, self._size[0]), max(width, self._size[1]))
        if size != self._size:
            mujoco.mjr_resizeOffscreen(size[1], size[0], self._context)
            self._size = size

    def _render_rgb(self, rect: mujoco.MjrRect) -> np.ndarray:
        pixels = np.empty((rect.height, rect.width, 3), np.uint8)
        mujoco.mjr_render(rect, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, rect, self._context)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the bottom one

    def _render_ids_and_depth(
        self, rect: mujoco.MjrRect, ids: bool, depth: bool
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        flags = self._scene.flags.copy()
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = True
        self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        mujoco.mjr_render(rect, self._scene, self._context)
        self._scene.flags[:] = flags
        pixels = np.empty((rect.height, rect.width, 3), np.uint8)
        buffer = np.empty((rect.height, rect.width), np.float32) if depth else None
        mujoco.mjr_readPixels(pixels, buffer, rect, self._context)
        segments = pixels[::-1, :, 0] + 256 * pixels[::-1, :, 1].astype(np.intp)
        classes = self._segment_classes()[segments] if ids else None
        metres = self._metres(buffer[::-1]) if buffer is not None else None
        return classes, metres

    def _segment_classes(self) -> np.ndarray:
        """Map segment numbers to class ids; 0 is the sky. The scene lists the same geoms in every frame."""
        if self._class_of_segment is None or len(self._class_of_segment) != self._scene.ngeom + 1:
            table = np.ones(self._scene.ngeom + 1, np.uint8)
            for geom in self._scene.geoms[: self._scene.ngeom]:
                if geom.segid >= 0 and int(geom.objtype) == int(mujoco.mjtObj.mjOBJ_GEOM):
                    table[geom.segid + 1] = self._classes[geom.objid]
            self._class_of_segment = table
        return self._class_of_segment

    def _metres(self, buffer: np.ndarray) -> np.ndarray:
        """Undo the reversed-z projection: the buffer holds near * (far - z) / (z * (far - near))."""
        near = self._model.vis.map.znear * self._model.stat.extent
        far = self._model.vis.map.zfar * self._model.stat.extent
        return (near * far / (near + buffer.astype(np.float64) * (far - near))).astype(np.float32)


Renderer = GLRenderer | RayRenderer


def doctor_check(config: Any) -> Iterator[tuple[str, str, str]]:
    """Report to `so101-doctor` how images are rendered here: name, finding, remedy if needed."""
    model = scene.build(())
    renderer = make_renderer(model, np.zeros(model.ngeom, np.uint8))
    remedy = "EGL renders several times as fast; on Debian and Ubuntu: sudo apt install libegl1"
    yield "rendering", renderer.name, remedy if isinstance(renderer, RayRenderer) else ""
    renderer.close()
