# SPDX-License-Identifier: Apache-2.0
"""hlrp in LeRobot's commands: three stages by their configurations, labels in a file, two processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.scripts import lerobot_eval, lerobot_train
from lerobot.utils.import_utils import register_third_party_plugins
from safetensors.torch import load_file

from lerobot_env_so101_workbench.demos.command import DemosConfig, record
from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_policy_hlrp.label_dataset import LabelConfig, label
from lerobot_processor_so101.find_config import find_configs
from tests.policy_hlrp.two_processes import gradients, policy_of, uneven_batch

ROOT = Path(__file__).parents[2]
TINY_LAQ = ["image_size=32", "patch_size=8", "width=32", "heads=2", "spatial_layers=1", "decoder_layers=1"]
TINY = [
    "device=cpu",
    "num_vlm_layers=2",
    "resize_imgs_with_padding=[64,64]",
    "chunk_size=6",
    "n_action_steps=6",
    "num_steps=2",
]


def command(monkeypatch, function, *options):
    monkeypatch.setattr(sys, "argv", [function.__name__, *options])
    function()


def train(monkeypatch, config, out, policy, *options, steps=2):
    given = [f"--policy.{option}" for option in policy]
    sizes = [f"--steps={steps}", "--batch_size=4", "--num_workers=0", "--save_freq=2", "--log_freq=1"]
    path = f"--config_path={find_configs()[config]}"
    command(monkeypatch, lerobot_train.train, path, f"--output_dir={out}", *given, *sizes, *options)
    return out / "checkpoints" / f"{steps:06d}" / "pretrained_model"


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "demos"
    record(DemosConfig(root=root, episodes=3, height=48, width=64, seg=True, video=False, level="randomised"))
    return root


@pytest.mark.slow
def test_the_three_stages_of_the_docs(demos, vlm, tmp_path, monkeypatch):
    register_third_party_plugins()
    data = f"--dataset.root={demos}"
    laq = train(monkeypatch, "hlrp_1_laq", tmp_path / "laq", TINY_LAQ, data)
    trunk = [f"vlm_model_name={vlm}", "load_vlm_weights=false", *TINY, f"laq={laq}"]
    stage2 = train(monkeypatch, "hlrp_2_foundation", tmp_path / "foundation", trunk, data)
    saved = json.loads((stage2 / "config.json").read_text())
    assert saved["laq_identity"]["camera"] == "top"
    assert not [key for key in saved["input_features"] if key.endswith("_seg")]
    options = [f"vlm_model_name={vlm}", *TINY, f"init_from={stage2}"]
    demonstrations = [data, "--dataset.episodes=[0]"]
    stage3 = train(monkeypatch, "hlrp_3_policy", tmp_path / "policy", options, *demonstrations)

    before, after = (load_file(folder / "model.safetensors") for folder in (stage2, stage3))
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert before.keys() == after.keys()
    assert "model.action_out_proj.weight" in changed
    assert [key for key in changed if ".lm_expert." in key]
    assert not [key for key in changed if ".vlm." in key]  # the trunk of stage 2, frozen

    laq.parents[2].rename(tmp_path / "gone")
    actions = evaluate(monkeypatch, stage3, tmp_path / "eval")
    overall = json.loads((tmp_path / "eval" / "eval_info.json").read_text())["overall"]
    assert overall["n_episodes"] == 1
    assert math.isfinite(overall["avg_sum_reward"])
    assert len(actions) > 6  # more than one chunk
    stats = LeRobotDataset("local/video", root=demos).meta.stats["action"]
    normalised = (torch.cat(actions) - torch.tensor(stats["mean"])) / torch.tensor(stats["std"])
    assert normalised.abs().max() < 8  # in degrees; without the dataset's statistics one joint is 13 off
    assert len(torch.cat(actions).unique(dim=0)) > 6  # not one constant pose

    lora = ["--peft.method_type=LORA", "--peft.r=2"]
    adapted = train(monkeypatch, "hlrp_3_policy", tmp_path / "lora", options, *demonstrations, *lora)
    adapter = load_file(adapted / "adapter_model.safetensors")
    assert [key for key in adapter if "lora_A" in key]
    assert [key for key in adapter if key.endswith("latent_in_proj.weight")]  # new modules, in full
    assert len(evaluate(monkeypatch, adapted, tmp_path / "eval_lora")) > 6


def evaluate(monkeypatch, checkpoint, out):
    """Run `lerobot-eval` for one episode, and return the actions that the environment gets."""
    actions, step = [], WorkbenchEnv.step

    def recording(self, action):
        actions.append(torch.tensor(action)[None])
        return step(self, action)

    monkeypatch.setattr(WorkbenchEnv, "step", recording)
    options = ["--env.type=so101_sim", "--env.height=48", "--env.width=64", f"--output_dir={out}"]
    sizes = ["--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false"]
    path = [f"--policy.path={checkpoint}", "--policy.device=cpu"]
    command(monkeypatch, lerobot_eval.main, *path, *options, *sizes)
    return actions


@pytest.mark.slow
def test_training_resumes_with_labels_from_a_file(demos, vlm, laq, tmp_path, monkeypatch):
    register_third_party_plugins()
    labels = label(LabelConfig(Path(laq), demos, tmp_path / "labels.safetensors", num_workers=0))
    options = [f"vlm_model_name={vlm}", "load_vlm_weights=false", *TINY, "gap_s=0.1", "laq="]
    options += [f"latent_labels={tmp_path / 'labels.safetensors'}"]
    out = tmp_path / "run"
    first = train(monkeypatch, "hlrp_2_foundation", out, options, f"--dataset.root={demos}")
    config = out / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    command(monkeypatch, lerobot_train.train, f"--config_path={config}", "--resume=true", "--steps=4")
    last = out / "checkpoints" / "000004"
    assert json.loads((last / "training_state" / "training_step.json").read_text())["step"] == 4
    assert json.loads((last / "pretrained_model" / "config.json").read_text())["laq_identity"] == labels.laq
    before, after = (load_file(folder / "model.safetensors") for folder in (first, last / "pretrained_model"))
    learned = "model.latent_out_proj.weight"
    assert not torch.equal(before[learned], after[learned])


@pytest.mark.slow
def test_two_processes_learn_the_same_as_one(vlm, tmp_path):
    out = tmp_path / "two.pt"
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
    ]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", "-m", "tests.policy_hlrp.two_processes"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([*launch, vlm, str(out)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    two = torch.load(out, weights_only=True)
    assert two.pop("processes") == 2
    policy = policy_of(vlm)
    loss, _ = policy(uneven_batch())
    loss.backward()
    torch.testing.assert_close(two.pop("loss"), loss.detach(), rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(policy).items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6)
