# SPDX-License-Identifier: Apache-2.0
"""What the checkpoint of a policy that is built on SmolVLA holds beside weights, and how to start from another one.

Upstream asks the Hub for the configuration and the tokenizer of the language model whenever a policy is built. Ours
lie in the checkpoint, in `vlm/`, so that it loads on a machine without a network.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lerobot.processor import NewLineTaskProcessorStep, ProcessorStep
from safetensors import safe_open
from torch import Tensor

from .checkpoint import CheckpointMixin, checkpoint_folder
from .tokenizer_step import StoredTokenizerStep

VLM_FOLDER = "vlm"
# What decides the shapes of SmolVLA's weights, and what its pictures and sentences must look like.
_ARCHITECTURE = (
    "vlm_model_name",
    "num_vlm_layers",
    "num_expert_layers",
    "self_attn_every_n_layers",
    "expert_width_multiplier",
    "attention_mode",
    "max_state_dim",
    "max_action_dim",
    "resize_imgs_with_padding",
    "add_image_special_tokens",
    "tokenizer_max_length",
    "min_period",
    "max_period",
)
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

logger = logging.getLogger(__name__)


class SmolVLACheckpointMixin(CheckpointMixin):
    """Saving and loading of a SmolVLA policy; for a `PreTrainedPolicy`.

    It has no base of its own, so mypy is told at two lines that what they call belongs to the policy it is mixed into.
    """

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """Load weights in the dtype they were saved in."""
        with safe_open(model_file, "pt") as file:
            saved = {key: _DTYPES.get(file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118  it is no mapping
        for key, parameter in model.named_parameters():
            dtype = saved.get(key)
            if dtype is not None and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
        return super()._load_as_safetensor(model, model_file, map_location, strict)  # type: ignore[misc]

    def _save_pretrained(self, save_directory: Path, **kwargs: Any) -> None:
        """Save weights and configuration, and what the language model's files say."""
        super()._save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        vlm = self.model.vlm_with_expert  # type: ignore[attr-defined]
        vlm.config.save_pretrained(save_directory / VLM_FOLDER)
        vlm.processor.save_pretrained(save_directory / VLM_FOLDER)


@contextmanager
def vlm_files(config: Any, folder: Path | None) -> Iterator[None]:
    """Build the language model from the files of a checkpoint that brings its weights.

    Args:
        config: of the policy.
        folder: of the checkpoint that is loaded or started from; None for a new policy.

    Raises:
        ValueError: the files are not there.
    """
    name, load = config.vlm_model_name, config.load_vlm_weights
    if folder is not None:
        config.load_vlm_weights = False
        config.vlm_model_name = vlm_source(config, folder)
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"vlm_model_name: found no configuration and tokenizer under {config.vlm_model_name!r}, expected a folder or a "
            f"Hub id that can be reached from here. Say where they are: `--policy.vlm_model_name=`. ({error})"
        ) from error
    finally:
        config.vlm_model_name, config.load_vlm_weights = name, load


def vlm_source(config: Any, folder: Path | None) -> str:
    """Where the language model's configuration and tokenizer are: in a checkpoint that has them, or under the model's name.

    Args:
        config: of the policy.
        folder: of the checkpoint that is loaded or started from; None for a new policy.
    """
    if folder is not None and (folder / VLM_FOLDER / "config.json").is_file():
        return str(folder / VLM_FOLDER)
    return config.vlm_model_name


def language_steps(config: Any) -> list[ProcessorStep]:
    """The steps that make tokens of the sentence, as SmolVLA's pipeline has them, with the tokenizer in the checkpoint.

    Args:
        config: of the policy, with `init_from`.
    """
    start = checkpoint_folder(config.init_from) if config.init_from else None
    tokenizer = StoredTokenizerStep(
        tokenizer_name=vlm_source(config, start),
        padding=config.pad_language_to,
        padding_side="right",
        max_length=config.tokenizer_max_length,
    )
    return [NewLineTaskProcessorStep(), tokenizer]


def load_weights(policy: torch.nn.Module, folder: Path, name: str, new_parts: tuple[str, ...]) -> list[str]:
    """Load the checkpoint of a SmolVLA, or of a policy built on it, into a policy.

    Args:
        policy: gets the weights.
        folder: of the checkpoint.
        name: for messages.
        new_parts: prefixes of the parameters that SmolVLA has not, which the checkpoint may lack.

    Returns:
        The parameters that stay as they are: those the checkpoint has not, or has in another shape.

    Raises:
        ValueError: a weight of SmolVLA is missing or has another shape, or there are no weights.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"init_from: found no model.safetensors in {name!r} ({sorted(folder.glob('*'))[:5]})."
        )
    own = policy.state_dict()
    with safe_open(str(file), "pt") as weights:
        found = set(weights.keys())
        shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in found & set(own)}
        fits = {key for key, shape in shapes.items() if shape == tuple(own[key].shape)}
        new = sorted(set(own) - fits)
        wrong = [key for key in new if not key.startswith(new_parts)]
        if wrong:
            key = wrong[0]
            there = f"shape {shapes[key]}" if key in shapes else "none"
            raise ValueError(
                f"init_from: {name!r} does not fit: {len(wrong)} weights of SmolVLA are missing or differ. For {key!r} "
                f"found {there}, expected {tuple(own[key].shape)}."
            )
        with torch.no_grad():
            for key in fits:
                tensor: Tensor = weights.get_tensor(key)
                own[key].copy_(tensor)
    ignored = sorted(found - set(own))
    logger.info("init_from %s: %d weights loaded.", name, len(fits))
    logger.warning("init_from %s: new, and trained from scratch: %s.", name, ", ".join(new) or "nothing")
    if ignored:
        logger.warning("init_from %s: not used: %s.", name, ", ".join(ignored))
    return new


def take_architecture(config: Any, folder: Path, types: Sequence[str]) -> dict[str, Any]:
    """Take what decides the shapes from a checkpoint's configuration, and say so where it differs.

    Args:
        config: of the policy that starts from it.
        folder: of the checkpoint.
        types: of policies that it may be of.

    Returns:
        The checkpoint's configuration.

    Raises:
        ValueError: it is of another type.
    """
    file = folder / "config.json"
    saved = json.loads(file.read_text()) if file.is_file() else {}
    if saved.get("type") not in types:
        raise ValueError(
            f"init_from: found a checkpoint of type {saved.get('type')!r} in {str(folder)!r}, expected "
            f"{' or '.join(types)}."
        )
    for key in _ARCHITECTURE:
        value, found = saved.get(key, getattr(config, key)), getattr(config, key)
        value = tuple(value) if isinstance(value, list) else value
        if value != (tuple(found) if isinstance(found, list) else found):
            logger.warning("init_from: %s = %s, as in the checkpoint (not %s).", key, value, found)
            setattr(config, key, value)
    return saved
