# SPDX-License-Identifier: Apache-2.0
"""A camera of the virtual arm: takes pictures at its own rate and publishes them, late or damaged on demand.

camera.faults.next("dropped", 3)   # the next three pictures do not arrive
camera.faults.rate("dropped", 1)   # it hangs: the last picture stays, and grows old
camera.faults.rate("frozen", 1)    # it is frozen: the last picture comes again and again, as if it were new
camera.faults.delay(0.15)          # pictures arrive 150 ms after they were taken
camera.pull_cable()
"""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

import numpy as np

from .bus_faults import Chances
from .picture_file import PictureWriter
from .virtual_joints import STEP
from .world import World

CAMERA_KINDS = {
    "dropped": "a picture does not arrive",
    "frozen": "the picture before it arrives in its place, as a new one",
}
_ROUNDING = 1e-6  # physics steps
_LONGEST = 2.0  # s; pictures on their way are held in memory


class CameraFaults(Chances):
    """Faults of one camera, whose pictures suffer."""

    kinds = CAMERA_KINDS

    def clear(self) -> None:
        """All is well again, and nothing is late."""
        super().clear()
        self.latency = 0.0

    def delay(self, seconds: float) -> None:
        """From now on pictures arrive so long after they were taken, 0 to 2 s.

        Raises:
            ValueError: it is less or more.
        """
        if not 0.0 <= seconds <= _LONGEST:
            raise ValueError(f"latency: found {seconds * 1000:g} ms, expected 0 to {_LONGEST * 1000:g} ms.")
        self.latency = seconds


class ArmCamera:
    """One camera. Its cable may be pulled from any thread; `look` belongs to the thread of the world.

    Args:
        view: which of the scene's cameras.
        path: of the file with its pictures.
        height, width: pixels.
        fps: pictures per second.
        seed: of its faults.

    Attributes:
        faults: what goes wrong with it.
        delivered: how many pictures have arrived.
        skipped: how many were not taken because the simulation was behind.
    """

    def __init__(self, view: str, path: Path, height: int, width: int, fps: int, seed: int = 0) -> None:
        self.view, self.path, self.faults = view, path, CameraFaults(seed)
        self.height, self.width, self.fps = height, width, fps
        self.delivered = self.skipped = 0
        self._lock = threading.Lock()
        self._writer: PictureWriter | None = None
        self._period = 1.0 / (STEP * fps)  # in physics steps
        self._next: float | None = None  # when the next picture is due, in physics steps; None: at once
        self._picture: np.ndarray | None = None
        self._under_way: deque[tuple[float, np.ndarray]] = deque()  # when due, in physics steps, and what

    @property
    def is_plugged_in(self) -> bool:
        return self._writer is not None

    def plug_in(self) -> None:
        """Begin to publish.

        Raises:
            FileExistsError: the file's path is taken.
        """
        with self._lock:
            if self._writer is None:
                self._under_way.clear()
                self._picture = self._next = None
                self._writer = PictureWriter(self.path, self.height, self.width, self.fps)

    def pull_cable(self) -> None:
        """Take the file away: whoever reads it is told that the camera is gone."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def look(self, world: World, steps: int) -> None:
        """Take a picture if one is due after so many physics steps, and deliver those that have arrived."""
        if not self.is_plugged_in:
            return  # rendering costs
        if self._next is None or steps >= self._next - _ROUNDING:
            periods = int((steps + _ROUNDING) // self._period)
            if self._next is not None:
                self.skipped += periods - round(self._next / self._period)
            self._next = (periods + 1) * self._period
            self._take(world, steps)
        while self._under_way and self._under_way[0][0] <= steps + _ROUNDING:
            self._deliver(self._under_way.popleft()[1])

    def _take(self, world: World, steps: int) -> None:
        if self.faults.happens("dropped"):
            return
        if self._picture is None or not self.faults.happens("frozen"):
            self._picture = world.render(self.view, self.height, self.width).rgb
            assert self._picture is not None
        self._under_way.append((steps + self.faults.latency / STEP, self._picture))

    def _deliver(self, picture: np.ndarray) -> None:
        with self._lock:
            if self._writer is not None:
                self._writer.write(picture)
                self.delivered += 1
