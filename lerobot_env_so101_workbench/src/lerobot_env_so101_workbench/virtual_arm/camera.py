# SPDX-License-Identifier: Apache-2.0
"""A camera of the virtual arm: renders and publishes frames at its own rate, with faults on demand.

camera.faults.next("dropped", 3)   # the next three frames do not arrive
camera.faults.rate("dropped", 1)   # it hangs: the last frame stays and grows old
camera.faults.rate("frozen", 1)    # it is frozen: the last frame arrives again and again as a new one
camera.faults.delay(0.15)          # frames arrive 150 ms after they were rendered
camera.unplug()
"""

import threading
from collections import deque
from pathlib import Path

import numpy as np

from ..sim.world import World
from .faults import FaultInjector
from .frame_file import FrameWriter
from .joints import STEP

_ROUNDING = 1e-6  # physics steps
_MAX_LATENCY = 2.0  # s; delayed frames are held in memory


class CameraFaults(FaultInjector):
    """Faults and latency of one camera."""

    kinds = {
        "dropped": "a frame does not arrive",
        "frozen": "the previous frame arrives in its place, as a new one",
    }

    def clear(self) -> None:
        """End all faults and the latency."""
        super().clear()
        self.latency = 0.0

    def delay(self, seconds: float) -> None:
        """Set the time between rendering and arrival of a frame, 0 to 2 s.

        Raises:
            ValueError: if the latency is out of range.
        """
        if not 0.0 <= seconds <= _MAX_LATENCY:
            raise ValueError(f"latency: found {1e3 * seconds:g} ms, expected 0 to {1e3 * _MAX_LATENCY:g} ms.")
        self.latency = seconds


class ArmCamera:
    """One camera. Call `update` from the simulation's thread only.

    Args:
        height, width: frame size [pixels].

    Attributes:
        delivered: number of frames that have arrived.
        skipped: number of frames not rendered because the simulation was behind.
    """

    def __init__(self, view: str, path: Path, height: int, width: int, fps: int, seed: int = 0) -> None:
        self.view, self.path, self.faults = view, path, CameraFaults(seed)
        self.height, self.width, self.fps = height, width, fps
        self.delivered = self.skipped = 0
        self._lock = threading.Lock()
        self._writer: FrameWriter | None = None
        # All times below are in physics steps.
        self._period = 1.0 / (STEP * fps)
        self._next_due: float | None = None  # None: at once
        self._frame: np.ndarray | None = None
        self._delayed: deque[tuple[float, np.ndarray]] = deque()  # time of arrival, frame

    def plug_in(self) -> None:
        """Start to publish frames.

        Raises:
            FileExistsError: if the file's path is taken.
        """
        with self._lock:
            if self._writer is None:
                self._delayed.clear()
                self._frame = self._next_due = None
                self._writer = FrameWriter(self.path, self.height, self.width, self.fps)

    def unplug(self) -> None:
        """Remove the file; readers notice that the camera is gone."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def update(self, world: World, steps: int) -> None:
        """Render a frame if one is due after `steps` physics steps; deliver the frames that have arrived."""
        if self._writer is None:
            return
        if self._next_due is None or steps >= self._next_due - _ROUNDING:
            periods = int((steps + _ROUNDING) // self._period)
            if self._next_due is not None:
                self.skipped += periods - round(self._next_due / self._period)
            self._next_due = (periods + 1) * self._period
            self._render(world, steps)
        while self._delayed and self._delayed[0][0] <= steps + _ROUNDING:
            frame = self._delayed.popleft()[1]
            with self._lock:
                if self._writer is not None:
                    self._writer.write(frame)
                    self.delivered += 1

    def _render(self, world: World, steps: int) -> None:
        if self.faults.occurs("dropped"):
            return
        if self._frame is None or not self.faults.occurs("frozen"):
            self._frame = world.render(self.view, self.height, self.width).rgb
            assert self._frame is not None
        self._delayed.append((steps + self.faults.latency / STEP, self._frame))
