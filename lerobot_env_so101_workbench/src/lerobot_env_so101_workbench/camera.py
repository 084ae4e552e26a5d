# SPDX-License-Identifier: Apache-2.0
"""`so101_virtual`: a camera of a running `so101-virtual-arm`, for LeRobot robots in other processes.

It has no thread: the arm publishes frames, this class reads them. The age of a frame counts from its arrival,
as with LeRobot's OpenCV camera, so it does not include the camera's latency.
"""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from lerobot.utils.errors import DeviceNotConnectedError

from .device_configs import SO101VirtualCameraConfig
from .names import CAMERA_NAMES, FOLLOWER_PORT, check_cameras
from .virtual_arm import frame_file
from .virtual_arm.frame_file import FrameReader, frame_path

_WARMUP_S = 5.0  # maximum wait for the first frame: the arm may be starting its renderer
_READ_MS = 10_000.0
_POLL_S = 0.001


class SO101VirtualCamera(Camera):
    """A camera that returns the frames of a virtual arm, (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if `config.view` is unknown.
    """

    config_class = SO101VirtualCameraConfig
    name = "so101_virtual"

    def __init__(self, config: SO101VirtualCameraConfig) -> None:
        super().__init__(config)
        check_cameras([config.view], "view")
        self.config, self._path = config, frame_path(config.port, config.view)
        self._lock = threading.Lock()
        self._reader: FrameReader | None = None
        self._last_read = 0  # number of the last frame that async_read returned

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.config.view} of {self.config.port})"

    @property
    def is_connected(self) -> bool:
        """Whether it was connected. As with other cameras, a lost connection is noticed at the next read."""
        return self._reader is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """List the cameras of running virtual arms whose ports are in the default port's folder."""
        found, folder = [], Path(FOLLOWER_PORT).parent
        for path in sorted(path for view in CAMERA_NAMES for path in folder.glob(f"*.{view}")):
            try:
                reader = FrameReader(path)
            except (OSError, ValueError):
                continue  # another kind of file
            if reader.is_alive:
                port, view = str(path.with_suffix("")), path.suffix[1:]
                names = {"name": f"Virtual SO-101 {view} camera", "type": SO101VirtualCamera.name}
                size = {"width": reader.width, "height": reader.height, "fps": reader.fps}
                profile = {"default_stream_profile": {"format": "RGB", **size}}
                found.append({**names, "id": str(path), "view": view, "port": port, **profile})
            reader.close()
        return found

    @check_if_already_connected
    def connect(self, warmup: bool = True) -> None:
        """Open the arm's frames.

        Args:
            warmup: wait for the first frame.

        Raises:
            DeviceAlreadyConnectedError: if it is connected.
            ConnectionError: if no arm is running, it has no such camera, or no first frame arrived.
            RuntimeError: if the frames have another size or rate.
        """
        reader = self._open()
        try:
            self._check_profile(reader)
            self._reader, self._last_read = reader, 0
            if warmup:
                self.async_read(1000.0 * _WARMUP_S)
                self._last_read = 0  # it is new for the next reading
        except TimeoutError:
            self.disconnect()
            raise ConnectionError(
                f"{self}: found no frame in {_WARMUP_S:g} s, expected a first one: end its faults (type "
                "`well` where so101-virtual-arm runs), or connect again when its renderer has started."
            ) from None
        except BaseException:
            self._reader = None
            reader.close()
            raise
        self.width, self.height, self.fps = reader.width, reader.height, round(reader.fps)

    def _open(self) -> FrameReader:
        try:
            reader = FrameReader(self._path)
            if reader.is_alive:
                return reader
            reader.close()
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise ConnectionError(f"{self}: {error} Choose another `port`, here and for the arm.") from None
        view, port, found = self.config.view, self.config.port, "no virtual arm is running there"
        if port.exists():  # it is a link to a terminal, and stale if no arm is running
            found = f"the virtual arm there does not show {view!r}"
        raise ConnectionError(
            f"{self}: {found}, expected one with this camera: start so101-virtual-arm with "
            f"--cameras=[{view}] and --follower_port={port}."
        )

    def _check_profile(self, reader: FrameReader) -> None:
        for flag, arm_flag in (("width", "--width"), ("height", "--height"), ("fps", "--camera_fps")):
            expected, found = getattr(self.config, flag), getattr(reader, flag)
            if expected not in (None, found):
                raise RuntimeError(
                    f"{self}: found {flag} {found:g} in the arm's frames, expected {expected}: change {flag} "
                    f"in --robot.cameras, or start so101-virtual-arm with {arm_flag}={expected}."
                )

    @check_if_not_connected
    def read(self) -> np.ndarray:
        """Wait for the next frame.

        Raises:
            DeviceNotConnectedError: if it is not connected, or the arm or its camera is gone.
            TimeoutError: if no frame arrived for 10 s.
        """
        self._last_read = self._count()
        return self.async_read(timeout_ms=_READ_MS)

    @check_if_not_connected
    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        """Return the latest frame that this method has not returned before; wait for one if necessary.

        Raises:
            DeviceNotConnectedError: if it is not connected, or the arm or its camera is gone.
            TimeoutError: if no frame arrived in time.
        """
        deadline = time.monotonic() + timeout_ms / 1000.0
        while True:
            if self._count() != self._last_read and (latest := self._latest()) is not None:
                self._last_read = latest[0]
                return latest[2]
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{self}: found no new frame in {timeout_ms:g} ms, expected {self.fps} per second: the "
                    "camera hangs or the arm's machine is too busy; try a smaller --camera_fps."
                )
            time.sleep(_POLL_S)

    @check_if_not_connected
    def read_latest(self, max_age_ms: int = 500) -> np.ndarray:
        """Return the latest frame without waiting.

        Raises:
            DeviceNotConnectedError: if it is not connected, or the arm or its camera is gone.
            RuntimeError: if no frame has arrived yet.
            TimeoutError: if the latest frame arrived more than `max_age_ms` ago.
        """
        latest = self._latest()
        if latest is None:
            raise RuntimeError(f"{self}: found no frame yet, expected one: connect with warmup, or wait.")
        age_ms = (frame_file.now() - latest[1]) * 1000.0
        if age_ms > max_age_ms:
            raise TimeoutError(
                f"{self}: found a latest frame that is {age_ms:.0f} ms old, expected at most {max_age_ms} "
                "ms: the camera hangs or the arm's machine is too busy; try a smaller --camera_fps."
            )
        return latest[2]

    def _count(self) -> int:
        with self._lock:
            return self._alive_reader().count

    def _latest(self) -> tuple[int, float, np.ndarray] | None:
        with self._lock:
            return self._alive_reader().latest()

    def _alive_reader(self) -> FrameReader:
        """Return the reader, or raise DeviceNotConnectedError if nothing writes its frames."""
        if self._reader is None:
            raise DeviceNotConnectedError(f"{self}: disconnected while waiting for a frame.")
        if not self._reader.is_alive:
            gone = "the camera is unplugged" if self.config.port.exists() else "the virtual arm is gone"
            raise DeviceNotConnectedError(
                f"{self}: {gone}, expected it to send frames: start it (or type `{self.config.view} plug` "
                "where so101-virtual-arm runs) and connect again."
            )
        return self._reader

    @check_if_not_connected
    def disconnect(self) -> None:
        """Close the frames' file.

        Raises:
            DeviceNotConnectedError: if it is not connected.
        """
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close()
