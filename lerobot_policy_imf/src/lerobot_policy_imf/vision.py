# SPDX-License-Identifier: Apache-2.0
"""The frozen encoder that all views share.

What is unusual about it:
- Its weights have the precision of bfloat16 from the moment they are loaded, and a checkpoint holds them as such.
  What is computed with them is float32 (bfloat16 on a GPU), so that a checkpoint that is saved and loaded sees as before.
- It is never trained: gradients stop here, dropout stays off, and an optimizer is not shown its parameters.
- It takes pictures of any size in [0, 1] and resizes them itself, so that training and acting cannot differ.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lerobot_processor_so101 import ModelIdentity
from lerobot_processor_so101.identity import weights_hash

VISION_FOLDER = "vision"


class FrozenModel(nn.Module):
    """Something pretrained that is used as it is.

    Args:
        model: of transformers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.float()
        for parameter in self.model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        self.requires_grad_(False)
        self.eval()
        self.register_state_dict_post_hook(_store_as_bfloat16)

    def train(self, mode: bool = True) -> "FrozenModel":
        """Stay in eval mode."""
        return super().train(False)


class VisionEncoder(FrozenModel):
    """A SigLIP vision tower.

    Args:
        tower: `SiglipVisionModel`.
        grid: 0 for its pooled answer, g for the means of g x g cells of patches.

    Raises:
        ValueError: cells that do not divide the patches.
    """

    def __init__(self, tower: Any, grid: int = 0) -> None:
        super().__init__(tower)
        config = tower.config
        patches = config.image_size // config.patch_size
        if grid and patches % grid:
            raise ValueError(
                f"vision_grid: found {grid}, expected a divisor of {patches}, the patches on a side."
            )
        self.grid, self.patches, self.side = grid, patches, config.image_size
        self.output_dim = config.hidden_size * max(1, grid**2)

    @classmethod
    def make(cls, name: str, grid: int, checkpoint: Path | None) -> "VisionEncoder":
        """Load it, or build it for the weights of a checkpoint.

        Args:
            name: folder or Hub id of a SigLIP model.
            grid: as above.
            checkpoint: folder of a policy that brings the weights; nothing else is read then.

        Raises:
            ValueError: there is no such model, or it is of another kind.
        """
        from transformers import SiglipVisionModel

        config = vision_config(name if checkpoint is None else str(checkpoint / VISION_FOLDER))
        tower = SiglipVisionModel(config) if checkpoint else load(SiglipVisionModel, name, config)
        return cls(tower, grid)

    def save_config(self, folder: Path) -> None:
        """Save what `make` needs beside the weights."""
        self.model.config.save_pretrained(folder / VISION_FOLDER)

    def identity(self, name: str) -> ModelIdentity:
        """Who this is; `name` is for people."""
        return ModelIdentity(name, weights_hash(self), input_size=(self.side, self.side))

    @torch.no_grad()
    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Look at all views in one call.

        Args:
            views: (..., 3, H, W) in [0, 1] each; their sizes may differ.

        Returns:
            (..., V, output_dim) float32.
        """
        squares = torch.stack([self._resized(view) for view in views], -4)  # (..., V, 3, S, S)
        lead = squares.shape[:-3]
        with torch.autocast(squares.device.type, torch.bfloat16, enabled=squares.is_cuda):
            seen = self.model(pixel_values=2 * squares.flatten(0, -4) - 1)
        answer = seen.pooler_output if not self.grid else self._cells(seen.last_hidden_state)
        return answer.float().unflatten(0, lead)

    def _resized(self, view: Tensor) -> Tensor:
        size = (self.side, self.side)
        if view.shape[-2:] == size:
            return view
        flat = F.interpolate(view.flatten(0, -4), size, mode="bilinear", antialias=True)
        return flat.unflatten(0, view.shape[:-3])

    def _cells(self, patches: Tensor) -> Tensor:
        """(N, P * P, D) patches to the means of cells, (N, g * g * D)."""
        maps = patches.mT.unflatten(2, (self.patches, self.patches))
        return F.adaptive_avg_pool2d(maps.float(), self.grid).flatten(2).mT.flatten(1)


def vision_config(name: str) -> Any:
    """Configuration of the vision half of a SigLIP model.

    Raises:
        ValueError: there is none, or it is of another kind.
    """
    return _half(name, "vision")


def text_config(name: str) -> Any:
    """Configuration of its text half; see `vision_config`."""
    return _half(name, "text")


def _half(name: str, half: str) -> Any:
    from transformers import SiglipConfig, SiglipTextConfig, SiglipVisionConfig

    try:
        values, _ = SiglipConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"vision_model_name: found no model under {name!r}, expected a folder or a Hub id that can be reached from "
            f"here. ({str(error).splitlines()[0]})"
        ) from error
    kind = values.get("model_type")
    if kind == "siglip":
        return getattr(SiglipConfig.from_dict(values), f"{half}_config")
    if kind == f"siglip_{half}_model":
        return {"vision": SiglipVisionConfig, "text": SiglipTextConfig}[half].from_dict(values)
    raise ValueError(
        f"vision_model_name: found a model of type {kind!r} under {name!r}, expected 'siglip' with a {half} half, as "
        "SigLIP and SigLIP2 of fixed resolution are, such as google/siglip2-base-patch16-256 (not those called naflex)."
    )


def load(kind: Any, name: str, config: Any) -> Any:
    """Load half of a model, without a word about the other half.

    Args:
        kind: class of transformers.
        name: folder or Hub id.
        config: of that half.

    Raises:
        ValueError: weights are missing.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = kind.from_pretrained(name, config=config, output_loading_info=True)
    finally:
        logging.set_verbosity(level)
    if report["missing_keys"]:
        raise ValueError(
            f"vision_model_name: found no {sorted(report['missing_keys'])[0]!r} among the weights of {name!r} "
            f"({len(report['missing_keys'])} are missing), expected all of {kind.__name__}."
        )
    return model


def _store_as_bfloat16(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for key, value in state.items():
        if key.startswith(prefix) and value.dtype == torch.float32:
            state[key] = value.bfloat16()
