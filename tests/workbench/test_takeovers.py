# SPDX-License-Identifier: Apache-2.0
"""`so101-demos --policy.path`: policies act as in `lerobot-eval`; corrections are recorded."""

import json
import os
import shutil
import signal
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.scripts import lerobot_edit_dataset, lerobot_eval, lerobot_train
from lerobot.utils.import_utils import register_third_party_plugins
from safetensors.torch import load_file, save_file

from lerobot_env_so101_workbench import CameraSetup, SO101SimEnvConfig
from lerobot_env_so101_workbench.demos import command, takeovers
from lerobot_env_so101_workbench.demos.command import DemosConfig, main, record
from lerobot_env_so101_workbench.demos.demonstrator import Demonstrator
from lerobot_env_so101_workbench.demos.takeovers import (
    FIRST_SEED,
    Actor,
    PolicyOptions,
    TakeoverOptions,
    Takeovers,
)
from lerobot_env_so101_workbench.policy_check import needed_images, read_config
from lerobot_env_so101_workbench.sim.expert import Expert
from lerobot_env_so101_workbench.sim.initial_states import training_initial_state
from lerobot_env_so101_workbench.sim.world import World
from lerobot_env_so101_workbench.tasks import LiftCube
from tests.golden import replay
from tests.tiny import tiny_act

SIZE = (32, 32)
MASKS = {"cameras": ["top", "wrist"], "height": 16, "width": 24, "rgb": False, "seg": True, "depth": True}


@pytest.fixture(scope="module")
def act(tmp_path_factory):
    """Folder of a tiny ACT with random weights."""
    folder = tmp_path_factory.mktemp("act")
    tiny_act(folder, SIZE, ("top",), chunk=4)
    return folder


@pytest.fixture(scope="module")
def segdepth(tmp_path_factory):
    """Folder of a tiny segdepth that needs the masks and depth of two cameras, 24x16."""
    return replay.unpack("segdepth", tmp_path_factory.mktemp("golden"))


def config(root, checkpoint=None, late=0.0, relabel=False, **changes) -> DemosConfig:
    images = {"cameras": ["top"], "height": SIZE[0], "width": SIZE[1], "video": False, "renderer": "ray"}
    options = {"policy": PolicyOptions(checkpoint), "takeover": TakeoverOptions(late, relabel=relabel)}
    return DemosConfig(root=root, **{"episodes": 1, **images, **options, **changes})


@pytest.fixture
def still(monkeypatch):
    """Policies hold the arm, 5 to 9 ticks before an early takeover and 10 to 14 before a late one."""
    monkeypatch.setattr(Actor, "act", lambda self, world: world.joints())
    monkeypatch.setattr(takeovers, "EARLY", (5, 9))
    monkeypatch.setattr(takeovers, "LATE", (10, 14))


@pytest.fixture
def world():
    world = World("lift_cube", renderer="ray")
    yield world
    world.close()


def column(root, key) -> np.ndarray:
    dataset = LeRobotDataset("local/lift_cube_clean", root=root)
    return np.array(dataset.hf_dataset[:][key])


# -- the policy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["act", "segdepth"])
def test_a_policy_acts_as_in_lerobot_eval(name, request, monkeypatch):
    """The same checkpoint from the same initial state gives the same actions, to the bit."""
    folder = request.getfixturevalue(name)
    images = {"cameras": ["top"], "height": SIZE[0], "width": SIZE[1]}
    if name == "segdepth":
        images = MASKS
    monkeypatch.setattr(LiftCube, "time_limit_s", 0.5)
    register_third_party_plugins()
    # 1. LeRobot's way
    policy_config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(policy_config.type).from_pretrained(folder, config=policy_config)
    pipelines = make_pre_post_processors(policy_config, pretrained_path=str(folder))
    env_config = SO101SimEnvConfig(starts="train", renderer="ray", **images)
    envs = env_config.create_envs(1)["lift_cube-clean"][0]
    torch.manual_seed(3)
    run = lerobot_eval.rollout(envs, policy, *env_config.get_env_processors(), *pipelines, seeds=[3])
    envs.close()
    # 2. ours
    actor, world = Actor(PolicyOptions(folder), "lift_cube", "clean"), World("lift_cube", renderer="ray")
    assert actor.cameras.shapes() == CameraSetup.of(env_config, images["cameras"]).shapes()
    actions = []
    for _ in range(2):  # a second episode begins as the first did
        world.reset(training_initial_state("lift_cube", "clean", 3))
        actor.reset(seed=3)
        for _ in range(run["action"].shape[1]):
            actions.append(actor.act(world))
            world.step(actions[-1])
    world.close()
    expected = run["action"][0].numpy()
    assert len(expected) == 15
    assert len(np.unique(expected, axis=0)) > 1
    np.testing.assert_array_equal(np.array(actions), np.concatenate([expected, expected]))


def _edited(folder, target, **fields):
    """Copy a checkpoint with other fields in its config.json."""
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **fields}))
    return target


def test_a_policy_that_was_trained_on_precomputed_masks_acts_from_rgb(tmp_path):
    golden = replay.unpack("segdepth_workbench", tmp_path / "golden")
    inputs = json.loads((golden / "config.json").read_text())["input_features"]
    inputs["observation.images.top"]["shape"] = [1, 42, 42]  # the dataset had no RGB
    folder = _edited(golden, tmp_path / "policy", input_features=inputs)
    pipeline = json.loads((folder / "policy_preprocessor.json").read_text())
    check = next(step["config"] for step in pipeline["steps"] if "aspects" in step["config"])
    check["aspects"] = dict.fromkeys(check["aspects"], 4 / 3)  # as those that the segmenter was trained on
    (folder / "policy_preprocessor.json").write_text(json.dumps(pipeline))
    needed = needed_images(read_config(folder), folder)
    assert needed.shapes() == {"top": (120, 160, 3)}  # as the packaged segmenter was trained
    actor, world = Actor(PolicyOptions(folder), "lift_cube", "clean"), World("lift_cube", "clean", "ray")
    assert actor.cameras == needed
    world.reset(training_initial_state("lift_cube", "clean", 0))
    actor.reset(0)
    assert np.isfinite(actor.act(world)).all()
    world.close()
    (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": []}))
    with pytest.raises(ValueError, match=r"--policy\.path: found no size of images in"):
        needed_images(read_config(folder), folder)
    assert needed_images(read_config(folder), folder, (32, 48)).shapes() == {"top": (32, 48, 3)}


SEVEN = {"action": {"type": "ACTION", "shape": [7]}}


@pytest.mark.parametrize(
    ("name", "fields", "options", "message"),
    [
        ("act", {"output_features": SEVEN}, {}, r"is of another robot: action has shape \(7,\), expected"),
        ("segdepth", {"fps": 15}, MASKS, "the policy was trained at 15 Hz, expected 30 Hz"),
        ("act", {}, {"policy": PolicyOptions(Path("nothing"))}, "found no policy in nothing"),
        ("act", {}, {"takeover": TakeoverOptions(late=2)}, "--takeover.late: found 2, expected a share"),
        ("act", {}, {"takeover": TakeoverOptions(stall_s=-1)}, "--takeover.stall_s: found -1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    name, fields, options, message, request, tmp_path
):
    folder = _edited(request.getfixturevalue(name), tmp_path / "policy", **fields)
    with pytest.raises(ValueError, match=message):
        record(config(tmp_path / "d", folder, **options))
    assert not (tmp_path / "d").exists()


def test_a_policy_with_code_in_its_pipeline_is_refused(act, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(act, folder)
    (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": [{"class": "os.system"}]}))
    with pytest.raises(ValueError, match=r"step 0 is the class 'os.system'"):
        record(config(tmp_path / "d", folder))
    assert not (tmp_path / "d").exists()


def test_a_policy_that_lacks_an_observation_is_refused(act, tmp_path, monkeypatch):
    def lacking(self, world):
        raise KeyError("observation.gaze")

    monkeypatch.setattr(Actor, "act", lacking)
    with pytest.raises(ValueError, match="needs the observation 'observation"):
        record(config(tmp_path / "d", act))
    assert not (tmp_path / "d").exists()


# -- what is recorded ----------------------------------------------------------------------------------------


def test_the_experts_part_is_recorded_with_clean_labels(tmp_path, act, still, world):
    record(config(tmp_path / "d", act, disturbance=0.0))
    assert column(tmp_path / "d", "intervention").all()
    state, action = (column(tmp_path / "d", key) for key in ("observation.state", "action"))
    world.reset(training_initial_state("lift_cube", "clean", FIRST_SEED))
    moments, expert = [], Expert(world)
    for tick in range(10):
        if np.array_equal(world.joints().astype(np.float32), state[0]):
            moments.append((tick, np.abs(expert.decide().action - action[0]).max()))
        world.step(world.joints())
    assert any(tick >= 5 and difference < 1e-4 for tick, difference in moments)


def test_relabelled_frames_have_the_experts_commands(tmp_path, act, still, world):
    record(config(tmp_path / "d", act, late=1.0, relabel=True, disturbance=0.0))
    intervention, action = (column(tmp_path / "d", key) for key in ("intervention", "action"))
    own = int(np.argmax(intervention))  # frames of the policy
    assert 10 <= own <= 14
    assert intervention[own:].all()
    world.reset(training_initial_state("lift_cube", "clean", FIRST_SEED))
    expert = Expert(world)
    for label in action[:own]:
        np.testing.assert_allclose(label, expert.decide().action, atol=1e-4)
        world.step(world.joints())


def test_other_images_may_be_recorded_than_the_policy_needs(tmp_path, act):
    """It acts on the images that it was trained on, and the recording is for another one."""
    record(config(tmp_path / "d", act, cameras=["wrist"], height=16, width=24, rgb=False, seg=True))
    dataset = LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d")
    images = {key: value["shape"] for key, value in dataset.features.items() if "images" in key}
    assert images == {"observation.images.wrist_seg": (16, 24, 1)}


def test_demonstrations_are_no_interventions(tmp_path):
    record(config(tmp_path / "d"))
    assert not column(tmp_path / "d", "intervention").any()


def test_the_moments_are_drawn_from_both_ranges(act, still, world, monkeypatch):
    monkeypatch.setattr(Demonstrator, "demonstrate", lambda self, *args, **kwargs: iter(()))
    demonstrator = Demonstrator(world, CameraSetup(("top",), *SIZE), 0.0)
    actor = Actor(PolicyOptions(act), "lift_cube", "clean")
    for late, expected in ((0.0, range(5, 10)), (1.0, range(10, 15)), (0.5, range(5, 15))):
        episodes, moments = Takeovers(demonstrator, actor, TakeoverOptions(late)), set()
        for seed in range(40):
            assert list(episodes.episode(seed)) == []
            moments.add(world.ticks)
        assert moments == set(expected)


def test_the_expert_takes_over_when_the_progress_stalls(act, still, world, monkeypatch):
    monkeypatch.setattr(takeovers, "LATE", (100, 100))
    demonstrator = Demonstrator(world, CameraSetup(("top",), *SIZE), 0.0)
    episodes = Takeovers(
        demonstrator, Actor(PolicyOptions(act), "lift_cube", "clean"), TakeoverOptions(1.0, 0.5)
    )
    frames = list(episodes.episode(0))
    assert world.is_success()
    assert 15 <= world.ticks - len(frames) <= 20


def test_episodes_that_the_policy_solves_are_counted_but_not_recorded(tmp_path, act, monkeypatch, capsys):
    """The policy solves the first two episodes, and holds still in the third."""
    seeds = []
    reset = Actor.reset
    monkeypatch.setattr(Actor, "reset", lambda self, seed: (seeds.append(seed), reset(self, seed))[1])

    def act_as_expert(self, world):
        return Expert(world).decide().action if seeds[-1] < FIRST_SEED + 2 else world.joints()

    monkeypatch.setattr(Actor, "act", act_as_expert)
    record(config(tmp_path / "d", act, late=1.0))
    progress = json.loads((tmp_path / "d" / "meta" / "so101_demos.json").read_text())
    assert (progress["attempts"], progress["policy_succeeded"]) == (3, 2)
    assert LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d").num_episodes == 1


def test_a_policy_that_needs_no_corrections_ends_the_recording(tmp_path):
    settings = config(tmp_path / "d", episodes=2)
    command._check_yield(settings, failures=0, unneeded=40)
    with pytest.raises(RuntimeError, match=r"succeeded 41 times .*Lower --takeover.late \(now 0.0\)"):
        command._check_yield(settings, failures=0, unneeded=41)


# -- adding to a recording -----------------------------------------------------------------------------------


def test_takeovers_of_several_policies_follow_demonstrations(tmp_path, act, still):
    """In one dataset, with other initial states each time, and the count of each policy's attempts."""
    root, other = tmp_path / "d", _edited(act, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, other / "model.safetensors")
    attempts = []
    for policy in (None, act, act, other):
        record(config(root, policy, resume=bool(attempts)))
        progress = json.loads((root / "meta" / "so101_demos.json").read_text())
        attempts.append((progress["attempts"], progress["policy_attempts"]))
    assert attempts == [(1, 1), (2, 1), (3, 2), (4, 1)]
    dataset = LeRobotDataset("local/lift_cube_clean", root=root)
    firsts = [dataset[row["dataset_from_index"]] for row in dataset.meta.episodes]
    assert [bool(frame["intervention"]) for frame in firsts] == [False, True, True, True]
    joints = [frame["observation.state"] for frame in firsts]
    assert not any(torch.equal(a, b) for a, b in combinations(joints[1:], 2))


def test_demonstrations_without_the_column_can_be_resumed(tmp_path):
    """Datasets of earlier versions have no `intervention`."""
    with pytest.MonkeyPatch.context() as patch:
        described = command.features
        patch.setattr(
            command, "features", lambda c: {k: v for k, v in described(c).items() if k != "intervention"}
        )
        record(config(tmp_path / "d"))
    record(config(tmp_path / "d", resume=True))
    assert LeRobotDataset("local/lift_cube_clean", root=tmp_path / "d").num_episodes == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_the_finished_takeovers(
    tmp_path, act, still, monkeypatch, command_loggers, signum
):
    """The interrupt comes while the policy acts in the third episode."""
    resets, reset = [], Actor.reset

    def interrupting(self, seed):
        resets.append(seed)
        if len(resets) == 4:  # the first is the trial
            os.kill(os.getpid(), signum)
        reset(self, seed)

    monkeypatch.setattr(Actor, "reset", interrupting)
    root = tmp_path / "d"
    options = ["--cameras=[top]", "--height=32", "--width=32", "--video=false", "--episodes=9"]
    policy = [f"--policy.path={act}", "--takeover.late=0"]
    monkeypatch.setattr(sys, "argv", ["so101-demos", f"--root={root}", *options, *policy])
    main()
    assert LeRobotDataset("local/lift_cube_clean", root=root).num_episodes == 2


@pytest.mark.slow
@pytest.mark.parametrize("video", [False, True])
def test_one_stock_training_takes_demonstrations_and_takeovers(tmp_path, act, still, monkeypatch, video):
    """`lerobot-edit-dataset` merges them without a change, and `lerobot-train` reads the result."""
    kinds = {"seg": True, "depth": True, "video": video}
    roots = [tmp_path / "demonstrations", tmp_path / "takeovers"]
    for root, policy in zip(roots, (None, act), strict=True):
        record(config(root, policy, **kinds))
    merged = tmp_path / "merged"
    operation = lerobot_edit_dataset.MergeConfig(
        repo_ids=[f"local/{root.name}" for root in roots], roots=list(map(str, roots))
    )
    lerobot_edit_dataset.edit_dataset(
        lerobot_edit_dataset.EditDatasetConfig(
            operation=operation, new_repo_id="local/merged", new_root=str(merged)
        )
    )
    parts = [LeRobotDataset("local/part", root=root) for root in roots]
    both = LeRobotDataset("local/merged", root=merged)
    assert both.num_episodes == 2
    assert both.num_frames == sum(map(len, parts))
    assert both.meta.features["intervention"] == {"dtype": "bool", "shape": (1,), "names": None}
    expected = [item for part in parts for item in (part[0], part[len(part) - 1])]
    first = len(parts[0])
    for index, item in zip((0, first - 1, first, len(both) - 1), expected, strict=True):
        for key in ("observation.images.top_seg", "observation.images.top_depth", "action", "intervention"):
            assert torch.equal(both[index][key], item[key]), key
    assert [bool(both[index]["intervention"]) for index in (0, first)] == [False, True]
    lerobot_train.train(
        TrainPipelineConfig(
            dataset=DatasetConfig(repo_id="local/merged", root=str(merged)),
            policy=make_policy_config(
                "segdepth", cameras=["top"], hidden_dim=8, conv_channels=2, device="cpu", push_to_hub=False
            ),
            output_dir=tmp_path / "train",
            steps=2,
            batch_size=4,
            num_workers=0,
            save_freq=2,
            log_freq=1,
        )
    )
    trained = tmp_path / "train" / "checkpoints" / "last" / "pretrained_model"
    monkeypatch.undo()
    Actor(PolicyOptions(trained), "lift_cube", "clean")
    assert "intervention" not in PreTrainedConfig.from_pretrained(trained).input_features
