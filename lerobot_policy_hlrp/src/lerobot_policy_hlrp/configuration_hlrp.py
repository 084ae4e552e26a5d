# SPDX-License-Identifier: Apache-2.0
"""Configuration of stages 2 and 3: a SmolVLA that learns latent actions, and a robot's policy from it."""

from dataclasses import dataclass
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import ACTION

from lerobot_processor_so101 import DatasetLookupMixin, check_choices
from lerobot_processor_so101.policy.presets import RGBCamerasMixin

from .configuration_hlrp_laq import frames_in

STAGES = ("foundation", "policy")
HEADS = ("expert", "pooled_mlp")
MODES = ("codes", "actions", "latent_flow", "multitask")
ACTION_KINDS = ("absolute", "delta")


@PreTrainedConfig.register_subclass("hlrp")
@dataclass
class HLRPConfig(RGBCamerasMixin, DatasetLookupMixin, SmolVLAConfig):
    """Configuration of a SmolVLA that also predicts the latent action between the current and a later frame.

    Args, beside those of SmolVLA:
        stage: `foundation` (stage 2) learns latent actions, and actions where labelled; `policy` (stage 3)
            learns the actions of one robot.
        init_from: folder or Hub id of a checkpoint of stage 2 or of SmolVLA with the initial weights.
        laq: folder or Hub id of the `hlrp_laq` model that labels frames with latent actions during training.
            No checkpoint contains it, and inference does not need it.
        latent_labels: file of `so101-laq-label`, instead of `laq`.
        labelled_episodes: episodes whose actions are learned; None for all. The others count as video: only
            their latent actions are learned, but their joint states are still read.
        fps: frames per second of the dataset [Hz]; a dataset of another rate is rejected.
        gap_s: time from the current frame to the later one of a latent action [s]; that of the `hlrp_laq`
            model.
        head: `expert` predicts actions and latent actions by flow matching in SmolVLA's action expert;
            `pooled_mlp` is the early design of the repository high-level-robot-planner, small heads on the
            mean of the trunk's output.
        training_mode: `multitask` (actions and latent actions), `latent_flow`, `actions`, or with
            `pooled_mlp` also `codes`. Empty: `multitask` in the foundation, `actions` in the policy.

    Expert options, with defaults that rarely need a change:
        action_weight, latent_weight: weights of the two losses.
        latent_steps: network evaluations per predicted latent action.
        action_kind: target of the action head of `pooled_mlp`: `absolute`, the last action within the gap, or
            `delta`, the sum of actions over it.
        pooled_width: hidden width of the latent head of `pooled_mlp`.
        laq_identity: identity of the `hlrp_laq` model; filled in.

    Raises:
        ValueError: if a value is unknown or two values contradict each other.
    """

    stage: str = "policy"
    init_from: str = ""
    laq: str = ""
    latent_labels: str = ""
    labelled_episodes: list[int] | None = None
    fps: int = 30
    gap_s: float = 0.5
    head: str = "expert"
    training_mode: str = ""

    action_weight: float = 1.0
    latent_weight: float = 1.0
    latent_steps: int = 8
    action_kind: str = "absolute"
    pooled_width: int = 1024
    laq_identity: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.training_mode:
            self.training_mode = "multitask" if self.stage == "foundation" else "actions"
        check_choices(
            self, {"stage": STAGES, "head": HEADS, "training_mode": MODES, "action_kind": ACTION_KINDS}
        )
        if self.training_mode == "codes" and self.head != "pooled_mlp":
            raise ValueError(
                "training_mode: found 'codes' with head = 'expert', expected latent_flow: codes are for "
                "pooled_mlp."
            )
        if self.stage == "policy" and not self.learns_actions:
            raise ValueError(
                f"training_mode: found {self.training_mode!r} in stage = 'policy', expected actions or "
                "multitask: a policy that learns no actions cannot act. For latent actions alone: "
                "`--policy.stage=foundation`."
            )
        if self.laq and self.latent_labels:
            raise ValueError(
                f"laq and latent_labels: found both ({self.laq!r}, {self.latent_labels!r}), expected one of "
                "them."
            )
        _ = self.gap  # raises if it is too short
        if self.head == "pooled_mlp":
            self.train_expert_only = self.freeze_vision_encoder = False  # there is no expert to train

    @property
    def gap(self) -> int:
        """Frames from the current one to the later one of a latent action."""
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
    def used_features(self) -> dict[str, PolicyFeature]:
        """The input features without masks and depth, which a robot need not have."""
        return {
            key: feature
            for key, feature in (self.input_features or {}).items()
            if key in self.image_features or feature.type is not FeatureType.VISUAL
        }

    def validate_features(self) -> None:
        """Check that there are RGB images, and actions if they are learned.

        Raises:
            ValueError: if either is missing.
        """
        super().validate_features()
        if not self.image_features:
            raise ValueError(f"hlrp reads RGB images; found {sorted(self.input_features or {})}.")
        if self.learns_actions and ACTION not in (self.output_features or {}):
            raise ValueError(
                f"training_mode: found {self.training_mode!r} with a dataset that has no {ACTION!r}, "
                "expected `--policy.training_mode=latent_flow`, or a dataset with actions."
            )

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """The current frame and the later one if an `hlrp_laq` model labels it; None for the current one."""
        return [0, self.gap] if self.learns_latents and self.laq else None
