# SPDX-License-Identifier: Apache-2.0
"""A file with the two latest frames of a camera, for other processes of the same user.

    writer = FrameWriter(path, height=240, width=320, fps=30)
    writer.write(frame)                                 # in one process
    count, seconds, frame = FrameReader(path).latest()  # in another

The writer fills the older of two slots and then raises a counter, so a reader never waits: if the counter has
changed while it copied, it copies again. The writer holds a lock on the file, which the operating system
releases even when the process is killed. Readers notice its end at once, and a stale file is recognised.
"""

import contextlib
import fcntl
import os
import stat
import struct
import tempfile
import time
from pathlib import Path

import numpy as np

_HEADER = struct.Struct("<8sIId")  # magic, height, width [pixels], frames per second
_MAGIC = b"so101cam"
_COUNT, _COUNT_OFFSET = struct.Struct("<Q"), 64
_TIME = struct.Struct("<d")
_SLOTS_OFFSET = 4096

now = time.monotonic  # one clock for all processes of a machine [s]


def frame_path(port: Path | str, view: str) -> Path:
    """Return the path of a camera's frames, beside the link to the arm's port."""
    return Path(f"{port}.{view}")


def _slot_offset(count: int, height: int, width: int) -> int:
    return _SLOTS_OFFSET + (count % 2) * (_TIME.size + height * width * 3)


class FrameWriter:
    """Publishes frames of one size, in a file that only this user can read.

    Raises:
        FileExistsError: if `path` belongs to a running writer or is another kind of file.
    """

    def __init__(self, path: Path, height: int, width: int, fps: float) -> None:
        _check_free(path)
        self.path, self._shape, self._count = path, (height, width, 3), 0
        # The file is complete and locked before it gets its name; mkstemp gives it mode 0600.
        self._fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            os.ftruncate(self._fd, _slot_offset(1, height, width) + _TIME.size + height * width * 3)
            os.pwrite(self._fd, _HEADER.pack(_MAGIC, height, width, fps), 0)
            os.replace(temporary, path)
        except BaseException:
            os.close(self._fd)
            Path(temporary).unlink(missing_ok=True)
            raise

    def write(self, frame: np.ndarray) -> None:
        """Publish a frame (H, W, 3) uint8 with the present time.

        Raises:
            ValueError: if the frame has another shape or type.
        """
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"frame: found {frame.shape} {frame.dtype}, expected {self._shape} uint8.")
        offset = _slot_offset(self._count + 1, *self._shape[:2])
        os.pwritev(self._fd, [_TIME.pack(now()), np.ascontiguousarray(frame).data], offset)
        self._count += 1
        os.pwrite(self._fd, _COUNT.pack(self._count), _COUNT_OFFSET)

    def close(self) -> None:
        """Remove the file, if it is still this writer's, and release the lock that readers watch."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._fd), self.path.lstat()):
                self.path.unlink()
        os.close(self._fd)


class FrameReader:
    """Reads the frames that a `FrameWriter` publishes.

    Attributes:
        height, width: frame size [pixels].
        fps: nominal frames per second.

    Raises:
        FileNotFoundError: if the file does not exist.
        PermissionError: if the file belongs to another user.
        ValueError: if it is no frame file.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(self._fd)  # anybody may create files in /tmp
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
                raise PermissionError(f"{path} is no regular file of this user.")
            header = os.pread(self._fd, _HEADER.size, 0)
            if len(header) < _HEADER.size or not header.startswith(_MAGIC):
                raise ValueError(f"{path} is no frame file of a virtual arm.")
        except BaseException:
            os.close(self._fd)
            raise
        _, self.height, self.width, self.fps = _HEADER.unpack(header)

    @property
    def is_alive(self) -> bool:
        """Whether the writer still runs and has not closed the file."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    @property
    def count(self) -> int:
        """Number of frames published so far."""
        return _COUNT.unpack(os.pread(self._fd, _COUNT.size, _COUNT_OFFSET).ljust(_COUNT.size, b"\0"))[0]

    def latest(self) -> tuple[int, float, np.ndarray] | None:
        """Return the latest frame: its number, from 1; its time of publication [s]; (H, W, 3) uint8.

        Returns:
            None if no frame has been published.
        """
        while count := self.count:
            published, frame = bytearray(_TIME.size), np.empty((self.height, self.width, 3), np.uint8)
            os.preadv(self._fd, [published, frame.data], _slot_offset(count, self.height, self.width))
            # Once the counter has moved, the writer may be overwriting this slot: copy again.
            if self.count == count:
                return count, _TIME.unpack(published)[0], frame
        return None

    def close(self) -> None:
        os.close(self._fd)


def _check_free(path: Path) -> None:
    """Raise FileExistsError unless `path` does not exist or is the stale file of a killed writer."""
    other = "choose another path with --follower_port."
    try:
        with contextlib.closing(FrameReader(path)) as reader:
            in_use = reader.is_alive
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        raise FileExistsError(f"camera: {path} exists and is no frame file of this user; {other}") from None
    if in_use:
        found = "is in use, perhaps by another virtual arm; stop that one, or"
        raise FileExistsError(f"camera: {path} {found} {other}")
