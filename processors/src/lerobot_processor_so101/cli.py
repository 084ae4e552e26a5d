# SPDX-License-Identifier: Apache-2.0
"""Run a console command: options by draccus, errors in one line, interrupts with exit code 130."""

import errno
import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import draccus
from draccus.utils import DraccusException


def run_command[Config](
    name: str,
    options: type[Config],
    command: Callable[[Config], str | None],
    interrupted: str = "stopped.",
    log: str | None = None,
) -> None:
    """Parse the command line and run a command.

    SIGTERM is handled as Ctrl-C, so that a stopped job cleans up too. Exit code 2 means an error that the
    user can mend, 130 an interrupt.

    Args:
        name: of the console script, the beginning of every message.
        options: draccus dataclass of its options.
        command: does the work and returns what to print on standard output.
        interrupted: message after an interrupt, with the way to resume.
        log: package whose messages are shown from level INFO, and those of others as errors only; None shows
            warnings of every package.
    """
    logging.basicConfig(format="%(message)s", force=True)  # importing LeRobot has set another format
    if log is not None:
        for package, level in ((None, logging.ERROR), ("lerobot", logging.ERROR), (log, logging.INFO)):
            logging.getLogger(package).setLevel(level)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        text = command(draccus.parse(options))
    except KeyboardInterrupt:
        _exit(name, interrupted, 130)
    except (OSError, ValueError, RuntimeError, DraccusException) as error:
        _exit(name, describe_error(error), 2)
    if text:
        print(text)


def describe_error(error: Exception) -> str:
    """Describe an error in one line; for a full disk with the way to resume."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error}). What is finished stays: make room and give the same command again."
        )
    return str(error)


def _exit(name: str, message: str, code: int) -> Any:
    print(f"{name}: {message}", file=sys.stderr)
    raise SystemExit(code) from None
