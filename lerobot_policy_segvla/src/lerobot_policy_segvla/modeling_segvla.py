# SPDX-License-Identifier: Apache-2.0
"""The segvla policy: SmolVLA that is told what is where (seed 000).

What is unusual about it:
- It is LeRobot's SmolVLA, subclassed where cues enter and nowhere else. Without cues every line that runs is
  upstream's; names of its parameters are upstream's, and ours are added beside them.
- Cues travel as arguments. Each camera's picture comes with its scores (`View`) through upstream's own lists of
  images; nothing is kept on a module between calls.
- With `residual`, the default, what is new starts at zero: on a pretrained SmolVLA the first actions are SmolVLA's
  to the last bit, and the sequence is no longer than before.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding, make_att_2d_masks
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, VLAFlowMatching
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from torch import Tensor, nn

from lerobot_processor_so101 import checkpoint_folder, resolve_perception
from lerobot_processor_so101.smolvla_checkpoint import (
    SmolVLACheckpointMixin,
    load_weights,
    take_architecture,
    vlm_files,
)

from .configuration_segvla import SegVLAConfig
from .cues import Cues, SegmentationCueBuilder, View
from .explain import draw_cues
from .segmentation_step import MENTIONED, missing_scores

type Image = Tensor | View


class Seen(NamedTuple):
    """A camera after the vision tower.

    Attributes:
        patches: (B, N, D) features, with what the cues add to them.
        tokens: (B, T, W) embeddings that follow those of the picture; None for none.
    """

    patches: Tensor
    tokens: Tensor | None

    @property
    def shape(self) -> torch.Size:
        """That of the patches; upstream asks a picture for its batch size."""
        return self.patches.shape


class CuedVLM(SmolVLMWithExpertModel):
    """Upstream's vision and language model, whose two halves of seeing can be called by themselves."""

    def patch_features(self, pixels: Tensor) -> Tensor:
        """(B, N, D) features of a picture (B, 3, H, W) in [-1, 1]."""
        tower = self.get_vlm_model().vision_model
        return tower(pixel_values=pixels.to(tower.dtype), patch_attention_mask=None).last_hidden_state

    def embed_image(self, image: Tensor | Seen) -> Tensor:
        """Embeddings of a picture and its cue tokens, (B, tokens, width)."""
        if not isinstance(image, Seen):
            return super().embed_image(image)
        embedded = self.get_vlm_model().connector(image.patches)
        return embedded if image.tokens is None else torch.cat([embedded, image.tokens.to(embedded)], 1)


class CueInjection(nn.Module):
    """Cues of all cameras, and the layers that bring them into SmolVLA.

    Args:
        config: the policy's.
        vlm: the model whose widths they must fit.

    Raises:
        ValueError: tokens that do not fit the connector.
    """

    def __init__(self, config: SegVLAConfig, vlm: SmolVLMWithExpertModel) -> None:
        super().__init__()
        vision, text = vlm.config.vision_config, vlm.config.text_config
        dim, width = vision.hidden_size, text.hidden_size
        self.injection = config.segmentation_injection
        self.dropout = config.segmentation_dropout_prob
        self.cameras = len(config.segmentation_feature_map)
        self.per_token = vlm.config.scale_factor**2
        if self.injection == "connector" and config.segmentation_max_tokens % self.per_token:
            raise ValueError(
                f"segmentation_max_tokens: found {config.segmentation_max_tokens}, expected a multiple of "
                f"{self.per_token}, which the connector of {config.vlm_model_name!r} makes one token of."
            )
        sides = config.resize_imgs_with_padding or (vision.image_size, vision.image_size)
        box = (sides[1], sides[0])
        self.build = SegmentationCueBuilder(
            dim=dim,
            grid=(box[0] // vision.patch_size, box[1] // vision.patch_size),
            box=box,
            num_classes=len(config.class_map.names),
            kind=config.segmentation_kind,
            task_ids=[] if config.segmentation_from_instruction else config.task_ids,
            task_slots=config.task_slots,
            class_tokens=config.class_tokens,
            top_k=config.segmentation_top_k_classes,
            regions=config.segmentation_region_specs,
            geometry_ids=[] if config.segmentation_from_instruction else config.geometry_ids,
            geometry_slots=config.geometry_slots,
            geometry_dim=config.segmentation_geometry_state_dim,
        )
        self.context_proj = _zero(nn.Linear(dim, vlm.expert_hidden_size))
        if self.injection == "residual":
            self.patch_proj = nn.Linear(dim, dim)
            self.patch_gate = nn.Parameter(torch.zeros(dim))
            if config.geometry_slots:
                geometry = self.cameras * config.segmentation_geometry_state_dim
                self.geometry_proj = _zero(nn.Linear(geometry, width))
        else:
            self.null_tokens = nn.Parameter(torch.zeros(config.segmentation_max_tokens, dim))
        if self.injection == "tokens":
            self.token_proj = nn.Linear(dim, width)

    def forward(self, vlm: CuedVLM, images: Sequence[Image]) -> tuple[list[Tensor | Seen], "Conditions"]:
        """Look at all cameras.

        Args:
            vlm: sees.
            images: one per camera; those with scores are views.

        Returns:
            The images, with views seen and cues added, and what else the policy is told.
        """
        views = {i: image for i, image in enumerate(images) if isinstance(image, View)}
        patches = {i: vlm.patch_features(view.pixels) for i, view in views.items()}
        cues = {i: self.build(patches[i], view) for i, view in views.items()}
        told = self._told(next(iter(patches.values())))
        seen: list[Tensor | Seen] = [
            self._inject(vlm, patches[i], cues[i], told) if isinstance(image, View) else image
            for i, image in enumerate(images)
        ]
        context = torch.stack([cue.summary() for cue in cues.values()]).mean(0)  # (B, D)
        geometry = [cue.geometry for cue in cues.values() if cue.geometry is not None]
        return seen, Conditions(
            context=self.context_proj(context) * told,
            geometry=torch.stack(geometry, 1) * told[..., None] if geometry else None,
        )

    def _told(self, like: Tensor) -> Tensor:
        """Whether a sample is told anything, (B, 1); one draw for all its cameras and kinds of cues."""
        if not self.training or not self.dropout:
            return torch.ones(len(like), 1, device=like.device)
        return (torch.rand(len(like), 1, device=like.device) >= self.dropout).float()

    def _inject(self, vlm: CuedVLM, patches: Tensor, cues: Cues, told: Tensor) -> Seen:
        """Add the cues of one camera to what is seen."""
        told = told[..., None]
        if self.injection == "residual":
            # (B, N, D): on each patch, the tokens that have evidence there
            painted = cues.where.mT @ cues.tokens
            added = self.patch_gate * self.patch_proj(painted) * told
            return Seen(patches + added.to(patches.dtype), None)
        tokens = torch.lerp(self.null_tokens, cues.tokens, told)
        if self.injection == "tokens":
            return Seen(patches, self.token_proj(tokens))
        connector = vlm.get_vlm_model().connector.modality_projection
        rows = tokens.unflatten(1, (-1, self.per_token)).flatten(2)  # (B, T / 16, 16 * D)
        return Seen(patches, connector(rows.to(patches.dtype)))


class Conditions(NamedTuple):
    """What a policy is told beside its pictures.

    Attributes:
        context: (B, expert width), added to the embedding of time.
        geometry: (B, cameras, G); None if no class is asked for.
    """

    context: Tensor
    geometry: Tensor | None


class Moment(NamedTuple):
    """A time of the flow and what is told at it; upstream's `denoise_step` passes it to `embed_suffix`.

    Attributes:
        time: (B,).
        context: (B, expert width).
    """

    time: Tensor
    context: Tensor


class SegVLAFlowMatching(VLAFlowMatching):
    """SmolVLA's flow matching network with cues."""

    def __init__(self, config: SegVLAConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if config.uses_cues:
            # Upstream names the class in its constructor. Ours has the same attributes and one more method.
            self.vlm_with_expert.__class__ = CuedVLM
            self.cues = CueInjection(config, self.vlm_with_expert)

    def embed_prefix(
        self,
        images: Sequence[Tensor | Seen],
        img_masks: Sequence[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        geometry: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Upstream's prefix of pictures, language and state, with the geometry in or beside the state.

        Args:
            images: seen cameras, or plain pictures.
            img_masks: (B,) each.
            lang_tokens: (B, L).
            lang_masks: (B, L).
            state: (B, max_state_dim).
            geometry: (B, cameras, G).
        """
        if geometry is None:
            return super().embed_prefix(images, img_masks, lang_tokens, lang_masks, state=state)
        if self.cues.injection != "residual":
            rows = torch.cat([state[:, None], geometry.to(state)], 1)  # upstream takes several rows of state
            return super().embed_prefix(images, img_masks, lang_tokens, lang_masks, state=rows)
        embeddings, pad_masks, att_masks = super().embed_prefix(
            images, img_masks, lang_tokens, lang_masks, state=state
        )
        added = self.cues.geometry_proj(geometry.flatten(1))[:, None].to(embeddings)
        return embeddings + att_masks[..., None] * added, pad_masks, att_masks  # 1 where the state is, else 0

    def embed_suffix(self, noisy_actions: Tensor, timestep: Tensor | Moment) -> tuple[Tensor, Tensor, Tensor]:
        """Upstream's suffix of noisy actions and time, with the context added to the embedding of time.

        Args:
            noisy_actions: (B, chunk, max_action_dim).
            timestep: (B,), 1 is noise; with cues a moment.
        """
        if not isinstance(timestep, Moment):
            return super().embed_suffix(noisy_actions, timestep)
        actions = self.action_in_proj(noisy_actions)
        time = create_sinusoidal_pos_embedding(
            timestep.time,
            actions.shape[-1],
            self.config.min_period,
            self.config.max_period,
            device=actions.device,
        )
        time = time.to(actions.dtype) + timestep.context.to(actions.dtype)
        mixed = torch.cat([actions, time[:, None].expand_as(actions)], 2)
        embeddings = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(mixed)))
        ones = torch.ones(embeddings.shape[:2], device=embeddings.device)
        return embeddings, ones.bool(), ones.to(embeddings.dtype)

    def forward(
        self,
        images: Sequence[Image],
        img_masks: Sequence[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        actions: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """Squared errors of the predicted velocity, (B, chunk, max_action_dim).

        Args:
            images: one per camera, (B, 3, H, W) in [-1, 1]; those with scores are views.
            img_masks: (B,) each.
            lang_tokens: (B, L).
            lang_masks: (B, L).
            state: (B, max_state_dim).
            actions: (B, chunk, max_action_dim).
            noise: of the shape of the actions.
            time: (B,).
        """
        if not _has_views(images):
            return super().forward(images, img_masks, lang_tokens, lang_masks, state, actions, noise, time)
        noise = self.sample_noise(actions.shape, actions.device) if noise is None else noise
        time = self.sample_time(actions.shape[0], actions.device) if time is None else time
        along = time[:, None, None]
        seen, told = self.cues(self.vlm_with_expert, images)
        prefix = self.embed_prefix(seen, img_masks, lang_tokens, lang_masks, state, told.geometry)
        suffix = self.embed_suffix(along * noise + (1 - along) * actions, Moment(time, told.context))
        embeddings, pad_masks, att_masks = zip(prefix, suffix, strict=True)
        pads = torch.cat(pad_masks, 1)
        (_, out), _ = self.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pads, torch.cat(att_masks, 1)),
            position_ids=pads.cumsum(1) - 1,
            past_key_values=None,
            inputs_embeds=list(embeddings),
            use_cache=False,
        )
        velocity = self.action_out_proj(out[:, -self.config.chunk_size :].float())
        return F.mse_loss(noise - actions, velocity, reduction="none")

    def sample_actions(
        self,
        images: Sequence[Image],
        img_masks: Sequence[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
        **rtc: Any,
    ) -> Tensor:
        """Predict a chunk of actions, (B, chunk, max_action_dim).

        Args:
            images, img_masks, lang_tokens, lang_masks, state: as in `forward`.
            noise: (B, chunk, max_action_dim).
            rtc: what real-time chunking passes on.
        """
        if not _has_views(images):
            return super().sample_actions(images, img_masks, lang_tokens, lang_masks, state, noise, **rtc)
        if noise is None:
            shape = (len(state), self.config.chunk_size, self.config.max_action_dim)
            noise = self.sample_noise(shape, state.device)
        seen, told = self.cues(self.vlm_with_expert, images)
        embeddings, pad_masks, att_masks = self.embed_prefix(
            seen, img_masks, lang_tokens, lang_masks, state, told.geometry
        )
        _, cache = self.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pad_masks, att_masks),
            position_ids=pad_masks.cumsum(1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=self.config.use_cache,
        )
        return euler_integrate(
            lambda actions, time: self.denoise_step(
                x_t=actions,
                prefix_pad_masks=pad_masks,
                past_key_values=cache,
                timestep=Moment(time, told.context),
            ),
            noise,
            self.config.num_steps,
            rtc_processor=self.rtc_processor,
            rtc_enabled=self._rtc_enabled(),
            **rtc,
        )


class SegVLAPolicy(SmolVLACheckpointMixin, SmolVLAPolicy):
    """SmolVLA with segmentation cues."""

    config_class = SegVLAConfig
    name = "segvla"

    def __init__(self, config: SegVLAConfig, **kwargs: Any) -> None:
        """Build the model for the features in `config`, and start from `config.init_from` if that is given.

        Args:
            config: configuration with input and output features.
            kwargs: what LeRobot passes to every policy, and what `from_pretrained` knows of a checkpoint.

        Raises:
            ValueError: a feature, a class or a checkpoint that does not fit.
        """
        # Not SmolVLAPolicy's: it names the class of its network.
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
            load_weights(self, start, config.init_from, ("model.cues.",))
        self.reset()

    def forward(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Tensor, dict]:
        """SmolVLA's training loss, with cues; see `SmolVLAPolicy.forward`."""
        return super().forward(resolve_perception(batch), *args, **kwargs)

    def _get_action_chunk(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Predict actions. Only here does a live segmenter look: once per chunk."""
        return super()._get_action_chunk(resolve_perception(batch), *args, **kwargs)

    def prepare_images(self, batch: dict[str, Any]) -> tuple[list[Image], list[Tensor]]:
        """SmolVLA's letterboxed pictures and their masks, each picture with its scores.

        Raises:
            ValueError: scores are missing, or have a shape, classes or values that cannot be.
        """
        images, masks = super().prepare_images(batch)
        cameras = [key for key in self.config.image_features if key in batch]
        views: dict[int, Image] = {}
        for i, key in enumerate(cameras):
            if key not in self.config.segmentation_feature_map:
                continue
            scores = self._scores(batch, key)
            if scores is None:
                return images, masks  # the step has said so, and this is what it was asked to do
            height, width = batch[key].shape[-2:]
            views[i] = View(images[i], scores, (height, width), batch.get(MENTIONED))
        return [views.get(i, image) for i, image in enumerate(images)], masks

    def explain(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Draw what each cue token of the first sample reads; see `draw_cues`.

        Args:
            batch: from the preprocessor.

        Returns:
            (H, W, 3) uint8 by camera key.

        Raises:
            ValueError: this policy has no cues, or the batch no scores.
        """
        if not self.config.uses_cues:
            raise ValueError("explain: this segvla has no cues; give it a segmenter.")
        images, _ = self.prepare_images(resolve_perception(batch))
        names = self.config.class_map.names
        geometry = [names[id_] for id_ in self.config.geometry_ids]
        drawn = {}
        for key, view in zip(self.config.image_features, images, strict=False):
            if isinstance(view, View):
                patches = self.model.vlm_with_expert.patch_features(view.pixels)
                told = geometry
                if view.mentioned is not None:
                    told = [names[id_] if id_ >= 0 else "-" for id_ in view.mentioned[0].tolist()]
                drawn[key] = draw_cues(view, self.model.cues.build(patches, view), names, told)
        return drawn

    def _scores(self, batch: dict[str, Any], camera: str) -> Tensor | None:
        """Class ids (B, h, w) or scores (B, C, h, w) of a camera's last frame."""
        key = self.config.segmentation_feature_map[camera]
        if key not in batch:
            if self.config.segmentation_required:
                raise ValueError(missing_scores(key, camera))
            return None
        scores = batch[key]
        dense = self.config.segmentation_kind != "ids"
        while scores.ndim > 3 + dense:
            scores = scores[:, -1]
        classes = len(self.config.class_map.names)
        if scores.ndim != 3 + dense or (dense and scores.shape[1] != classes):
            expected = f"(B, {classes}, h, w)" if dense else "(B, h, w)"
            raise ValueError(
                f"{key}: found shape {tuple(batch[key].shape)}, expected {expected} for segmentation_kind = "
                f"{self.config.segmentation_kind!r} and the classes {list(self.config.class_map.names)[:6]}."
            )
        return scores

    def wrap_with_peft(self, *args: Any, **kwargs: Any) -> Any:
        """Wrap in adapters, which remember as their base what this policy started from."""
        if self.config.init_from and not self.config.pretrained_path:
            self.name_or_path = self.config.init_from
        return super().wrap_with_peft(*args, **kwargs)

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """SmolVLA's targets; what is new is small and is trained whole."""
        targets = super()._get_default_peft_targets()
        return {**targets, "modules_to_save": ["cues"] if self.config.uses_cues else []}

    def _validate_peft_config(self, peft_config: Any) -> None:
        """Adapters need something trained below them: a checkpoint, or a warm start."""
        if not self.config.init_from:
            super()._validate_peft_config(peft_config)


def _zero(layer: nn.Linear) -> nn.Linear:
    """Start a layer at zero: new conditioning must not disturb what is pretrained."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _has_views(images: Sequence[Image]) -> bool:
    return any(isinstance(image, View) for image in images)
