# SPDX-License-Identifier: Apache-2.0
"""The Slurm scripts, with stand-ins for its commands."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from lerobot_processor_so101.find_config import find_configs

pytestmark = pytest.mark.slow  # each test starts processes that import accelerate and LeRobot
ROOT = Path(__file__).parents[2]
LOG = '#!/bin/bash\necho "$(basename "$0") $*" >> calls\n'


@pytest.fixture
def cluster(tmp_path):
    """Run a script in a folder whose Slurm commands log their arguments; srun runs its command."""
    tools = tmp_path / "tools"
    tools.mkdir()
    contents = {
        "sbatch": LOG,
        "scancel": LOG,
        "squeue": '#!/bin/bash\n[[ "$*" == *"--jobs=11" ]] && echo "11 running" || true\n',
        "scontrol": "#!/bin/bash\necho node7\necho node8\n",
        "srun": LOG + 'shift\nexec "$@"\n',
        "accelerate": LOG,
        "lerobot-train": LOG,
    }
    for name, text in contents.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    def run(*command, **variables):
        path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, **variables}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        calls = tmp_path / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines, done.stdout

    run.folder = tmp_path
    return run


JOB = {
    "RUN": "laq",
    "SLURM_JOB_ID": "12",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_JOB_NODELIST": "node[7-8]",
}


def test_a_run_is_submitted_to_every_queue(cluster):
    calls, _ = cluster(
        "bash", "examples/slurm/submit.sh", "laq", "examples/slurm/hlrp_1.sbatch", "h100,a100", "--steps=5"
    )
    assert [call.split("--partition=")[1].split()[0] for call in calls] == ["h100", "a100"]
    assert all(
        "--job-name=laq" in call and "RUN=laq" in call and call.endswith("--steps=5") for call in calls
    )


@pytest.mark.parametrize(
    ("stage", "config"), [(1, "hlrp_1_laq"), (2, "hlrp_2_foundation"), (3, "hlrp_3_policy")]
)
def test_the_first_job_to_start_cancels_the_others_and_trains(cluster, stage, config):
    calls, _ = cluster("bash", f"examples/slurm/hlrp_{stage}.sbatch", "--steps=5", **JOB)
    assert calls[0] == "scancel --me --name=laq --state=PENDING"
    launch = calls[-1]
    for part in ("--num_machines=2", "--machine_rank=1", "--num_processes=8", "--main_process_ip=node7"):
        assert part in launch
    path = find_configs()[config]
    assert f"--config_path={path} --output_dir=outputs/laq --policy.device=cuda --steps=5" in launch


@pytest.mark.parametrize(("nodes", "gpus"), [("1", "1"), ("1", "4"), ("2", "4")])
def test_accelerate_accepts_the_command(cluster, nodes, gpus):
    own = {"SLURM_NODEID": "0", "SLURM_NNODES": nodes, "SLURM_GPUS_ON_NODE": gpus}
    calls, _ = cluster("bash", "examples/slurm/hlrp_1.sbatch", **{**JOB, **own})
    words = shlex.split(calls[-1])
    assert words[:2] == ["accelerate", "launch"]
    options = launch_command_parser().parse_args(words[2:])
    _validate_launch_command(options)  # raises for wrong numbers of processes
    assert options.num_processes == int(nodes) * int(gpus)


def test_another_job_of_the_run_stops(cluster):
    claim = cluster.folder / "outputs" / "claims" / "laq"
    claim.mkdir(parents=True)
    (claim / "job").write_text("11\n")
    calls, output = cluster("bash", "examples/slurm/hlrp_1.sbatch", **JOB)
    assert calls == []
    assert "trained by job 11" in output
    assert claim.is_dir()


def test_the_claim_of_an_ended_job_is_taken_over(cluster):
    claim = cluster.folder / "outputs" / "claims" / "laq"
    claim.mkdir(parents=True)
    (claim / "job").write_text("10\n")
    calls, _ = cluster("bash", "examples/slurm/hlrp_1.sbatch", **JOB)
    assert calls[-1].startswith("accelerate launch")


def test_an_interrupted_run_resumes(cluster):
    last = cluster.folder / "outputs" / "laq" / "checkpoints" / "last" / "pretrained_model"
    last.mkdir(parents=True)
    (last / "train_config.json").write_text("{}")
    calls, _ = cluster("bash", "examples/slurm/hlrp_1.sbatch", **JOB)
    assert "last/pretrained_model/train_config.json --resume=true" in calls[-1]
    assert not (cluster.folder / "outputs" / "claims" / "laq").exists()
