# SPDX-License-Identifier: Apache-2.0
"""The latent action model: codes, weights of the loss, rejected input, and LeRobot's training."""

import json
import logging

import pytest
import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.dataset_tools import remove_feature
from lerobot.scripts import lerobot_train
from torch import nn

from lerobot_policy_hlrp import HLRPLAQConfig
from lerobot_policy_hlrp.label_dataset import LabelConfig, label, main, summary
from lerobot_policy_hlrp.laq.label_file import LatentLabels
from lerobot_policy_hlrp.modeling_hlrp_laq import HLRPLAQPolicy
from lerobot_policy_hlrp.processor_hlrp_laq import make_hlrp_laq_pre_post_processors
from lerobot_policy_hlrp.weighted_mean import weighted_mean
from tests.policy_hlrp.conftest import LAQ, laq_config, pair
from tests.tiny_dataset import tiny_dataset

TOP = "observation.images.top"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A dataset without actions."""
    folder = tmp_path_factory.mktemp("video")
    recorded = LeRobotDataset("local/tiny", root=tiny_dataset(folder / "recorded"))
    remove_feature(recorded, ["action"], folder / "video", "local/tiny")
    return folder / "video"


@pytest.fixture(scope="module")
def trained(video, tmp_path_factory):
    return train(video, tmp_path_factory.mktemp("laq") / "run")


def train(root, out, steps=3, **changes):
    lerobot_train.train(
        TrainPipelineConfig(
            dataset=DatasetConfig(repo_id="local/tiny", root=str(root)),
            policy=HLRPLAQConfig(**{**LAQ, **changes}),
            output_dir=out,
            steps=steps,
            batch_size=4,
            num_workers=0,
            save_freq=steps,
            log_freq=1,
        )
    )
    return out / "checkpoints" / f"{steps:06d}" / "pretrained_model"


@pytest.mark.parametrize("quantizer", ["fsq", "nsvq"])
@pytest.mark.parametrize("codes", [1, 2, 4, 16])
def test_every_part_of_the_image_has_its_code(quantizer, codes):
    policy = HLRPLAQPolicy(laq_config(codes=codes, quantizer=quantizer))
    quantized, valid = policy.label(pair())
    assert quantized.codes.shape == (3, codes)
    assert quantized.vectors.shape == (3, codes, policy.model.quantizer.dim)
    assert bool(valid.all())


def test_a_code_depends_on_its_own_part_of_the_image():
    """Without attention between patches, a change in one quarter moves one code."""
    policy = HLRPLAQPolicy(laq_config(codes=4, image_size=32))
    policy.model.spatial = nn.Identity()
    frames = torch.rand(1, 1, 3, 32, 32).repeat(1, 2, 1, 1, 1)
    frames[:, 1, :, 16:, :16] = torch.rand(3, 16, 16)
    still = frames[:, :1].repeat(1, 2, 1, 1, 1)
    with torch.no_grad():
        moved = (policy.model.delta(frames) - policy.model.delta(still)).abs().sum(-1)[0]
    assert float(moved[2]) > 1e-3
    assert float(moved[[0, 1, 3]].max()) < 1e-6


def test_a_new_model_copies_the_frame():
    policy = HLRPLAQPolicy(laq_config())
    loss, logs = policy(pair())
    assert loss.item() == pytest.approx(logs["copy"], rel=1e-5)


def test_frames_beyond_the_episode_do_not_count():
    torch.manual_seed(0)
    policy = HLRPLAQPolicy(laq_config()).eval()
    batch = pair(2)
    alone, _ = policy({TOP: batch[TOP][:1]})
    batch[f"{TOP}_is_pad"] = torch.tensor([[False, False], [False, True]])
    together, _ = policy(batch)
    torch.testing.assert_close(together, alone)
    batch[f"{TOP}_is_pad"] = torch.tensor([[False, True], [False, True]])
    nothing, _ = policy(batch)
    assert float(nothing) == 0


def test_masks_weight_pixels():
    config = laq_config(mask_classes=["cube"], background_weight=0.0)
    policy = HLRPLAQPolicy(config)
    ids = torch.zeros(1, 2, 48, 64, dtype=torch.uint8)
    ids[:, 0, :24, :32] = config.class_names.index("cube")  # in the earlier frame
    ids[:, 1, 24:, :32] = config.class_names.index("cube")  # in the later frame
    batch = {**pair(1), "observation.seg.top": ids}
    frames = policy.frames(batch)
    expected = (frames[:, 0] - frames[:, 1]).square()[..., :16].mean()
    _, logs = policy(batch)
    assert logs["copy"] == pytest.approx(float(expected), rel=1e-4)
    assert policy.pixel_weights(batch)[..., 16:].sum() == 0


def test_masks_come_from_the_segmentation_step(tmp_path):
    config = laq_config(mask_classes=["cube"])
    preprocessor, _ = make_hlrp_laq_pre_post_processors(config)
    ids = torch.full((2, 2, 1, 48, 64), float(config.class_names.index("cube")))
    batch = preprocessor({**pair(2), f"{TOP}_seg": ids})
    weights = HLRPLAQPolicy(config).pixel_weights(batch)
    assert weights.shape == (2, 1, 32, 32)
    assert bool((weights == 1).all())


def test_features_and_flow_of_frozen_models_can_be_predicted(tmp_path):
    from torchvision.models.optical_flow import raft_small

    from tests.tiny import tiny_dinov2

    name = tiny_dinov2(tmp_path / "dino")
    torch.save(raft_small().state_dict(), tmp_path / "raft.pth")
    options = {"feature_model": name, "flow_model": "raft_small", "flow_weights": str(tmp_path / "raft.pth")}
    policy = HLRPLAQPolicy(laq_config(**options))
    loss, logs = policy(pair(2))
    expected = logs["pixel_loss"] + logs["feature_loss"] + 5 * logs["flow_loss"]
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert policy.model.to_features.weight.grad is not None
    assert policy.model.to_flow.weight.grad is not None
    policy.save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "dino").iterdir():
        file.unlink()
    (tmp_path / "raft.pth").unlink()
    loaded = HLRPLAQPolicy.from_pretrained(tmp_path / "saved")
    before, after = policy.label(pair())[0], loaded.label(pair())[0]
    assert torch.equal(before.codes, after.codes)


def test_a_collapsed_codebook_logs_a_warning(caplog, monkeypatch):
    monkeypatch.setattr("lerobot_policy_hlrp.modeling_hlrp_laq._CHECK_EVERY", 2)
    policy = HLRPLAQPolicy(laq_config(levels=[8, 8, 8]))
    still = torch.rand(2, 1, 3, 48, 64).repeat(1, 2, 1, 1, 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            policy({TOP: still})
    assert caplog.text.count("of 512 are in use") == 2


def test_it_cannot_select_actions():
    policy = HLRPLAQPolicy(laq_config())
    with pytest.raises(NotImplementedError, match="cannot control a robot"):
        policy.select_action({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": "vq"}, "quantizer: found 'vq'"),
        ({"codes": 3}, "codes: found 3"),
        ({"image_size": 30}, "image_size: found 30"),
        ({"heads": 5}, "heads: found 5"),
        ({"gap_s": 0.01}, "gap_s: found 0.01 s at 30 Hz"),
        ({"mask_classes": ["cup"]}, "cup"),
        ({"flow_model": "farneback"}, "flow_model: found 'farneback'"),
    ],
)
def test_invalid_options_are_rejected_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        laq_config(**changes)


def test_a_missing_camera_is_rejected_by_name():
    with pytest.raises(ValueError, match=r"camera: found 'wrist', expected one of \['top'\]"):
        HLRPLAQPolicy(laq_config(camera="wrist"))


def test_a_single_frame_is_rejected():
    with pytest.raises(ValueError, match="expected two frames"):
        HLRPLAQPolicy(laq_config())({TOP: torch.rand(2, 3, 48, 64)})


def test_training_needs_no_actions(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["type"] == "hlrp_laq"
    assert list(config["input_features"]) == [TOP]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"fps": 10, "gap_s": 0.3}, "policy.fps=30"), ({"gap_s": 0.5}, "longest episode has 9 frames")],
)
def test_training_rejects_a_dataset_of_another_rate_or_with_short_episodes(video, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(video, tmp_path / "run", **changes)


def test_labels_match_the_model_frame_by_frame(video, trained, tmp_path):
    config = LabelConfig(trained, video, tmp_path / "labels.safetensors", batch_size=5, num_workers=0)
    made = label(config)
    labels = LatentLabels.load(config.output)
    assert torch.equal(labels.codes, made.codes)
    assert labels.laq == made.laq
    assert int((~labels.valid).sum()) == 3 * 3  # the gap, at the end of each of three episodes
    policy = HLRPLAQPolicy.from_pretrained(trained)
    dataset = LeRobotDataset("local/tiny", root=video)
    for index in (0, 8, 14):
        frames = torch.stack([dataset[index][TOP], dataset[index + 3][TOP]])[None]
        found, _ = policy.label({TOP: frames})
        assert torch.equal(found.codes[0], labels.codes[index])
        torch.testing.assert_close(found.vectors[0], labels.vectors[index])
    labels.check(dataset.meta)
    assert "12 of 21 frames labelled" in summary(labels)


def test_labels_of_another_dataset_are_rejected(video, trained, tmp_path):
    config = LabelConfig(trained, video, tmp_path / "labels.safetensors", num_workers=0)
    labels = label(config)
    other = LeRobotDataset("local/tiny", root=tiny_dataset(tmp_path / "other", lengths=(7, 6, 8)))
    with pytest.raises(ValueError, match="of another dataset"):
        labels.check(other.meta)
    twin = tiny_dataset(tmp_path / "twin", seed=1)  # with the same lengths of episodes
    with pytest.raises(ValueError, match="of another dataset"):
        labels.check(LeRobotDataset("local/tiny", root=twin).meta)
    with pytest.raises(ValueError, match="found no file"):
        LatentLabels.load(tmp_path / "none.safetensors")


def test_the_command_reports_a_missing_checkpoint(tmp_path, monkeypatch, capsys):
    argv = ["so101-laq-label", f"--checkpoint={tmp_path}", f"--root={tmp_path}", f"--output={tmp_path / 'x'}"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit):
        main()
    assert "found no config.json" in capsys.readouterr().err


def test_the_weighted_mean_ignores_weights_of_zero():
    errors = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert float(weighted_mean(errors, torch.tensor([[True], [False]]))) == pytest.approx(1.5)
    nothing = weighted_mean(errors, torch.tensor([[False], [False]]))
    nothing.backward()
    assert float(nothing) == 0
    assert bool((errors.grad == 0).all())
