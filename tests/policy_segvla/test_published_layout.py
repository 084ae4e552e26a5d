# SPDX-License-Identifier: Apache-2.0
"""A checkpoint laid out as `lerobot/smolvla_base` goes through LeRobot's commands, as segvla's warm start.

Its layout: three cameras named camera1 to camera3, the language model in bfloat16 and the action expert in
float32, and pipelines as JSON beside it.
"""

import json
import shutil
from threading import Thread

import numpy as np
import pytest
import torch
from lerobot.async_inference.configs import RobotClientConfig
from lerobot.async_inference.robot_client import RobotClient
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.scripts import lerobot_eval, lerobot_rollout, lerobot_train
from safetensors.torch import load_file

from lerobot_env_so101_workbench.device_configs import SO101SimConfig
from lerobot_env_so101_workbench.tasks import SortCubes
from lerobot_policy_segvla.modeling_segvla import SegVLAFlowMatching
from lerobot_processor_so101.arm import ACTION_NAMES
from lerobot_processor_so101.policy.server import serve
from tests.tiny import robot_features, save_policy, tiny_smolvla

from .conftest import SENTENCES, run, save_demos_and_models

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plugins")]
SIZE = 32
FROZEN = "model.vlm_with_expert.vlm."


def sim(camera: str, prefix: str = "env") -> str:
    views = "views" if prefix == "robot" else "cameras"
    return (
        f"--{prefix}.type=so101_sim --{prefix}.task=sort_cubes --{prefix}.{views}=[{camera}] "
        f"--{prefix}.height={SIZE} --{prefix}.width={SIZE}"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Demonstrations, a Mask2Former, and the published checkpoint."""
    folder = save_demos_and_models(tmp_path_factory.mktemp("published"), SIZE)
    torch.manual_seed(3)
    features = robot_features((256, 256), ("camera1", "camera2", "camera3"))
    policy = SmolVLAPolicy(SmolVLAConfig(**features, **tiny_smolvla(str(folder / "vlm"))))
    policy.model.vlm_with_expert.vlm.bfloat16()
    statistics = {
        key: {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("observation.state", "action")
    }
    save_policy(policy, folder / "smolvla_base", statistics)
    return folder


def train(folder, output: str, options: str = "") -> None:
    run(
        lerobot_train.main,
        f"--policy.type=segvla --policy.init_from={folder / 'smolvla_base'} --policy.push_to_hub=false "
        f"--policy.segmenter={folder / 'mask2former'} --policy.segmentation_task_classes=[table,bottle] "
        "--policy.segmentation_geometry_classes=[plate] --policy.segmentation_dropout_prob=0 "
        "--policy.resize_imgs_with_padding=[64,64] --policy.chunk_size=6 --policy.n_action_steps=6 "
        f"--policy.device=cpu --dataset.repo_id=local/demos --dataset.root={folder / 'demos'} "
        f"--output_dir={folder / output} --steps=2 --save_freq=1 --batch_size=2 --num_workers=0 {options}",
    )


@pytest.fixture(scope="module")
def trained(folder):
    """The checkpoints of two steps of training."""
    with pytest.MonkeyPatch.context() as patch:
        # LeRobot restores the random state, and then draws from it for the data loader.
        noise = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
        patch.setattr(SegVLAFlowMatching, "sample_noise", lambda *_: noise)
        patch.setattr(SegVLAFlowMatching, "sample_time", lambda *_: torch.tensor([0.3, 0.7]))
        train(folder, "trained")
        first, last = (folder / "trained" / "checkpoints" / f"00000{step}" for step in (1, 2))
        uninterrupted = weights(last)
        shutil.rmtree(last)
        run(lerobot_train.main, f"--resume=true --config_path={first / 'pretrained_model/train_config.json'}")
    return last / "pretrained_model", uninterrupted


def weights(checkpoint) -> dict:
    return load_file(checkpoint / "pretrained_model" / "model.safetensors")


def test_training_keeps_what_is_frozen_and_resumes_to_the_bit(folder, trained):
    checkpoint, uninterrupted = trained
    published = load_file(folder / "smolvla_base" / "model.safetensors")
    found = load_file(checkpoint / "model.safetensors")
    frozen = [key for key in published if key.startswith(FROZEN)]
    assert frozen
    for key in frozen:
        assert found[key].dtype == published[key].dtype
        assert found[key].equal(published[key])
    assert found.keys() == uninterrupted.keys()
    assert all(found[key].equal(value) for key, value in uninterrupted.items())
    changed = [key for key in published if not found[key].equal(published[key])]
    assert "model.action_out_proj.weight" in changed
    assert {found[key].dtype for key in changed} == {torch.float32}


def evaluate(checkpoint, output, options: str) -> dict:
    run(
        lerobot_eval.main,
        f"--policy.path={checkpoint} --policy.device=cpu {options} --eval.n_episodes=1 "
        f"--eval.batch_size=1 --eval.use_async_envs=false --output_dir={output}",
    )
    return json.loads((output / "eval_info.json").read_text())["overall"]


def test_evaluation_and_rollouts_rename_cameras(trained, monkeypatch, tmp_path):
    checkpoint, _ = trained
    monkeypatch.setattr(SortCubes, "time_limit_s", 12 / 30)
    renamed = '--rename_map={"observation.images.wrist":"observation.images.top"}'
    assert evaluate(checkpoint, tmp_path, f"{sim('wrist')} {renamed}")["n_episodes"] == 1
    for inference in ("sync", "rtc"):
        run(
            lerobot_rollout.main,
            f"--strategy.type=base --inference.type={inference} --task=Sort --duration=1 --fps=30 "
            f"--policy.path={checkpoint} --policy.device=cpu {sim('wrist', 'robot')} {renamed}",
        )


def test_adapters_are_trained_and_evaluated(folder, monkeypatch, tmp_path):
    train(folder, "lora", "--peft.method_type=LORA --peft.r=2")
    saved = folder / "lora" / "checkpoints" / "000002" / "pretrained_model"
    adapter = load_file(saved / "adapter_model.safetensors")
    assert any("lora_A" in key for key in adapter)
    assert not any(key.removeprefix("base_model.model.").startswith(FROZEN) for key in adapter)
    monkeypatch.setattr(SortCubes, "time_limit_s", 12 / 30)
    assert evaluate(saved, tmp_path, sim("top"))["n_episodes"] == 1


def test_lerobots_robot_client_acts_through_the_policy_server(trained, free_port):
    server = serve(free_port)
    config = RobotClientConfig(
        policy_type="segvla",
        pretrained_name_or_path=str(trained[0]),
        robot=SO101SimConfig(task="sort_cubes", views=["top"], height=SIZE, width=SIZE),
        actions_per_chunk=6,
        task=SENTENCES[0],
        server_address=f"127.0.0.1:{free_port}",
    )
    client = RobotClient(config)
    sent, send_action = [], client.robot.send_action

    def counted(action):
        sent.append([action[name] for name in ACTION_NAMES])
        if len(sent) == 20:  # more than three chunks
            client.shutdown_event.set()
        return send_action(action)

    client.robot.send_action = counted
    try:
        assert client.start()
        Thread(target=client.receive_actions, daemon=True).start()
        client.control_loop(config.task)
    finally:
        client.stop()
        server.stop(None).wait()
    assert len(sent) >= 20
    assert np.isfinite(sent).all()
    assert len(np.unique(sent, axis=0)) > 6
