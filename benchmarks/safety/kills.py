# SPDX-License-Identifier: Apache-2.0
"""How many finished episodes are lost when a recording is killed or its disk fills up.

    python -m benchmarks.safety.kills                    # 100 kills of each command, 20 full disks of each
    python -m benchmarks.safety.kills --kills=4 --disks=0

`so101-demos` and LeRobot's own `record` (of `so101_sim` with `so101_expert`) write small images, as video or
in Parquet files. SIGKILL comes at a random time, in every second run while an episode is being saved; half of
LeRobot's recordings are on another file system than the temporary folder. Or the disk, a tmpfs of random
size, fills up. What `save_episode` was given is written to a folder of the harness when it returns.

Afterwards the dataset of `so101-demos` is loaded as it is, and resumed; that of LeRobot is repaired with
`so101-repair` and loaded. An episode is lost if its states or actions are not the same bits, or if its images
cannot be read. Mounting needs root. Each run is appended to outputs/kills/runs.jsonl and not repeated.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from lerobot.configs.dataset import DatasetRecordConfig
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset
from lerobot.scripts import lerobot_record

from lerobot_env_so101_workbench import SO101ExpertConfig, SO101SimConfig
from lerobot_env_so101_workbench.demos.command import DemosConfig, record as record_demos
from lerobot_processor_so101.recording import RecordingDataset, check_videos
from lerobot_processor_so101.recording.repair import RepairConfig, repair

from ..lib.report import arguments, in_child, run_missing, save, show

COMMANDS = ("so101-demos", "lerobot-record")
NUMBERS = ("observation.state", "action")
SIZE = {"height": 32, "width": 48}
EPISODE_S, RESET_S = 1.0, 0.1
LATEST_S, SAVE_S, START_S = 15.0, 0.6, 90  # of a kill, after the first episode or saving one was begun
CONTEXT = "forkserver"  # imports once


class Run(NamedTuple):
    """A recording to be stopped."""

    command: str
    stop: str  # "SIGKILL" or "full disk"
    number: int  # odd ones write videos, of the others every second has two cameras
    folder: Path  # of the harness
    root: Path  # of the dataset

    def finished(self) -> dict[int, Path]:
        """Return number and file of every episode for which `save_episode` returned."""
        return {int(path.stem): path for path in sorted((self.folder / "truth").glob("[0-9]*.npz"))}


def begin(run: Run) -> None:
    """Set up a process: leader of its group, with a log, a temporary folder and a cache of its own."""
    os.setsid()
    log = os.open(run.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    datasets.disable_progress_bars()
    tempfile.tempdir = str(run.folder / "temporary")
    datasets.config.HF_DATASETS_CACHE = run.folder / "cache"


def record(run: Run, resume: bool = False) -> None:
    """Record until stopped; when resumed, one episode."""
    begin(run)
    video, cameras = run.number % 2 == 1, ["top", "wrist"][: 1 + run.number // 2 % 2]
    seed, ours = 1000 * run.number, run.command == "so101-demos"
    witness(RecordingDataset if ours else LeRobotDataset, run.folder / "truth")
    if ours:
        options: dict[str, Any] = {"episodes": 1 if resume else 1000, "seed": seed, "resume": resume}
        record_demos(DemosConfig(run.root, cameras=cameras, video=video, **options, **SIZE))
        return
    options = {"repo_id": "local/kills", "single_task": "Lift the cube.", "root": run.root, "fps": 30}
    options |= {"episode_time_s": EPISODE_S, "reset_time_s": RESET_S, "num_episodes": 1000, "video": video}
    options |= {"push_to_hub": False, "no_stamp": True, "rgb_encoder": RGBEncoderConfig(vcodec="h264")}
    robot, teleop = SO101SimConfig(views=cameras, seed=seed, **SIZE), SO101ExpertConfig()
    dataset = DatasetRecordConfig(**options)
    lerobot_record.record(lerobot_record.RecordConfig(robot, dataset, teleop=teleop, play_sounds=False))


def witness(kind: type[LeRobotDataset], truth: Path) -> None:
    """Write what `save_episode` saves to a folder, after it has returned."""
    save_episode, add_frame = kind.save_episode, kind.add_frame

    def begun(dataset: LeRobotDataset, frame: dict) -> None:
        (truth / "begun").touch()
        add_frame(dataset, frame)

    def witnessed(dataset: LeRobotDataset, *args: Any, **kwargs: Any) -> None:
        buffer, number = dataset.writer.episode_buffer, dataset.num_episodes
        numbers = {key: np.stack(buffer[key]) for key in NUMBERS}
        (truth / f"{number}.saving").touch()
        save_episode(dataset, *args, **kwargs)
        np.savez(truth / "unfinished.npz", **numbers)
        (truth / "unfinished.npz").rename(truth / f"{number}.npz")

    kind.add_frame, kind.save_episode = begun, witnessed


def recover(run: Run) -> dict[str, Any]:
    """Recover a dataset, and compare it with what was finished."""
    begin(run)
    result: dict[str, Any] = {"finished": len(run.finished()), "lost": [], "repair_s": None}
    root, repaired, start = run.root, run.folder / "repaired", time.perf_counter()
    if run.finished():
        if run.command == "lerobot-record" and (found := repair(RepairConfig(root, repaired))):
            root = repaired
            result |= {"repair_s": round(time.perf_counter() - start, 2), "dropped": found.dropped}
        result["lost"] = lost(run, root)
    return result


def lost(run: Run, root: Path) -> list[str]:
    """Return the finished episodes that a dataset does not have as they were saved, with the reason."""
    try:
        dataset = LeRobotDataset("local/kills", root=root)
        check_videos(root)
        numbers = dataset.hf_dataset.with_format("numpy", columns=[*NUMBERS, "episode_index"])[:]
    except Exception as error:
        return [f"{number}: {type(error).__name__}: {error}"[:200] for number in run.finished()]
    wrong = []
    for number, path in run.finished().items():
        rows = np.flatnonzero(numbers["episode_index"] == number)
        truth = np.load(path)
        different = [key for key in truth if not np.array_equal(numbers[key][rows], truth[key])]
        if different or number >= dataset.num_episodes:
            wrong.append(f"{number}: {different}")
            continue
        for row in (rows[0], rows[-1]):
            assert dataset[int(row)]["observation.images.top"].shape == (3, SIZE["height"], SIZE["width"])
    return wrong


def stopped(command: str, stop: str, number: int) -> dict[str, Any]:
    """Record in one process, stop it, and recover the dataset in another."""
    rng = np.random.default_rng([number, COMMANDS.index(command), len(stop)])
    with tempfile.TemporaryDirectory() as name, disk(stop, rng) as elsewhere:
        folder = Path(name)
        other_disk = stop == "full disk" or number % 8 >= 4
        run = Run(command, stop, number, folder, (elsewhere if other_disk else folder) / "set")
        for part in ("truth", "temporary"):
            (folder / part).mkdir()
        process = start(run)
        if stop == "SIGKILL":
            saving = rng.random() < 0.5
            event = folder / "truth" / (f"{rng.integers(0, 6)}.saving" if saving else "begun")
            limit = time.monotonic() + START_S
            while not event.exists() and process.is_alive() and time.monotonic() < limit:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, SAVE_S if saving else LATEST_S))
            process.kill()
        process.join()
        error = (run.folder / "log").read_text().strip().splitlines()[-1] if process.exitcode == 1 else ""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LeRobot's encoders outlive it
        case = {"command": command, "stop": stop, "number": number, "error": error}
        result = case | in_child(recover, run, context=CONTEXT)
        if command == "so101-demos":
            if stop == "full disk":
                subprocess.run(["mount", "-o", "remount,size=64m", elsewhere], check=True)
            start(run, True).join()
            later = in_child(recover, run, context=CONTEXT)
            result["resumed"] = later["finished"] == result["finished"] + 1
            result["lost"] = later["lost"] or result["lost"]
        return result


def start(run: Run, resume: bool = False) -> BaseProcess:
    process = multiprocessing.get_context(CONTEXT).Process(target=record, args=(run, resume))
    process.start()
    return process


@contextlib.contextmanager
def disk(stop: str, rng: np.random.Generator) -> Iterator[Path]:
    """Mount another file system, which is small if it is to be full."""
    size = rng.integers(150, 800) if stop == "full disk" else 2**16
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def report(runs: list[dict[str, Any]]) -> None:
    """Save a row per command and kind of stop, and print them. `ended` runs were not stopped, but failed."""
    rows = []
    for command, stop in dict.fromkeys((run["command"], run["stop"]) for run in runs):
        of = [run for run in runs if (run["command"], run["stop"]) == (command, stop)]
        ended = sum(stop == "SIGKILL" and bool(run["error"]) for run in of)
        times = [run["repair_s"] for run in of if run["repair_s"] is not None]
        row = {"command": command, "stop": stop, "runs": len(of) - ended, "ended": ended}
        row |= {"finished_episodes": sum(run["finished"] for run in of)}
        row |= {"lost": sum(len(run["lost"]) for run in of), "repaired": len(times)}
        row["repair_s"] = round(float(np.median(times)), 2) if times else None
        row["resumed"] = sum(run["resumed"] for run in of) if command == "so101-demos" else None
        rows.append(row)
    save("safety/kills", rows, ("command", "stop"))
    show(rows)


def main() -> None:
    sizes = {"kills": 100, "disks": 20, "parallel": 3}
    options = arguments(__doc__, {"command": COMMANDS}, command=list(COMMANDS), **sizes)
    imported = [function.__module__ for function in (record_demos, repair, lerobot_record.record)]
    multiprocessing.get_context(CONTEXT).set_forkserver_preload(imported)
    wanted = [
        (command, stop, number)
        for stop, count in (("SIGKILL", options.kills), ("full disk", options.disks))
        for number in range(count)
        for command in options.command
    ]
    keys, path = ("command", "stop", "number"), Path("outputs/kills/runs.jsonl")
    report(run_missing(path, keys, wanted, stopped, options.parallel))


if __name__ == "__main__":
    main()
