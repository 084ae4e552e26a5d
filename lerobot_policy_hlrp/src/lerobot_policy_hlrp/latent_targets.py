# SPDX-License-Identifier: Apache-2.0
"""Where the latent actions come from that stages 2 and 3 learn: a frozen model that looks, or a file of labels."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from torch import Tensor

from lerobot_processor_so101 import check_form, checkpoint_folder, image_key

from .labels import LatentLabels
from .modeling_hlrp_laq import HLRPLAQPolicy

# What must agree between the model of a stage and that of the one before, and the option that says it.
_AGREE = ("weights", "camera", "gap_s", "image_size", "codes", "codebook_size", "dim")


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


class LatentSource(Protocol):
    """Something that knows latent actions."""

    identity: dict[str, Any]

    def __call__(self, batch: dict[str, Any]) -> Latents:
        """Latent actions of a batch."""


class LookingTeacher:
    """The latent action model, looking at each batch.

    Args:
        name: folder or Hub id of its checkpoint.
    """

    def __init__(self, name: str) -> None:
        folder = checkpoint_folder(name)
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"laq: found no config.json in {name!r}; give a `pretrained_model` folder of hlrp_laq."
            )
        with torch.random.fork_rng(
            devices=[]
        ):  # the policy's first weights are the same with and without a teacher
            self.model = HLRPLAQPolicy.from_pretrained(folder).eval().requires_grad_(False)
        self.identity = self.model.describe()
        self._key = image_key(self.model.config.camera)

    def __call__(self, batch: dict[str, Any]) -> Latents:
        """Latent actions of a batch with the present and the later frame."""
        self.model.to(batch[self._key].device)
        found = {key: batch[key] for key in (self._key, f"{self._key}_is_pad") if key in batch}
        quantized, valid = self.model.label(found)
        return Latents(quantized.vectors, quantized.codes, valid)


class WrittenLabels:
    """The file of `so101-laq-label`.

    Args:
        path: of the file.
        dataset: that is trained on; None if there is none to compare with.
    """

    def __init__(self, path: str, dataset: LeRobotDatasetMetadata | None) -> None:
        self.labels = LatentLabels.load(Path(path))
        if dataset is not None:
            self.labels.check(dataset)
        self.identity = self.labels.laq

    def __call__(self, batch: dict[str, Any]) -> Latents:
        """Latent actions of a batch, by `index`."""
        index = batch["index"].flatten().cpu().long()
        labels, device = self.labels, batch["index"].device
        return Latents(*(part[index].to(device) for part in (labels.vectors, labels.codes, labels.valid)))


def make_latent_source(config: Any, dataset: LeRobotDatasetMetadata | None) -> LatentSource | None:
    """What a configuration asks for; None if it asks for none.

    Raises:
        ValueError: it is not there, or not what the configuration says.
    """
    if not config.learns_latents or not (config.laq or config.latent_labels):
        return None
    source: LatentSource = (
        LookingTeacher(config.laq) if config.laq else WrittenLabels(config.latent_labels, dataset)
    )
    camera = image_key(source.identity["camera"])
    if config.laq and camera not in config.image_features:
        raise ValueError(
            f"laq: found one that looks at {camera!r}, expected one of {sorted(config.image_features)}, which the dataset "
            "has. Train stage 1 with `--policy.camera=` one of them."
        )
    own, found = config.gap_s, source.identity["gap_s"]
    if abs(own - found) > 1e-6:
        raise ValueError(
            f"gap_s: found {own} s, expected {found} s, which the latent actions are over: `--policy.gap_s={found}`."
        )
    return source


def check_same_laq(own: dict[str, Any] | None, other: dict[str, Any] | None, name: str) -> None:
    """Refuse latent actions that mean something else than those that a checkpoint was trained with.

    Args:
        own: identity of what is trained with now; None if nothing is.
        other: of what the checkpoint was trained with; None if it was with nothing.
        name: of the checkpoint.

    Raises:
        ValueError: they differ; the message names the first difference.
    """
    if own is None or other is None:
        return
    for key in _AGREE:
        if own.get(key) != other.get(key):
            raise ValueError(
                f"laq: found one with {key} = {_short(own.get(key))}, expected {_short(other.get(key))}, as "
                f"{name!r} was trained with. Give the same `--policy.laq` or `--policy.latent_labels`, or train stage 2 "
                "again with this one."
            )


def check_same_form(config: Any, saved: dict[str, Any]) -> None:
    """Refuse to start from a checkpoint whose weights mean something else than is told.

    Args:
        config: what is told.
        saved: configuration of the checkpoint, `init_from`.

    Raises:
        ValueError: they differ; the message names the first difference.
    """
    if saved.get("type") != "hlrp":
        return
    pooled = saved["head"] == "pooled_mlp"
    keys = [
        "head",
        *(["action_kind"] if pooled else []),
        *(["gap_s"] if pooled or saved.get("laq_identity") else []),
    ]
    check_form(config, saved, keys, config.init_from)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 24 else text
