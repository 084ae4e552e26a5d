# SPDX-License-Identifier: Apache-2.0
"""The Gymnasium environment: observations, ends of episodes, and refused options."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lerobot_env_so101_workbench import CameraSetup, SO101SimEnvConfig
from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.env_config import gym_id
from lerobot_env_so101_workbench.sim.expert import Expert
from lerobot_env_so101_workbench.sim.initial_states import (
    evaluation_initial_state,
    validation_initial_state,
)
from lerobot_env_so101_workbench.tasks import LiftCube
from lerobot_processor_so101.arm import FPS, HOME
from lerobot_processor_so101.guard import GuardLimits

TINY = {"height": 32, "width": 40}


def make(task: str = "lift_cube", level: str = "clean", starts: str = "eval", **images) -> WorkbenchEnv:
    cameras = CameraSetup(**{"cameras": ("top",), **TINY, **images})
    return WorkbenchEnv(task, level, starts, cameras, renderer="ray")


@pytest.fixture
def env():
    """An environment with one tiny image."""
    env = make()
    yield env
    env.close()


@pytest.mark.filterwarnings("ignore:.*Box:UserWarning")  # joints have no bounds
def test_gymnasiums_checker_passes():
    env = gym.make(
        gym_id("lift_cube"), cameras=CameraSetup(("top",), 32, 32), renderer="ray", render_mode="rgb_array"
    )
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("kinds", [{}, {"seg": True, "depth": True}, {"rgb": False, "seg": True}])
def test_observations_are_in_their_space(kinds):
    env = make(level="randomised", cameras=("top", "wrist"), **kinds)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, *_ = env.step(HOME)
    assert env.observation_space.contains(observation)
    assert ("pixels" in observation) == kinds.get("rgb", True)
    assert ("images.wrist_seg" in observation) == kinds.get("seg", False)
    if "depth" in kinds:
        assert 300 < np.median(observation["images.top_depth"]) < 1500  # mm
        assert set(np.unique(observation["images.top_seg"])) <= set(range(6))
    env.close()


def test_without_images_only_the_joints_are_observed():
    env = make(rgb=False)
    observation, _ = env.reset(seed=0)
    assert list(observation) == ["agent_pos"]
    assert env.observation_space.contains(observation)
    assert env.world._renderer is None  # nothing to draw, nothing to draw with
    assert list(SO101SimEnvConfig(rgb=False).features) == ["observation.state", "action"]


def test_lerobot_gets_every_declared_feature():
    from lerobot.envs.utils import env_to_policy_features, preprocess_observation

    config = SO101SimEnvConfig(cameras=["top", "wrist"], seg=True, depth=True, renderer="ray", **TINY)
    envs = config.create_envs(2)["lift_cube-clean"][0]
    observations = preprocess_observation(envs.reset(seed=[0, 1])[0])
    declared = env_to_policy_features(config)
    assert set(declared) == {*observations, "action"}
    for key, value in observations.items():
        assert tuple(value.shape[1:]) == tuple(declared[key].shape), key
    envs.close()


def test_info_contains_success_and_progress_at_every_tick(env):
    _, info = env.reset(seed=0)
    expert, ended, rewards, first = Expert(env.world), False, [], info["progress"]
    while not ended:
        assert info["is_success"] is False
        assert 0.0 <= info["progress"] < 1.0
        assert {"progress/reach", "progress/lift"} <= set(info)
        _, reward, terminated, truncated, info = env.step(expert.decide().action)
        rewards.append(reward)
        ended = terminated or truncated
    assert (terminated, truncated, info["is_success"], info["progress"]) == (True, False, True, 1.0)
    assert sum(rewards) == pytest.approx(1.0 - first)


def test_an_episode_is_truncated_at_the_time_limit(env, monkeypatch):
    monkeypatch.setattr(LiftCube, "time_limit_s", 0.2)
    env.reset(seed=0)
    ends = [env.step(HOME)[2:4] for _ in range(6)]
    assert ends == [(False, False)] * 5 + [(False, True)]
    env.reset(seed=0)
    assert env.step(HOME)[2:4] == (False, False)


@pytest.mark.parametrize(
    ("action", "message"),
    [(np.full(6, np.nan), "action: found a non-finite value"), (np.zeros(7), r"action: found shape \(7,\)")],
)
def test_a_bad_action_is_an_error(env, action, message):
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_a_diverged_state_ends_the_episode_as_a_failure(env):
    env.reset(seed=0)
    env.world.data.qvel[:] = np.nan
    observation, reward, terminated, truncated, info = env.step(HOME)
    assert (terminated, truncated, info["is_success"], info["progress"]) == (True, False, False, 0.0)
    assert np.isfinite(reward)
    assert env.observation_space.contains(observation)
    assert np.isfinite(observation["agent_pos"]).all()
    assert not env.reset(seed=1)[1]["is_success"]
    assert not env.step(HOME)[2]


@pytest.mark.parametrize("level", ["clean", "randomised"])
def test_evaluation_initial_states_repeat_after_two_hundred_seeds(level):
    env = make(level=level)
    observations = [env.reset(seed=seed)[0] for seed in (5, 205, 6)]
    np.testing.assert_array_equal(observations[0]["agent_pos"], observations[1]["agent_pos"])
    np.testing.assert_array_equal(observations[0]["pixels"]["top"], observations[1]["pixels"]["top"])
    assert (observations[0]["agent_pos"] != observations[2]["agent_pos"]).any()
    assert env.world.initial_state == evaluation_initial_state("lift_cube", level, 6)
    env.close()


def test_training_initial_states_differ_and_a_reset_without_seed_takes_the_next():
    env = make(starts="train")
    env.reset(seed=5)
    fifth = env.world.initial_state
    assert fifth != evaluation_initial_state("lift_cube", "clean", 5)
    env.reset(seed=4)
    env.reset()
    assert env.world.initial_state == fifth


def test_validation_states_are_those_of_the_seed_modulo_200():
    env = make(starts="validation")
    env.reset(seed=1005)
    assert env.world.initial_state == validation_initial_state("lift_cube", "clean", 5)
    env.close()


def test_the_video_has_three_views(env):
    env.reset(seed=0)
    video = env.render()
    assert (video.shape, video.dtype) == ((360, 540, 3), np.uint8)
    masked = make(seg=True)
    masked.reset(seed=0)
    assert (masked.render()[:, :360] == video[:, :360]).all()
    assert (masked.render()[:, 360:] != video[:, 360:]).any()


def test_the_instruction_contains_the_goal():
    env = make("sort_cubes")
    env.reset(seed=0)
    goal = env.world.goal
    assert env.task_description == f"Put the {goal.pick} into the {goal.into}."
    assert env._max_episode_steps == 10 * FPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "lift_cub"}, r"--env\.task: found task 'lift_cub'.*Did you mean 'lift_cube'\?"),
        ({"task": "lift_cube,nothing"}, r"--env\.task: found task 'nothing'"),
        ({"level": "randomized"}, r"--env\.level: found level 'randomized'.*Did you mean 'randomised'\?"),
        ({"cameras": ["tpo"]}, r"cameras: found camera 'tpo'.*Did you mean 'top'\?"),
        ({"cameras": []}, "cameras: found none"),
        ({"cameras": ["top", "top"]}, "each camera once"),
        ({"height": 8}, "--env.width and --env.height: found 224x8 pixels"),
        ({"width": 4000}, "--env.width and --env.height: found 4000x224 pixels"),
        ({"starts": "test"}, r"--env\.starts: found 'test', expected one of eval, validation, train"),
        ({"fps": 50}, r"--env\.fps: found 50, expected 30"),
    ],
)
def test_invalid_options_are_refused_with_their_flags(options, message):
    with pytest.raises(ValueError, match=message):
        SO101SimEnvConfig(**options).create_envs(1)


def test_every_task_and_level_gets_its_own_environments():
    config = SO101SimEnvConfig(task="lift_cube, sort_cubes", level="clean,randomised", **TINY)
    made = config.create_envs(2)
    assert list(made) == [f"{t}-{lv}" for t in ("lift_cube", "sort_cubes") for lv in ("clean", "randomised")]
    for name, envs in made.items():
        assert envs[0].num_envs == 2
        assert [f"{env.unwrapped.task}-{env.unwrapped.level}" for env in envs[0].envs] == [name] * 2
        envs[0].close()


def test_environments_run_in_separate_processes():
    config = SO101SimEnvConfig(cameras=["top"], renderer="ray", **TINY)
    envs = config.create_envs(2, use_async_envs=True)["lift_cube-clean"][0]
    try:
        assert isinstance(envs, gym.vector.AsyncVectorEnv)
        observation, _ = envs.reset(seed=[0, 1])
        assert (observation["agent_pos"][0] != observation["agent_pos"][1]).any()
        *_, info = envs.step(np.stack([HOME, HOME]))
        assert info["is_success"].tolist() == [False, False]
    finally:
        envs.close()


def test_a_guarded_environment_limits_actions(caplog):
    caplog.set_level("INFO")
    limits = GuardLimits(velocity=30)
    env = WorkbenchEnv(
        "lift_cube", cameras=CameraSetup(("top",), 32, 32, rgb=False), renderer="ray", limits=limits
    )
    env.reset(seed=0)
    before = env.world.joints()
    env.step(np.full(6, np.nan))
    np.testing.assert_allclose(
        env.world.joints(), before, atol=1.5
    )  # it holds, and sags by no more than its play
    for _ in range(15):
        env.step(before + [60, 0, 0, 0, 0, 0])
    assert 5 < env.world.joints()[0] - before[0] < 0.5 * 30 + 1.5
    assert "guard:" not in caplog.text
    env.reset(seed=1)
    assert "guard: 16 commands, 0 passed, 15 clamped, 1 held" in caplog.text
    env.close()  # nothing was asked since then
    assert caplog.text.count("guard:") == 1
    config = SO101SimEnvConfig(guarded=True, limits=limits)
    assert config.gym_kwargs["limits"] == limits
    assert SO101SimEnvConfig().gym_kwargs["limits"] is None
