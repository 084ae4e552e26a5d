# SPDX-License-Identifier: Apache-2.0
"""`hlrp-mix`: make one LeRobotDataset of several, because training takes one.

    hlrp-mix --config_path=configs/hlrp_mixture.yaml --output=outputs/mixture

It may be stopped at any moment: the same command goes on with the first source that is not done.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import draccus
from draccus.utils import DraccusException
from lerobot.datasets.aggregate import aggregate_datasets
from tqdm import tqdm

from .conform import conform, scales
from .mixture import MixtureConfig, MixtureNotes


def mix(config: MixtureConfig) -> MixtureNotes:
    """Make the mixture.

    Raises:
        ValueError: a source cannot be had or does not fit, or the unfinished work is that of other options.
    """
    config.check()
    if config.output.exists():
        raise ValueError(f"--output: found {config.output} already, expected a new folder.")
    partial = config.output.with_name(f"{config.output.name}.partial")
    _open(partial, config)
    chosen = config.episodes()
    parts = [partial / f"{number:03d}" for number in range(len(config.sources))]
    for source, episodes, part in tqdm(list(zip(config.sources, chosen, parts, strict=True)), desc="sources"):
        if not part.with_suffix(".done").exists():
            conform(config, source, episodes, part)
            part.with_suffix(".done").touch()
    whole = partial / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    names = [f"local/{part.name}" for part in parts]
    aggregate_datasets(
        names, f"local/{config.output.name}", roots=parts, aggr_root=whole, concatenate_videos=False
    )
    notes = notes_of(config, chosen)
    notes.save(whole)
    whole.replace(config.output)
    shutil.rmtree(partial)
    return notes


def notes_of(config: MixtureConfig, chosen: list[list[int]]) -> MixtureNotes:
    """What training must know of each episode of the mixture."""
    labelled, action_dim, sources = [], [], []
    for source, episodes in zip(config.sources, chosen, strict=True):
        flags = config.labelled(episodes, source)
        labelled += flags
        action_dim += [source.numbers(source.action)] * len(episodes)
        scaled = {key: scale.notes() for key, scale in scales(config, source).items()}
        sources.append(
            {"name": source.name, "episodes": len(episodes), "labelled": sum(flags), "scaled": scaled}
        )
    return MixtureNotes(labelled, action_dim, sources)


def _open(partial: Path, config: MixtureConfig) -> None:
    """Make the folder of the unfinished work, or go on with it."""
    wanted: Any = json.loads(json.dumps(draccus.encode(config)))
    path = partial / "mixture_options.json"
    found = json.loads(path.read_text()) if path.is_file() else wanted
    if found != wanted:
        raise ValueError(
            f"--output: the unfinished work in {partial} was begun with other options. Give the same again to go on, or "
            "delete that folder to begin anew."
        )
    partial.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1))


def main() -> None:
    """The console script."""
    try:
        config = draccus.parse(MixtureConfig)
        notes = mix(config)
    except (OSError, ValueError, DraccusException) as error:
        print(f"hlrp-mix: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for source in notes.sources:
        print(f"{source['name']}: {source['episodes']} episodes, actions of {source['labelled']}")
    print(f"written to {config.output}")


if __name__ == "__main__":
    main()
