# SPDX-License-Identifier: Apache-2.0
"""Renders RGB images, class ids and metric depth, with or without a graphics library.

`make_renderer` logs in one line what it uses: EGL, else OSMesa (on macOS and Windows the native context),
else a ray-caster that needs no graphics library. `MUJOCO_GL` (egl, osmesa, glfw, disable) or the `backend`
argument overrides this.

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
from importlib import import_module
from typing import Any

import mujoco
import numpy as np

from . import scene
from .raycast import Frame, RayRenderer

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "egl", "osmesa", "glfw", "ray")
_VISIBLE_GROUP = 2
_MUJOCO_GL = {name: name for name in ("egl", "osmesa", "glfw")} | dict.fromkeys(
    ("disable", "disabled", "off"), "ray"
)


def make_renderer(model: mujoco.MjModel, classes: np.ndarray, backend: str = "auto") -> Renderer:
    """Create a renderer for `model`.

    Args:
        classes: class id of every geom, (ngeom,) uint8.
        backend: one of `BACKENDS`; `auto` for `MUJOCO_GL` or what works.

    Raises:
        ValueError: if the backend is unknown.
        RuntimeError: if a backend other than `auto` does not work on this machine.
    """
    if backend not in BACKENDS:
        raise ValueError(f"renderer: found {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if backend == "auto":
        backend = _MUJOCO_GL.get(os.environ.get("MUJOCO_GL", "").strip().lower(), "auto")
    name, reason = (_automatic_backend() if backend == "auto" else backend), ""
    if name != "ray":
        try:
            renderer = GLRenderer(model, classes, name)
            _log_once(f"rendering with {renderer.name}")
            return renderer
        except Exception as error:  # a broken driver may raise anything
            if backend != "auto":
                raise RuntimeError(
                    f"renderer: {name} does not work on this machine ({error}). "
                    "Install its library or choose another, for example MUJOCO_GL=disable for the ray-caster."
                ) from error
            reason = f" ({name}: {error})"
    _log_once(f"rendering with the ray-caster: slower, but it needs no graphics library{reason}")
    return RayRenderer(model, classes)


@cache
def _log_once(line: str) -> None:
    logger.info("so101 workbench: %s", line)


def _automatic_backend() -> str:
    """Return the first backend whose library is installed; PyOpenGL binds to one per process."""
    if platform.system() != "Linux":
        return "glfw"
    libraries = {"egl": "EGL", "osmesa": "OSMesa"}
    return next((name for name, library in libraries.items() if ctypes.util.find_library(library)), "ray")


def _make_context(backend: str, width: int, height: int):
    module = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa", "glfw": "mujoco.gl_context"}[backend]
    return import_module(module).GLContext(width, height)


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
        self._gl = None  # for `__del__`, if there is no context
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
        self, data: mujoco.MjData, camera: str, size: tuple[int, int], rgb: bool, ids: bool, depth: bool
    ) -> Frame:
        """Render the images of `camera` at a size (height, width) [pixels]; see `Frame`."""
        if self._gl is None:
            raise RuntimeError("This renderer is closed.")
        self._gl.make_current()
        height, width = size
        largest = (max(height, self._size[0]), max(width, self._size[1]))
        if largest != self._size:
            mujoco.mjr_resizeOffscreen(largest[1], largest[0], self._context)
            self._size = largest
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        rect = mujoco.MjrRect(0, 0, width, height)
        pixels = np.ascontiguousarray(self._draw(rect)) if rgb else None
        classes = metres = None
        if ids or depth:
            buffer = np.empty(size, np.float32) if depth else None
            flags = self._scene.flags.copy()
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = True
            self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
            segments = self._draw(rect, buffer)
            self._scene.flags[:] = flags
            if ids:
                classes = self._segment_classes()[segments[..., 0] + 256 * segments[..., 1].astype(np.intp)]
            if buffer is not None:
                metres = self._metres(buffer[::-1])
        return Frame(pixels, classes, metres)

    def close(self) -> None:
        if self._gl is None:
            return
        self._gl.make_current()  # see the module's docstring
        self._context.free()
        self._gl.free()
        self._gl = None
        _alive.discard(self)

    def __del__(self) -> None:
        self.close()

    def _draw(self, rect: mujoco.MjrRect, depth: np.ndarray | None = None) -> np.ndarray:
        """Return the pixels (H, W, 3) uint8, and fill the depth buffer; its first row is the bottom one."""
        pixels = np.empty((rect.height, rect.width, 3), np.uint8)
        mujoco.mjr_render(rect, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, depth, rect, self._context)
        return pixels[::-1]

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
