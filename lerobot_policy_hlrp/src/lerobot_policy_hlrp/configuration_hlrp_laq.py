# SPDX-License-Identifier: Apache-2.0
"""Configuration of stage 1: latent actions from video."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import OBS_IMAGES

from lerobot_processor_so101 import CLASS_NAMES, OBSERVED, ClassMap, check_choices, colour_cameras, image_key

from .latent_actions import PARTS
from .quantizers import QUANTIZERS
from .teachers import FLOWS


def frames_in(gap_s: float, fps: int) -> int:
    """Frames that pass in a time.

    Raises:
        ValueError: it is less than one; the message names `gap_s`.
    """
    frames = round(gap_s * fps)
    if frames < 1:
        raise ValueError(f"gap_s: found {gap_s} s at {fps} Hz, expected at least one frame, {1 / fps:.3g} s.")
    return frames


@PreTrainedConfig.register_subclass("hlrp_laq")
@dataclass
class HLRPLAQConfig(PreTrainedConfig):
    """Configuration of the latent action model, which learns from video what has been done between two frames.

    Args:
        camera: whose frames.
        fps: of the dataset [Hz]; another is refused.
        gap_s: time between the two frames [s].

        image_size: side that frames are resized to, in pixels.
        patch_size: side of a patch.
        width, heads: of the transformers.
        spatial_layers, temporal_layers, decoder_layers: their depths.

        codes: S, per pair of frames: 1, 2, 4 or 16, each for a part of the picture.
        quantizer: `fsq` with `levels`, or `nsvq` with `codebook_size` and `code_dim`.
        levels: of each number of a code; their product is the number of codes.
        codebook_size, code_dim: number of codes, and numbers of each.

        mask_classes: what the pixels to be predicted belong to, by names among `class_names`; empty for all alike.
        background_weight: of all other pixels.
        segmenter: who tells: "observation" for ids in the dataset, or a name that `make_segmenter` knows.
        class_names: of the segmenter; position = id.

        feature_model: folder or Hub id of a vision model whose features of the later frame are predicted too; empty for
            none.
        feature_dim: of that model; filled in.
        feature_weight: of that loss.
        flow_model: `raft_small` or `raft_large`, to predict optical flow too; empty for none.
        flow_weights: a file of its weights; empty to download torchvision's.
        flow_weight: of that loss.

        optimizer_lr, optimizer_weight_decay, optimizer_grad_clip_norm: of AdamW.
        scheduler_warmup_steps: of a cosine that ends at zero.

    Raises:
        ValueError: a value that cannot work, named with what was expected.
    """

    camera: str = "top"
    fps: int = 30
    gap_s: float = 0.5

    image_size: int = 256
    patch_size: int = 32
    width: int = 512
    heads: int = 8
    spatial_layers: int = 4
    temporal_layers: int = 2
    decoder_layers: int = 4

    codes: int = 4
    quantizer: str = "fsq"
    levels: list[int] = field(default_factory=lambda: [5, 5, 5])
    codebook_size: int = 128
    code_dim: int = 32

    mask_classes: list[str] = field(default_factory=list)
    background_weight: float = 0.05
    segmenter: str = OBSERVED
    class_names: list[str] = field(default_factory=lambda: list(CLASS_NAMES))

    feature_model: str = ""
    feature_dim: int | None = None
    feature_weight: float = 1.0
    flow_model: str = ""
    flow_weights: str = ""
    flow_weight: float = 5.0

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {"VISUAL": NormalizationMode.IDENTITY}
    )

    optimizer_lr: float = 1e-4
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, {"quantizer": QUANTIZERS, "codes": tuple(PARTS), "flow_model": ("", *FLOWS)})
        if self.image_size % self.patch_size or self.grid % max(PARTS[self.codes]):
            raise ValueError(
                f"image_size: found {self.image_size} with patch_size = {self.patch_size}, expected a multiple of "
                f"{self.patch_size * max(PARTS[self.codes])}: {self.codes} codes look at parts of equal size."
            )
        if self.width % self.heads:
            raise ValueError(f"heads: found {self.heads}, expected a divisor of width = {self.width}.")
        _ = self.gap, self.mask_ids  # a gap too short and unknown names fail here

    @property
    def grid(self) -> int:
        """Patches in a row."""
        return self.image_size // self.patch_size

    @property
    def gap(self) -> int:
        """Frames from the earlier to the later one."""
        return frames_in(self.gap_s, self.fps)

    @property
    def mask_ids(self) -> list[int]:
        """Ids of the classes whose pixels count.

        Raises:
            ValueError: an unknown name.
        """
        return ClassMap(self.class_names, "class_names").ids(self.mask_classes)

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """The camera. Others, and masks and depth, which LeRobot stores as pictures too, are not looked at."""
        key = image_key(self.camera)
        return {name: feature for name, feature in (self.input_features or {}).items() if name == key}

    def validate_features(self) -> None:
        """Check that the dataset has the camera; actions and state are not needed.

        Raises:
            ValueError: it has not.
        """
        if not self.image_features:
            found = [key.removeprefix(f"{OBS_IMAGES}.") for key in colour_cameras(self.input_features)]
            raise ValueError(
                f"camera: found {self.camera!r}, expected one of {sorted(found)}: `--policy.camera`."
            )

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return AdamW."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig:
        """Return a cosine that reaches zero at the last step, whatever `--steps` is."""
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    @property
    def observation_delta_indices(self) -> list[int]:
        """The two frames."""
        return [0, self.gap]

    @property
    def action_delta_indices(self) -> None:
        """No actions."""
        return None

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None
