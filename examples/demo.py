# SPDX-License-Identifier: Apache-2.0
"""`make demo`: train a policy to pick up a cube, on a laptop, through LeRobot's own commands.

    so101-demos     100 demonstrations of the scripted expert, masks and depth at 84x84
    lerobot-train   the segdepth policy on them
    lerobot-eval    50 frozen initial states that no demonstration began from

and then a film, a plot and a table in outputs/demo/. A step that has succeeded is not repeated; delete
outputs/demo to repeat all.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from examples.demo_report import film, plot, summary

BIN = Path(sys.executable).parent
IMAGES = {"height": 84, "width": 84, "rgb": "false", "seg": "true", "depth": "true"}


def commands(out: Path, episodes: int, steps: int, initial_states: int) -> dict[str, tuple[list[str], Path]]:
    """Return the three commands by name, each with the file that exists once it has succeeded."""
    checkpoint = out / "train" / "checkpoints" / "last" / "pretrained_model"
    demos = [
        "so101-demos",
        f"--root={out / 'dataset'}",
        "--task=lift_cube",
        f"--episodes={episodes}",
        "--video=false",  # small images are faster to read from Parquet than from video
        *(f"--{name}={value}" for name, value in IMAGES.items()),
    ]
    train = [
        "lerobot-train",
        "--policy.type=segdepth",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/lift_cube",
        f"--dataset.root={out / 'dataset'}",
        f"--output_dir={out / 'train'}",
        f"--steps={steps}",
        "--batch_size=32",
        "--num_workers=2",
        "--log_freq=50",
        f"--save_freq={steps}",
    ]
    evaluate = [
        "lerobot-eval",
        f"--policy.path={checkpoint}",
        "--policy.device=cpu",
        "--env.type=so101_sim",
        "--env.task=lift_cube",
        *(f"--env.{name}={value}" for name, value in IMAGES.items()),
        f"--eval.n_episodes={initial_states}",
        "--eval.batch_size=1",
        f"--output_dir={out / 'eval'}",
    ]
    return {
        "demonstrate": (demos, out / "dataset" / "meta" / "info.json"),
        "train": (train, checkpoint / "model.safetensors"),
        "evaluate": (evaluate, out / "eval" / "eval_info.json"),
    }


def run(name: str, command: list[str], done: Path, out: Path) -> float:
    """Run a command unless it has succeeded before; its output goes to a log and, shortened, to the terminal.

    Returns:
        Seconds of its first run.
    """
    clock = out / f"{name}.seconds"
    if done.exists() and clock.exists():
        print(f"\n{name}: exists already ({done})")
        return float(clock.read_text())
    print(f"\n{name}:\n  " + " \\\n    ".join(command), flush=True)
    log, begin = out / f"{name}.log", time.monotonic()
    # One thread for PyTorch: on two cores its threads would only compete with the data loader's workers.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    with log.open("w", buffering=1) as file:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
        assert process.stdout is not None
        for line in process.stdout:  # universal newlines: every redraw of a progress bar is a line
            file.write(line)
            _show(line.rstrip())
    print()
    if process.wait() != 0 or not done.exists():
        raise SystemExit(f"demo: {command[0]} failed; its output is in {log}")
    seconds = time.monotonic() - begin
    clock.write_text(f"{seconds:.1f}\n")
    return seconds


_PROGRESS = re.compile(r"\d+%\|.*\| *(\d+/\d+) \[")


def _show(line: str) -> None:
    """Print progress on one line that is overwritten, and losses; everything else stays in the log."""
    match = _PROGRESS.search(line)
    if match and sys.stdout.isatty():
        print(f"\r  {line[:100]:<100}", end="", flush=True)
    elif "loss:" in line or "workbench:" in line:
        print(f"\r  {line[line.find('step:') if 'step:' in line else 0 :]:<100}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--episodes", type=int, default=100, help="demonstrations")
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--initial_states", type=int, default=50, help="of the evaluation, at most 200")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    steps = commands(args.out, args.episodes, args.steps, args.initial_states)
    seconds = {name: run(name, command, done, args.out) for name, (command, done) in steps.items()}
    results = json.loads((args.out / "eval" / "eval_info.json").read_text())
    successes = results["per_task"][0]["metrics"]["successes"]
    film(sorted((args.out / "eval" / "videos").rglob("*.mp4")), successes, args.out / "film.mp4")
    plot(args.out / "train.log", successes, args.out / "plot.png")
    text = summary(successes, seconds, args)
    (args.out / "table.md").write_text(text + "\n")
    print(
        f"\n{text}\n\nwritten to {args.out / 'film.mp4'}, {args.out / 'plot.png'} and {args.out / 'table.md'}"
    )


if __name__ == "__main__":
    main()
