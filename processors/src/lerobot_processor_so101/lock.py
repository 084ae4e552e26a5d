# SPDX-License-Identifier: Apache-2.0
"""Exclusive ownership of a folder or a serial port by one process."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# The process that took each path: record locks do not tell two owners in one process apart.
_owned: dict[str, int] = {}


class Lock:
    """A lock that the operating system releases with the process, also when it is killed.

    Args:
        path: what is owned, such as a dataset's folder or `/dev/ttyACM0`; links are resolved. The lock is a
            file in the system's temporary folder, so that nothing is left in what is owned.

    Raises:
        BlockingIOError: if another process owns it; the message names the process.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = owned = os.path.realpath(path)
        folder = Path(tempfile.gettempdir()) / f"so101-locks-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        name = hashlib.sha256(owned.encode()).hexdigest()[:16]
        if _owned.get(owned) == os.getpid():
            raise BlockingIOError(f"{owned} is in use by process {os.getpid()}, this one.")
        self._file: IO[str] = (folder / f"{name}.lock").open("a+")
        try:
            # A record lock, not `flock`: forked workers, which may outlive this process, do not inherit it.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise BlockingIOError(
                f"{owned} is in use by process {owner}. Wait until it ends, or stop it; then try again."
            ) from None
        _owned[owned] = os.getpid()
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Release it; a second time does nothing."""
        if not self._file.closed:
            self._file.close()
            _owned.pop(self._path, None)


@contextmanager
def owning(path: Path | str) -> Iterator[None]:
    """Own a path for the duration of a block. See `Lock`."""
    lock = Lock(path)
    try:
        yield
    finally:
        lock.release()
