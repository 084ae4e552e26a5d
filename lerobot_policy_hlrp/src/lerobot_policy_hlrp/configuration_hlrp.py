# SPDX-License-Identifier: Apache-2.0
"""Configuration of stages 2 and 3: a shared trunk that learns from latent actions, and a robot's policy."""

from dataclasses import dataclass
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import ACTION

from lerobot_processor_so101 import check_choices, colour_cameras

from .configuration_hlrp_laq import frames_in

STAGES = ("foundation", "policy")
HEADS = ("expert", "pooled_mlp")
MODES = ("codes", "actions", "latent_flow", "multitask")
ACTION_KINDS = ("absolute", "delta")


@PreTrainedConfig.register_subclass("hlrp")
@dataclass
class HLRPConfig(SmolVLAConfig):
    """Configuration of a SmolVLA that also predicts what will be done in the next moment, as a latent action.

    Fields beside SmolVLA's:

    Args:
        stage: `foundation` (2) learns from latent actions, and actions where there are any; `policy` (3) from a robot's.
        head: `expert`, SmolVLA's action expert, which predicts both by flow; or `pooled_mlp`, the seed's: small heads on
            the mean of what the trunk makes of picture and sentence.
        training_mode: what is learned: `multitask` (both), `latent_flow`, `actions`, or with `pooled_mlp` also `codes`.
            Empty: `multitask` in the foundation, `actions` in the policy.
        init_from: folder or Hub id of a stage 2 or SmolVLA checkpoint whose weights to start from.

        laq: folder or Hub id of the `hlrp_laq` that says what was done, while training; it is in no checkpoint.
        latent_labels: file of `so101-laq-label`, in its place.
        laq_identity: of that model; filled in.
        fps: of the dataset [Hz]; another is refused.
        gap_s: time until the frame that a latent action leads to [s]; the model's.

        labelled_episodes: episodes whose actions may be learned from; None for all. The others are video.
        action_weight, latent_weight: of the two losses.
        latent_steps: evaluations of the network per sampled latent action.
        action_kind: for `pooled_mlp`, which predicts what actions come to over the gap: `absolute` (the last) or
            `delta` (their sum).
        pooled_width: of the latent head of `pooled_mlp`.

    Raises:
        ValueError: a value that cannot work, named with what was expected.
    """

    stage: str = "policy"
    head: str = "expert"
    training_mode: str = ""
    init_from: str = ""

    laq: str = ""
    latent_labels: str = ""
    laq_identity: dict[str, Any] | None = None
    fps: int = 30
    gap_s: float = 0.5

    labelled_episodes: list[int] | None = None
    action_weight: float = 1.0
    latent_weight: float = 1.0
    latent_steps: int = 8
    action_kind: str = "absolute"
    pooled_width: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.training_mode:
            self.training_mode = "multitask" if self.stage == "foundation" else "actions"
        check_choices(
            self, {"stage": STAGES, "head": HEADS, "training_mode": MODES, "action_kind": ACTION_KINDS}
        )
        if self.training_mode == "codes" and self.head != "pooled_mlp":
            raise ValueError(
                "training_mode: found 'codes' with head = 'expert', expected latent_flow: codes are for pooled_mlp."
            )
        if self.stage == "policy" and not self.learns_actions:
            raise ValueError(
                f"training_mode: found {self.training_mode!r} in stage = 'policy', expected actions or multitask: a "
                "robot's policy that learns no actions cannot act. For latent actions alone: `--policy.stage=foundation`."
            )
        if self.laq and self.latent_labels:
            raise ValueError(
                f"laq and latent_labels: found both ({self.laq!r}, {self.latent_labels!r}), expected one of them."
            )
        _ = self.gap  # one too short fails here
        if self.head == "pooled_mlp":
            self.train_expert_only = self.freeze_vision_encoder = False  # there is no expert to train

    @property
    def gap(self) -> int:
        """Frames until the one that a latent action leads to."""
        return frames_in(self.gap_s, self.fps)

    @property
    def learns_actions(self) -> bool:
        """Whether actions are learned."""
        return self.training_mode in ("actions", "multitask")

    @property
    def learns_latents(self) -> bool:
        """Whether latent actions are learned."""
        return self.training_mode != "actions"

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """Cameras with colours. Masks and depth, which LeRobot stores as pictures too, are none."""
        return colour_cameras(self.input_features)

    @property
    def used_features(self) -> dict[str, PolicyFeature]:
        """The input features that the policy reads: a robot need not have the masks of the dataset."""
        return {
            key: feature
            for key, feature in (self.input_features or {}).items()
            if key in self.image_features or feature.type is not FeatureType.VISUAL
        }

    def validate_features(self) -> None:
        """Check that there is something to see, and actions if they are to be learned.

        Raises:
            ValueError: there is not.
        """
        super().validate_features()
        if not self.image_features:
            raise ValueError(f"hlrp looks at colour pictures; found {sorted(self.input_features or {})}.")
        if self.learns_actions and ACTION not in (self.output_features or {}):
            raise ValueError(
                f"training_mode: found {self.training_mode!r} with a dataset that has no {ACTION!r}, expected "
                "`--policy.training_mode=latent_flow`, or a dataset with actions."
            )

    @property
    def observation_delta_indices(self) -> list[int]:
        """The present, and for a model that looks while training the frame that it compares with."""
        return [0, self.gap] if self.learns_latents and self.laq else [0]
