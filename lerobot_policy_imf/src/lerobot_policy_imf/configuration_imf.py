# SPDX-License-Identifier: Apache-2.0
"""Configuration of the imf policy."""

import logging
from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE, OBS_STR

from lerobot_processor_so101 import check_choices, colour_cameras, image_key

from .head import RESIDUALS, check_blocks, check_heads
from .objectives import LOSSES, OBJECTIVES, SAMPLERS

SIGLIP2 = "google/siglip2-base-patch16-256"
CHOICES = {
    "residual": RESIDUALS,
    "objective": OBJECTIVES,
    "time_sampler": SAMPLERS,
    "loss": LOSSES,
}
VISION = f"{OBS_STR}.vision."

logger = logging.getLogger(__name__)


def vision_key(camera: str) -> str:
    """Key of what the frozen encoder has seen, (B, D), where a dataset has it from `so101-cache-vision`."""
    return f"{VISION}{camera}"


@PreTrainedConfig.register_subclass("imf")
@dataclass
class IMFConfig(PreTrainedConfig):
    """Configuration of a policy that sees several views through one frozen encoder and acts in one step.

    Args:
        n_obs_steps: observations it sees at once, of consecutive control periods.
        horizon: actions it predicts, from that of the oldest observation on.
        n_action_steps: of those, from the present one on, how many are carried out before it looks again.
        cameras: to look through; empty for all that have colours.

        vision_model_name: folder or Hub id of a SigLIP or SigLIP2 model of fixed resolution. Only read when a policy
            is built from scratch; a checkpoint has it in itself.
        vision_identity: of that model; filled in.
        vision_grid: 0 for the encoder's own pooled answer; g for the means of g x g cells of its patches, read by
            learned queries, which know better where things are.
        per_view_output_dim: numbers that are left of each view.
        instruction: condition on the task sentence, through the text half of the same model.
        cond_dim: of the condition that observations and instruction are projected to.

        n_emb, n_layer, n_head: width, depth and attention heads of the transformer.
        residual: what connects its sub-layers: `attnres_full`, `attnres_block` or `standard`.
        attnres_blocks: of `attnres_block`.
        time_max_frequency: of the embedding of times [rad per unit].

        objective: `imf`, `meanflow` or `flow_matching`; see `objectives.py`.
        time_sampler: `uniform` or `logit_normal`, with `time_mean` and `time_std`.
        time_mean, time_std: of the normal variable in it.
        same_time_share: of each batch, with r = t, where the objective is flow matching.
        endpoint_share: of each batch, with r = 0 and t = 1, where one-step inference is. More weight there leaves the slope
            beside it free, and does harm.
        flow_matching_steps: training steps in which averages are taken for velocities, before they learn to differ. What
            tells them is the network's own derivative, which is wrong while velocities are. Half of all is right, and
            this half of the seed's.
        loss: `pseudo_huber` with `huber_delta`, `adaptive` or `mse`.
        huber_delta: error above which the loss is linear, in units of the normalised action.
        num_inference_steps: evaluations of the network per chunk; any number, without training anew.
        noise_scale: of the noise that inference begins from, 1 in training. Half of it keeps actions near the middle of what
            was shown without giving up one of two ways (low-temperature sampling, 2211.15657).
        compile_model: compile the network for inference, which takes a minute at the first action.
        ema_decay: of the averaged weights that act; 0 turns averaging off.

        optimizer_lr, optimizer_betas, optimizer_weight_decay, optimizer_grad_clip_norm: of AdamW.
        scheduler_warmup_steps: of a cosine that ends at zero.

    Raises:
        ValueError: a value that cannot work, named with what was expected.
    """

    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    cameras: list[str] = field(default_factory=list)

    vision_model_name: str = SIGLIP2
    vision_identity: dict[str, Any] | None = None
    vision_grid: int = 0
    per_view_output_dim: int = 96
    instruction: bool = False
    cond_dim: int = 384

    n_emb: int = 384
    n_layer: int = 12
    n_head: int = 6
    residual: str = "attnres_full"
    attnres_blocks: int = 8
    time_max_frequency: float = 8.0

    objective: str = "imf"
    time_sampler: str = "uniform"
    time_mean: float = -0.4
    time_std: float = 1.0
    same_time_share: float = 0.5
    endpoint_share: float = 0.0
    flow_matching_steps: int = 25_000
    loss: str = "pseudo_huber"
    huber_delta: float = 1.0
    num_inference_steps: int = 1
    noise_scale: float = 0.5
    compile_model: bool = False
    ema_decay: float = 0.999

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
        check_choices(self, CHOICES)
        self._check_numbers()
        if self.objective == "flow_matching" and self.num_inference_steps == 1:
            logger.warning(
                "num_inference_steps: 1 with flow_matching, whose single step goes to the mean of all actions that were shown "
                "there; expected about 10. One step is what the objective imf is for."
            )
        if (
            self.time_sampler == "logit_normal"
            and self.endpoint_share > 0
            and self.objective != "flow_matching"
        ):
            logger.warning(
                "endpoint_share: %s with logit_normal, expected 0: nothing else is drawn near t = 1, so that du/dt is free there, "
                "and single steps are nonsense though the loss is small.",
                self.endpoint_share,
            )

    def _check_numbers(self) -> None:
        sizes = ("n_obs_steps", "n_action_steps", "per_view_output_dim", "cond_dim")
        for name in (*sizes, "n_emb", "n_layer", "n_head", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 1 or more.")
        for name in ("huber_delta", "time_std", "time_max_frequency"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected more than 0.")
        for name in ("vision_grid", "flow_matching_steps", "noise_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 or more.")
        if self.n_action_steps > self.horizon - self.n_obs_steps + 1:
            raise ValueError(
                f"n_action_steps: found {self.n_action_steps}, expected at most {self.horizon - self.n_obs_steps + 1}, "
                "horizon - n_obs_steps + 1: the first actions of a chunk belong to older observations."
            )
        check_heads(self.n_emb, self.n_head)
        if self.residual == "attnres_block":
            check_blocks(2 * self.n_layer, self.attnres_blocks)
        shares = (self.same_time_share, self.endpoint_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"same_time_share and endpoint_share: found {shares}, expected 0 or more each and at most 1 together."
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: found {self.ema_decay}, expected 0 up to less than 1.")

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """Cameras with colours. Masks and depth, which LeRobot stores as pictures too, are none."""
        return colour_cameras(self.input_features)

    def validate_features(self) -> None:
        """Find the cameras, and check that the dataset or environment has what the policy reads.

        Raises:
            ValueError: it has not; the message names the key, what was found and what to do.
        """
        declared = self.input_features or {}
        seen = [key.removeprefix(f"{OBS_IMAGES}.") for key in self.image_features]
        cached = [key.removeprefix(VISION) for key in declared if key.startswith(VISION)]
        self.cameras = list(self.cameras) or sorted({*seen, *cached})
        if OBS_STATE not in declared or ACTION not in (self.output_features or {}):
            raise ValueError(
                f"imf reads {OBS_STATE!r} and predicts {ACTION!r}; found {sorted(declared)} and "
                f"{sorted(self.output_features or {})}."
            )
        missing = [camera for camera in self.cameras if camera not in seen + cached]
        if missing or not self.cameras:
            raise ValueError(
                f"cameras: found {self.cameras}, expected some of {sorted({*seen, *cached})}, which have colours "
                f"('{OBS_IMAGES}.<camera>') or cached features ('{VISION}<camera>')."
            )

    @property
    def used_features(self) -> dict[str, PolicyFeature]:
        """The input features the policy reads; a dataset may have others.

        Pictures are declared though a dataset may have only what was cached of them: LeRobot compares their names with
        those of datasets, environments and robots.
        """
        declared = self.input_features or {}
        picture = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 256, 256))
        pictures = {image_key(camera): declared.get(image_key(camera), picture) for camera in self.cameras}
        return {OBS_STATE: declared[OBS_STATE], **pictures}

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return AdamW with gradient clipping, which the derivative's outliers need."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig:
        """Return a cosine that reaches zero at the last step, whatever `--steps` is."""
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    @property
    def observation_delta_indices(self) -> list[int]:
        """The observations it sees, oldest first."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """The actions it predicts, from that of the oldest observation on."""
        return list(range(1 - self.n_obs_steps, 1 - self.n_obs_steps + self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None
