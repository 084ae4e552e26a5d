# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of policies built on SmolVLA: language model files, and weights from another checkpoint.

SmolVLA downloads the configuration and the tokenizer of its language model whenever a policy is built. These
policies store them in the checkpoint, in `vlm/`, so that it loads without a network.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lerobot.processor import NewLineTaskProcessorStep, ProcessorStep
from safetensors import safe_open

from ..steps.tokenizer import StoredTokenizerStep
from .checkpoint import CheckpointMixin, checkpoint_folder

VLM_FOLDER = "vlm"
# Options that define the shapes of SmolVLA's weights, and the format of its images and sentences.
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
_VLM = "vlm_with_expert.vlm."  # in the names of the language model's parameters
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

logger = logging.getLogger(__name__)


class SmolVLACheckpointMixin(CheckpointMixin):
    """Save and load a SmolVLA policy with its language model's files; for a `SmolVLAPolicy`.

    Adapters (`--peft.method_type=LORA`) may be trained on the checkpoint that `init_from` names. They contain
    `new_modules` in full, so that the checkpoint below them may be SmolVLA's own.
    """

    new_modules: tuple[str, ...] = ()  # names of the modules that SmolVLA lacks
    config: Any  # of the policy

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """Load weights in the dtype in which they were saved."""
        config = model.config
        if config.use_peft and config.init_from:  # the checkpoint below adapters
            load_weights(model, Path(model_file).parent, config.init_from)
            return model
        _take_dtypes(model.named_parameters(), model_file)
        return super()._load_as_safetensor(model, model_file, map_location, strict)

    def wrap_with_peft(self, *args: Any, **kwargs: Any) -> Any:
        """Wrap the policy in adapters, whose base is the checkpoint that this policy started from."""
        if self.config.init_from and not self.config.pretrained_path:
            self.name_or_path = self.config.init_from
        return super().wrap_with_peft(*args, **kwargs)  # type: ignore[misc]  # of the policy

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """Return SmolVLA's targets; the new modules are small, and are trained and saved in full."""
        targets = super()._get_default_peft_targets()  # type: ignore[misc]  # of the policy
        own = {name for name, _ in self.named_modules()}  # type: ignore[attr-defined]  # of the policy
        new = [name.rpartition(".")[2] for name in self.new_modules if name in own]
        return {**targets, "modules_to_save": new}

    def _validate_peft_config(self, peft_config: Any) -> None:
        """Require pretrained weights below the adapters: a checkpoint, or `init_from`."""
        if not self.config.init_from:
            super()._validate_peft_config(peft_config)  # type: ignore[misc]  # of the policy

    def _save_pretrained(self, save_directory: Path, **kwargs: Any) -> None:
        """Save weights and configuration, and the language model's files."""
        super()._save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        vlm = self.model.vlm_with_expert  # type: ignore[attr-defined]
        vlm.config.save_pretrained(save_directory / VLM_FOLDER)
        vlm.processor.save_pretrained(save_directory / VLM_FOLDER)


@contextmanager
def vlm_files(config: Any, folder: Path | None) -> Iterator[None]:
    """Build the language model from the files of a checkpoint, which also contains its weights.

    The checkpoint is the one that is loaded or started from; None for a new policy.

    Raises:
        ValueError: if the files are missing.
    """
    name, load = config.vlm_model_name, config.load_vlm_weights
    if folder is not None:
        config.load_vlm_weights = False
        config.vlm_model_name = vlm_source(config, folder)
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"vlm_model_name: found no configuration and tokenizer under {config.vlm_model_name!r}, expected "
            f"a folder or a reachable Hub id. Set it: `--policy.vlm_model_name=`. ({error})"
        ) from error
    finally:
        config.vlm_model_name, config.load_vlm_weights = name, load


def vlm_source(config: Any, folder: Path | None) -> str:
    """Return the folder or Hub id of the language model's configuration and tokenizer; see `vlm_files`."""
    if folder is not None and (folder / VLM_FOLDER / "config.json").is_file():
        return str(folder / VLM_FOLDER)
    return config.vlm_model_name


def language_steps(config: Any) -> list[ProcessorStep]:
    """Return SmolVLA's steps that tokenize the task sentence, with the tokenizer in the checkpoint."""
    start = checkpoint_folder(config.init_from) if config.init_from else None
    tokenizer = StoredTokenizerStep(
        tokenizer_name=vlm_source(config, start),
        padding=config.pad_language_to,
        padding_side="right",
        max_length=config.tokenizer_max_length,
    )
    return [NewLineTaskProcessorStep(), tokenizer]


def load_weights(policy: Any, folder: Path, name: str) -> list[str]:
    """Load the weights of SmolVLA, or of a policy built on it, into a policy.

    A frozen language model keeps the dtypes of the checkpoint, as in SmolVLA: for `lerobot/smolvla_base`
    mostly bfloat16, half the memory of float32. What is trained stays in float32.

    Args:
        policy: policy that gets the weights. The checkpoint may lack those of its `new_modules`.
        folder, name: of the checkpoint; the name is for messages.

    Returns:
        Names of the parameters that the checkpoint lacks or has in another shape, and that keep their values.

    Raises:
        ValueError: if a weight of SmolVLA is missing or has another shape, or the file is missing.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"init_from: found no model.safetensors in {name!r} ({sorted(folder.glob('*'))[:5]})."
        )
    vlm = [(key, parameter) for key, parameter in policy.named_parameters() if _VLM in key]
    if not any(parameter.requires_grad for _, parameter in vlm):
        _take_dtypes(vlm, file)
    own = policy.state_dict()
    with safe_open(str(file), "pt") as weights:
        found = set(weights.keys())
        shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in found & set(own)}
        fits = {key for key, shape in shapes.items() if shape == tuple(own[key].shape)}
        new = sorted(set(own) - fits)
        may_lack = tuple(f"{module}." for module in policy.new_modules)
        wrong = [key for key in new if not key.startswith(may_lack)]
        if wrong:
            key = wrong[0]
            there = f"shape {shapes[key]}" if key in shapes else "none"
            raise ValueError(
                f"init_from: {name!r} does not fit: {len(wrong)} weights of SmolVLA are missing or differ. "
                f"For {key!r} found {there}, expected {tuple(own[key].shape)}, with the language model of "
                f"vlm_model_name, {policy.config.vlm_model_name!r}."
            )
        with torch.no_grad():
            for key in fits:
                own[key].copy_(weights.get_tensor(key))
    ignored = sorted(found - set(own))
    logger.info("init_from %s: %d weights loaded.", name, len(fits))
    logger.warning("init_from %s: new, and trained from scratch: %s.", name, ", ".join(new) or "nothing")
    if ignored:
        logger.warning("init_from %s: not used: %s.", name, ", ".join(ignored))
    return new


def _take_dtypes(parameters: Iterable[tuple[str, torch.nn.Parameter]], file: str | Path) -> None:
    """Convert parameters to the dtypes in which a safetensors file contains them."""
    with safe_open(str(file), "pt") as weights:
        saved = {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118  not a mapping
    for key, parameter in parameters:
        parameter.data = parameter.data.to(_DTYPES.get(saved.get(key, ""), parameter.dtype))


def take_architecture(config: Any, folder: Path, types: Sequence[str]) -> dict[str, Any]:
    """Copy the options that define shapes from a checkpoint's configuration, and log those that change.

    A `vlm_model_name` that differs from the default was chosen by the user, and stays: a folder that replaces
    the Hub.

    Returns:
        The checkpoint's configuration.

    Raises:
        ValueError: if its policy has none of the `types`.
    """
    file = folder / "config.json"
    saved = json.loads(file.read_text()) if file.is_file() else {}
    if saved.get("type") not in types:
        raise ValueError(
            f"init_from: found a checkpoint of type {saved.get('type')!r} in {str(folder)!r}, expected "
            f"{' or '.join(types)}."
        )
    default = type(config).__dataclass_fields__["vlm_model_name"].default
    for key in _ARCHITECTURE:
        if key == "vlm_model_name" and config.vlm_model_name != default:
            continue
        value, found = saved.get(key, getattr(config, key)), getattr(config, key)
        value = tuple(value) if isinstance(value, list) else value
        if value != (tuple(found) if isinstance(found, list) else found):
            logger.warning("init_from: %s = %s, as in the checkpoint (not %s).", key, value, found)
            setattr(config, key, value)
    return saved
