# SPDX-License-Identifier: Apache-2.0
"""`so101-import-drqv2`: the imported network compared with one in NumPy, and the files that are refused."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from numpy.lib.stride_tricks import sliding_window_view
from omegaconf import OmegaConf

from lerobot_policy_segdepth.import_drqv2 import RECORD, ImportConfig, import_drqv2, main
from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy

INPUT = "input_preprocess_modules"


def layers(prefix: str, out: int, extra: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of RoboBase's actor or critic."""
    return {
        f"{prefix}.hidden_state": (1, 9, 128),
        f"{prefix}.{INPUT}.fused_view_feats.0.weight": (50, 39200),
        f"{prefix}.{INPUT}.fused_view_feats.0.bias": (50,),
        f"{prefix}.{INPUT}.fused_view_feats.1.weight": (50,),
        f"{prefix}.{INPUT}.fused_view_feats.1.bias": (50,),
        f"{prefix}.{INPUT}.low_dim_obs.0.weight": (50, 54),
        f"{prefix}.{INPUT}.low_dim_obs.0.bias": (50,),
        f"{prefix}.{INPUT}.low_dim_obs.1.weight": (50,),
        f"{prefix}.{INPUT}.low_dim_obs.1.bias": (50,),
        f"{prefix}.main_mlp.0.weight": (256, 100 + extra),
        f"{prefix}.main_mlp.0.bias": (256,),
        f"{prefix}.main_mlp.3.weight": (256, 256),
        f"{prefix}.main_mlp.3.bias": (256,),
        f"{prefix}.out_mlp.0.weight": (out, 256),
        f"{prefix}.out_mlp.0.bias": (out,),
    }


def make_agent() -> dict[str, torch.Tensor]:
    """The 98 tensors of RoboBase's DrQ-v2, with values of a trained network's scale."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}
    for i, channels in zip((0, 3, 6, 9), (6, 32, 32, 32), strict=True):
        shapes[f"encoder.convs_per_cam.0.{i}.weight"] = (32, channels, 3, 3)
        shapes[f"encoder.convs_per_cam.0.{i}.bias"] = (32,)
    shapes |= layers("actor.actor_model", 4, 0)
    for critic in ("critic", "critic_target"):
        for q in (0, 1):
            shapes |= layers(f"{critic}.qs.{q}", 1, 4)
    agent = {}
    for key, shape in shapes.items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        agent[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        if ".1.weight" in key:
            agent[key] += 1
        if key.endswith("hidden_state"):
            agent[key].zero_()
    twice = {key.removeprefix("actor."): value for key, value in agent.items() if key.startswith("actor.")}
    assert len(agent) + len(twice) == 98
    return {**agent, **twice}


def save(path, agent: dict[str, torch.Tensor], **changes):
    """A snapshot as RoboBase's workspace saves it, with OmegaConf's own classes in it."""
    config = OmegaConf.create(
        {
            "env": {"obs_type": "seg_depth", "lock_wrist": False, "image_size": 84},
            "frame_stack": 3,
            "tags": ["a", None],
        }
    )
    payload = {
        "_pretrain_step": 0,
        "_main_loop_iterations": 75000,
        "_global_env_episode": 3000,
        "agent": agent,
        "cfg": config,
    }
    torch.save({**payload, **changes}, path)
    return path


@pytest.fixture(scope="module")
def agent():
    return make_agent()


@pytest.fixture(scope="module")
def checkpoint(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("import")
    snapshot = save(folder / "1200000_snapshot.pt", agent)
    import_drqv2(ImportConfig(snapshot=snapshot, output=folder / "checkpoint", frame="mujoco"))
    return folder / "checkpoint"


def reference(agent, ids: np.ndarray, disparity: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """RoboBase's network in NumPy, in float64: ids (3, 84, 84), disparity likewise, joints (54,)."""
    w = {key: value.double().numpy() for key, value in agent.items()}
    x = np.stack([plane for pair in zip(ids, disparity, strict=True) for plane in pair]) / 255.0 - 0.5
    for i, stride in ((0, 2), (3, 1), (6, 1), (9, 1)):
        windows = sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::stride, ::stride]  # (C, H, W, 3, 3)
        kernel, bias = w[f"encoder.convs_per_cam.0.{i}.weight"], w[f"encoder.convs_per_cam.0.{i}.bias"]
        x = np.maximum(np.einsum("chwij,ocij->ohw", windows, kernel, optimize=True) + bias[:, None, None], 0)

    def bottleneck(name: str, values: np.ndarray) -> np.ndarray:
        p = f"actor.actor_model.{INPUT}.{name}"
        y = w[f"{p}.0.weight"] @ values + w[f"{p}.0.bias"]
        y = (y - y.mean()) / np.sqrt(y.var() + 1e-5)
        return np.tanh(y * w[f"{p}.1.weight"] + w[f"{p}.1.bias"])

    y = np.concatenate([bottleneck("fused_view_feats", x.ravel()), bottleneck("low_dim_obs", joints)])
    for layer in ("main_mlp.0", "main_mlp.3"):
        y = np.maximum(w[f"actor.actor_model.{layer}.weight"] @ y + w[f"actor.actor_model.{layer}.bias"], 0)
    return np.tanh(w["actor.actor_model.out_mlp.0.weight"] @ y + w["actor.actor_model.out_mlp.0.bias"])


def example() -> tuple[dict[str, torch.Tensor], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Output of our preprocessor, and the same frames in the form of pick-101's simulator."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 6, (3, 84, 84))
    disparity = np.floor(rng.uniform(0, 255.99, (3, 84, 84)) * np.array([0.4, 0.7, 1.0])[:, None, None])
    tool = rng.normal(size=(3, 12))
    moved = np.diff(tool[:, :6], axis=0) / 0.02
    velocities = np.concatenate([moved[:1], moved])
    joints = np.concatenate([tool[:, :6], velocities, tool[:, 6:]], 1).ravel()
    batch = {
        "observation.state": torch.zeros(1, 3, 6),
        "observation.tool": torch.from_numpy(tool).float()[None],
        "observation.seg.wrist": torch.from_numpy(ids)[None].to(torch.uint8),
        "observation.disparity.wrist": torch.from_numpy(disparity).float()[None],
    }
    return batch, (np.clip(ids - 1, 0, 4), disparity, joints)


def error(policy, agent) -> float:
    batch, inputs = example()
    with torch.no_grad():
        found = policy.model.eval()(batch)[0, 0].numpy()
    return float(np.abs(found - reference(agent, *inputs)).max())


def test_the_imported_network_equals_robobases(checkpoint, agent):
    assert error(SegDepthPolicy.from_pretrained(checkpoint), agent) < 1e-5


def double_division(policy):
    forward = policy.model.encoder.forward
    policy.model.encoder.forward = lambda frames: forward(frames / 255)


def swapped_channels(policy):
    frames = policy.model.frames
    policy.model.frames = lambda batch: frames(batch)[:, [1, 0, 3, 2, 5, 4]]


def reversed_stack(policy):
    frames = policy.model.frames
    policy.model.frames = lambda batch: frames(batch)[:, [4, 5, 2, 3, 0, 1]]


def shifted_ids(policy):
    policy.model.values = torch.arange(6)


@pytest.mark.parametrize("mutate", [double_division, swapped_channels, reversed_stack, shifted_ids])
def test_the_comparison_detects_the_mistakes_of_the_handoff_note(mutate, checkpoint, agent):
    policy = SegDepthPolicy.from_pretrained(checkpoint)
    mutate(policy)
    assert error(policy, agent) > 1e-4  # ten times the tolerance; ids have little weight in this network


def test_an_imported_checkpoint_gives_joint_targets(checkpoint):
    policy = SegDepthPolicy.from_pretrained(checkpoint)
    preprocessor, postprocessor = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    observation = {
        "observation.state": torch.tensor([[0.0, -80, 30, 85, -90, 50]]),
        "observation.images.wrist_seg": torch.randint(0, 6, (1, 1, 480, 640)).float(),
        "observation.images.wrist_depth": torch.rand(1, 1, 480, 640) * 500 + 100,
    }
    joints = postprocessor(policy.select_action(preprocessor(observation)))
    assert joints.shape == (1, 6)
    assert (joints[:, :5] - observation["observation.state"][:, :5]).abs().max() < 30
    assert 0 <= joints[0, 5] <= 100


def test_the_checkpoint_contains_its_origin(checkpoint):
    record = json.loads((checkpoint / RECORD).read_text())
    assert record["frame"] == "mujoco"
    assert record["file"] == "1200000_snapshot.pt"
    assert record["config"]["env.obs_type"] == "seg_depth"
    assert record["config"]["env.lock_wrist"] is False
    assert not [path.name for path in checkpoint.iterdir() if path.suffix in (".pt", ".pkl", ".bin")]


# -- errors


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["SO101_TEST_EVIL"],)


def test_code_in_a_snapshot_is_named_and_not_run(agent, tmp_path, monkeypatch):
    monkeypatch.setenv("SO101_TEST_EVIL", str(tmp_path / "evil"))
    path = save(tmp_path / "s.pt", agent, cfg=Evil())
    with pytest.raises(
        ValueError, match=r"refused\. Found objects of \['(posix|nt)\.mkdir'\].*No code of it was run"
    ):
        import_drqv2(ImportConfig(snapshot=path, output=tmp_path / "out", frame="mujoco"))
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "out").exists()


def changed(agent, key: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    other = key.removeprefix("actor.")
    both = {key: torch.zeros(shape)} | ({other: torch.zeros(shape)} if other in agent else {})
    return {**agent, **both}


LOW_DIM = f"actor.actor_model.{INPUT}.low_dim_obs.0.weight"
CONV = "encoder.convs_per_cam.0.0.weight"


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            LOW_DIM,
            (50, 63),
            "found 63 numbers of state, 21 per frame: .* the position of the simulator's cube",
        ),
        (LOW_DIM, (50, 60), r"found .*low_dim_obs\.0\.weight' of shape \(50, 60\), expected \(50, 54\)"),
        (CONV, (32, 9, 3, 3), r"found 9 input channels \(RGB\) .*expected 6"),
        (CONV, (32, 3, 3, 3), r"found 3 input channels \(class ids alone\)"),
        ("actor.actor_model.out_mlp.0.weight", (6, 256), r"out_mlp\.0\.weight' of shape \(6, 256\)"),
        (
            "view_fusion.weight",
            (3,),
            r"found 'view_fusion\.weight' in 'agent', expected only tensors of a known layout",
        ),
    ],
)
def test_other_layouts_are_refused_by_name(key, shape, message, agent, tmp_path):
    path = save(tmp_path / "s.pt", changed(agent, key, shape))
    with pytest.raises(ValueError, match=message):
        import_drqv2(ImportConfig(snapshot=path, output=tmp_path / "out", frame="mujoco"))


def test_other_files_are_refused(agent, tmp_path):
    def refused(path, message, frame="mujoco"):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            import_drqv2(ImportConfig(snapshot=path, output=tmp_path / "out", frame=frame))

    good = save(tmp_path / "s.pt", agent)
    refused(tmp_path / "none.pt", "there is no such file")
    refused(good, r"--frame: found 'isaac', expected 'mujoco' or 'genesis'", frame="isaac")
    (tmp_path / "text.pt").write_text("hello")
    refused(tmp_path / "text.pt", "found no file of PyTorch")
    torch.save({"encoder": {}, "actor": {}}, tmp_path / "note.pt")
    refused(tmp_path / "note.pt", r"found the keys \['actor', 'encoder'\], expected 'agent'")
    refused(
        save(tmp_path / "rgb.pt", agent, cfg=OmegaConf.create({"env": {"obs_type": "rgb"}})),
        "env.obs_type 'rgb'",
    )
    twice = {**agent, "actor_model.out_mlp.0.bias": torch.ones(4)}
    refused(save(tmp_path / "twice.pt", twice), "found two different 'actor.actor_model.out_mlp.0.bias'")


def test_the_command(agent, tmp_path, monkeypatch, capsys):
    path = save(tmp_path / "s.pt", agent)
    command = [
        "so101-import-drqv2",
        f"--snapshot={path}",
        f"--output={tmp_path / 'out'}",
        "--frame=genesis",
        "--fps=30",
    ]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert "preset pick101" in capsys.readouterr().out
    config = SegDepthPolicy.from_pretrained(tmp_path / "out").config
    assert (config.base_frame, config.fps, config.stack_ticks) == ("genesis", 30, 1)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "exists already" in capsys.readouterr().err
