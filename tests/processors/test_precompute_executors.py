# SPDX-License-Identifier: Apache-2.0
"""`so101-precompute` with several local workers, on Ray and on Slurm: the same result as one worker."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lerobot_processor_so101.precompute.command import precompute
from lerobot_processor_so101.precompute.config import SlurmConfig
from lerobot_processor_so101.precompute.perception import PrecomputeConfig
from tests.tiny import tiny_segformer
from tests.tiny_dataset import tiny_dataset


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("in")
    return {
        "root": tiny_dataset(folder / "d", lengths=(3, 4, 2)),
        "segmenter": tiny_segformer(folder / "m"),
        "height": 24,
        "width": 32,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def expected(options, tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("one") / "out"
    precompute(PrecomputeConfig(output=output, **options))
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_local_workers(options, expected, tmp_path, capfd):
    summary = precompute(PrecomputeConfig(output=tmp_path / "out", workers=2, **options))
    assert summary.startswith("9 frames of 2 cameras")
    assert contents(tmp_path / "out") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    printed = capfd.readouterr()
    assert "datatrove" not in printed.out + printed.err
    assert "3/3" in printed.err  # the bar over episodes


def damaged(root: Path, tmp_path: Path) -> Path:
    """A dataset whose second episode has an unreadable image."""
    copy = shutil.copytree(root, tmp_path / "damaged")
    file = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    key = "observation.images.top"
    images = table[key].to_pylist()
    images[4]["bytes"] = images[4]["bytes"][:40]
    column = pa.array(images, table.schema.field(key).type)
    pq.write_table(table.set_column(table.column_names.index(key), table.schema.field(key), column), file)
    return copy


def start(ray: ModuleType, attempts: int = 4) -> None:
    """Start Ray; on a busy machine it may need longer than the 30 s that it waits for itself."""
    for attempt in range(1, attempts + 1):
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises nothing more specific
            ray.shutdown()
            if "timed out" not in str(error) or attempt == attempts:
                raise


@pytest.mark.slow
def test_ray(options, expected, tmp_path):
    ray = pytest.importorskip("ray")
    start(ray)
    try:
        resources = {"cpus_per_worker": 1, "memory_per_cpu": 1}
        precompute(
            PrecomputeConfig(output=tmp_path / "out", executor="ray", workers=2, **resources, **options)
        )
        assert contents(tmp_path / "out") == expected
        root = damaged(options["root"], tmp_path)
        bad = {**options, "root": root}
        with pytest.raises(RuntimeError, match="episode 1, frame 1"):
            precompute(
                PrecomputeConfig(output=tmp_path / "bad", executor="ray", workers=2, **resources, **bad)
            )
    finally:
        ray.shutdown()


SBATCH = """#!/bin/bash
# Stands in for Slurm: stores the script and its arguments, and prints what sbatch prints.
number=$(ls "$SUBMITTED" | wc -l)
echo "# arguments: ${@:1:$#-1}" > "$SUBMITTED/$number"
cat "${@: -1}" >> "$SUBMITTED/$number"
echo "Submitted batch job $((100 + number))"
"""


@pytest.mark.slow
def test_slurm(options, expected, tmp_path, monkeypatch):
    """Check the scripts as text; then start their commands as Slurm would."""
    tools, submitted = tmp_path / "bin", tmp_path / "submitted"
    submitted.mkdir()
    tools.mkdir()
    for name, script in (("sbatch", SBATCH), ("scontrol", "#!/bin/bash\necho node1\n")):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITTED", str(submitted))
    slurm = SlurmConfig(partition="gpu", time="01:00:00")
    config = PrecomputeConfig(
        output=tmp_path / "out", executor="slurm", workers=2, gpus_per_worker=1, slurm=slurm, **options
    )
    assert precompute(config).startswith("submitted to Slurm")
    scripts = [path.read_text() for path in sorted(submitted.iterdir())]
    work = next(s for s in scripts if f"{tmp_path}/out.slurm/episodes/executor.pik" in s)
    last = next(s for s in scripts if f"{tmp_path}/out.slurm/dataset/executor.pik" in s)
    for line in ("--partition=gpu", "--time=01:00:00", "--array=0-1%2", "--gpus=1", "--mem-per-cpu=4G"):
        assert f"#SBATCH {line}\n" in work
    assert f'export PATH="{Path(sys.executable).parent}:$PATH"' in work
    assert "launch_pickled_pipeline" in work
    assert "#SBATCH --array=0-0%1\n" in last
    assert "--dependency=afterok:100" in last.splitlines()[0]

    def start(folder: str, task: str) -> subprocess.Popen:
        launch = Path(sys.executable).parent / "launch_pickled_pipeline"
        return subprocess.Popen(
            [launch, f"{tmp_path}/out.slurm/{folder}/executor.pik"],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": task, "SLURM_NODELIST": "node1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    workers = [start("episodes", "0"), start("episodes", "1")]
    assert [worker.wait(300) for worker in workers] == [0, 0]
    assert start("dataset", "0").wait(300) == 0
    assert contents(tmp_path / "out") == expected
    assert not (tmp_path / "out.partial").exists()
