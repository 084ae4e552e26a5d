# SPDX-License-Identifier: Apache-2.0
"""The presets: preprocessing compared with OpenCV, the frame history with a dataset, and action spaces."""

import cv2
import numpy as np
import pytest
import torch
from draccus.utils import DraccusException
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.lerobot_types import TransitionKey
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import create_transition
from torch.utils.data import default_collate

from lerobot_policy_segdepth import SegDepthConfig
from lerobot_policy_segdepth.actions import ToActionSpaceStep, ToJointsStep
from lerobot_policy_segdepth.drqv2 import random_shift, with_velocities
from lerobot_policy_segdepth.kinematics import ToolKinematics
from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
from lerobot_policy_segdepth.processor_segdepth import make_segdepth_pre_post_processors
from lerobot_processor_so101 import arm
from lerobot_processor_so101.arm import HOME

HEIGHT, WIDTH, FRAMES, FPS = 120, 160, 8, 30
PRESETS = {
    "recommended": {"n_obs_steps": 3, "cameras": ["wrist"]},
    "handoff": {},
    "pick101": {"fps": FPS, "stack_period": 2 / FPS},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An episode of 4:3 masks and depth of a wrist camera, and joints that move."""
    joints = {"dtype": "float32", "shape": (6,), "names": [f"joint_{i}.pos" for i in range(6)]}
    features = {"observation.state": joints, "action": joints}
    for kind in ("seg", "depth"):
        features[f"observation.images.wrist_{kind}"] = {
            "dtype": "image",
            "shape": (HEIGHT, WIDTH, 1),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": True},
        }
    path = tmp_path_factory.mktemp("presets") / "data"
    dataset = LeRobotDataset.create("local/presets", FPS, features, root=path, use_videos=False)
    rng = np.random.default_rng(0)
    for i in range(FRAMES):
        frame = {"observation.state": HOME + i * np.array([1, 2, -1, 0.5, 0, 3]), "task": "lift"}
        frame["action"] = frame["observation.state"] + rng.uniform(-3, 3, 6)
        for key in ("observation.state", "action"):
            frame[key] = frame[key].astype(np.float32)
        frame["observation.images.wrist_seg"] = rng.integers(0, 6, (HEIGHT, WIDTH, 1)).astype(np.uint16)
        frame["observation.images.wrist_depth"] = rng.integers(100, 900, (HEIGHT, WIDTH, 1)).astype(np.uint16)
        dataset.add_frame(frame)
    dataset.save_episode()
    dataset.finalize()
    return path


def config(preset: str, **changes) -> SegDepthConfig:
    plane = PolicyFeature(FeatureType.VISUAL, (1, HEIGHT, WIDTH))
    return SegDepthConfig(
        preset=preset,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
            "observation.images.wrist_seg": plane,
            "observation.images.wrist_depth": plane,
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        device="cpu",
        push_to_hub=False,
        **changes,
    )


def build(preset: str, root):
    """A policy, its pipelines, and the dataset as `lerobot-train` opens it."""
    made = config(preset, **PRESETS[preset])
    meta = LeRobotDatasetMetadata("local/presets", root=root)
    indices = {"action": made.chunk_delta_indices}
    for key in ("observation.state", "observation.images.wrist_seg", "observation.images.wrist_depth"):
        indices[key] = made.observation_delta_indices
    times = {key: [i / FPS for i in index] for key, index in indices.items()}
    dataset = LeRobotDataset("local/presets", root=root, delta_timestamps=times)
    torch.manual_seed(0)
    policy = SegDepthPolicy(made)
    return policy, *make_segdepth_pre_post_processors(made, meta.stats, meta), dataset


def observation(item: dict) -> dict:
    """The present of an item of the dataset, as an environment would give it."""
    keys = [key for key in item if key.startswith("observation.") and not key.endswith("_is_pad")]
    return {key: item[key][-1:] for key in keys}


# -- images


@pytest.mark.parametrize("preset", PRESETS)
def test_the_frame_history_equals_a_datasets_stack_to_the_last_bit(preset, root):
    policy, preprocessor, _, dataset = build(preset, root)
    for i in range(FRAMES):
        policy.select_action(preprocessor(observation(dataset[i])))
        online, offline = policy._history.stack(), preprocessor(default_collate([dataset[i]]))
        for key in ("observation.state", "observation.seg.wrist", "observation.disparity.wrist"):
            assert torch.equal(online[key], offline[key]), (i, key)
    policy.reset()
    policy.select_action(preprocessor(observation(dataset[4])))
    first = policy._history.stack()["observation.disparity.wrist"]
    assert torch.equal(first[:, 0], first[:, 2])  # the first frame three times


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_trains_and_gives_joint_targets(preset, root):
    policy, preprocessor, postprocessor, dataset = build(preset, root)
    loss, _ = policy.train()(preprocessor(default_collate([dataset[i] for i in range(FRAMES)])))
    loss.backward()
    assert all(p.grad is not None for p in policy.get_optim_params())
    for i in range(4):
        joints = postprocessor(policy.select_action(preprocessor(observation(dataset[i]))))
        assert joints.shape == (1, 6)
        if preset != "recommended":  # untrained, its joint targets are not limited
            assert (joints[0, :5] - dataset[i]["observation.state"][-1, :5]).abs().max() < 30


# OpenCV interpolates bytes with weights of eleven bits, which rounds a tenth of the pixels differently.
@pytest.mark.parametrize(
    ("preset", "interpolation", "equal"),
    [("handoff", cv2.INTER_LINEAR, 0.85), ("pick101", cv2.INTER_AREA, 0.97)],
)
def test_preprocessing_equals_the_handoff_notes_in_opencv(preset, interpolation, equal):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 6, (480, 640)).astype(np.uint8)
    depth = cv2.GaussianBlur(rng.uniform(100, 900, (480, 640)).astype(np.float32), (0, 0), 5)
    plane = PolicyFeature(FeatureType.VISUAL, (1, 480, 640))
    made = config(preset, **PRESETS[preset])
    made.input_features |= {"observation.images.wrist_seg": plane, "observation.images.wrist_depth": plane}
    policy = SegDepthPolicy(made)
    preprocessor, _ = make_segdepth_pre_post_processors(made)
    batch = preprocessor(
        {
            "observation.state": torch.zeros(1, 6),
            "observation.images.wrist_seg": torch.from_numpy(ids)[None, None].float(),
            "observation.images.wrist_depth": torch.from_numpy(depth)[None, None],
        }
    )
    policy.select_action(batch)
    found = policy.model.frames(policy._history.stack())[0].numpy()

    inverse = 1 / depth
    disparity = ((inverse - inverse.min()) / (inverse.max() - inverse.min() + 1e-12) * 255).astype(np.uint8)
    disparity = cv2.resize(disparity[:, 80:560], (84, 84), interpolation=interpolation)
    expected_ids = cv2.resize(ids[:, 80:560], (84, 84), interpolation=cv2.INTER_NEAREST)
    if preset == "pick101":
        expected_ids = np.clip(expected_ids.astype(int) - 1, 0, 4)
    assert found.shape == (6, 84, 84)
    for t in range(3):  # the first frame three times, ids before disparity
        np.testing.assert_array_equal(found[2 * t], expected_ids)
        difference = np.abs(found[2 * t + 1] - disparity.astype(float))
        assert difference.max() <= 1
        assert (difference == 0).mean() > equal


def test_a_crop_before_perception_changes_the_normalisation_of_disparity():
    depth = torch.full((1, 1, 480, 640), 500.0)
    depth[..., :80] = 100.0  # near, and outside the square
    depth[..., 300:320] = 400.0
    plane = PolicyFeature(FeatureType.VISUAL, (1, 480, 640))
    nearest = {}
    for first in (False, True):
        made = config("handoff", crop_first=first)
        made.input_features |= {
            "observation.images.wrist_seg": plane,
            "observation.images.wrist_depth": plane,
        }
        preprocessor, _ = make_segdepth_pre_post_processors(made)
        batch = preprocessor(
            {
                "observation.state": torch.zeros(1, 6),
                "observation.images.wrist_seg": torch.zeros(1, 1, 480, 640),
                "observation.images.wrist_depth": depth,
            }
        )
        nearest[first] = float(batch["observation.disparity.wrist"].max())
    assert nearest[True] == 255
    assert nearest[False] < 20


def test_random_shifts_move_all_channels_alike_and_keep_ids():
    frames = torch.randint(0, 6, (4, 6, 20, 20)).float()
    frames[:, 1] = frames[:, 0]
    (shifted,) = random_shift([frames], 4)
    assert shifted.shape == frames.shape
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    assert set(shifted.unique().tolist()) <= set(range(6))
    padded = torch.nn.functional.pad(frames, (4,) * 4, mode="replicate")
    for sample, found in zip(padded, shifted, strict=True):
        windows = (sample[:, y : y + 20, x : x + 20] for y in range(9) for x in range(9))
        assert any(torch.equal(found, window) for window in windows)
    assert torch.equal(random_shift([frames], 0)[0], frames)


def test_velocities_are_differences_and_the_oldest_is_repeated():
    tool = torch.zeros(1, 3, 12)
    tool[0, :, 0] = torch.tensor([0.0, 0.1, 0.3])
    found = with_velocities(tool, 0.02)
    assert found.shape == (1, 3, 18)
    torch.testing.assert_close(found[0, :, 6], torch.tensor([5.0, 5.0, 10.0]))


# -- actions


def kinematics(**changes) -> ToolKinematics:
    settings = {"tool_point": [0, 0, -0.098], "joint_signs": [1.0] * 6, "joint_offsets": [0.0] * 6}
    return ToolKinematics(**{**settings, **changes})


def test_the_tool_is_where_mujoco_computes_it():
    import mujoco

    model = mujoco.MjModel.from_xml_path(str(arm.arm_model_path()))
    data, gripper = mujoco.MjData(model), model.body("gripper").id
    joints = arm.HOME + np.random.default_rng(0).uniform(-20, 20, (5, 6))
    found = kinematics(tool_point=arm.PINCH_POINT).pose(joints)[:, :3]
    for row, position in zip(joints, found, strict=True):
        data.qpos[:6] = arm.to_radians(row)
        mujoco.mj_kinematics(model, data)
        expected = data.xpos[gripper] + data.xmat[gripper].reshape(3, 3) @ arm.PINCH_POINT
        np.testing.assert_allclose(position, expected, atol=1e-9)


def test_the_two_base_frames_differ_by_a_quarter_turn():
    position = kinematics().pose(HOME[None])[0]
    other = kinematics(base_frame="genesis").pose(HOME[None])[0]
    np.testing.assert_allclose([-other[1], other[0], other[2]], position[:3], atol=1e-9)


def test_signs_and_offsets_are_inverted():
    follower = kinematics(joint_signs=[1, -1, 1, -1, 1, 1], joint_offsets=[3, -2, 0, 5, 1, 0])
    joints = HOME + 7.0
    np.testing.assert_allclose(follower.from_radians(follower.to_radians(joints)), joints, atol=1e-9)


@pytest.mark.parametrize(
    ("base_frame", "offset"), [("mujoco", [0.02, 0.01, -0.015]), ("genesis", [0.01, -0.02, -0.015])]
)
def test_steps_lead_to_the_target_and_a_locked_wrist_stays(base_frame, offset):
    follower = kinematics(base_frame=base_frame)
    for wrist in ([], [85.0, -90.0]):
        joints = HOME.copy()
        target = follower.pose(joints[None])[0, :3] + offset
        for _ in range(200):
            joints = follower.step(joints, target, wrist)
        assert np.linalg.norm(follower.pose(joints[None])[0, :3] - target) < 1e-3
        if wrist:
            np.testing.assert_allclose(joints[3:5], wrist, atol=1e-9)
        assert joints[5] == pytest.approx(HOME[5])


def test_joint_deltas_are_converted_and_back():
    scale = [10.0] * 5 + [30.0]
    there = ToActionSpaceStep(space="joint_deltas", scale=scale)
    back = ToJointsStep(space="joint_deltas", scale=scale, relative_step=there)
    state = torch.from_numpy(HOME).float()[None]
    target = state + torch.tensor([[5.0, -9, 0, 3, 20, 15]])

    deltas = there(create_transition(observation={"observation.state": state}, action=target[:, None]))
    predicted = deltas[TransitionKey.ACTION][:, 0]
    assert predicted[0, 4] == 1  # 20 degrees are cut to ten
    joints = back(create_transition(action=predicted))[TransitionKey.ACTION]
    expected = target.clone()
    expected[0, 4] = state[0, 4] + 10
    torch.testing.assert_close(joints, expected)


def test_tool_deltas_in_training_add_up_to_the_recorded_targets(root):
    policy, preprocessor, _, dataset = build("pick101", root)
    follower, scale = kinematics(tool_point=policy.config.tool_point), policy.config.tool_scale
    for i in (0, 3):
        labels = preprocessor(default_collate([dataset[i]]))
        sent = follower.pose(dataset[i]["action"].numpy().astype(float))[:, :3]  # of before and now
        start = (
            follower.pose(dataset[0]["observation.state"][-1:].numpy().astype(float))[0, :3]
            if i == 0
            else sent[0]
        )
        expected = np.clip((sent[1] - start) / scale, -1, 1)
        np.testing.assert_allclose(labels["action"][0, 0, :3], expected, atol=1e-4)
        assert labels["action_is_pad"].shape == (1, 1)


def test_the_tool_target_accumulates_inside_the_workspace_until_reset(root):
    policy, preprocessor, _, dataset = build("pick101", root)
    head = policy.model.actor.head
    with torch.no_grad():  # always forward, as fast as it goes
        head.weight.zero_()
        head.bias.copy_(torch.tensor([9.0, 0, 0, 0]))
    policy.ema = None
    targets = torch.stack([policy.select_action(preprocessor(observation(dataset[0])))[0] for _ in range(40)])
    moved = targets.diff(dim=0)[:3, 0]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.02), rtol=1e-3, atol=1e-4)
    assert targets[-1, 0] == pytest.approx(0.5)
    policy.reset()
    again = policy.select_action(preprocessor(observation(dataset[0])))[0]
    torch.testing.assert_close(again, targets[0])


def test_actions_are_repeated(root):
    policy, preprocessor, _, dataset = build("handoff", root)
    actions = [policy.select_action(preprocessor(observation(dataset[i]))) for i in range(4)]
    assert torch.equal(actions[0], actions[1])
    assert not torch.equal(actions[1], actions[2])


def test_a_loaded_checkpoint_gives_the_same_joint_targets(root, tmp_path):
    policy, *pipelines, dataset = build("pick101", root)
    policy.save_pretrained(tmp_path)
    for pipeline in pipelines:
        pipeline.save_pretrained(tmp_path)

    def move(policy, preprocessor, postprocessor):
        policy.reset()
        return [postprocessor(policy.select_action(preprocessor(observation(dataset[i])))) for i in range(4)]

    expected = move(policy, *pipelines)
    loaded = SegDepthPolicy.from_pretrained(tmp_path)
    found = move(loaded, *make_pre_post_processors(loaded.config, pretrained_path=str(tmp_path)))
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


# -- errors


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        (
            "recomended",
            {},
            r"preset: found 'recomended', expected one of recommended, handoff, pick101",
        ),
        ("pick101", {"fps": 30}, r"stack_period: found 0\.02 s, expected a multiple of 1 / fps = 0\.0333"),
        ("handoff", {"class_values": [0, 1]}, "class_values: found 2 numbers, expected one for each"),
        ("handoff", {"chunk_size": 4}, "chunk_size: found 4, expected 1"),
        ("recommended", {"proprioception": "none"}, "proprioception: found 'none', expected 'joints'"),
        (
            "recommended",
            {"action_space": "joint_deltas", "chunk_size": 1, "n_action_steps": 1},
            "expected 'joints'",
        ),
        ("handoff", {"crop": [0.5]}, r"crop: found \[0\.5\], expected 4 numbers"),
        ("handoff", {"color_order": "gbr"}, r"color_order: found 'gbr', expected one of rgb, bgr"),
    ],
)
def test_invalid_combinations_are_named(preset, changes, message):
    with pytest.raises(ValueError, match=message):
        config(preset, **changes)


def test_a_checkpoint_of_another_preset_is_refused(tmp_path):
    SegDepthPolicy(config("handoff")).save_pretrained(tmp_path)
    with pytest.raises(DraccusException) as raised:
        PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--preset=pick101"])
    message = "preset: found 'pick101', expected 'handoff', which this checkpoint was built from"
    assert message in str(raised.value.__cause__)


def test_images_without_a_square_crop_are_refused():
    made = config("handoff")
    for kind in ("seg", "depth"):
        made.input_features[f"observation.images.wrist_{kind}"] = PolicyFeature(
            FeatureType.VISUAL, (1, 84, 84)
        )
    with pytest.raises(
        ValueError, match=r"crop: found 84x84 pixels of 'wrist'.*expected 640x480.*--policy\.crop='\[\]'"
    ):
        make_segdepth_pre_post_processors(made)


def test_a_dataset_of_another_rate_is_refused(root):
    meta = LeRobotDatasetMetadata("local/presets", root=root)
    with pytest.raises(
        ValueError, match=r"fps: found 30 Hz in the dataset, expected 50 Hz.*--policy\.fps=30"
    ):
        make_segdepth_pre_post_processors(config("pick101"), meta.stats, meta)


def test_an_arm_with_other_joints_is_refused(root):
    policy, _, _, _ = build("recommended", root)
    with pytest.raises(ValueError, match=r"observation\.state: found 7 numbers, expected 6"):
        policy.select_action({"observation.state": torch.zeros(1, 7)})
    made = config("handoff")
    made.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (7,))
    with pytest.raises(ValueError, match=r"observation\.state: found shape \(7,\), expected \(6,\)"):
        SegDepthPolicy(made)
