# SPDX-License-Identifier: Apache-2.0
"""The simulated robot and the scripted teleoperator under LeRobot's own commands."""

import importlib.util
import itertools
import logging
import types

import numpy as np
import pytest
from lerobot.configs.dataset import DatasetRecordConfig
from lerobot.datasets import LeRobotDataset
from lerobot.robots import make_robot_from_config
from lerobot.scripts import lerobot_record, lerobot_replay, lerobot_teleoperate
from lerobot.teleoperators import make_teleoperator_from_config

from lerobot_env_so101_workbench import SO101ExpertConfig, SO101SimConfig
from lerobot_env_so101_workbench.demos.command import DemosConfig, features, record as record_demos
from lerobot_env_so101_workbench.robot import find_robot
from lerobot_env_so101_workbench.sim.initial_states import training_initial_state
from lerobot_env_so101_workbench.teleop import SO101Expert
from lerobot_processor_so101.arm import ACTION_NAMES, HOME

SMALL = {"height": 32, "width": 40, "renderer": "ray"}


@pytest.fixture(autouse=True)
def root_logger():
    """LeRobot's commands clear the root logger's handlers: put them back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.setLevel(logging.INFO)
    yield root
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def connected():
    """`connected(robot options, teleop options)`: both, connected as LeRobot's commands do it."""
    devices = []

    def connect(robot=None, teleop=None):
        robot = make_robot_from_config(SO101SimConfig(**{**SMALL, "views": ["top"], **(robot or {})}))
        teleop = make_teleoperator_from_config(SO101ExpertConfig(**(teleop or {})))
        devices.extend([robot, teleop])
        teleop.connect()
        robot.connect()
        return robot, teleop

    yield connect
    for device in devices:
        device.disconnect()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """LeRobot's loops believe that time passes only while they sleep: as fast as the machine can."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    modules = [lerobot_record, lerobot_replay, lerobot_teleoperate]
    if importlib.util.find_spec("lerobot.utils.cycle_timer"):  # after LeRobot 0.6.1
        modules.append(importlib.import_module("lerobot.utils.cycle_timer"))
    replaced = {"time": types.SimpleNamespace(perf_counter=lambda: now[0]), "precise_sleep": sleep}
    for module, name in itertools.product(modules, replaced):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, replaced[name])
    return now


def as_action(joints) -> dict[str, float]:
    return dict(zip(ACTION_NAMES, map(float, joints), strict=True))


def drive(robot, joints, ticks: int) -> None:
    for _ in range(ticks):
        robot.send_action(as_action(joints))


def run(robot, teleop, ticks: int) -> None:
    for _ in range(ticks):
        robot.send_action(teleop.get_action())


# -- robot -----------------------------------------------------------------------------------------


def test_observations_are_as_declared(connected):
    robot, teleop = connected({"views": ["top", "wrist"], "seg": True, "depth": True})
    observation = robot.get_observation()
    assert list(observation) == list(robot.observation_features)
    for name, feature in robot.observation_features.items():
        if feature is float:
            assert isinstance(observation[name], float)
        else:
            assert observation[name].shape == feature, name
    assert observation["wrist"].dtype == np.uint8
    assert observation["wrist_seg"].dtype == observation["top_depth"].dtype == np.uint16
    assert observation["wrist_seg"].max() <= 5
    assert len(robot.cameras) == 6
    assert robot.action_features == teleop.action_features == dict.fromkeys(ACTION_NAMES, float)


def test_a_missing_joint_and_a_nan_are_named(connected):
    robot, _ = connected()
    action = as_action(HOME)
    with pytest.raises(ValueError, match=r"action: elbow_flex\.pos missing"):
        robot.send_action({name: value for name, value in action.items() if name != "elbow_flex.pos"})
    with pytest.raises(ValueError, match="non-finite value for gripper"):
        robot.send_action({**action, "gripper.pos": float("nan")})


def test_a_guarded_robot_holds_at_invalid_commands(connected, caplog):
    robot, _ = connected({"guarded": True})
    before = robot.world.joints()
    executed = robot.send_action(as_action([np.nan] * 6))
    np.testing.assert_allclose([executed[name] for name in ACTION_NAMES], before)
    executed = robot.send_action(as_action(before + 90))
    assert max(abs(executed[name] - joint) for name, joint in zip(ACTION_NAMES, before, strict=True)) < 15
    with caplog.at_level(logging.INFO):
        robot.disconnect()
    assert "guard: 2 commands, 0 passed, 1 clamped, 1 held" in caplog.text


def test_an_unconnected_robot_and_a_name_in_use_are_refused(connected):
    robot, _ = connected()
    with pytest.raises(ConnectionError, match=r"world 'workbench' is in use.*--robot\.world"):
        make_robot_from_config(SO101SimConfig(**SMALL)).connect()
    robot.disconnect()
    robot.disconnect()
    assert not robot.is_connected
    with pytest.raises(ConnectionError, match="connect"):
        robot.get_observation()


def test_the_scene_is_reset_when_the_arm_was_away_and_returns(connected):
    robot, _ = connected({"seed": 5, "level": "randomised"})
    state = robot.world.initial_state
    assert state == training_initial_state("lift_cube", "randomised", 5)
    drive(robot, HOME, 40)
    assert robot.world.initial_state is state  # home, but never away
    away = HOME + [40.0, 0, 0, 0, 0, 0]
    drive(robot, away, 40)
    assert robot.world.initial_state is state  # away
    drive(robot, HOME + [8.0, 0, 0, 0, 0, 0], 40)
    assert robot.world.initial_state is state  # on the way
    drive(robot, HOME, 30)
    assert robot.world.initial_state == training_initial_state("lift_cube", "randomised", 6)
    assert np.abs(robot.world.joints() - HOME)[:5].max() < 3.0  # the arm was left where it was
    drive(robot, HOME, 40)
    assert robot.world.initial_state == training_initial_state("lift_cube", "randomised", 6)


def test_passing_through_home_resets_nothing(connected):
    robot, _ = connected()
    state = robot.world.initial_state
    for side in (1, -1, 1, -1):
        drive(robot, HOME + [side * 30.0, 0, 0, 0, 0, 0], 12)
    assert robot.world.initial_state is state


def test_only_initial_states_with_the_chosen_instruction_are_used(connected):
    wanted = "Put the green cube into the white bowl."
    robot, _ = connected({"task": "sort_cubes", "instruction": wanted})
    for _ in range(3):
        assert robot.world.instruction() == wanted
        state = robot.world.initial_state
        drive(robot, HOME + [40.0, 0, 0, 0, 0, 0], 20)
        drive(robot, HOME, 40)
        assert robot.world.initial_state != state


def test_an_unknown_instruction_is_refused_with_those_of_the_task():
    robot = make_robot_from_config(SO101SimConfig(**SMALL, instruction="Dance."))
    with pytest.raises(ValueError, match=r"--robot\.instruction: found 'Dance\.'.*Lift the cube\."):
        robot.connect()


def test_a_diverged_world_is_reset(connected):
    robot, _ = connected({"seed": 2})
    robot.world.data.qvel[:] = np.nan
    drive(robot, HOME, 1)
    assert robot.world.initial_state == training_initial_state("lift_cube", "clean", 3)
    assert np.isfinite(list(robot.get_observation().values())[:6]).all()


# -- teleoperator ----------------------------------------------------------------------------------


def test_the_expert_without_a_robot_names_the_flags_to_set():
    teleop = make_teleoperator_from_config(SO101ExpertConfig())
    with pytest.raises(ConnectionError, match="connect"):
        teleop.get_action()
    teleop.connect()
    with pytest.raises(ConnectionError, match=r"--robot\.type=so101_sim"):
        teleop.get_action()
    teleop.disconnect()


def test_the_expert_finds_the_robot_of_its_world(connected):
    robot, teleop = connected({"world": "left"}, {"world": "left"})
    assert find_robot("left") is robot
    with pytest.raises(ConnectionError, match=r"found: \['left'\]"):
        find_robot("right")
    run(robot, teleop, 3)


@pytest.mark.parametrize("disturbance", [0.0, 1.2])
def test_without_announcements_the_expert_repeats_the_task(connected, disturbance):
    robot, teleop = connected(teleop={"disturbance": disturbance})
    states, succeeded = [robot.world.initial_state], set()
    for _ in range(700):
        run(robot, teleop, 1)
        if robot.world.initial_state is not states[-1]:
            states.append(robot.world.initial_state)
        if robot.world.is_success():
            succeeded.add(len(states))
    assert len(states) >= 4
    assert states == [training_initial_state("lift_cube", "clean", seed) for seed in range(len(states))]
    assert {1, 2, 3} <= succeeded


def test_the_expert_follows_lerobots_announcements(connected):
    robot, teleop = connected(teleop={"disturbance": 0.0})
    for episode in range(2):
        logging.info(f"Recording episode {episode}")
        run(robot, teleop, 200)
        assert robot.world.is_success()  # and holds on to it, however long the episode
        assert robot.world.initial_state == training_initial_state("lift_cube", "clean", episode)
        logging.info("Reset the environment")
        run(robot, teleop, 90)
        assert robot.world.initial_state == training_initial_state("lift_cube", "clean", episode + 1)
        assert not robot.world.is_success()
        assert np.abs(robot.world.joints() - HOME)[:5].max() < 3.0


def test_a_disconnected_expert_removes_its_log_handler(root_logger):
    teleop = make_teleoperator_from_config(SO101ExpertConfig())
    before = root_logger.handlers[:]
    teleop.connect()
    assert len(root_logger.handlers) == len(before) + 1
    teleop.disconnect()
    assert root_logger.handlers == before


def test_too_strong_a_disturbance_is_refused():
    with pytest.raises(ValueError, match=r"--teleop\.disturbance: found 11"):
        make_teleoperator_from_config(SO101ExpertConfig(disturbance=11))


# -- LeRobot's commands ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recorded") / "set"


def record(root, episodes: int) -> None:
    """Let `lerobot-record` record the expert."""
    lerobot_record.record(
        lerobot_record.RecordConfig(
            robot=SO101SimConfig(**SMALL, views=["top"], seg=True, depth=True),
            teleop=SO101ExpertConfig(),
            dataset=DatasetRecordConfig(
                repo_id="local/set",
                root=root,
                single_task="Lift the cube.",
                episode_time_s=3,
                reset_time_s=3,
                num_episodes=episodes,
                video=False,
                push_to_hub=False,
                no_stamp=True,
            ),
            play_sounds=False,
        )
    )


@pytest.fixture
def recorded(folder, clock):
    """Two episodes written by `lerobot-record`, once for all tests."""
    if not folder.exists():
        record(folder, episodes=2)
    return LeRobotDataset("local/set", root=folder)


def test_an_interrupted_recording_keeps_its_finished_episodes(tmp_path, clock, monkeypatch):
    get_action, calls = SO101Expert.get_action, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 2 * 180 + 30:  # two episodes and their resets, then a second of the third
            raise KeyboardInterrupt
        return get_action(self)

    monkeypatch.setattr(SO101Expert, "get_action", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "set", episodes=5)
    dataset = LeRobotDataset("local/set", root=tmp_path / "set")
    assert dataset.num_episodes == 2
    assert dataset[dataset.num_frames - 1]["task"] == "Lift the cube."


def test_record_writes_demonstrations(recorded):
    assert recorded.num_episodes == 2
    assert recorded.num_frames == pytest.approx(180, abs=4)
    assert recorded[0]["task"] == "Lift the cube."
    first = [recorded[int(begin)] for begin in recorded.meta.episodes["dataset_from_index"]]
    for seed, frame in enumerate(first):
        assert np.abs(frame["observation.state"].numpy() - HOME)[:5].max() < 5.0
        assert (frame["observation.images.top_seg"] == 3).any(), seed
    last = recorded[recorded.num_frames - 1]["observation.state"].numpy()
    assert last[5] < 45.0  # the jaws hold a cube


def test_ids_and_depth_come_back_exactly(recorded):
    robot = make_robot_from_config(SO101SimConfig(**SMALL, views=["top"], seg=True, depth=True))
    robot.connect()
    fresh = robot.get_observation()
    robot.disconnect()
    for name in ("top_seg", "top_depth"):
        loaded = recorded[0][f"observation.images.{name}"].numpy()
        np.testing.assert_array_equal(np.moveaxis(loaded, 0, -1), fresh[name])
    ids = np.stack([recorded[i]["observation.images.top_seg"].numpy() for i in range(0, 180, 20)])
    assert set(np.unique(ids)) <= {0, 1, 2, 3, 4, 5}
    assert len(np.unique(ids)) >= 4


def test_demonstrations_have_the_features_of_lerobot_record(recorded, tmp_path):
    written = record_demos(
        DemosConfig(tmp_path / "set", cameras=["top"], seg=True, depth=True, video=False, episodes=1, **SMALL)
    )
    found = LeRobotDataset("local/set", root=written.root).features
    # lerobot-record does not write the class names.
    names = found["observation.images.top_seg"]["info"].pop("class_names")
    assert names == ["unlabeled", "background", "table", "cube", "static_finger", "moving_finger"]
    # That is of LeRobot's dagger strategy.
    assert found.pop("intervention") == {"dtype": "bool", "shape": (1,), "names": None}
    assert found == recorded.features
    assert written.meta.robot_type == recorded.meta.robot_type
    assert written.fps == recorded.fps


def test_demonstrations_have_the_video_features_of_lerobot_record(tmp_path):
    from lerobot.datasets import aggregate_pipeline_dataset_features, create_initial_features
    from lerobot.processor import make_default_processors

    config = DemosConfig(tmp_path, height=32, width=40, seg=True, depth=True, video=True)
    robot = make_robot_from_config(config.robot())
    act, _, observe = make_default_processors()
    recorded = {
        **aggregate_pipeline_dataset_features(
            pipeline=act,
            initial_features=create_initial_features(action=robot.action_features),
            use_videos=True,
        ),
        **aggregate_pipeline_dataset_features(
            pipeline=observe,
            initial_features=create_initial_features(observation=robot.observation_features),
            use_videos=True,
        ),
    }
    recorded["intervention"] = {"dtype": "bool", "shape": (1,), "names": None}
    assert features(config) == recorded
    assert list(features(config)) == list(recorded)


def test_replay_repeats_an_episode(recorded):
    lerobot_replay.replay(
        lerobot_replay.ReplayConfig(
            robot=SO101SimConfig(**SMALL, views=["top"]),
            dataset=lerobot_replay.DatasetReplayConfig("local/set", episode=0, root=recorded.root),
            play_sounds=False,
        )
    )
    with pytest.raises(ConnectionError):
        find_robot("workbench")  # the command let go of it


def test_teleoperate_runs(clock):
    lerobot_teleoperate.teleoperate(
        lerobot_teleoperate.TeleoperateConfig(
            teleop=SO101ExpertConfig(), robot=SO101SimConfig(**SMALL, views=["top"]), fps=30, teleop_time_s=1
        )
    )
    assert clock[0] == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ConnectionError):
        find_robot("workbench")
