# SPDX-License-Identifier: Apache-2.0
"""A precompute that is killed ten times at random times ends with the same bytes."""

import multiprocessing
import random
import shutil
import sys
import time
from pathlib import Path

import pytest

from lerobot_processor_so101.precompute.command import precompute
from lerobot_processor_so101.precompute.perception import PrecomputeConfig
from tests.tiny import tiny_segformer
from tests.tiny_dataset import tiny_dataset

KILLS = 10


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_killed_ten_times(tmp_path):
    source = tiny_dataset(tmp_path / "source", "h264", lengths=(6, 9, 7, 8))
    options = {"root": source, "segmenter": tiny_segformer(tmp_path / "model"), "forms": ["ids", "top_k"]}
    options |= {"height": 24, "width": 32, "grid": 8, "device": "cpu"}
    disturbed = PrecomputeConfig(output=tmp_path / "disturbed", **options)
    undisturbed = PrecomputeConfig(output=tmp_path / "undisturbed", **options)

    # Children begin with everything imported, so that a kill interrupts the work and not the imports.
    before = set(sys.modules)
    precompute(undisturbed)
    shutil.rmtree(undisturbed.output)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([precompute.__module__, *sorted(set(sys.modules) - before)])

    def begin(config: PrecomputeConfig) -> multiprocessing.Process:
        process = processes.Process(target=precompute, args=(config,))
        process.start()
        return process

    begin(undisturbed).join()  # starts the server
    expected = contents(undisturbed.output)
    shutil.rmtree(undisturbed.output)
    start = time.monotonic()
    begin(undisturbed).join()
    duration = time.monotonic() - start
    assert contents(undisturbed.output) == expected
    assert not undisturbed.partial.exists()

    rng, kills, results = random.Random(0), 0, 0
    while kills < KILLS:
        process = begin(disturbed)
        process.join(rng.uniform(0.1, 0.9) * duration)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if disturbed.output.exists():  # it finished between two kills
            results += 1
            assert contents(disturbed.output) == expected
            if disturbed.partial.exists():
                precompute(disturbed)  # a kill came at the very end: the leftovers are removed
            shutil.rmtree(disturbed.output)
    begin(disturbed).join()
    assert contents(disturbed.output) == expected
    assert not disturbed.partial.exists()
