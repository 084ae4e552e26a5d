# SPDX-License-Identifier: Apache-2.0
"""The segvla policy: SmolVLA conditioned on segmentation.

What is unusual compared with LeRobot's SmolVLA:
- Scores of a segmenter enter at three points: on the patch features of each camera (or as extra tokens per
  camera), on the state's token (geometry), and on the embedding of the flow's time (context).
- With `residual`, the default, all that is new adds zero at first and the sequence keeps its length: on a
  pretrained SmolVLA the first actions are SmolVLA's to the last bit.
- Without cues only upstream code runs. Its parameters keep their names; ours are added under `model.cues`.
- Cues are arguments, never state of a module: upstream's lists of images carry a `CameraInput` for each
  camera with scores, and its `timestep` carries a `ConditionedTime`.

Shapes: B samples, V cameras with scores, N patches of width D, M image tokens of width W, T cue tokens,
L tokens of the prefix, H actions per chunk, A action dimensions, E width of the action expert, G length of
the geometry vector.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding, make_att_2d_masks
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, VLAFlowMatching
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from lerobot_processor_so101 import checkpoint_folder, resolve_perception
from lerobot_processor_so101.policy.smolvla_checkpoint import (
    SmolVLACheckpointMixin,
    load_weights,
    take_architecture,
    vlm_files,
)

from .configuration_segvla import SegVLAConfig
from .cues import CameraInput, Cues, SegmentationCueBuilder
from .explain import draw_cues
from .segmentation_step import MENTIONED, missing_scores


class VisionFeatures(NamedTuple):
    """All cameras, encoded with their cues.

    Attributes:
        image_tokens: (B, M, W) per camera, cue tokens included.
        context: (B, E), added to the embedding of the flow's time.
        geometry: (B, V, G); None without geometry classes.
    """

    image_tokens: list[Tensor]
    context: Tensor
    geometry: Tensor | None


class ConditionedTime(NamedTuple):
    """A time of the flow with its context; upstream's `denoise_step` passes it on to `embed_suffix`.

    Attributes:
        time: (B,) in [0, 1], 1 is noise.
        context: (B, E).
    """

    time: Tensor
    context: Tensor


class CueInjection(nn.Module):
    """Encode all cameras with their cues; holds every layer that segvla adds to SmolVLA.

    Args:
        config: of the policy.
        vlm: the model whose widths the layers must fit.

    Raises:
        ValueError: if the number of cue tokens does not fit the connector.
    """

    def __init__(self, config: SegVLAConfig, vlm: SmolVLMWithExpertModel) -> None:
        super().__init__()
        vision, width = vlm.config.vision_config, vlm.config.text_config.hidden_size
        dim = vision.hidden_size
        self.injection = config.segmentation_injection
        self.dropout = config.segmentation_dropout_prob
        # SmolVLM's connector merges scale_factor x scale_factor neighbouring patches into one token.
        self.per_token = vlm.config.scale_factor**2
        if self.injection == "connector" and config.segmentation_max_tokens % self.per_token:
            raise ValueError(
                f"segmentation_max_tokens: found {config.segmentation_max_tokens}, expected a multiple of "
                f"{self.per_token}: the connector of {config.vlm_model_name!r} merges so many into one token."
            )
        box_width, box_height = config.resize_imgs_with_padding or (vision.image_size, vision.image_size)
        grid = (box_height // vision.patch_size, box_width // vision.patch_size)
        self.build = SegmentationCueBuilder(config, dim, grid, (box_height, box_width))
        self.context_proj = _zero(nn.Linear(dim, vlm.expert_hidden_size))
        if self.injection == "residual":
            self.patch_proj = nn.Linear(dim, dim)
            # The gate is zero and the projection is not: with both at zero neither would get a gradient.
            self.patch_gate = nn.Parameter(torch.zeros(dim))
            if config.geometry_slots:
                numbers = len(config.segmentation_feature_map) * config.segmentation_geometry_state_dim
                self.geometry_proj = _zero(nn.Linear(numbers, width))
        else:
            self.null_tokens = nn.Parameter(torch.zeros(config.segmentation_max_tokens, dim))
        if self.injection == "tokens":
            self.token_proj = nn.Linear(dim, width)

    def forward(self, vlm: SmolVLMWithExpertModel, images: Sequence[Tensor | CameraInput]) -> VisionFeatures:
        """Encode all cameras.

        Args:
            vlm: with the vision tower and the connector; an argument, so that it is not registered twice.
            images: one per camera, (B, 3, H, W) in [-1, 1]; at least one with scores.
        """
        keep = self._draw_keep(images)  # (B, 1)
        image_tokens, summaries, geometry = [], [], []
        for image in images:
            if not isinstance(image, CameraInput):
                image_tokens.append(vlm.embed_image(image))
                continue
            # 1. vision tower: (B, 3, H, W) -> (B, N, D)
            patches = patch_features(vlm, image.pixels)
            # 2. cues from patch features and scores: (B, T, D) tokens, (B, G) geometry
            cues = self.build(patches, image)
            # 3. connector, with the cues: (B, N, D) -> (B, M, W)
            image_tokens.append(self._inject(vlm, patches, cues, keep[..., None]))
            summaries.append(cues.summary())
            if cues.geometry is not None:
                geometry.append(cues.geometry)
        # 4. context: mean over cameras of the cue tokens, (B, D) -> (B, E)
        context = self.context_proj(torch.stack(summaries).mean(0)) * keep
        # 5. geometry of all cameras: (B, V, G)
        stacked = torch.stack(geometry, 1) * keep[..., None] if geometry else None
        return VisionFeatures(image_tokens, context, stacked)

    def _draw_keep(self, images: Sequence[Tensor | CameraInput]) -> Tensor:
        """Draw which samples keep their cues, (B, 1) of 0 or 1, once for all cameras and kinds of cues."""
        like = next(image.pixels for image in images if isinstance(image, CameraInput))
        if not self.training or not self.dropout:
            return torch.ones(len(like), 1, device=like.device)
        return (torch.rand(len(like), 1, device=like.device) >= self.dropout).float()

    def _inject(self, vlm: SmolVLMWithExpertModel, patches: Tensor, cues: Cues, keep: Tensor) -> Tensor:
        """Return the image tokens of a camera with its cues: (B, N, D) -> (B, M, W).

        Withheld cues leave the length of the sequence unchanged, since all samples of a batch share it.
        """
        connector = vlm.get_vlm_model().connector
        if self.injection == "residual":
            # Each patch receives the tokens with evidence on it: (B, N, T) @ (B, T, D) -> (B, N, D).
            added = self.patch_gate * self.patch_proj(cues.evidence.mT @ cues.tokens) * keep
            return connector(patches + added.to(patches.dtype))
        tokens = torch.lerp(self.null_tokens, cues.tokens, keep)  # (B, T, D), null tokens where keep is 0
        if self.injection == "tokens":
            extra = self.token_proj(tokens)  # (B, T, W)
        else:  # as many cue tokens at once as the connector merges patches
            rows = tokens.unflatten(1, (-1, self.per_token)).flatten(2)  # (B, T / 16, 16 D)
            extra = connector.modality_projection(rows.to(patches.dtype))  # (B, T / 16, W)
        image_tokens = connector(patches)
        return torch.cat([image_tokens, extra.to(image_tokens)], 1)


class SegVLAFlowMatching(VLAFlowMatching):
    """SmolVLA's flow matching network with cues."""

    def __init__(self, config: SegVLAConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if config.uses_cues:
            self.cues = CueInjection(config, self.vlm_with_expert)

    def forward(
        self,
        images: Sequence[Tensor | CameraInput],
        img_masks: Sequence[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        actions: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """Return the squared errors of the predicted velocity, (B, H, A).

        Args:
            images: one per camera, (B, 3, H, W) in [-1, 1], with or without scores.
            img_masks: (B,) per camera.
            lang_tokens: (B, tokens).
            lang_masks: (B, tokens).
            state: (B, max_state_dim).
            actions: (B, H, A).
            noise: (B, H, A).
            time: (B,).
        """
        if not _has_scores(images):
            return super().forward(images, img_masks, lang_tokens, lang_masks, state, actions, noise, time)
        # 1. interpolate between actions (time 0) and noise (time 1): (B, H, A)
        noise = self.sample_noise(actions.shape, actions.device) if noise is None else noise
        time = self.sample_time(actions.shape[0], actions.device) if time is None else time
        along = time[:, None, None]
        noisy_actions = along * noise + (1 - along) * actions
        # 2. encode cameras with their cues: (B, 3, H, W) -> (B, M, W) each
        vision = self.cues(self.vlm_with_expert, images)
        # 3. embed images, language and state as prefix (B, L, W), noisy actions and time as suffix (B, H, E)
        prefix = self.embed_conditioned_prefix(vision, img_masks, lang_tokens, lang_masks, state)
        suffix = self.embed_suffix(noisy_actions, ConditionedTime(time, vision.context))
        pads, attention = (torch.cat(masks, 1) for masks in zip(prefix[1:], suffix[1:], strict=True))
        # 4. run VLM and action expert side by side: (B, L, W), (B, H, E) -> (B, H, E)
        (_, out), _ = self.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pads, attention),  # (B, L + H, L + H)
            position_ids=pads.cumsum(1) - 1,
            past_key_values=None,
            inputs_embeds=[prefix[0], suffix[0]],
            use_cache=False,
        )
        # 5. velocity in float32, as upstream: (B, H, E) -> (B, H, A)
        velocity = self.action_out_proj(out[:, -self.config.chunk_size :].float())
        return F.mse_loss(noise - actions, velocity, reduction="none")

    def sample_actions(
        self,
        images: Sequence[Tensor | CameraInput],
        img_masks: Sequence[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
        **rtc: Any,
    ) -> Tensor:
        """Predict a chunk of actions, (B, H, A).

        Args:
            images, img_masks, lang_tokens, lang_masks, state: as in `forward`.
            noise: (B, H, A).
            rtc: arguments of real-time chunking.
        """
        if not _has_scores(images):
            return super().sample_actions(images, img_masks, lang_tokens, lang_masks, state, noise, **rtc)
        if noise is None:
            shape = (len(state), self.config.chunk_size, self.config.max_action_dim)
            noise = self.sample_noise(shape, state.device)
        # 1. encode cameras with their cues, and embed the prefix, once for all steps of the flow: (B, L, W)
        vision = self.cues(self.vlm_with_expert, images)
        prefix, pads, attention = self.embed_conditioned_prefix(
            vision, img_masks, lang_tokens, lang_masks, state
        )
        # 2. cache the prefix's keys and values
        _, cache = self.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pads, attention),
            position_ids=pads.cumsum(1) - 1,
            past_key_values=None,
            inputs_embeds=[prefix, None],
            use_cache=self.config.use_cache,
        )
        # 3. integrate the velocity from noise to actions: num_steps times (B, H, A) -> (B, H, A)
        return euler_integrate(
            lambda actions, time: self.denoise_step(
                x_t=actions,
                prefix_pad_masks=pads,
                past_key_values=cache,
                timestep=ConditionedTime(time, vision.context),
            ),
            noise,
            self.config.num_steps,
            rtc_processor=self.rtc_processor,
            rtc_enabled=self._rtc_enabled(),
            **rtc,
        )

    def embed_conditioned_prefix(
        self,
        vision: VisionFeatures,
        img_masks: Sequence[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embed images with cues, language, and state with geometry.

        Upstream's `embed_prefix` encodes pixels itself; this one takes encoded cameras. Order, scale and
        masks of the tokens are upstream's, which the identity tests compare bit by bit.

        Returns:
            Embeddings (B, L, W), padding mask (B, L), attention mask (B, L), true where a new block begins.
        """
        segments = []  # embeddings (B, tokens, W) and padding mask (B, tokens) of each
        # 1. image tokens of each camera, between special tokens with `add_image_special_tokens`
        for tokens, mask in zip(vision.image_tokens, img_masks, strict=True):
            # A tensor, not a number: in bfloat16 the factor must be rounded first, as upstream's is.
            scaled = tokens * tokens.new_full((), tokens.shape[-1] ** 0.5)
            image = (scaled, mask[:, None].expand(tokens.shape[:2]))
            if self.add_image_special_tokens:
                start, end = self.global_image_start_token, self.image_end_token
                segments += [self._special(start, state), image, self._special(end, state)]
            else:
                segments.append(image)
        # 2. language
        language = self.vlm_with_expert.embed_language_tokens(lang_tokens)
        segments.append((language * math.sqrt(language.shape[-1]), lang_masks))
        # 3. state: one token (B, 1, W); with new tokens, also one per camera for its geometry (B, 1 + V, W)
        rows, geometry = state[:, None], vision.geometry
        if geometry is not None and self.cues.injection != "residual":
            rows, geometry = torch.cat([rows, geometry.to(rows)], 1), None
        states = self.state_proj(rows)
        segments.append((states, states.new_ones(states.shape[:2], dtype=torch.bool)))
        # 4. concatenate to (B, L, W); with `residual`, add the geometry to the state's token, the last one
        prefix, pads = (torch.cat(parts, 1) for parts in zip(*segments, strict=True))
        if geometry is not None:
            prefix[:, -1] += self.cues.geometry_proj(geometry.flatten(1)).to(prefix)
        # 5. images and language do not attend to the state: each of its tokens begins a new block
        attention = torch.zeros_like(pads)
        attention[:, -states.shape[1] :] = True
        # 6. pad at the end to a fixed length, if there is one
        missing = max(0, self.prefix_length - prefix.shape[1])
        return F.pad(prefix, (0, 0, 0, missing)), F.pad(pads, (0, missing)), F.pad(attention, (0, missing))

    def _special(self, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the special tokens around an image, (B, tokens, W), with their padding mask, (B, tokens)."""
        embedded = self.vlm_with_expert.embed_language_tokens(ids.to(state.device)).expand(len(state), -1, -1)
        return embedded, embedded.new_ones(embedded.shape[:2], dtype=torch.bool)

    def embed_suffix(
        self, noisy_actions: Tensor, timestep: Tensor | ConditionedTime
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embed noisy actions and time, with the context added to the embedding of the time.

        Args:
            noisy_actions: (B, H, A).
            timestep: (B,), 1 is noise; with cues a `ConditionedTime`.

        Returns:
            Embeddings (B, H, E), padding mask (B, H), attention mask (B, H).
        """
        if not isinstance(timestep, ConditionedTime):
            return super().embed_suffix(noisy_actions, timestep)
        # 1. actions: (B, H, A) -> (B, H, E)
        actions = self.action_in_proj(noisy_actions)
        # 2. time, with the context: (B,) -> (B, E)
        minimum, maximum = self.config.min_period, self.config.max_period
        time = create_sinusoidal_pos_embedding(
            timestep.time, actions.shape[-1], minimum, maximum, device=actions.device
        )
        time = time.to(actions.dtype) + timestep.context.to(actions.dtype)
        # 3. mix both: (B, H, 2 E) -> (B, H, E)
        mixed = torch.cat([actions, time[:, None].expand_as(actions)], 2)
        embeddings = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(mixed)))
        ones = torch.ones(embeddings.shape[:2], device=embeddings.device)
        return embeddings, ones.bool(), ones.to(embeddings.dtype)


class SegVLAPolicy(SmolVLACheckpointMixin, SmolVLAPolicy):
    """SmolVLA with segmentation cues."""

    config_class = SegVLAConfig
    name = "segvla"
    new_modules = ("model.cues",)

    def __init__(self, config: SegVLAConfig, **kwargs: Any) -> None:
        """Build the model for the features in `config`, and start from `config.init_from` if it is given.

        Args:
            config: configuration with input and output features.
            kwargs: as LeRobot passes them; `checkpoint` is the folder that `from_pretrained` loads.

        Raises:
            ValueError: if a feature, a class or a checkpoint does not fit.
        """
        # SmolVLAPolicy's own constructor would build upstream's network; the rest of it is repeated here.
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.init_rtc_processor()
        checkpoint, start = kwargs.get("checkpoint"), None
        if config.init_from and checkpoint is None:
            start = checkpoint_folder(config.init_from)
            take_architecture(config, start, ("smolvla", "segvla"))
        with vlm_files(config, checkpoint or start):
            self.model = SegVLAFlowMatching(config, rtc_processor=self.rtc_processor)
        if start is not None:
            load_weights(self, start, config.init_from)
        self.reset()

    def forward(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Tensor, dict]:
        """Return SmolVLA's training loss, with cues; see `SmolVLAPolicy.forward`."""
        self.config.check_chunk(batch[ACTION])
        return super().forward(resolve_perception(batch), *args, **kwargs)

    def _get_action_chunk(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Predict actions. Upstream calls this once per chunk, and only then does a live segmenter run."""
        return super()._get_action_chunk(resolve_perception(batch), *args, **kwargs)

    def prepare_images(self, batch: dict[str, Any]) -> tuple[list[Tensor | CameraInput], list[Tensor]]:
        """Return SmolVLA's letterboxed images, with scores, and their masks.

        Raises:
            ValueError: if scores are missing, or their shape does not fit.
        """
        images, masks = super().prepare_images(batch)
        inputs = list(images)
        for i, key in enumerate(key for key in self.config.image_features if key in batch):
            if key not in self.config.segmentation_feature_map:
                continue
            scores = self._scores(batch, key)
            if scores is None:
                return images, masks  # `segmentation_required` is false: act as SmolVLA
            image_size = tuple(batch[key].shape[-2:])
            inputs[i] = CameraInput(images[i], scores, image_size, batch.get(MENTIONED))
        return inputs, masks

    def _scores(self, batch: dict[str, Any], camera: str) -> Tensor | None:
        """Return class ids (B, h, w) or scores (B, C, h, w) of a camera's last frame."""
        key = self.config.segmentation_feature_map[camera]
        if key not in batch:
            if self.config.segmentation_required:
                raise ValueError(missing_scores(key, camera))
            return None
        scores = batch[key]
        dense = self.config.segmentation_kind != "ids"
        while scores.ndim > 3 + dense:  # a dimension of time after the batch
            scores = scores[:, -1]
        classes = len(self.config.class_map.names)
        if scores.ndim != 3 + dense or (dense and scores.shape[1] != classes):
            expected = f"(B, {classes}, h, w)" if dense else "(B, h, w)"
            raise ValueError(
                f"{key}: found shape {tuple(batch[key].shape)}, expected {expected} for segmentation_kind = "
                f"{self.config.segmentation_kind!r} and the classes {list(self.config.class_map.names)[:6]}."
            )
        return scores

    def explain(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Draw the patches that each cue token of the first sample pools; see `draw_cues`.

        Args:
            batch: from the preprocessor.

        Returns:
            (H, W, 3) uint8 by camera key.

        Raises:
            ValueError: if this policy has no cues, or the batch no scores.
        """
        if not self.config.uses_cues:
            raise ValueError("explain: this segvla has no cues; give it a segmenter.")
        images, _ = self.prepare_images(resolve_perception(batch))
        names = self.config.class_map.names
        cameras = [key for key in self.config.image_features if key in batch]
        drawn = {}
        for key, camera in zip(cameras, images, strict=False):  # empty cameras come last, and have no scores
            if isinstance(camera, CameraInput):
                patches = patch_features(self.model.vlm_with_expert, camera.pixels)
                ids = self.config.geometry_ids if camera.mentioned is None else camera.mentioned[0].tolist()
                geometry = [names[id_] if id_ >= 0 else "-" for id_ in ids]
                drawn[key] = draw_cues(camera, self.model.cues.build(patches, camera), names, geometry)
        return drawn


def patch_features(vlm: SmolVLMWithExpertModel, pixels: Tensor) -> Tensor:
    """Run the vision tower alone: (B, 3, H, W) in [-1, 1] -> (B, N, D)."""
    tower = vlm.get_vlm_model().vision_model
    return tower(pixel_values=pixels.to(tower.dtype), patch_attention_mask=None).last_hidden_state


def _zero(layer: nn.Linear) -> nn.Linear:
    """Set a layer to zero: new conditioning must not disturb pretrained weights."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _has_scores(images: Sequence[Tensor | CameraInput]) -> bool:
    return any(isinstance(image, CameraInput) for image in images)
