# SPDX-License-Identifier: Apache-2.0
"""The sources of the latent actions that stages 2 and 3 learn: a frozen model, or a file of labels."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from torch import Tensor

from lerobot_processor_so101 import check_architecture, checkpoint_folder, image_key

from .laq.label_file import LatentLabels
from .modeling_hlrp_laq import HLRPLAQPolicy

# Parts of a model's identity that two stages must share.
_SHARED = ("weights", "camera", "gap_s", "image_size", "codes", "codebook_size", "dim")


class Latents(NamedTuple):
    """Latent actions of a batch.

    Attributes:
        vectors: (B, S, D), of mean 0 and standard deviation 1.
        codes: (B, S).
        valid: (B,), whether there is one.
    """

    vectors: Tensor
    codes: Tensor
    valid: Tensor


class ModelSource:
    """A frozen latent action model, of a folder or Hub id, that encodes each batch.

    Raises:
        ValueError: if there is no checkpoint.
    """

    def __init__(self, name: str) -> None:
        folder = checkpoint_folder(name)
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"laq: found no config.json in {name!r}; give a `pretrained_model` folder of hlrp_laq."
            )
        with torch.random.fork_rng(devices=[]):  # the policy's initial weights must not depend on the source
            self.model = HLRPLAQPolicy.from_pretrained(folder).eval().requires_grad_(False)
        self.identity = self.model.describe()
        self._key = image_key(self.model.config.camera)

    def __call__(self, batch: dict[str, Any]) -> Latents:
        """Return the latent actions of a batch with the current and the later frame, (B, 2, 3, H, W)."""
        self.model.to(batch[self._key].device)
        quantized, valid = self.model.label(batch)
        return Latents(quantized.vectors, quantized.codes, valid)


class FileSource:
    """The file of `so101-laq-label`, compared with the dataset of the training if that is known."""

    def __init__(self, path: str, dataset: LeRobotDatasetMetadata | None) -> None:
        self.labels = LatentLabels.load(Path(path))
        if dataset is not None:
            self.labels.check(dataset)
        self.identity = self.labels.laq

    def __call__(self, batch: dict[str, Any]) -> Latents:
        """Return the latent actions of a batch by its `index`, (B,)."""
        index, device = batch["index"].flatten().cpu().long(), batch["index"].device
        labels = (self.labels.vectors, self.labels.codes, self.labels.valid)
        return Latents(*(part[index].to(device) for part in labels))


type LatentSource = ModelSource | FileSource


def make_latent_source(config: Any, dataset: LeRobotDatasetMetadata | None) -> LatentSource | None:
    """Make the source that a configuration names; None if it names none.

    Raises:
        ValueError: if the source is missing or does not match the configuration or the dataset.
    """
    if not config.learns_latents or not (config.laq or config.latent_labels):
        return None
    source = ModelSource(config.laq) if config.laq else FileSource(config.latent_labels, dataset)
    camera = image_key(source.identity["camera"])
    if config.laq and camera not in config.image_features:
        raise ValueError(
            f"laq: found one of {camera!r}, expected one of {sorted(config.image_features)}, which the "
            "dataset has. Train stage 1 with `--policy.camera=` one of them."
        )
    gap_s = source.identity["gap_s"]
    if abs(config.gap_s - gap_s) > 1e-6:
        raise ValueError(
            f"gap_s: found {config.gap_s} s, expected {gap_s} s, the gap of the latent actions: "
            f"`--policy.gap_s={gap_s}`."
        )
    return source


def check_same_laq(current: dict[str, Any] | None, saved: dict[str, Any] | None, name: str) -> None:
    """Check that latent actions mean the same as those that a checkpoint was trained with.

    Args:
        current: identity of the `hlrp_laq` model of this training; None if there is none.
        saved, name: that in the checkpoint, and the checkpoint's name.

    Raises:
        ValueError: if they differ; the message names the first difference.
    """
    if current is None or saved is None:
        return
    for key in _SHARED:
        if current.get(key) != saved.get(key):
            raise ValueError(
                f"laq: found one with {key} = {_short(current.get(key))}, expected {_short(saved.get(key))}, "
                f"as {name!r} was trained with. Give the same `--policy.laq` or `--policy.latent_labels`, or "
                "train stage 2 again with this one."
            )


def check_same_architecture(config: Any, saved: dict[str, Any]) -> None:
    """Check that the options keep the meaning of the weights in `init_from`, whose configuration is `saved`.

    Raises:
        ValueError: if they do not; the message names the first difference.
    """
    if saved.get("type") != "hlrp":
        return
    keys = ["head"]
    if saved["head"] == "pooled_mlp":
        keys += ["action_kind", "gap_s"]
    elif saved.get("laq_identity"):
        keys += ["gap_s"]
    check_architecture(config, saved, keys, config.init_from)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 24 else text
