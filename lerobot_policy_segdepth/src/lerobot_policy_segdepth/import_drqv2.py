# SPDX-License-Identifier: Apache-2.0
"""`so101-import-drqv2`: convert a snapshot of pick-101's DrQ-v2 to a checkpoint of segdepth.

    so101-import-drqv2 --snapshot=1200000_snapshot.pt --frame=mujoco --output=outputs/pick101

A snapshot contains neither its simulator's base frame nor how the network was run: the first is an option,
the second is the preset `pick101`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_processor_so101 import OBSERVED, image_key
from lerobot_processor_so101.cli import run_command

from .configuration_segdepth import N_JOINTS, SegDepthConfig
from .modeling_segdepth import SegDepthPolicy
from .processor_segdepth import make_segdepth_pre_post_processors
from .snapshot import read_snapshot

HEIGHT, WIDTH = 480, 640
PERIOD = 0.02  # time between frames in the snapshot's training [s]
RECORD = "imported_from.json"


@dataclass
class ImportConfig:
    """Options of `so101-import-drqv2`.

    Args:
        snapshot: the file; no code in it is run.
        output: folder of the new checkpoint; it must not exist.
        frame: simulator of the training, `mujoco` or `genesis`; their base frames differ by a quarter turn.
        camera: name of the wrist camera.
        segmenter: name of a segmenter, or "observation" for a simulator's ids.
        depth: name of a depth model, "segmenter" for the segmenter's disparity, or "observation" for depth.
        fps: control periods per second [Hz]; below 50, frames are further apart than in the training.
    """

    snapshot: Path
    output: Path
    frame: str
    camera: str = "wrist"
    segmenter: str = OBSERVED
    depth: str = OBSERVED
    fps: int = 50


def import_drqv2(options: ImportConfig) -> None:
    """Write the checkpoint.

    Raises:
        FileExistsError: if the output exists.
        FileNotFoundError: if there is no snapshot.
        ValueError: if an option or the snapshot is invalid; the message names what is wrong.
    """
    if options.output.exists():
        raise FileExistsError(f"--output: {options.output} exists already and is not changed.")
    tensors, config = read_snapshot(options.snapshot)
    policy = SegDepthPolicy(_policy_config(options))
    policy.model.load_state_dict(tensors)
    pipelines = make_segdepth_pre_post_processors(policy.config)
    policy.eval().save_pretrained(options.output)
    for pipeline in pipelines:
        pipeline.save_pretrained(options.output)
    digest = hashlib.sha256(options.snapshot.read_bytes()).hexdigest()
    record = {"file": options.snapshot.name, "sha256": digest, "frame": options.frame, "config": config}
    (options.output / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _policy_config(options: ImportConfig) -> SegDepthConfig:
    if options.frame not in ("mujoco", "genesis"):
        found = f"--frame: found {options.frame!r}"
        raise ValueError(f"{found}, expected 'mujoco' or 'genesis', the simulator of the training.")
    config = SegDepthConfig(
        preset="pick101",
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (N_JOINTS,))},
        cameras=[options.camera],
        segmenter=options.segmenter,
        depth=options.depth,
        base_frame=options.frame,
        fps=options.fps,
        stack_period=max(1, round(PERIOD * options.fps)) / options.fps,
        ema_decay=0.0,
        device="cpu",
        push_to_hub=False,
    )
    config.input_features = {OBS_STATE: PolicyFeature(FeatureType.STATE, (N_JOINTS,))}
    for *_, key in config.sources(options.camera):
        channels = 3 if key == image_key(options.camera) else 1
        config.input_features[key] = PolicyFeature(FeatureType.VISUAL, (channels, HEIGHT, WIDTH))
    return config


def main() -> None:
    """Run `so101-import-drqv2`."""

    def command(options: ImportConfig) -> str:
        with torch.no_grad():
            import_drqv2(options)
        return f"{options.output} is a checkpoint of --policy.type=segdepth, preset pick101."

    run_command("so101-import-drqv2", ImportConfig, command)
