# SPDX-License-Identifier: Apache-2.0
"""`so101_virtual`: a camera of a running `so101-virtual-arm`, for any LeRobot robot, in any process of the same user.

It has no thread: the arm publishes, this looks. A picture's age counts from its arrival, as with LeRobot's OpenCV camera,
so what a camera's latency adds cannot be seen here either.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from lerobot.utils.errors import DeviceNotConnectedError

from . import picture_file
from .camera_config import SO101VirtualCameraConfig
from .names import CAMERA_NAMES, FOLLOWER_PORT, check_cameras
from .picture_file import PictureReader, picture_path

_FIRST_S = 5.0  # how long the first picture may take: the arm may be starting its renderer
_READ_MS = 10_000.0
_POLL_S = 0.001


class SO101VirtualCamera(Camera):
    """What one of a virtual arm's cameras sees, (H, W, 3) uint8 RGB.

    Raises:
        ValueError: there is no such view.
    """

    config_class = SO101VirtualCameraConfig
    name = "so101_virtual"

    def __init__(self, config: SO101VirtualCameraConfig) -> None:
        super().__init__(config)
        self.config = config
        self._path = picture_path(config.port, *check_cameras([config.view], "view"))
        self._lock = threading.Lock()
        self._reader: PictureReader | None = None
        self._seen = 0  # number of the last picture that async_read gave

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.config.view} of {self.config.port})"

    @property
    def is_connected(self) -> bool:
        """Whether it was connected. As with other cameras, one that has died meanwhile is noticed in reading."""
        return self._reader is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """The cameras of running virtual arms whose ports are beside the usual one."""
        found = []
        folder = Path(FOLLOWER_PORT).parent
        for path in sorted(path for view in CAMERA_NAMES for path in folder.glob(f"*.{view}")):
            try:
                reader = PictureReader(path)
            except (OSError, ValueError):
                continue  # something else of this name
            if reader.is_alive:
                size = {"width": reader.width, "height": reader.height, "fps": reader.fps}
                found.append(
                    {
                        "name": f"Virtual SO-101 {path.suffix[1:]} camera",
                        "type": SO101VirtualCamera.name,
                        "id": str(path),
                        "view": path.suffix[1:],
                        "port": str(path.with_suffix("")),
                        "default_stream_profile": {"format": "RGB", **size},
                    }
                )
            reader.close()
        return found

    @check_if_already_connected
    def connect(self, warmup: bool = True) -> None:
        """Look for the arm's pictures.

        Args:
            warmup: wait for the first picture.

        Raises:
            DeviceAlreadyConnectedError: it is connected.
            ConnectionError: no arm is running, it has no such camera, or no first picture came.
            RuntimeError: the pictures have another size or rate.
        """
        reader = self._open()
        try:
            self._check_profile(reader)
            self._reader, self._seen = reader, 0
            if warmup:
                self._wait_for_first()
        except BaseException:
            self._reader = None
            reader.close()
            raise
        self.width, self.height, self.fps = reader.width, reader.height, round(reader.fps)

    def _open(self) -> PictureReader:
        try:
            reader = PictureReader(self._path)
        except FileNotFoundError:
            raise ConnectionError(self._why_nothing()) from None
        except (OSError, ValueError) as error:
            raise ConnectionError(f"{self}: {error} Choose another `port`, here and for the arm.") from None
        if not reader.is_alive:
            reader.close()
            raise ConnectionError(self._why_nothing())
        return reader

    def _why_nothing(self) -> str:
        view, port = self.config.view, self.config.port
        if not port.exists():  # a link to a terminal that is gone, or none
            found = "no virtual arm is running there"
        else:
            found = f"the virtual arm there does not show {view!r}"
        return (
            f"{self}: {found}, expected one with this camera: start so101-virtual-arm with --cameras=[{view}] and "
            f"--follower_port={port}."
        )

    def _check_profile(self, reader: PictureReader) -> None:
        for flag, arm_flag, wanted, found in (
            ("width", "--width", self.config.width, reader.width),
            ("height", "--height", self.config.height, reader.height),
            ("fps", "--camera_fps", self.config.fps, reader.fps),
        ):
            if wanted is not None and wanted != found:
                raise RuntimeError(
                    f"{self}: found {flag} {found:g} in the arm's pictures, expected {wanted}: change {flag} in "
                    f"--robot.cameras, or start so101-virtual-arm with {arm_flag}={wanted}."
                )

    def _wait_for_first(self) -> None:
        deadline = time.monotonic() + _FIRST_S
        while not self._count():
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"{self}: found no picture in {_FIRST_S:g} s, expected a first one: end its faults (type `well` "
                    "where so101-virtual-arm runs), or connect again when its renderer has started."
                )
            time.sleep(_POLL_S)

    @check_if_not_connected
    def read(self) -> np.ndarray:
        """Wait for the next picture.

        Raises:
            DeviceNotConnectedError: it is not connected, or the arm or its camera is gone.
            TimeoutError: none came for 10 s.
        """
        self._seen = self._count()
        return self.async_read(timeout_ms=_READ_MS)

    @check_if_not_connected
    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        """The latest picture that this has not given yet; waits for one if need be.

        Raises:
            DeviceNotConnectedError: it is not connected, or the arm or its camera is gone.
            TimeoutError: none came in time.
        """
        deadline = time.monotonic() + timeout_ms / 1000.0
        while True:
            if self._count() != self._seen and (latest := self._latest()) is not None:
                self._seen = latest[0]
                return latest[2]
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{self}: found no new picture in {timeout_ms:g} ms, expected {self.fps} per second: the camera "
                    "hangs or the arm's machine is too busy; try a smaller --camera_fps."
                )
            time.sleep(_POLL_S)

    @check_if_not_connected
    def read_latest(self, max_age_ms: int = 500) -> np.ndarray:
        """The latest picture, at once.

        Raises:
            DeviceNotConnectedError: it is not connected, or the arm or its camera is gone.
            RuntimeError: there has been none yet.
            TimeoutError: it arrived longer ago than `max_age_ms`.
        """
        latest = self._latest()
        if latest is None:
            raise RuntimeError(f"{self}: found no picture yet, expected one: connect with warmup, or wait.")
        age_ms = (picture_file.now() - latest[1]) * 1000.0
        if age_ms > max_age_ms:
            raise TimeoutError(
                f"{self}: found a latest picture that is {age_ms:.0f} ms old, expected at most {max_age_ms} ms: the "
                "camera hangs or the arm's machine is too busy; try a smaller --camera_fps."
            )
        return latest[2]

    def _count(self) -> int:
        with self._lock:
            return self._living().count

    def _latest(self) -> tuple[int, float, np.ndarray] | None:
        with self._lock:
            return self._living().latest()

    def _living(self) -> PictureReader:
        """The reader, if there is still somebody who writes; raises DeviceNotConnectedError."""
        if self._reader is None:
            raise DeviceNotConnectedError(f"{self}: disconnected while a picture was awaited.")
        if not self._reader.is_alive:
            gone = "the camera is unplugged" if self.config.port.exists() else "the virtual arm is gone"
            raise DeviceNotConnectedError(
                f"{self}: {gone}, expected it to send pictures: start it (or type `{self.config.view} plug` where "
                "so101-virtual-arm runs) and connect again."
            )
        return self._reader

    @check_if_not_connected
    def disconnect(self) -> None:
        """Stop looking.

        Raises:
            DeviceNotConnectedError: it is not connected.
        """
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close()
