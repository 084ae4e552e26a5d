# SPDX-License-Identifier: Apache-2.0
"""Configuration of stage 1: latent actions from video."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.utils.constants import OBS_IMAGES

from lerobot_processor_so101 import CLASS_NAMES, OBSERVED, ClassMap, check_choices, image_key, rgb_cameras
from lerobot_processor_so101.policy.presets import TrainingPresetMixin

from .laq.quantizers import QUANTIZERS
from .laq.teachers import FLOWS

PARTS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 16: (4, 4)}  # number of codes: rows and columns of parts


def frames_in(gap_s: float, fps: int) -> int:
    """Return the number of frames in a time.

    Raises:
        ValueError: if it is less than one; the message names `gap_s`.
    """
    frames = round(gap_s * fps)
    if frames < 1:
        raise ValueError(f"gap_s: found {gap_s} s at {fps} Hz, expected at least one frame, {1 / fps:.3g} s.")
    return frames


@PreTrainedConfig.register_subclass("hlrp_laq")
@dataclass
class HLRPLAQConfig(TrainingPresetMixin, PreTrainedConfig):
    """Configuration of the latent action model, which learns from video what changed between two frames.

    Args:
        camera: name of the camera.
        fps: frames per second of the dataset [Hz]; a dataset of another rate is rejected.
        gap_s: time between the two frames [s].
        codes: S, codes per pair of frames: 1, 2, 4 or 16, each for one part of the image.
        quantizer: `fsq` with `levels`, or `nsvq` with `codebook_size` and `code_dim`.
        mask_classes: classes whose pixels have full weight in the loss, among `class_names`; empty for all
            pixels.
        background_weight: weight of the other pixels.
        segmenter: source of the masks: "observation" for ids in the dataset, or a name that `make_segmenter`
            takes.
        class_names: classes of the segmenter; position = id.
        feature_model: folder or Hub id of a vision model whose features of the later frame are predicted too;
            empty for none.
        flow_model: `raft_small` or `raft_large` to predict optical flow too; empty for none.
        flow_weights: file of its weights; empty to download those of torchvision.

    Expert options, with defaults that rarely need a change:
        image_size: side that frames are resized to [pixels].
        patch_size: side of a patch [pixels].
        width, heads: of the transformers.
        spatial_layers, temporal_layers, decoder_layers: depths of the transformers.
        levels: of each dimension of an `fsq` code; their product is the number of different codes.
        codebook_size, code_dim: number and dimension of the `nsvq` codes.
        feature_weight, flow_weight: weights of these losses.
        feature_dim: C, of the feature model; filled in.
        optimizer_lr, optimizer_weight_decay, optimizer_grad_clip_norm: options of AdamW.
        scheduler_warmup_steps: warm-up of the cosine schedule, which ends at zero.

    Raises:
        ValueError: if a value is unknown or out of range, or two values contradict each other.
    """

    camera: str = "top"
    fps: int = 30
    gap_s: float = 0.5
    codes: int = 4
    quantizer: str = "fsq"
    mask_classes: list[str] = field(default_factory=list)
    background_weight: float = 0.05
    segmenter: str = OBSERVED
    class_names: list[str] = field(default_factory=lambda: list(CLASS_NAMES))
    feature_model: str = ""
    flow_model: str = ""
    flow_weights: str = ""

    image_size: int = 256
    patch_size: int = 32
    width: int = 512
    heads: int = 8
    spatial_layers: int = 4
    temporal_layers: int = 2
    decoder_layers: int = 4
    levels: list[int] = field(default_factory=lambda: [5, 5, 5])
    codebook_size: int = 128
    code_dim: int = 32
    feature_weight: float = 1.0
    flow_weight: float = 5.0
    feature_dim: int | None = None

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
                f"image_size: found {self.image_size} with patch_size = {self.patch_size}, expected a "
                f"multiple of {self.patch_size * max(PARTS[self.codes])}: {self.codes} codes need parts of "
                "equal size."
            )
        if self.width % self.heads:
            raise ValueError(f"heads: found {self.heads}, expected a divisor of width = {self.width}.")
        _ = self.gap, self.mask_ids  # raise if the gap is too short or a name is unknown

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image_size // self.patch_size

    @property
    def gap(self) -> int:
        """Frames from the earlier to the later one."""
        return frames_in(self.gap_s, self.fps)

    @property
    def mask_ids(self) -> list[int]:
        """Ids of `mask_classes`.

        Raises:
            ValueError: if a name is unknown.
        """
        return ClassMap(self.class_names, "class_names").ids(self.mask_classes)

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """The images of the camera; other cameras, masks and depth are not read."""
        key = image_key(self.camera)
        return {name: feature for name, feature in (self.input_features or {}).items() if name == key}

    def validate_features(self) -> None:
        """Check that the dataset has the camera; actions and state are not needed.

        Raises:
            ValueError: if it has not.
        """
        if not self.image_features:
            found = [key.removeprefix(f"{OBS_IMAGES}.") for key in rgb_cameras(self.input_features)]
            raise ValueError(
                f"camera: found {self.camera!r}, expected one of {sorted(found)}: `--policy.camera`."
            )

    @property
    def observation_delta_indices(self) -> list[int]:
        """The two frames."""
        return [0, self.gap]

    @property
    def action_delta_indices(self) -> None:
        """None: actions are not used."""
        return None
