# SPDX-License-Identifier: Apache-2.0
"""One test for each registered policy, step, environment, robot, teleoperator, camera and task.

Build it, run one step, save it, load it offline, and get the same. What is registered without an example here
fails.
"""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import draccus
import gymnasium as gym
import numpy as np
import pytest
import torch
from lerobot.cameras.configs import CameraConfig
from lerobot.configs import PreTrainedConfig
from lerobot.envs.configs import EnvConfig
from lerobot.lerobot_types import TransitionKey
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.processor import DataProcessorPipeline, ProcessorStepRegistry
from lerobot.robots import make_robot_from_config
from lerobot.robots.config import RobotConfig
from lerobot.teleoperators.config import TeleoperatorConfig
from lerobot.utils.import_utils import register_third_party_plugins

from lerobot_env_so101_workbench import TASK_NAMES, gym_id
from lerobot_processor_so101 import arm
from tests.golden.replay import DATA, load_inputs, unpack
from tests.test_public_surface import ours

register_third_party_plugins()
STATE = "observation.state"
TOP, SEG, DEPTH = (f"observation.images.top{suffix}" for suffix in ("", "_seg", "_depth"))


def names(base: Any) -> list[str]:
    """Registered names of our classes."""
    return sorted(name for name, cls in base.get_known_choices().items() if ours(cls))


def step_names() -> list[str]:
    return sorted(name for name in ProcessorStepRegistry.list() if ours(ProcessorStepRegistry.get(name)))


def same(first: Any, second: Any) -> None:
    """Compare nested results of tensors, arrays and plain values."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            same(first[key], second[key])
    elif isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    elif isinstance(first, np.ndarray):
        np.testing.assert_array_equal(first, second)
    else:
        assert first == second


# --- policies ----------------------------------------------------------------------------------------------


def first_result(folder: Path) -> torch.Tensor:
    """The first action of a checkpoint, or the latent actions of a policy that only labels."""
    config = PreTrainedConfig.from_pretrained(folder)
    policy: Any = get_policy_class(config.type).from_pretrained(folder, config=config).eval()
    preprocessor, postprocessor = make_pre_post_processors(config, pretrained_path=str(folder))
    observations, training, _ = load_inputs(unpacked[folder])
    torch.manual_seed(0)
    if hasattr(policy, "label"):
        return policy.label(preprocessor(dict(training)))[0].vectors
    policy.reset()
    return postprocessor(policy.select_action(preprocessor(dict(observations[0]))))


unpacked: dict[Path, Path] = {}  # a checkpoint: the golden folder that holds its inputs


@pytest.mark.parametrize("name", names(PreTrainedConfig))
def test_a_policy_is_saved_and_loaded(name, tmp_path):
    assert (DATA / name).is_dir(), (
        f"policy {name!r} has no tiny checkpoint; add one with tests/golden/make.py"
    )
    golden, copied = unpack(name, tmp_path), tmp_path / "copy"
    config = PreTrainedConfig.from_pretrained(golden)
    policy: Any = get_policy_class(config.type).from_pretrained(golden, config=config)
    policy.save_pretrained(copied)
    for pipeline in make_pre_post_processors(config, pretrained_path=str(golden)):
        pipeline.save_pretrained(copied)
    unpacked.update({golden: golden, copied: golden})
    same(first_result(golden), first_result(copied))


# --- processor steps ---------------------------------------------------------------------------------------

IDS = torch.arange(64).reshape(1, 1, 8, 8).float() % 5
OBSERVATION = {STATE: torch.from_numpy(arm.HOME).float()[None], SEG: IDS, DEPTH: 300 + 10 * IDS}
IMAGE = {STATE: OBSERVATION[STATE], TOP: torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def stated(arguments: dict[str, Any], observation: dict[str, Any] = OBSERVATION, **rest: Any) -> tuple:
    """Constructor arguments of a step, and a transition to give it."""
    return arguments, {TransitionKey.OBSERVATION.value: observation, **rest}


ACTIONS = {TransitionKey.ACTION.value: torch.from_numpy(arm.HOME).float().repeat(1, 4, 1)}
TASK = {TransitionKey.COMPLEMENTARY_DATA.value: {"task": ["put the red cube into the blue bowl"]}}
STEPS: dict[str, Any] = {
    "so101_check_observation": lambda: stated({"fps": 30}),
    "so101_crop_resize": lambda: stated({"cameras": ["top"], "crop": [0.25, 0.0, 0.5, 1.0]}, IMAGE),
    "so101_dataset_lookup": lambda: stated({}),
    "so101_disparity": lambda: stated({"cameras": ["top"], "image_size": [4, 4]}),
    "so101_guard": lambda: stated({"limits": {"velocity": 30.0}}, {}, **ACTIONS),
    "so101_roles": lambda: stated(
        {"watched": ["target"], "roles": {"target": "cube"}, "class_names": ["cube"]},
        **TASK,
    ),
    "so101_segmentation": lambda: stated({"cameras": ["top"], "image_size": [4, 4]}),
    "so101_tell_class_names": lambda: stated({"class_names": ["cube"]}),
    "so101_tell_fps": lambda: stated({"fps": 30}),
}
# Steps that only make sense inside their policy's pipeline: the checkpoint of that policy holds them.
IN_POLICIES = {
    "so101_tokenizer": "hlrp",
    "segvla_add_segmentation": "segvla",
}


@pytest.mark.parametrize("name", step_names())
def test_a_step_is_saved_and_loaded(name, tmp_path):
    if name not in STEPS:
        checkpoints = [path.read_text() for path in DATA.glob("*/policy_p*processor.json")]
        assert any(f'"{name}"' in text for text in checkpoints), f"step {name!r} needs an example in STEPS"
        return  # saved and loaded in its policy's pipeline, above
    arguments, transition = STEPS[name]()
    step = ProcessorStepRegistry.get(name)(**arguments)
    pipeline: Any = DataProcessorPipeline(
        [step], name="one", to_transition=lambda value: value, to_output=lambda value: value
    )
    pipeline.save_pretrained(tmp_path)
    loaded: Any = DataProcessorPipeline.from_pretrained(
        tmp_path, "one.json", to_transition=lambda value: value, to_output=lambda value: value
    )
    assert loaded.steps[0].get_config() == step.get_config()
    same(pipeline(copy.deepcopy(transition)), loaded(copy.deepcopy(transition)))


# --- environments, robots, teleoperators, cameras, tasks ----------------------------------------------------

SIM = "{type: so101_sim, views: [top], height: 32, width: 32}"
EXAMPLES = {
    "so101_sim": "{type: so101_sim, height: 32, width: 32}",
    "so101_real": f"{{type: so101_real, robot: {SIM}}}",
    "so101_guarded": "{type: so101_guarded, port: /dev/null, id: test}",
    "so101_expert": "{type: so101_expert}",
    "so101_virtual": "{type: so101_virtual, view: top}",
}


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (base, name)
        for base in (EnvConfig, RobotConfig, TeleoperatorConfig, CameraConfig)
        for name in names(base)
    ],
)
def test_a_configuration_is_written_and_read(base, name, tmp_path):
    assert name in EXAMPLES, f"{name!r} needs an example in EXAMPLES"
    config = read(base, EXAMPLES[name], tmp_path)
    encoded = draccus.encode(config)
    for key in ("features", "features_map"):  # made from the others
        encoded.pop(key, None)
    path = tmp_path / "again.json"
    path.write_text(json.dumps(encoded))
    assert draccus.parse(type(config), path, args=[]) == config


def read(base: Any, text: str, folder: Path) -> Any:
    """Parse one choice, as LeRobot's commands parse `--robot`."""
    path, holder = folder / "config.yaml", dataclasses.make_dataclass("Holder", [("choice", base)])
    path.write_text(f"choice: {text}")
    return draccus.parse(holder, path, args=[]).choice


def test_the_simulated_robot_does_as_it_is_commanded(tmp_path):
    robot: Any = make_robot_from_config(read(RobotConfig, EXAMPLES["so101_sim"], tmp_path))
    robot.connect()
    try:
        found = robot.get_observation()
        assert {key: np.shape(found[key]) for key in found if key in ("top", "wrist")} == {
            key: robot.observation_features[key] for key in ("top", "wrist")
        }
        action = {name: found[name] for name in robot.action_features}
        assert robot.send_action(action) == action
    finally:
        robot.disconnect()


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_task_begins_again_as_it_began(name):
    env = gym.make(gym_id(name), disable_env_checker=True)
    try:
        results = []
        for _ in range(2):
            observation, _ = env.reset(seed=1003)
            stepped, reward, *_, info = env.step(arm.HOME)
            results.append((copy.deepcopy(observation), copy.deepcopy(stepped), reward, info["is_success"]))
        for first, second in zip(*results, strict=True):
            same(first, second)
        assert not info["is_success"]
    finally:
        env.close()
