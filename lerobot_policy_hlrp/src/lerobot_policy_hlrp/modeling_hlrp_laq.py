# SPDX-License-Identifier: Apache-2.0
"""Stage 1, `hlrp_laq`: latent actions learned from video without actions (seed 004; Ye et al., 2024).

What is unusual about it:
- It is trained by `lerobot-train` as policies are, and is none: it says what was done between two frames, not what to
  do. `label` is what it is for.
- It learns from datasets without actions, and from frames without pictures of the future: a frame whose partner lies
  beyond the end of its episode does not count.
- Pixels can be weighted by masks, so that the codes tell of the arm and the object, not of what moves behind them.
- How many codes are in use is logged, and a codebook that collapses is told of.
"""

import logging
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
from .counted import counted_mean
from .latent_actions import LatentActionModel
from .quantizers import Quantized
from .teachers import FeatureTeacher, FlowTeacher

_COLLAPSED = 0.05  # share of codes in use below which training is told to be in trouble
_SETTLED = 500  # steps after which that is looked at, again and again

logger = logging.getLogger(__name__)


class HLRPLAQPolicy(CheckpointMixin, PreTrainedPolicy):
    """The latent action model in LeRobot's training."""

    config_class = HLRPLAQConfig
    name = "hlrp_laq"

    def __init__(self, config: HLRPLAQConfig, **kwargs: Any) -> None:
        """Build the model.

        Args:
            config: configuration with input features.
            kwargs: what LeRobot passes to every policy, and what `from_pretrained` knows of a checkpoint.

        Raises:
            ValueError: the camera is missing, the dataset has another rate or only episodes shorter than the gap, or a
                teacher cannot be had.
        """
        super().__init__(config)
        config.validate_features()
        config.input_features = config.image_features
        self.config: HLRPLAQConfig = config
        check_dataset(config, training_dataset(config, kwargs.get("dataset_meta")))
        # Teachers are not registered as modules: no checkpoint has them, and none needs them.
        self._teachers: dict[str, Any] = {}
        if config.feature_model and config.feature_dim is None:
            config.feature_dim = self._feature_teacher().dim
        self.model = LatentActionModel(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.width,
            heads=config.heads,
            spatial_layers=config.spatial_layers,
            temporal_layers=config.temporal_layers,
            decoder_layers=config.decoder_layers,
            codes=config.codes,
            quantizer=config.quantizer,
            levels=list(config.levels),
            codebook_size=config.codebook_size,
            code_dim=config.code_dim,
            feature_dim=config.feature_dim or 0,
            flow=bool(config.flow_model),
        )
        self._steps = 0

    def get_optim_params(self) -> list[nn.Parameter]:
        """Return all parameters."""
        return list(self.parameters())

    def reset(self) -> None:
        """Nothing is remembered."""

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Compute the training loss.

        Args:
            batch: what the preprocessor gives, with two frames of the camera, (B, 2, 3, H, W).
            reduction: "mean"; pairs of which only one lies in the episode do not count.

        Returns:
            The loss, and what to log: its parts; `copy`, the error in pixels of not moving at all; the share of the
            codes in use, and their perplexity.

        Raises:
            ValueError: another `reduction`, or something is missing in the batch.
        """
        if reduction != "mean":
            raise ValueError(f"reduction: found {reduction!r}, expected 'mean'.")
        frames, valid = self.frames(batch), self.valid(batch)
        quantized = self.model.encode(frames)
        if self.training:
            self._count(quantized, valid)
        earlier, later = frames.unbind(1)
        decoded = self.model.decode(earlier, quantized.passed)
        weights = self.pixel_weights(batch) * valid[:, None, None, None]
        parts = {
            "pixel_loss": counted_mean((decoded.frame - later).square(), weights),
            "copy": counted_mean((earlier - later).square(), weights),
        }
        loss = parts["pixel_loss"]
        counts = valid[:, None, None]
        if decoded.features is not None:
            error = (decoded.features - self._feature_teacher()(later)).square()
            parts["feature_loss"] = counted_mean(error, counts)
            loss = loss + self.config.feature_weight * parts["feature_loss"]
        if decoded.flow is not None:
            error = (decoded.flow - self._flow_teacher()(earlier, later)).square()
            parts["flow_loss"] = counted_mean(error, counts)
            loss = loss + self.config.flow_weight * parts["flow_loss"]
        usage = self.model.usage
        logs = {name: value.item() for name, value in parts.items()}
        return loss, {"loss": loss.item(), **logs, "codes_used": usage.used, "perplexity": usage.perplexity}

    def describe(self) -> dict[str, Any]:
        """What must be equal for two models to mean the same by their codes, and what others must know of them."""
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
        """Latent actions of pairs of frames, of mean 0 and standard deviation 1, and whether both frames exist, (B,).

        Args:
            batch: with two frames of the camera, (B, 2, 3, H, W) in [0, 1].
        """
        self.eval()
        quantized = self.model.encode(self.frames(batch))
        vectors = self.model.usage.standardised(quantized.vectors)
        return quantized._replace(vectors=vectors), self.valid(batch)

    def frames(self, batch: dict[str, Any]) -> Tensor:
        """The two frames at the model's size, (B, 2, 3, h, w).

        Raises:
            ValueError: they are missing, or not two.
        """
        key, side = image_key(self.config.camera), self.config.image_size
        found = tuple(batch[key].shape) if key in batch else "none"
        if key not in batch or batch[key].ndim != 5 or batch[key].shape[1] != 2:
            raise ValueError(
                f"{key}: found {found}, expected two frames, (B, 2, 3, H, W), {self.config.gap_s} s apart."
            )
        pictures = batch[key].float()
        if pictures.shape[-2:] == (side, side):
            return pictures
        small = F.interpolate(pictures.flatten(0, 1), (side, side), mode="bilinear", antialias=True)
        return small.unflatten(0, (-1, 2))

    def valid(self, batch: dict[str, Any]) -> Tensor:
        """Pairs of which both frames lie in the episode, (B,)."""
        key = image_key(self.config.camera)
        pad = batch.get(f"{key}_is_pad")
        if pad is None:
            return torch.ones(len(batch[key]), dtype=torch.bool, device=batch[key].device)
        return ~pad.bool().any(1)

    def pixel_weights(self, batch: dict[str, Any]) -> Tensor:
        """What a pixel counts, (B, 1, h, w): 1 where one of the two frames shows what is asked for."""
        side = self.config.image_size
        if not self.config.mask_classes:
            return torch.ones(1, 1, 1, 1, device=batch[image_key(self.config.camera)].device)
        ids = resize_ids(resolve_perception(batch)[seg_key(self.config.camera)], (side, side))  # (B, 2, h, w)
        wanted = torch.tensor(self.config.mask_ids, device=ids.device, dtype=ids.dtype)
        shown = torch.isin(ids, wanted).any(1, keepdim=True)
        return torch.where(shown, 1.0, self.config.background_weight)

    def _count(self, quantized: Quantized, valid: Tensor) -> None:
        kept = Quantized(*(part[valid] for part in quantized))
        if len(kept.codes):
            self.model.usage.count(kept)
        self._steps += 1
        usage = self.model.usage
        if self._steps % _SETTLED == 0 and usage.used < _COLLAPSED:
            logger.warning(
                "codes: only %.1f %% of %d are in use after %d steps, and the latent actions say little. Try "
                "`--policy.quantizer=fsq`, fewer `--policy.levels`, a larger `--policy.gap_s`, or masks.",
                100 * usage.used,
                self.model.quantizer.codebook_size,
                self._steps,
            )

    def _feature_teacher(self) -> FeatureTeacher:
        if "features" not in self._teachers:
            self._teachers["features"] = FeatureTeacher(self.config.feature_model, self.config.grid)
        return self._teachers["features"]

    def _flow_teacher(self) -> FlowTeacher:
        if "flow" not in self._teachers:
            config = self.config
            self._teachers["flow"] = FlowTeacher(config.flow_model, config.flow_weights, config.grid)
        return self._teachers["flow"]

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> NoReturn:
        """There is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "hlrp_laq is no controller: it tells what was done between two frames. Train stage 2 or 3 with it, "
            "`--policy.type=hlrp --policy.laq=<this checkpoint>`, and run that."
        )

    predict_action_chunk = select_action


def check_dataset(config: Any, dataset: Any) -> None:
    """Refuse a dataset that pairs of frames cannot come from.

    Args:
        config: has `fps`, `gap_s` and `gap`.
        dataset: its metadata, or None if there is none.

    Raises:
        ValueError: another rate, or every episode is shorter than the gap.
    """
    if dataset is None:
        return
    if dataset.fps != config.fps:
        raise ValueError(
            f"fps: found {dataset.fps} Hz in the dataset, expected {config.fps} Hz, from which the gap of {config.gap_s} s "
            f"is counted. Train for its rate: `--policy.fps={dataset.fps}`."
        )
    longest = max(dataset.episodes["length"], default=0) if dataset.episodes is not None else None
    if longest is not None and longest <= config.gap:
        raise ValueError(
            f"gap_s: found {config.gap_s} s, {config.gap} frames, in a dataset whose longest episode has {longest} "
            f"frames; expected less than {longest / config.fps:.3g} s: `--policy.gap_s`."
        )
