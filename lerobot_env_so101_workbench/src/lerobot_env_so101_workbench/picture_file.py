# SPDX-License-Identifier: Apache-2.0
"""Pictures that one process makes and others of the same user look at: a file with the two latest ones.

    writer = PictureWriter(path, height=240, width=320, fps=30)
    writer.write(picture)                       # in one process
    number, seconds, picture = PictureReader(path).latest()   # in another

The writer fills the older of two slots and then raises a counter, so that a reader never waits: if the counter has
moved while it copied, it copies again. The writer holds a lock on the file for as long as it lives, which the
operating system lets go even when it is killed: so readers know at once, and left-over files are recognised.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import tempfile
import time
from pathlib import Path

import numpy as np

_HEAD = struct.Struct("<8sIId")  # magic, height, width [pixels], pictures per second
_MAGIC = b"so101cam"
_COUNT, _COUNT_AT = struct.Struct("<Q"), 64
_TIME = struct.Struct("<d")
_SLOTS_AT = 4096

now = time.monotonic  # one clock for all processes of a machine [s]


def picture_path(port: Path | str, view: str) -> Path:
    """Where the pictures of a camera are, beside the link to the arm's port."""
    return Path(f"{port}.{view}")


def _slot_at(number: int, height: int, width: int) -> int:
    return _SLOTS_AT + (number % 2) * (_TIME.size + height * width * 3)


class PictureWriter:
    """Publishes pictures of one size.

    Args:
        path: of the file, which only this user can read.
        height, width: pixels.
        fps: pictures per second that there should be.

    Raises:
        FileExistsError: the path is taken, by a living writer or by another kind of file.
    """

    def __init__(self, path: Path, height: int, width: int, fps: float) -> None:
        _check_free(path)
        self.path, self._shape, self._count = path, (height, width, 3), 0
        # Made whole and locked before it gets its name; mkstemp gives it mode 0600.
        self._fd, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            os.ftruncate(self._fd, _slot_at(1, height, width) + _TIME.size + height * width * 3)
            os.pwrite(self._fd, _HEAD.pack(_MAGIC, height, width, fps), 0)
            os.replace(made, path)
        except BaseException:
            os.close(self._fd)
            Path(made).unlink(missing_ok=True)
            raise

    def write(self, picture: np.ndarray) -> None:
        """Publish a picture (H, W, 3) uint8, with the present time.

        Raises:
            ValueError: it has another shape or type.
        """
        if picture.shape != self._shape or picture.dtype != np.uint8:
            raise ValueError(f"picture: found {picture.shape} {picture.dtype}, expected {self._shape} uint8.")
        at = _slot_at(self._count + 1, *self._shape[:2])
        os.pwritev(self._fd, [_TIME.pack(now()), np.ascontiguousarray(picture).data], at)
        self._count += 1
        os.pwrite(self._fd, _COUNT.pack(self._count), _COUNT_AT)

    def close(self) -> None:
        """Take the file away, if it is still this writer's, and tell readers that no more will come."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._fd), self.path.lstat()):
                self.path.unlink()
        os.close(self._fd)


class PictureReader:
    """Looks at the pictures that a `PictureWriter` publishes.

    Attributes:
        height, width: pixels.
        fps: pictures per second that the writer says there are.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the file is another user's.
        ValueError: it is no file of pictures.
    """

    def __init__(self, path: Path) -> None:
        self._fd = _open(path)
        head = os.pread(self._fd, _HEAD.size, 0)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            os.close(self._fd)
            raise ValueError(f"{path} is no file of a virtual arm's pictures.")
        _, self.height, self.width, self.fps = _HEAD.unpack(head)

    @property
    def is_alive(self) -> bool:
        """Whether the writer lives and has not closed the file."""
        return _is_locked(self._fd)

    @property
    def count(self) -> int:
        """How many pictures have been published."""
        return _COUNT.unpack(os.pread(self._fd, _COUNT.size, _COUNT_AT).ljust(_COUNT.size, b"\0"))[0]

    def latest(self) -> tuple[int, float, np.ndarray] | None:
        """The latest picture: its number, from 1; when it was published, by `now` [s]; (H, W, 3) uint8.

        Returns:
            None if there is none yet.
        """
        while count := self.count:
            published, picture = bytearray(_TIME.size), np.empty((self.height, self.width, 3), np.uint8)
            os.preadv(self._fd, [published, picture.data], _slot_at(count, self.height, self.width))
            # Only now may the writer have begun to overwrite this slot with the picture after the next.
            if self.count == count:
                return count, _TIME.unpack(published)[0], picture
        return None

    def close(self) -> None:
        os.close(self._fd)


def _open(path: Path) -> int:
    """Open a plain file of this user's; raises OSError. Anybody may put other things into /tmp."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        os.close(fd)
        raise PermissionError(f"{path} is no plain file of this user.")
    return fd


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _check_free(path: Path) -> None:
    """Raise FileExistsError unless nothing is there, or what a killed writer has left behind."""
    try:
        reader = PictureReader(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        raise FileExistsError(
            f"camera: {path} exists and is no picture file of this user; choose another path with --follower_port."
        ) from None
    try:
        if reader.is_alive:
            raise FileExistsError(
                f"camera: {path} is in use, perhaps by another virtual arm; stop that one, or choose another path "
                "with --follower_port."
            )
    finally:
        reader.close()
