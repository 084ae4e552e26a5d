# SPDX-License-Identifier: Apache-2.0
"""Run a console command as a step: print it, show and log its output, measure its time."""

from __future__ import annotations

import io
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# One thread for PyTorch: on few cores its threads would only compete with the data loader's workers.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_LAST_LINES = 15
_GRACE_S = 60.0  # for a command to end after an interrupt


@dataclass(frozen=True)
class Cost:
    """What a step took: wall-clock and processor time [s], the latter with all its child processes."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


def copyable(command: Sequence[str]) -> str:
    """Write a command so that it can be pasted into a shell."""
    return " \\\n    ".join(map(shlex.quote, command))


def run_step(
    name: str,
    command: Sequence[str],
    log: Path,
    spent: Callable[[Cost], object],
    show: Callable[[str], object] = sys.stdout.write,
    inherited: Sequence[int] = (),
) -> None:
    """Run a console command of this Python environment.

    An interrupt is passed on to the command, so that it keeps what it has finished.

    Args:
        name: of the step, for messages.
        command: console script and its arguments.
        log: file that the output is added to.
        spent: is called with the cost when the command has ended, also after an interrupt or a failure.
        show: is called with each line of the output and its end: "\\r" of a progress bar, or a newline.
        inherited: file descriptors that stay open in the command, such as that of a lock.

    Raises:
        RuntimeError: if its exit code is not 0; the message contains its last lines.
        KeyboardInterrupt: after an interrupt, once the command has ended.
    """
    print(f"\n# {name}\n{copyable(command)}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    began, cpu_before = time.monotonic(), _cpu_s_of_children()
    last: deque[str] = deque(maxlen=_LAST_LINES)
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**ENVIRONMENT, **os.environ},
        start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
        pass_fds=inherited,
    )
    assert process.stdout is not None
    output = io.TextIOWrapper(
        process.stdout, errors="replace", newline=""
    )  # keeps "\r", which ends a line too
    try:
        with log.open("a", buffering=1) as file:
            try:
                for line in output:
                    file.write(line)
                    show(line)
                    if line.endswith("\n") and line.strip():
                        last.append(line.rstrip())
            except BaseException:
                _interrupt(process, output, file)
                raise
        process.wait()
    finally:
        spent(Cost(time.monotonic() - began, _cpu_s_of_children() - cpu_before))
    if process.returncode != 0:
        raise RuntimeError(
            f"{name}: {command[0]} ended with exit code {process.returncode}. Its last lines:\n"
            + "".join(f"    {line}\n" for line in last)
            + f"All of its output is in {log}. Mend the cause and give the same command again."
        )


def _interrupt(process: subprocess.Popen, output: io.TextIOWrapper, log: io.TextIOBase) -> None:
    """Interrupt a command and wait until it ends; kill it if that takes too long."""
    process.send_signal(signal.SIGINT)
    killer = threading.Timer(_GRACE_S, os.killpg, (process.pid, signal.SIGKILL))
    killer.start()
    try:
        for line in output:  # a command whose output nobody reads cannot end
            log.write(line)
        process.wait()
    finally:
        killer.cancel()


def _cpu_s_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
