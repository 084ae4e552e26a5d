# SPDX-License-Identifier: Apache-2.0
"""Find a policy's checkpoint, pass its folder to the policy, and check options against it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from lerobot.configs import PreTrainedConfig

from .training_dataset import set_loaded_policy
from .trust import check_pipelines, check_weights


def checkpoint_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint, from the Hub or its cache if `name` is not a folder.

    Raises:
        ValueError: if there is no such checkpoint.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        nested = folder / "pretrained_model"  # what lerobot-train writes
        return nested if nested.is_dir() else folder
    if name.startswith((".", "/", "~")):
        raise ValueError(f"checkpoint {name!r}: there is no such folder.")
    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except OSError as error:
        raise ValueError(
            f"checkpoint {name!r}: found neither a folder nor a repository on the Hub or in its cache. "
            f"{str(error).splitlines()[0]}"
        ) from error


def check_architecture(
    config: PreTrainedConfig, saved: Mapping[str, Any], keys: Iterable[str], source: str
) -> None:
    """Refuse options under which the weights of a checkpoint would load but mean something else.

    Args:
        config: configuration of the policy.
        saved: the checkpoint's config.json. Options that it lacks are not compared.
        keys: names of the options.
        source: name of the checkpoint.

    Raises:
        ValueError: if an option differs.
    """
    for key in keys:
        found = getattr(config, key)
        if key in saved and found != saved[key]:
            raise ValueError(
                f"{key}: found {found!r}, expected {saved[key]!r}, which the weights in {source!r} were "
                f"trained with: `--policy.{key}={saved[key]}`."
            )


class CheckpointMixin:
    """Check a checkpoint, and pass its folder to a `PreTrainedPolicy`'s constructor as `checkpoint`.

    The mixin has no base class, so mypy cannot find the methods of the policy.
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ) -> Any:
        """Load a checkpoint; see `PreTrainedPolicy.from_pretrained`.

        Raises:
            ValueError: if its pipelines would run code that is not registered, weights are missing, or
                numbers are not finite.
        """
        folder = checkpoint_folder(str(pretrained_name_or_path), kwargs.get("revision"))
        check_pipelines(folder)
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **kwargs)
        policy = super().from_pretrained(  # type: ignore[misc]  # of the policy
            pretrained_name_or_path, config=config, checkpoint=folder, **kwargs
        )
        set_loaded_policy(config)
        return policy

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """Load weights, all of them; LeRobot only logs those that are missing."""
        check_weights(model, Path(model_file))
        return super()._load_as_safetensor(model, model_file, map_location, strict)  # type: ignore[misc]
