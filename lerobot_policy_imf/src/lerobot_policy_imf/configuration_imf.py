# SPDX-License-Identifier: Apache-2.0
"""Configuration of the imf policy."""

import logging
from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE, OBS_STR

from lerobot_processor_so101 import DatasetLookupMixin, check_choices, image_key
from lerobot_processor_so101.config_checks import check_smallest
from lerobot_processor_so101.policy.presets import RGBCamerasMixin, TrainingPresetMixin

from .head import check_sizes
from .objectives import LOSSES, OBJECTIVES, SAMPLERS

SIGLIP2 = "google/siglip2-base-patch16-256"
VISION = f"{OBS_STR}.vision."

logger = logging.getLogger(__name__)


def vision_key(camera: str) -> str:
    """Return the key of a camera's cached encoder features, (B, D), which `so101-cache-vision` writes."""
    return f"{VISION}{camera}"


@PreTrainedConfig.register_subclass("imf")
@dataclass
class IMFConfig(RGBCamerasMixin, TrainingPresetMixin, DatasetLookupMixin, PreTrainedConfig):
    """Configuration of a policy that encodes views with one frozen encoder and predicts a chunk in one step.

    Args:
        cameras: names of the views; empty for all RGB cameras of the dataset.
        instruction: condition on the task sentence, through the text tower of the vision model.
        n_obs_steps: observations per prediction, of consecutive control periods.
        horizon: actions per prediction, beginning with that of the oldest observation.
        n_action_steps: actions executed before the next prediction, beginning with the current one; at most
            horizon - n_obs_steps + 1.
        vision_model_name: folder or Hub id of a SigLIP or SigLIP2 model of fixed resolution. Only read when a
            policy is built from scratch: a checkpoint contains the encoder.
        vision_grid: 0 for the encoder's pooled output; g for the means of g x g cells of its patches, read by
            learned queries. The default is 0; for tasks that need positions, such as grasping, docs/imf.md
            recommends 4.
        per_view_output_dim: features per view after projection.
        objective: `imf`, `meanflow` or `flow_matching`; see `objectives.py`.
        flow_matching_steps: training steps before the derivative du/dt enters the loss; until then average
            velocities have the instantaneous velocity as target. Set it to half of `--steps`: it is an
            absolute number, and the default is half of the 50,000 steps of the configurations `imf_views*`. A
            shorter training with the default never learns averages.
        num_inference_steps: network evaluations per chunk; any number, also for a trained checkpoint. The
            default is 1; docs/imf.md recommends 2 unless the extra evaluation is too slow.
        noise_scale: standard deviation of the noise that inference starts from; training uses 1. Smaller
            values keep actions near the middle of the demonstrations (low-temperature sampling, 2211.15657).
        compile_model: compile the network for inference, which takes a minute at the first action.

    Expert options, with defaults that rarely need a change:
        cond_dim: width of a condition token.
        n_emb, n_layer, n_head: width, depth and attention heads of the transformer.
        residual: connection of its sub-layers: `attnres_full`, `attnres_block` or `standard`.
        attnres_blocks: number of blocks of `attnres_block`.
        time_max_frequency: highest frequency of the time embedding [rad per unit of flow time].
        time_sampler: `uniform` or `logit_normal`.
        time_mean, time_std: parameters of `logit_normal`.
        same_time_share: share of each batch with r = t, where the objective is flow matching.
        endpoint_share: share of each batch with r = 0 and t = 1, the times of one-step inference. More weight
            there leaves du/dt beside it unconstrained and lowered success rates.
        loss: `pseudo_huber`, `adaptive` or `mse`.
        huber_delta: error above which `pseudo_huber` is linear, in units of the normalised action.
        ema_decay: decay of the averaged weights that inference uses; 0 turns averaging off.
        vision_identity: identity of the vision model; filled in.
        optimizer_lr, optimizer_betas, optimizer_weight_decay, optimizer_grad_clip_norm: options of AdamW.
        scheduler_warmup_steps: warm-up of the cosine schedule, which ends at zero.

    Raises:
        ValueError: if a value is out of range or two values contradict each other.
    """

    cameras: list[str] = field(default_factory=list)
    instruction: bool = False
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    vision_model_name: str = SIGLIP2
    vision_grid: int = 0
    per_view_output_dim: int = 96
    objective: str = "imf"
    flow_matching_steps: int = 25_000
    num_inference_steps: int = 1
    noise_scale: float = 0.5
    compile_model: bool = False

    cond_dim: int = 384
    n_emb: int = 384
    n_layer: int = 12
    n_head: int = 6
    residual: str = "attnres_full"
    attnres_blocks: int = 8
    time_max_frequency: float = 8.0
    time_sampler: str = "uniform"
    time_mean: float = -0.4
    time_std: float = 1.0
    same_time_share: float = 0.5
    endpoint_share: float = 0.0
    loss: str = "pseudo_huber"
    huber_delta: float = 1.0
    ema_decay: float = 0.999
    vision_identity: dict[str, Any] | None = None

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MIN_MAX,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )

    optimizer_lr: float = 1e-4
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_weight_decay: float = 1e-6
    optimizer_grad_clip_norm: float = 5.0
    scheduler_warmup_steps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, {"objective": OBJECTIVES, "time_sampler": SAMPLERS, "loss": LOSSES})
        self._check_numbers()
        if self.objective == "flow_matching" and self.num_inference_steps == 1:
            logger.warning(
                "num_inference_steps: found 1 with flow_matching, whose single step predicts the mean of all "
                "demonstrated actions; expected about 10. The objective for one step is imf."
            )
        averages = self.objective != "flow_matching"
        if averages and self.time_sampler == "logit_normal" and self.endpoint_share > 0:
            logger.warning(
                "endpoint_share: found %s with logit_normal, expected 0: no other times are drawn near t = "
                "1, so du/dt is unconstrained there and single steps are wrong although the loss is small.",
                self.endpoint_share,
            )

    def _check_numbers(self) -> None:
        steps = ("n_obs_steps", "n_action_steps", "num_inference_steps")
        sizes = ("per_view_output_dim", "cond_dim", "n_emb", "n_layer", "n_head")
        check_smallest(self, dict.fromkeys((*steps, *sizes), 1))
        for name in ("huber_delta", "time_std", "time_max_frequency"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected more than 0.")
        check_smallest(self, dict.fromkeys(("vision_grid", "flow_matching_steps", "noise_scale"), 0))
        most = self.horizon - self.n_obs_steps + 1
        if self.n_action_steps > most:
            raise ValueError(
                f"n_action_steps: found {self.n_action_steps}, expected at most {most}, horizon - "
                "n_obs_steps + 1: the first actions of a chunk belong to older observations."
            )
        check_sizes(self.n_emb, self.n_layer, self.n_head, self.residual, self.attnres_blocks)
        shares = (self.same_time_share, self.endpoint_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"same_time_share and endpoint_share: found {shares}, expected 0 or more each and at most 1 "
                "together."
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: found {self.ema_decay}, expected 0 up to less than 1.")

    def validate_features(self) -> None:
        """Set the cameras, and check that the dataset or environment provides what the policy reads.

        Raises:
            ValueError: if state, action or a camera is missing; the message names the key.
        """
        declared = self.input_features or {}
        recorded = [key.removeprefix(f"{OBS_IMAGES}.") for key in self.image_features]
        cached = [key.removeprefix(VISION) for key in declared if key.startswith(VISION)]
        available = sorted({*recorded, *cached})
        self.cameras = list(self.cameras) or available
        if OBS_STATE not in declared or ACTION not in (self.output_features or {}):
            raise ValueError(
                f"imf reads {OBS_STATE!r} and predicts {ACTION!r}; found {sorted(declared)} and "
                f"{sorted(self.output_features or {})}."
            )
        if not self.cameras or not set(self.cameras) <= set(available):
            raise ValueError(
                f"cameras: found {self.cameras}, expected some of {available}, which have RGB images "
                f"('{OBS_IMAGES}.<camera>') or cached features ('{VISION}<camera>')."
            )

    @property
    def used_features(self) -> dict[str, PolicyFeature]:
        """The input features that the policy reads; a dataset may have others.

        Images are declared even if the dataset has only cached features: LeRobot compares their names with
        those of datasets, environments and robots.
        """
        declared = self.input_features or {}
        default = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 256, 256))
        images = {image_key(camera): declared.get(image_key(camera), default) for camera in self.cameras}
        return {OBS_STATE: declared[OBS_STATE], **images}

    @property
    def observation_delta_indices(self) -> list[int]:
        """Offsets of the observations, oldest first."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def chunk_delta_indices(self) -> list[int]:
        """Offsets of the predicted actions, beginning with that of the oldest observation."""
        return list(range(1 - self.n_obs_steps, 1 - self.n_obs_steps + self.horizon))
