# SPDX-License-Identifier: Apache-2.0
r"""`so101-laq-label`: store the latent actions of a dataset in a file, once for all training steps.

    so101-laq-label --checkpoint=outputs/laq/checkpoints/last/pretrained_model --root=outputs/demos \
        --output=outputs/demos_laq.safetensors

Stages 2 and 3 read the file with `--policy.latent_labels=outputs/demos_laq.safetensors`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from lerobot.datasets import LeRobotDataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from lerobot_processor_so101 import image_key
from lerobot_processor_so101.cli import run_command
from lerobot_processor_so101.config_checks import check_device
from lerobot_processor_so101.precompute.source import Source

from .laq.label_file import LatentLabels, dataset_fingerprint
from .laq.loss_floor import unconditional_floor
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
    """Label all frames and write the file.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if the checkpoint is not one of `hlrp_laq`, or the dataset does not match it.
    """
    if not (config.checkpoint / "config.json").is_file():
        raise ValueError(
            f"--checkpoint: found no config.json in {config.checkpoint}; give a `pretrained_model` folder."
        )
    check_device(config.device)
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
    batches = []
    for batch in tqdm(DataLoader(dataset, config.batch_size, num_workers=config.num_workers), "labelling"):
        pairs = {name: batch[name].to(config.device) for name in (key, f"{key}_is_pad")}
        quantized, valid = policy.label(pairs)
        batches.append((batch["index"], quantized.codes.cpu(), quantized.vectors.cpu(), valid.cpu()))
    index, *columns = (torch.cat(column) for column in zip(*batches, strict=True))
    codes, vectors, valid = (column[index.argsort()] for column in columns)
    labels = LatentLabels(codes, vectors, valid, dataset_fingerprint(meta), policy.describe())
    labels.save(config.output)
    return labels


def summary(labels: LatentLabels) -> str:
    """Describe labels in one line: frames, codes in use, and the floor of the latent loss."""
    vectors = labels.vectors[labels.valid]
    used = labels.codes[labels.valid].unique().numel()
    floor = unconditional_floor(vectors, torch.linspace(0.001, 1, 2000))
    return (
        f"{len(vectors)} of {len(labels.valid)} frames labelled with {used} of {labels.laq['codebook_size']} "
        f"codes; a latent flow without observations ends at a loss of {floor:.3f} (times uniform)."
    )


def main() -> None:
    """Run `so101-laq-label`."""
    run_command(
        "so101-laq-label", LabelConfig, lambda config: f"{summary(label(config))} Written to {config.output}."
    )


if __name__ == "__main__":
    main()
