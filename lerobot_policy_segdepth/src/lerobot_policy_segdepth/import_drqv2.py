# SPDX-License-Identifier: Apache-2.0
"""`so101-import-drqv2`: a snapshot of the original project's DrQ-v2 becomes a checkpoint of segdepth.

    so101-import-drqv2 --snapshot=1200000_snapshot.pt --frame=mujoco --output=outputs/pick101

Weights do not say which simulator's base frame they speak of, nor how the network was run; the first must be told, the
second is the preset `pick101`.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import draccus
import torch
from draccus.utils import DraccusException
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_processor_so101 import OBSERVED, image_key

from .configuration_segdepth import JOINTS, SegDepthConfig
from .modeling_segdepth import SegDepthPolicy
from .processor_segdepth import make_segdepth_pre_post_processors
from .snapshot import read_snapshot

HEIGHT, WIDTH = 480, 640
PERIOD = 0.02  # s between the frames of the training
RECORD = "imported_from.json"


@dataclass
class ImportConfig:
    """Options of `so101-import-drqv2`.

    Args:
        snapshot: the file; nothing in it is run.
        output: folder of the new checkpoint; it must not exist.
        frame: of the simulator it was trained in, mujoco or genesis; their base frames differ by a quarter turn.
        camera: name of the wrist camera.
        segmenter: who looks, or "observation" for a simulator's ids.
        depth: who estimates depth; "segmenter" for the segmenter's own, "observation" for a depth picture.
        fps: rate at which it will run [Hz]; below 50 its frames lie further apart than in its training.
    """

    snapshot: Path
    output: Path
    frame: str
    camera: str = "wrist"
    segmenter: str = OBSERVED
    depth: str = OBSERVED
    fps: int = 50


def import_drqv2(options: ImportConfig) -> SegDepthPolicy:
    """Make the checkpoint.

    Returns:
        The policy in it.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: bad input; the message names it.
    """
    if options.output.exists():
        raise FileExistsError(f"--output: {options.output} exists already and was left as it is.")
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
    return policy


def _policy_config(options: ImportConfig) -> SegDepthConfig:
    if options.frame not in ("mujoco", "genesis"):
        raise ValueError(
            f"--frame: found {options.frame!r}, expected 'mujoco' or 'genesis', the simulator of the training."
        )
    config = SegDepthConfig(
        preset="pick101",
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (JOINTS,))},
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
    config.input_features = {OBS_STATE: PolicyFeature(FeatureType.STATE, (JOINTS,))}
    for *_, key in config.sources(options.camera):
        channels = 3 if key == image_key(options.camera) else 1
        config.input_features[key] = PolicyFeature(FeatureType.VISUAL, (channels, HEIGHT, WIDTH))
    return config


def main() -> None:
    """Console entry point of `so101-import-drqv2`."""
    try:
        with torch.no_grad():
            options = draccus.parse(ImportConfig)
            import_drqv2(options)
    except (DraccusException, ValueError, OSError) as error:
        sys.exit(f"so101-import-drqv2: {error}")
    print(f"so101-import-drqv2: {options.output} is a checkpoint of --policy.type=segdepth, preset pick101.")
