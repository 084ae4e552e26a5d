# SPDX-License-Identifier: Apache-2.0
"""Shorten LeRobot's notice that torchcodec cannot be loaded."""

import logging

_NOTICE = "'torchcodec' is installed but cannot be loaded"
_SHORT = "torchcodec: FFmpeg's libraries are missing, so LeRobot reads videos with PyAV, which is slower."


class TorchcodecFilter(logging.Filter):
    """Log one line of the notice, once; LeRobot logs a hundred lines whenever it chooses a video reader."""

    def __init__(self) -> None:
        super().__init__()
        self._is_logged = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record, after shortening the notice."""
        if _NOTICE not in record.getMessage():
            return True
        record.msg, record.args = _SHORT, None
        first, self._is_logged = not self._is_logged, True
        return first


def shorten_notices() -> None:
    """Install the filter."""
    logging.getLogger("lerobot.utils.import_utils").addFilter(TorchcodecFilter())
