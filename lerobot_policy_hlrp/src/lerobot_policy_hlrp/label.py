# SPDX-License-Identifier: Apache-2.0
"""`so101-laq-label`: write down the latent actions of a dataset, once, instead of at every training step.

    so101-laq-label --checkpoint=outputs/laq/checkpoints/last/pretrained_model --root=outputs/demos --output=outputs/demos_laq.safetensors

Stage 2 and 3 read the file with `--policy.latent_labels=outputs/demos_laq.safetensors`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import draccus
import torch
from draccus.utils import DraccusException
from lerobot.datasets import LeRobotDataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from lerobot_processor_so101 import image_key
from lerobot_processor_so101.precompute.source import Source

from .floor import unconditional_floor
from .labels import LatentLabels, dataset_fingerprint
from .modeling_hlrp_laq import HLRPLAQPolicy, check_dataset


@dataclass
class LabelConfig:
    """Options of `so101-laq-label`.

    Args:
        checkpoint: `pretrained_model` folder of a trained `hlrp_laq`.
        root: folder of the dataset.
        output: file to write.
        batch_size: pairs of frames per call of the model.
        num_workers: processes that read frames.
        device: cpu or cuda.
    """

    checkpoint: Path
    root: Path
    output: Path
    batch_size: int = 64
    num_workers: int = 1
    device: str = "cpu"


def label(config: LabelConfig) -> LatentLabels:
    """Label all frames, and write the file.

    Raises:
        FileNotFoundError: there is no dataset.
        ValueError: the checkpoint is none of `hlrp_laq`, or the dataset does not fit it.
    """
    if not (config.checkpoint / "config.json").is_file():
        raise ValueError(
            f"--checkpoint: found no config.json in {config.checkpoint}; give a `pretrained_model` folder."
        )
    policy = HLRPLAQPolicy.from_pretrained(config.checkpoint).to(config.device)
    meta = Source(config.root).meta
    check_dataset(policy.config, meta)
    key = image_key(policy.config.camera)
    if key not in meta.features:
        raise ValueError(f"--root: found no {key!r} in {config.root}, which has {meta.camera_keys}.")
    dataset = LeRobotDataset(
        f"local/{config.root.name}",
        root=config.root,
        delta_timestamps={key: [0.0, policy.config.gap / policy.config.fps]},
    )
    loader = DataLoader(dataset, config.batch_size, num_workers=config.num_workers)
    parts = []
    for batch in tqdm(loader, desc="labelling"):
        found = {name: batch[name].to(config.device) for name in (key, f"{key}_is_pad")}
        quantized, valid = policy.label(found)
        parts.append((batch["index"], quantized.codes.cpu(), quantized.vectors.cpu(), valid.cpu()))
    index, codes, vectors, valid = (torch.cat(column) for column in zip(*parts, strict=True))
    order = index.argsort()
    labels = LatentLabels(
        codes[order], vectors[order], valid[order], dataset_fingerprint(meta), policy.describe()
    )
    labels.save(config.output)
    return labels


def summary(labels: LatentLabels) -> str:
    """What one wants to know of labels before training on them."""
    valid = labels.vectors[labels.valid]
    used = labels.codes[labels.valid].flatten().unique().numel()
    floor = unconditional_floor(valid, torch.linspace(0.001, 1, 2000))
    return (
        f"{len(valid)} of {len(labels.valid)} frames labelled with {used} of {labels.laq['codebook_size']} codes; "
        f"a latent flow that knows no observation ends at a loss of {floor:.3f} (times uniform)."
    )


def main() -> None:
    """The console script."""
    try:
        config = draccus.parse(LabelConfig)
        print(f"{summary(label(config))} Written to {config.output}.")
    except (OSError, ValueError, DraccusException) as error:
        print(f"so101-laq-label: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
