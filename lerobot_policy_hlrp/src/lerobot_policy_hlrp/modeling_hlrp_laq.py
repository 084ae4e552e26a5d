# SPDX-License-Identifier: Apache-2.0
"""Stage 1, `hlrp_laq`: latent actions learned from video without actions (LAPA, 2410.11758).

What is unusual about it:
- `lerobot-train` trains it as a policy, but it cannot control a robot: it encodes the change between two
  frames. Its output is that of `label`.
- It learns from datasets without actions. A frame whose partner lies beyond the end of its episode does not
  count.
- Masks can weight pixels, so that codes describe the arm and the object rather than what moves behind them.
- The share of codes in use is logged, with a warning if the codebook collapses.
"""

import logging
from functools import cached_property
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from lerobot_processor_so101 import (
    CheckpointMixin,
    image_key,
    resize_ids,
    resolve_perception,
    seg_key,
    training_dataset,
    weights_hash,
)

from .configuration_hlrp_laq import HLRPLAQConfig
from .laq.latent_action_model import LatentActionModel
from .laq.quantizers import Quantized
from .laq.teachers import FeatureTeacher, FlowTeacher
from .weighted_mean import weighted_mean

_COLLAPSED = 0.05  # share of codes in use below which a warning is logged
_CHECK_EVERY = 500  # training steps between two checks of that

logger = logging.getLogger(__name__)


class HLRPLAQPolicy(CheckpointMixin, PreTrainedPolicy):
    """The latent action model in LeRobot's training."""

    config_class = HLRPLAQConfig
    name = "hlrp_laq"

    def __init__(self, config: HLRPLAQConfig, **kwargs: Any) -> None:
        """Build the model; other input features than those of its camera are removed from `config`.

        Raises:
            ValueError: if the camera or a teacher is missing, or the dataset has another rate or only
                episodes that are shorter than the gap.
        """
        super().__init__(config)
        config.validate_features()
        config.input_features = config.image_features
        self.config: HLRPLAQConfig = config
        check_dataset(config, training_dataset(config, kwargs.get("dataset_meta")))
        if config.feature_model and config.feature_dim is None:
            config.feature_dim = self._feature_teacher.dim
        self.model = LatentActionModel(config)
        self._steps = 0

    def get_optim_params(self) -> list[nn.Parameter]:
        """Return all parameters."""
        return list(self.parameters())

    def reset(self) -> None:
        """Do nothing: there is no state between calls."""

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Compute the training loss.

        Args:
            batch: preprocessed, with two frames of the camera, (B, 2, 3, H, W).
            reduction: "mean", over pairs whose frames both lie in the episode.

        Returns:
            The loss, and values to log: its parts; `copy`, the pixel error of copying the earlier frame; the
            share of the codes in use; their perplexity.

        Raises:
            ValueError: if `reduction` is another or a frame is missing.
        """
        if reduction != "mean":
            raise ValueError(f"reduction: found {reduction!r}, expected 'mean'.")
        # 1. encode and quantise the change: (B, 2, 3, h, w) -> (B, S, D)
        frames, valid = self.frames(batch), self.valid(batch)
        earlier, later = frames.unbind(1)
        quantized = self.model.encode(frames)
        if self.training:
            self._count(quantized, valid)

        # 2. predict the later frame from the earlier one and the codes: (B, 3, h, w)
        decoded = self.model.decode(earlier, quantized.passed)

        # 3. pixel loss, weighted by masks
        weights = self.pixel_weights(batch) * valid[:, None, None, None]
        parts = {
            "pixel_loss": weighted_mean((decoded.frame - later).square(), weights),
            "copy": weighted_mean((earlier - later).square(), weights),
        }
        loss = parts["pixel_loss"]

        # 4. losses of features and optical flow, if a frozen model provides them: (B, N, C)
        if decoded.features is not None:
            error = (decoded.features - self._feature_teacher(later)).square()
            parts["feature_loss"] = weighted_mean(error, valid[:, None, None])
            loss = loss + self.config.feature_weight * parts["feature_loss"]
        if decoded.flow is not None:
            error = (decoded.flow - self._flow_teacher(earlier, later)).square()
            parts["flow_loss"] = weighted_mean(error, valid[:, None, None])
            loss = loss + self.config.flow_weight * parts["flow_loss"]
        usage = self.model.usage
        logs = {name: value.item() for name, value in parts.items()}
        return loss, {"loss": loss.item(), **logs, "codes_used": usage.used, "perplexity": usage.perplexity}

    def describe(self) -> dict[str, Any]:
        """Return the identity of the model: values that are equal if codes have equal meanings."""
        config, quantizer = self.config, self.model.quantizer
        return {
            "weights": weights_hash(self.model),
            "camera": config.camera,
            "gap_s": config.gap_s,
            "fps": config.fps,
            "image_size": config.image_size,
            "codes": config.codes,
            "codebook_size": quantizer.codebook_size,
            "dim": quantizer.dim,
        }

    @torch.no_grad()
    def label(self, batch: dict[str, Any]) -> tuple[Quantized, Tensor]:
        """Return latent actions of mean 0 and standard deviation 1, and whether both frames exist, (B,).

        Args:
            batch: with two frames of the camera, (B, 2, 3, H, W) in [0, 1].
        """
        self.eval()
        quantized = self.model.encode(self.frames(batch))
        vectors = self.model.usage.standardised(quantized.vectors)
        return quantized._replace(vectors=vectors), self.valid(batch)

    def frames(self, batch: dict[str, Any]) -> Tensor:
        """Return the two frames at the model's size, (B, 2, 3, h, w).

        Raises:
            ValueError: if there are not two frames.
        """
        key, side = image_key(self.config.camera), self.config.image_size
        if key not in batch or batch[key].ndim != 5 or batch[key].shape[1] != 2:
            found = tuple(batch[key].shape) if key in batch else "none"
            raise ValueError(
                f"{key}: found {found}, expected two frames, (B, 2, 3, H, W), {self.config.gap_s} s apart."
            )
        frames = batch[key].float()
        if frames.shape[-2:] == (side, side):
            return frames
        small = F.interpolate(frames.flatten(0, 1), (side, side), mode="bilinear", antialias=True)
        return small.unflatten(0, (-1, 2))

    def valid(self, batch: dict[str, Any]) -> Tensor:
        """Return whether both frames lie in the episode, (B,)."""
        key = image_key(self.config.camera)
        pad = batch.get(f"{key}_is_pad")
        if pad is None:
            return torch.ones(len(batch[key]), dtype=torch.bool, device=batch[key].device)
        return ~pad.bool().any(1)

    def pixel_weights(self, batch: dict[str, Any]) -> Tensor:
        """Return the weights of pixels, (B, 1, h, w): 1 where either frame shows one of `mask_classes`."""
        config = self.config
        if not config.mask_classes:
            return torch.ones(1, 1, 1, 1, device=batch[image_key(config.camera)].device)
        ids = resolve_perception(batch)[seg_key(config.camera)]
        ids = resize_ids(ids, (config.image_size, config.image_size))  # (B, 2, h, w)
        wanted = torch.tensor(config.mask_ids, device=ids.device, dtype=ids.dtype)
        return torch.where(torch.isin(ids, wanted).any(1, keepdim=True), 1.0, config.background_weight)

    def _count(self, quantized: Quantized, valid: Tensor) -> None:
        usage = self.model.usage
        if bool(valid.any()):
            usage.count(Quantized(*(part[valid] for part in quantized)))
        self._steps += 1
        if self._steps % _CHECK_EVERY == 0 and usage.used < _COLLAPSED:
            logger.warning(
                "codes: only %.1f %% of %d are in use after %d steps, so latent actions carry little "
                "information. Try `--policy.quantizer=fsq`, fewer `--policy.levels`, a larger "
                "`--policy.gap_s`, or masks.",
                100 * usage.used,
                self.model.quantizer.codebook_size,
                self._steps,
            )

    # Loaded when the loss needs them. Teachers are not modules: checkpoints do not contain them.
    @cached_property
    def _feature_teacher(self) -> FeatureTeacher:
        return FeatureTeacher(self.config.feature_model, self.config.grid)

    @cached_property
    def _flow_teacher(self) -> FlowTeacher:
        return FlowTeacher(self.config.flow_model, self.config.flow_weights, self.config.grid)

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> NoReturn:
        """Raise a NotImplementedError: there are no actions."""
        raise NotImplementedError(
            "hlrp_laq cannot control a robot: it encodes the change between two frames. Train stage 2 or 3 "
            "with it, `--policy.type=hlrp --policy.laq=<this checkpoint>`, and run that."
        )

    predict_action_chunk = select_action


def check_dataset(config: Any, dataset: Any) -> None:
    """Check that a dataset's metadata, if there are any, fit the `fps` and `gap` of a configuration.

    Raises:
        ValueError: if the rate is another, or every episode is shorter than the gap.
    """
    if dataset is None:
        return
    if dataset.fps != config.fps:
        raise ValueError(
            f"fps: found {dataset.fps} Hz in the dataset, expected {config.fps} Hz, which the gap of "
            f"{config.gap_s} s is counted in. Train for its rate: `--policy.fps={dataset.fps}`."
        )
    longest = max(dataset.episodes["length"], default=0) if dataset.episodes is not None else None
    if longest is not None and longest <= config.gap:
        raise ValueError(
            f"gap_s: found {config.gap_s} s, {config.gap} frames, in a dataset whose longest episode has "
            f"{longest} frames; expected less than {longest / config.fps:.3g} s: `--policy.gap_s`."
        )
