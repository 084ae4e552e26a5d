# SPDX-License-Identifier: Apache-2.0
"""`hlrp-mix`: merge several LeRobotDatasets into one, because training takes one.

    hlrp-mix --config_path=$(so101-config hlrp_mixture) --output=outputs/mixture

The command can be stopped at any time: the same command resumes with the first source that is not done.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import draccus
from lerobot.datasets.aggregate import aggregate_datasets
from tqdm import tqdm

from lerobot_processor_so101.atomic import write_json
from lerobot_processor_so101.cli import run_command
from lerobot_processor_so101.lock import owning
from lerobot_processor_so101.recording import check_videos

from ..laq.label_file import dataset_fingerprint
from .convert_source import convert_source, scales
from .mixture import MixtureConfig, MixtureNotes


def mix(config: MixtureConfig) -> MixtureNotes:
    """Make the mixture.

    Raises:
        ValueError: if a source is missing or does not match, or unfinished work was begun with other options.
        OSError: if another process has the same output.
    """
    config.check()
    with owning(config.output):
        return _mix(config)


def _mix(config: MixtureConfig) -> MixtureNotes:
    if config.output.exists():
        raise ValueError(f"--output: found {config.output} already, expected a new folder.")
    for source in config.sources:
        check_videos(Path(source.meta.root))
    partial = config.output.with_name(f"{config.output.name}.partial")
    _open(partial, config)
    chosen = config.episodes()
    parts = [partial / f"{number:03d}" for number in range(len(config.sources))]
    for source, episodes, part in tqdm(list(zip(config.sources, chosen, parts, strict=True)), desc="sources"):
        if not part.with_suffix(".done").exists():
            convert_source(config, source, episodes, part)
            part.with_suffix(".done").touch()
    merged = partial / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    names, name = [f"local/{part.name}" for part in parts], f"local/{config.output.name}"
    aggregate_datasets(names, name, roots=parts, aggr_root=merged, concatenate_videos=False)
    notes = notes_of(config, chosen)
    notes.save(merged)
    check_videos(merged)
    merged.replace(config.output)
    shutil.rmtree(partial)
    return notes


def notes_of(config: MixtureConfig, chosen: list[list[int]]) -> MixtureNotes:
    """Return what training needs to know of each episode of the mixture."""
    labelled, action_dim, sources = [], [], []
    for source, episodes in zip(config.sources, chosen, strict=True):
        flags = config.labelled(episodes, source)
        labelled += flags
        action_dim += [source.size_of(source.action)] * len(episodes)
        by_key = scales(config, source).items()
        scaled = {key: {"mean": scale.mean.tolist(), "std": scale.std.tolist()} for key, scale in by_key}
        counts = {"episodes": len(episodes), "labelled": sum(flags)}
        sources.append({"name": source.name, **counts, "scaled": scaled})
    return MixtureNotes(labelled, action_dim, sources)


def _open(partial: Path, config: MixtureConfig) -> None:
    """Create the folder of unfinished work, or check that it was begun with the same options and sources."""
    fingerprints = [dataset_fingerprint(source.meta) for source in config.sources]
    wanted: Any = json.loads(json.dumps({"options": draccus.encode(config), "sources": fingerprints}))
    path = partial / "mixture_options.json"
    found = json.loads(path.read_text()) if path.is_file() else wanted
    reasons = {"options": "was begun with other options", "sources": "has a source that has changed"}
    for key, reason in reasons.items():
        if found.get(key) != wanted[key]:
            raise ValueError(
                f"--output: the unfinished work in {partial} {reason}. Give the same options and sources to "
                "resume, or delete that folder to begin again."
            )
    partial.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def main() -> None:
    """Run `hlrp-mix`."""

    def command(config: MixtureConfig) -> str:
        sources = mix(config).sources
        lines = [f"{s['name']}: {s['episodes']} episodes, actions of {s['labelled']}" for s in sources]
        return "\n".join([*lines, f"written to {config.output}"])

    run_command("hlrp-mix", MixtureConfig, command, "stopped; the same command resumes.")


if __name__ == "__main__":
    main()
