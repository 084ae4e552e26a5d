# SPDX-License-Identifier: Apache-2.0
"""The frozen SigLIP vision encoder that all views share.

What is unusual about it:
- Its weights have bfloat16 precision from the moment they are loaded, and a checkpoint stores them as
  bfloat16. It computes in float32 (bfloat16 on a GPU), so features are equal before saving and after loading.
- It is never trained: gradients stop here, dropout stays off, and no optimizer gets its parameters.
- It takes images of any size in [0, 1] and resizes them itself, so that training and inference cannot differ.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lerobot_processor_so101 import ModelIdentity
from lerobot_processor_so101.perception.identity import weights_hash


class FrozenTower(nn.Module):
    """One tower of a pretrained SigLIP model, in eval mode and stored as bfloat16.

    Args:
        tower: "vision" or "text".
        name: folder or Hub id of the model.
        checkpoint: folder of a policy whose checkpoint contains the weights; `name` is not read then.

    Raises:
        ValueError: if the model is missing or of another type.
    """

    def __init__(self, tower: str, name: str, checkpoint: Path | None) -> None:
        super().__init__()
        import transformers

        self.tower = tower
        kind = getattr(transformers, f"Siglip{tower.capitalize()}Model")
        config = tower_config(name if checkpoint is None else str(checkpoint / tower), tower)
        self.model = (_load_tower(kind, name, config) if checkpoint is None else kind(config)).float()
        for parameter in self.model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        self.requires_grad_(False)
        self.eval()
        self.register_state_dict_post_hook(_store_as_bfloat16)

    def save_config(self, folder: Path) -> None:
        """Save the configuration, which a loaded checkpoint builds the tower from."""
        self.model.config.save_pretrained(folder / self.tower)

    def train(self, mode: bool = True) -> "FrozenTower":
        """Stay in eval mode."""
        return super().train(False)


class VisionEncoder(FrozenTower):
    """A SigLIP vision tower; arguments as in `FrozenTower`.

    Args:
        grid: 0 for the pooled output, g for the means of g x g cells of patches.

    Raises:
        ValueError: if the grid does not divide the patches of a side.
    """

    def __init__(self, name: str, grid: int = 0, checkpoint: Path | None = None) -> None:
        super().__init__("vision", name, checkpoint)
        config = self.model.config
        patches = config.image_size // config.patch_size
        if grid and patches % grid:
            raise ValueError(
                f"vision_grid: found {grid}, expected a divisor of {patches}, the patches on a side."
            )
        self.grid, self.patches, self.side = grid, patches, config.image_size
        self.output_dim = config.hidden_size * max(1, grid**2)

    def identity(self, name: str) -> ModelIdentity:
        """Return the identity of the model; `name` is only for messages."""
        return ModelIdentity(name, weights_hash(self), input_size=(self.side, self.side))

    @torch.no_grad()
    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Encode all views in one call.

        Args:
            views: (..., 3, H, W) in [0, 1] each; their sizes may differ.

        Returns:
            (..., V, output_dim) float32.
        """
        # 1. resize each view to the encoder's size and stack them: -> (..., V, 3, S, S)
        images = torch.stack([self._resize(view) for view in views], -4)
        # 2. encode in [-1, 1]: (N, 3, S, S) -> pooled (N, D), patches (N, P * P, D)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            encoded = self.model(pixel_values=2 * images.flatten(0, -4) - 1)
        if not self.grid:
            return encoded.pooler_output.float().unflatten(0, images.shape[:-3])
        # 3. average patches to cells: (N, P * P, D) -> (N, D, g, g) -> (..., V, g * g * D)
        maps = encoded.last_hidden_state.mT.unflatten(2, (self.patches, self.patches))
        cells = F.adaptive_avg_pool2d(maps.float(), self.grid).flatten(2).mT.flatten(1)
        return cells.unflatten(0, images.shape[:-3])

    def _resize(self, view: Tensor) -> Tensor:
        size = (self.side, self.side)
        if view.shape[-2:] == size:
            return view
        flat = F.interpolate(view.flatten(0, -4), size, mode="bilinear", antialias=True)
        return flat.unflatten(0, view.shape[:-3])


def tower_config(name: str, tower: str) -> Any:
    """Return the configuration of one tower of a model; see `FrozenTower`."""
    from transformers import SiglipConfig, SiglipTextConfig, SiglipVisionConfig

    try:
        values, _ = SiglipConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"vision_model_name: found no model under {name!r}, expected a folder or a Hub id that can be "
            f"reached from here. ({str(error).splitlines()[0]})"
        ) from error
    kind = values.get("model_type")
    if kind == "siglip":
        return getattr(SiglipConfig.from_dict(values), f"{tower}_config")
    if kind == f"siglip_{tower}_model":
        return {"vision": SiglipVisionConfig, "text": SiglipTextConfig}[tower].from_dict(values)
    raise ValueError(
        f"vision_model_name: found a model of type {kind!r} under {name!r}, expected 'siglip' with a {tower} "
        "tower, as SigLIP and SigLIP2 of fixed resolution have, such as google/siglip2-base-patch16-256 "
        "(not the naflex models)."
    )


def _load_tower(kind: Any, name: str, config: Any) -> Any:
    """Load a tower, without the warning that the weights of the other one are not used."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = kind.from_pretrained(name, config=config, output_loading_info=True)
    finally:
        logging.set_verbosity(level)
    if report["missing_keys"]:
        raise ValueError(
            f"vision_model_name: found no {sorted(report['missing_keys'])[0]!r} among the weights of "
            f"{name!r} ({len(report['missing_keys'])} are missing), expected all of {kind.__name__}."
        )
    return model


def _store_as_bfloat16(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for key, value in state.items():
        if key.startswith(prefix) and value.dtype == torch.float32:
            state[key] = value.bfloat16()
