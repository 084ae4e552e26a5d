# SPDX-License-Identifier: Apache-2.0
"""Run console commands as steps: print them, show and log their output, measure their time."""

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..sim.cameras import CameraSetup

# PyTorch's threads: two save a quarter of a small network's training where nothing else runs, and take twenty
# times as long where a third process does.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
_LAST_LINES = 15
_GRACE_S = 60.0  # for a command to end after an interrupt


@dataclass(frozen=True)
class Cost:
    """What a step took: wall-clock and processor time [s].

    Processor time includes child processes that the command waited for, and not those of a fork server, such
    as `so101-demos --workers`.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Self) -> Self:
        return type(self)(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


@dataclass(frozen=True)
class Job:
    """A console command of this Python environment.

    Args:
        name: of the step, for messages.
        command: console script and its arguments.
        log: file that the output is added to.
        ended: is called with the cost and whether it succeeded, also after an interrupt (false) or a failure.
    """

    name: str
    command: Sequence[str]
    log: Path
    ended: Callable[[Cost, bool], object]


def eval_command(
    policy: Path, images: CameraSetup, episodes: int, output: Path, options: Mapping[str, object]
) -> list[str]:
    """Return the command that evaluates a policy in the workbench, with more options of `lerobot-eval`."""
    return [
        "lerobot-eval",
        f"--policy.path={policy}",
        "--env.type=so101_sim",
        *images.flags("--env."),
        *[f"--{name}={value}" for name, value in options.items()],
        f"--eval.n_episodes={episodes}",
        "--eval.batch_size=1",
        f"--output_dir={output}",
    ]


def copyable(command: Sequence[str]) -> str:
    """Write a command so that it can be pasted into a shell."""
    variables = [f"{name}={value}" for name, value in _ENVIRONMENT.items() if name not in os.environ]
    return " \\\n    ".join([*variables, *map(shlex.quote, command)])


def run_jobs(
    jobs: Sequence[Job], show: Callable[[str], object] = sys.stdout.write, inherited: Sequence[int] = ()
) -> None:
    """Run commands at the same time, and wait until all have ended.

    An interrupt is passed on to the commands, so that they keep what they have finished.

    Args:
        jobs: the output of the first is shown.
        show: is called with each line and its end: "\\r" of a progress bar, or a newline.
        inherited: file descriptors that stay open in the commands, such as that of a lock.

    Raises:
        RuntimeError: if an exit code is not 0; the message contains the command's last lines.
        OSError: if a log cannot be written.
        KeyboardInterrupt: after an interrupt.
    """
    running: list[_Running] = []
    some_ended = threading.Event()
    for job in jobs:
        beside = f", beside it; its output is in {job.log}" if running else ""
        print(f"\n# {job.name}{beside}\n{copyable(job.command)}", flush=True)
        running.append(_Running(job, (lambda line: None) if running else show, some_ended, inherited))
    interrupted, pending = False, list(running)
    while pending:
        try:
            # Not `Thread.join`: an interrupt in it marks a living thread as stopped (CPython 3.12).
            some_ended.wait(1.0)
            some_ended.clear()
            for ended in [other for other in pending if other.ended]:
                pending.remove(ended)
                ended.job.ended(ended.cost, ended.succeeded and not interrupted)
        except KeyboardInterrupt:
            interrupted = True
            for other in pending:
                other.interrupt()
    if interrupted:
        raise KeyboardInterrupt
    for ended in running:
        ended.check()


class _Running:
    """A job with its process, and a thread that copies its output until the process ends."""

    def __init__(
        self, job: Job, show: Callable[[str], object], some_ended: threading.Event, inherited: Sequence[int]
    ) -> None:
        self.job, self.ended, self.cost = job, False, Cost()
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._error: OSError | None = None
        self._began = time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [shutil.which(job.command[0], path=_PROGRAMS) or job.command[0], *job.command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**_ENVIRONMENT, **os.environ},
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
            pass_fds=inherited,
        )
        threading.Thread(target=self._follow, args=(show, some_ended)).start()

    @property
    def succeeded(self) -> bool:
        return self._process.returncode == 0 and self._error is None

    def interrupt(self) -> None:
        """Interrupt the process, and kill it with its children if it does not end in time."""
        self._process.send_signal(signal.SIGINT)

        def kill() -> None:
            if not self.ended:
                os.killpg(self._process.pid, signal.SIGKILL)

        timer = threading.Timer(_GRACE_S, kill)
        timer.daemon = True
        timer.start()

    def check(self) -> None:
        """Raise the error of a process that has failed, see `run_jobs`."""
        if self._error is not None:
            raise self._error
        if self._process.returncode != 0:
            lines = "".join(f"    {line}\n" for line in self._last)
            raise RuntimeError(
                f"{self.job.name}: {self.job.command[0]} ended with exit code {self._process.returncode}. "
                f"Its last lines:\n{lines}All of its output is in {self.job.log}. Mend the cause and give "
                "the same command again."
            )

    def _follow(self, show: Callable[[str], object], some_ended: threading.Event) -> None:
        assert self._process.stdout is not None
        # With newline="" the ends of lines are kept, and "\r" ends one too.
        output = io.TextIOWrapper(self._process.stdout, errors="replace", newline="")
        try:
            with self.job.log.open("a", buffering=1) as log:
                for line in output:
                    log.write(line)
                    show(line)
                    if line.endswith("\n") and line.strip():
                        self._last.append(line.rstrip())
        except OSError as error:  # a full disk, or no terminal any more
            self._error = error
            self.interrupt()
            for _ in output:  # a process whose output nobody reads cannot end
                pass
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.cost = Cost(time.monotonic() - self._began, usage.ru_utime + usage.ru_stime)
        self.ended = True
        some_ended.set()
