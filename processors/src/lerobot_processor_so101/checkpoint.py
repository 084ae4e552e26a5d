# SPDX-License-Identifier: Apache-2.0
"""Where a policy's checkpoint is, and how the policy is told."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from lerobot.configs import PreTrainedConfig


def checkpoint_folder(name: str, revision: str | None = None) -> Path:
    """Folder of a checkpoint; from the Hub or its cache if `name` is no folder.

    Raises:
        ValueError: there is no such checkpoint.
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


def check_form(config: PreTrainedConfig, saved: Mapping[str, Any], keys: Iterable[str], source: str) -> None:
    """Refuse options that would load, and give the weights of a checkpoint another meaning.

    Args:
        config: what is told.
        saved: configuration of the checkpoint, as its config.json has it. What it does not know is not compared.
        keys: the options.
        source: name of the checkpoint, for the message.

    Raises:
        ValueError: they differ; the message names the first difference.
    """
    for key in keys:
        told = getattr(config, key)
        if key in saved and told != saved[key]:
            raise ValueError(
                f"{key}: found {told!r}, expected {saved[key]!r}, as the weights in {source!r} were trained with: "
                f"`--policy.{key}={saved[key]}`."
            )


class CheckpointMixin:
    """Tells a `PreTrainedPolicy` the folder it is loaded from, as the argument `checkpoint` of its constructor.

    It has no base of its own, so mypy is told that what it calls belongs to the policy it is mixed into.
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ) -> Any:
        """Load a checkpoint; see `PreTrainedPolicy.from_pretrained`."""
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **kwargs)
        folder = checkpoint_folder(str(pretrained_name_or_path), kwargs.get("revision"))
        return super().from_pretrained(  # type: ignore[misc]  # of the policy
            pretrained_name_or_path, config=config, checkpoint=folder, **kwargs
        )
