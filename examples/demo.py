# SPDX-License-Identifier: Apache-2.0
"""`make demo`: train a policy that sorts by sentence from RGB, on a laptop, through LeRobot's own commands.

    so101-demos     350 demonstrations of the scripted expert, masks and depth of the simulator
    so101-arrays    the same as the package's segmenter would output them, for fast reading
    lerobot-train   the segdepth policy on it
    lerobot-eval    50 frozen initial states that no demonstration began from; the segmenter runs on RGB

and then a film, a plot and a table in outputs/demo/. With

    make demo ARGS="--instruction='Put the green cube into the white bowl.'"

the policy also acts on that sentence, in outputs/demo/instruction.webp. A step that has succeeded is not
repeated; delete outputs/demo to repeat all.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from examples.demo_report import film, plot, summary
from examples.sort_by_sentence import film_sentences, goal_of
from lerobot_env_so101_workbench.improve.process import Cost, Job, run_jobs
from lerobot_env_so101_workbench.sim.scene import class_names
from lerobot_env_so101_workbench.tasks.sort_cubes import SortCubes
from lerobot_processor_so101.find_config import find_configs

MASKS = {"height": 84, "width": 112, "rgb": "false", "seg": "true", "depth": "true"}
RGB = {"height": 240, "width": 320}


def commands(out: Path, episodes: int, steps: int, initial_states: int) -> dict[str, tuple[list[str], Path]]:
    """Return the commands by name, each with the file that exists once it has succeeded."""
    checkpoint = out / "train" / "checkpoints" / "last" / "pretrained_model"
    demos = [
        "so101-demos",
        f"--root={out / 'dataset'}",
        "--task=sort_cubes",
        f"--episodes={episodes}",
        "--video=false",  # small images are faster to read from Parquet than from video
        "--workers=2",
        *(f"--{name}={value}" for name, value in MASKS.items()),
    ]
    arrays = [
        "so101-arrays",
        f"--root={out / 'dataset'}",
        f"--output={out / 'arrays'}",
        "--segmenter=sorting",
    ]
    train = [
        "lerobot-train",
        f"--config_path={find_configs()['segdepth_sort_cubes']}",
        f"--dataset.root={out / 'arrays'}",
        f"--output_dir={out / 'train'}",
        f"--steps={steps}",
        f"--save_freq={steps}",
    ]
    evaluate = [
        "lerobot-eval",
        f"--policy.path={checkpoint}",
        "--policy.device=cpu",
        "--env.type=so101_sim",
        "--env.task=sort_cubes",
        *(f"--env.{name}={value}" for name, value in RGB.items()),
        f"--eval.n_episodes={initial_states}",
        "--eval.batch_size=1",
        f"--output_dir={out / 'eval'}",
    ]
    return {
        "demonstrate": (demos, out / "dataset" / "meta" / "info.json"),
        "prepare": (arrays, out / "arrays" / "meta" / "info.json"),
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
    log = out / f"{name}.log"
    log.unlink(missing_ok=True)  # of a run that failed
    costs: list[Cost] = []
    try:
        run_jobs([Job(name, command, log, lambda cost, _: costs.append(cost))], _show)
    except RuntimeError as error:
        raise SystemExit(f"demo: {error}") from None
    print()
    if not done.exists():
        raise SystemExit(f"demo: {command[0]} did not write {done}; its output is in {log}")
    clock.write_text(f"{costs[0].wall_s:.1f}\n")
    return costs[0].wall_s


_PROGRESS = re.compile(r"\d+%\|.*\| *(\d+/\d+) \[")


def _show(line: str) -> None:
    """Print progress on one line that is overwritten, and losses; everything else stays in the log."""
    line = line.rstrip()
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
    parser.add_argument("--episodes", type=int, default=350, help="demonstrations")
    parser.add_argument("--steps", type=int, default=4500, help="training steps")
    parser.add_argument("--initial_states", type=int, default=50, help="of the evaluation, at most 200")
    parser.add_argument("--instruction", help="a sentence that the trained policy acts on, filmed")
    args = parser.parse_args()
    if args.instruction:
        try:  # refused before the first step
            goal_of(args.instruction, class_names(SortCubes.props))
        except ValueError as error:
            parser.error(f"--instruction: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled")
    steps = commands(args.out, args.episodes, args.steps, args.initial_states)
    seconds = {name: run(name, command, done, args.out) for name, (command, done) in steps.items()}
    results = json.loads((args.out / "eval" / "eval_info.json").read_text())
    successes = results["per_task"][0]["metrics"]["successes"]
    film(sorted((args.out / "eval" / "videos").rglob("*.mp4")), successes, args.out / "film.mp4")
    plot(args.out / "train.log", successes, args.out / "plot.png")
    text = summary(successes, seconds, args)
    (args.out / "table.md").write_text(text + "\n")
    written = [args.out / name for name in ("film.mp4", "plot.png", "table.md")]
    if args.instruction:
        written.append(args.out / "instruction.webp")
        checkpoint = steps["train"][1].parent
        film_sentences(checkpoint, [args.instruction], written[-1])
    print(f"\n{text}\n\nwritten to {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
