# SPDX-License-Identifier: Apache-2.0
"""Where a policy's checkpoint is."""

from pathlib import Path

from huggingface_hub import snapshot_download


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
