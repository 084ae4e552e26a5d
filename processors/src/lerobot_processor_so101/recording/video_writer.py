# SPDX-License-Identifier: Apache-2.0
"""Write frames to a video."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


class VideoWriter:
    """Write RGB frames of one size to an H.264 .mp4; a context manager.

    The file appears under its name when the context ends, also by an error: with the frames written until
        then. No file appears without a frame.

    Args:
        path: of the video; an existing one is replaced.
        fps: frames per second.

    Attributes:
        count: number of frames written.
    """

    def __init__(self, path: Path, fps: float | Fraction) -> None:
        self.path, self._temporary = path, path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._fps = Fraction(fps).limit_denominator(1001)
        self.count = 0

    def __enter__(self) -> VideoWriter:
        self._container = av.open(str(self._temporary), "w", format="mp4")
        return self

    def write(self, rgb: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8; an odd height or width loses its last row or column."""
        height, width = (side // 2 * 2 for side in rgb.shape[:2])  # yuv420p needs even sides
        if not self.count:
            self._stream = self._container.add_stream("h264", rate=self._fps, options={"crf": "18"})
            self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]))
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def __exit__(self, *_: object) -> None:
        if self.count:
            self._container.mux(self._stream.encode())
        self._container.close()
        if self.count:
            os.replace(self._temporary, self.path)
        self._temporary.unlink(missing_ok=True)
