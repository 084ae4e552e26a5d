# SPDX-License-Identifier: Apache-2.0
"""Reduced size of the documentation's commands: what `run_docs` adds to them and replaces in them."""

from collections.abc import Sequence
from pathlib import Path

# Options by command, or by command and one of its words (without folder and suffix). They are appended, so
# that they replace those of the page.
SIZE: dict[str, tuple[str, ...]] = {
    "so101-benchmark": ("--episodes=1",),
    "so101-demos": ("--episodes=2",),
    "so101-frames": ("--count=4",),
    "so101-improve": ("--episodes=2", "--takeovers=1", "--eval_episodes=1", "--rounds=1"),
    "so101-improve --train=act.yaml": ("--rounds=0",),
    "so101-starts": ("--count=1",),
    "so101-train-segmenter": ("--epochs=1", "--batch_size=2", "--init_from=none"),
    "so101-view": ("--frames=2",),
    "lerobot-edit-dataset --operation.type=delete_episodes": ("--operation.episode_indices=[1]",),
    "lerobot-eval": ("--eval.n_episodes=1",),
    "lerobot-record": (
        "--dataset.num_episodes=2",
        "--dataset.episode_time_s=2",
        "--dataset.reset_time_s=1",
        "--play_sounds=false",
    ),
    "lerobot-replay": ("--play_sounds=false",),
    "lerobot-rollout": ("--duration=2",),
    "lerobot-teleoperate": ("--teleop_time_s=2",),
    "lerobot-train": ("--steps=2", "--batch_size=2", "--num_workers=0"),
    "lerobot-train --policy.type=act": ("--policy.pretrained_backbone_weights=null",),
    "lerobot-train hlrp_2_foundation": ("--policy.labelled_episodes=[0]",),
    "lerobot-train hlrp_3_policy": ("--dataset.episodes=[0]",),
    "make demo": ("ARGS=--episodes=2 --steps=2 --initial_states=1",),
    "make test": ("ARGS=-n0 --ignore-glob=tests/*/* -k versions_agree",),
    "benchmarks.learning.segdepth": (
        "--demonstrations=2",
        "--steps=2",
        "--seeds=1",
        "--initial_states=1",
        "--levels=clean",
    ),
    "examples.segdepth_film": ("--seeds=1024",),
}

# Commands that run until they are stopped, with what they print when they are ready. They end with the page.
SERVERS = {"so101-virtual-arm": "to stop.", "so101-policy-server": "Listening on"}

# An emulated arm in place of the arm, a script in place of a person who annotates, and a small training.
EMULATED = "/tmp/so101_"
_VIEW = "type: so101_virtual, view: {}, width: 160, height: 120"
SUBSTITUTES = {
    "/dev/ttyACM0": f"{EMULATED}follower",
    "/dev/ttyACM1": f"{EMULATED}leader",
    "id=my_arm": "id=virtual",
    "id=my_leader": "id=virtual",
    "type: opencv, index_or_path: 0, width: 640, height: 480": _VIEW.format("top"),
    "type: opencv, index_or_path: 2, width: 640, height: 480": _VIEW.format("wrist"),
    "so101-masks ": "python -m tests.tiny_coco data/dataset_v0 && so101-masks ",
    "type: act\n": "type: act\n  pretrained_backbone_weights: null\n",
    "steps: 20000\nbatch_size: 8\n": "steps: 2\nbatch_size: 2\n",
}


def program(command: Sequence[str]) -> str:
    """Return the name of a command, or the module that `python -m` runs."""
    return command[2] if list(command[1:2]) == ["-m"] else Path(command[0]).name


def reduced(command: Sequence[str]) -> list[str]:
    """Return a command at reduced size."""
    name = program(command)
    words = dict.fromkeys(spelling for word in command[1:] for spelling in (word, Path(word).stem))
    sizes = [SIZE.get(key, ()) for key in (name, *(f"{name} {word}" for word in words))]
    return [*command, *(option for size in sizes for option in size)]
