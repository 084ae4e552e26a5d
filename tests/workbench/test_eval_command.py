# SPDX-License-Identifier: Apache-2.0
"""`lerobot-eval` runs on the workbench: an untrained policy fails, the expert succeeds."""

import json

import numpy as np
import pytest
import torch
from lerobot.configs.default import EvalConfig
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.scripts import lerobot_eval

from lerobot_env_so101_workbench import SO101SimEnvConfig
from lerobot_env_so101_workbench.sim.expert import Expert
from lerobot_env_so101_workbench.tasks import LiftCube, PlaceCube
from tests.tiny import tiny_act

SMALL = {"cameras": ["top"], "height": 32, "width": 32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny ACT with random weights, saved as LeRobot saves it."""
    return tiny_act(tmp_path_factory.mktemp("act"), (32, 32), ("top",), chunk=4)


@pytest.fixture
def short(monkeypatch):
    for task in (LiftCube, PlaceCube):
        monkeypatch.setattr(task, "time_limit_s", 0.3)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_untrained_policy_never_succeeds(batch_size, checkpoint, short, tmp_path):
    config = EvalPipelineConfig(
        env=SO101SimEnvConfig(**SMALL),
        eval=EvalConfig(n_episodes=2, batch_size=batch_size, use_async_envs=False),
        policy=checkpoint,
        output_dir=tmp_path,
    )
    lerobot_eval.eval_main(config)
    overall = json.loads((tmp_path / "eval_info.json").read_text())["overall"]
    assert overall["pc_success"] == 0.0
    assert overall["n_episodes"] == 2
    assert len(list(tmp_path.glob("videos/**/*.mp4"))) == 2


def test_every_task_and_level_is_evaluated_separately(checkpoint, short, tmp_path):
    config = EvalPipelineConfig(
        env=SO101SimEnvConfig(task="lift_cube,place_cube", level="clean,randomised", **SMALL),
        eval=EvalConfig(n_episodes=1, batch_size=1, use_async_envs=False),
        policy=checkpoint,
        output_dir=tmp_path,
    )
    lerobot_eval.eval_main(config)
    info = json.loads((tmp_path / "eval_info.json").read_text())
    groups = {"lift_cube-clean", "lift_cube-randomised", "place_cube-clean", "place_cube-randomised"}
    assert set(info["per_group"]) == groups
    assert all(group["pc_success"] == 0.0 for group in info["per_group"].values())
    assert info["overall"]["n_episodes"] == 4


class ExpertPolicy(torch.nn.Module):
    """Acts as the expert does in the first environments; the last one is left alone."""

    def __init__(self, envs, idle: int) -> None:
        super().__init__()
        self._worlds = [env.unwrapped.world for env in envs.envs]
        self._working = len(self._worlds) - idle

    def reset(self) -> None:
        self._experts = [Expert(world) for world in self._worlds]

    def select_action(self, batch) -> torch.Tensor:
        self.tasks = batch["task"]
        actions = [expert.decide().action for expert in self._experts[: self._working]]
        actions += [world.joints() for world in self._worlds[self._working :]]
        return torch.from_numpy(np.array(actions, dtype=np.float32))


def test_success_is_counted_only_where_the_expert_acts(monkeypatch):
    monkeypatch.setattr(LiftCube, "time_limit_s", 3.0)
    config = SO101SimEnvConfig(renderer="ray", **SMALL)
    envs = config.create_envs(3)["lift_cube-clean"][0]
    policy = ExpertPolicy(envs, idle=1)
    run = lerobot_eval.rollout(envs, policy, *[lambda value: value] * 4, seeds=[0, 1, 2])
    assert run["success"].any(dim=1).tolist() == [True, True, False]
    assert run["done"][:, -1].all()
    assert policy.tasks == ["Lift the cube."] * 3
    assert run["reward"].sum(dim=1)[2].abs() < 0.05
    envs.close()
