# SPDX-License-Identifier: Apache-2.0
"""`so101-improve`: train a policy in rounds, each with takeovers where the former policy failed.

    so101-improve --root=outputs/improve --task=place_cube --level=randomised --rounds=2

Every step is a command of LeRobot or of this package, printed before it runs: `so101-demos`,
`lerobot-train`, `lerobot-eval`; only `cp` is the system's. The same command continues what was interrupted.
"""

import fcntl
import json
import logging
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import draccus

from lerobot_processor_so101.atomic import write_json
from lerobot_processor_so101.cli import run_command

from .plan import EPISODE_LOG, RECORDINGS, TRAIN_CONFIG, ImproveConfig, Step, count, dataset, folder, plan
from .process import Cost, Job, run_jobs
from .report import Round, plot, read_outcomes, table

_MAY_CHANGE = ("root", "rounds", "compare")  # options on which no finished step depends
_LOCK = ".lock"

logger = logging.getLogger(__name__)


class Progress:
    """Finished steps and costs of a run, in `improve.json` of its folder.

    Raises:
        ValueError: if an option differs from that of the run in the folder.
        FileExistsError: if the folder contains something else.
    """

    def __init__(self, config: ImproveConfig) -> None:
        self._path = config.root / "improve.json"
        options = {key: value for key, value in draccus.encode(config).items() if key not in _MAY_CHANGE}
        options["train"] = config.train.read_text() if config.train else None
        if self._path.is_file():
            self._state: dict[str, Any] = json.loads(self._path.read_text())
            for key, found in self._state["options"].items():
                if found != options[key]:
                    raise ValueError(
                        f"--{key}: the run in {config.root} began with {found!r}, the command has "
                        f"{options[key]!r}. Give the same options, or another --root."
                    )
        elif any(path.name != _LOCK for path in config.root.iterdir()):
            left = "contains something else and was left as it was. Choose another folder."
            raise FileExistsError(f"--root: {config.root} {left}")
        else:
            self._state = {"options": options, "steps": {}}
            if config.train:
                shutil.copyfile(config.train, config.root / TRAIN_CONFIG)
            self._save()

    def is_finished(self, step: str) -> bool:
        return self._state["steps"].get(step, {}).get("finished", False)

    def finish(self, step: str) -> None:
        self._state["steps"].setdefault(step, asdict(Cost()))["finished"] = True
        self._save()

    def cost(self, step: str) -> Cost:
        stored = self._state["steps"].get(step, {})
        return Cost(stored.get("wall_s", 0.0), stored.get("cpu_s", 0.0))

    def end(self, step: Step, cost: Cost, succeeded: bool) -> None:
        """Note that the command of a step has ended; one that was interrupted has a cost too."""
        self._state["steps"][step.name] = asdict(self.cost(step.name) + cost)
        self._save()
        # an interrupted recording ends with exit code 0
        if succeeded and not (step.kind in RECORDINGS and step.command()):
            self.finish(step.name)

    def _save(self) -> None:
        write_json(self._path, self._state)


@contextmanager
def owned(root: Path) -> Iterator[int]:
    """Own a folder, together with the commands that inherit the yielded file descriptor.

    `lock.owning` would be released while a command of a killed run still works in the folder.

    Raises:
        BlockingIOError: if another run, or a command of one that was killed, works in it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BlockingIOError(
                f"--root: another so101-improve, or a command of one that was killed, still works in {root}. "
                "Wait until it ends, or stop it; then try again."
            ) from None
        yield file.fileno()


def improve(config: ImproveConfig) -> str:
    """Run all steps that have not finished.

    Returns:
        The report as Markdown.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: if an option is not supported, or differs from the one
            that the run in `root` began with.
        BlockingIOError: if another process works in `root`.
        RuntimeError: if a command fails.
    """
    config.check()
    with owned(config.root) as lock:
        progress = Progress(config)
        text = ""
        # 1. group the steps that run at the same time: a training, and the evaluation of the round before
        groups: list[list[Step]] = []
        for step in plan(config):
            if step.beside:
                groups[-1].append(step)
            else:
                groups.append([step])
        # 2. run them
        for steps in groups:
            _run(config, progress, steps, lock)
            if any(step.kind == "evaluate" for step in steps):
                text = _report(config, progress)
        return text


def _run(config: ImproveConfig, progress: Progress, steps: Sequence[Step], lock: int) -> None:
    """Run those of the steps that have not finished."""
    jobs = []
    for step in steps:
        if progress.is_finished(step.name):
            continue
        if command := step.command():
            log = folder(config, step.round) / f"{step.kind.replace(' ', '_')}.log"
            jobs.append(Job(step.name, command, log, partial(progress.end, step)))
        else:
            progress.finish(step.name)
    run_jobs(jobs, inherited=[lock])
    for step in steps:
        if not progress.is_finished(step.name):
            raise RuntimeError(f"{step.name} ended before its work was done. Give the same command again.")


def _report(config: ImproveConfig, progress: Progress) -> str:
    """Write and return the table of all finished rounds; plot them if matplotlib is installed."""
    rounds: dict[str, Round] = {}
    for step in plan(config):
        if not progress.is_finished(step.name):
            break
        found = rounds.setdefault(step.round, Round(step.round))
        found.costs[step.kind] = progress.cost(step.name)
        if step.kind == "evaluate":
            found.episodes, found.frames = count(dataset(config, step.round))
            found.outcomes = read_outcomes(folder(config, step.round) / "eval" / EPISODE_LOG)
    done = [round for round in rounds.values() if round.outcomes]
    text = table(done)
    (config.root / "report.md").write_text(text + "\n")
    try:
        plot(done, f"{config.task}, {config.level}", config.root / "report.png")
    except ModuleNotFoundError as error:
        logger.warning("No plot: %s. Install matplotlib for one.", error)
    print(f"\n{text}\n", flush=True)
    return f"written to {config.root / 'report.md'} and report.png"


def main() -> None:
    """Run `so101-improve`."""
    # A shell starts background jobs with SIGINT ignored. The commands would inherit that, and could not be
    # interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stopped = "stopped. The same command resumes at the step that was cut."
    run_command("so101-improve", ImproveConfig, improve, stopped, log="lerobot_env_so101_workbench")


if __name__ == "__main__":
    main()
