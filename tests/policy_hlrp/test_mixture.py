# SPDX-License-Identifier: Apache-2.0
"""Mixtures: images and numbers of all sources under one set of names, and what training learns of them."""

import json

import numpy as np
import pytest
import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset
from lerobot.scripts import lerobot_train

from lerobot_policy_hlrp import HLRPConfig
from lerobot_policy_hlrp.label_dataset import LabelConfig, label
from lerobot_policy_hlrp.mixing import mix as mix_module
from lerobot_policy_hlrp.mixing.mix import main, mix
from lerobot_policy_hlrp.mixing.mixture import MixtureConfig, MixtureNotes, SourceConfig
from lerobot_policy_hlrp.modeling_hlrp import HLRPPolicy
from lerobot_policy_hlrp.modeling_hlrp_laq import HLRPLAQPolicy
from lerobot_processor_so101.find_config import find_configs
from tests.policy_hlrp.conftest import training_batch
from tests.tiny_dataset import tiny_dataset

VIEW = "observation.images.view"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Datasets of an arm, of one with three joints, and of one at 60 Hz with larger images; all as video."""
    folder = tmp_path_factory.mktemp("data")
    tiny_dataset(folder / "arm", "h264")
    tiny_dataset(folder / "small", "h264", lengths=(6, 4), joints=3, seed=1)
    tiny_dataset(folder / "fast", "h264", lengths=(9, 8), size=(96, 96), fps=60, seed=2)
    return folder


def source(root, camera="top", **options):
    return SourceConfig(root=root, cameras={"view": f"observation.images.{camera}"}, **options)


def config(output, *sources, **options):
    return MixtureConfig(
        output=output, sources=list(sources), **{"fps": 30, "height": 48, "width": 64, **options}
    )


def read(root):
    return LeRobotDataset("local/mixture", root=root)


@pytest.fixture(scope="module")
def mixed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("mixed") / "mixture"
    mix(
        config(
            out, source(data / "arm"), source(data / "small", "wrist", labelled=0.5), source(data / "fast")
        )
    )
    return out


def test_images_that_match_are_not_encoded_again(data, mixed):
    mixture, arm, small = read(mixed), read(data / "arm"), read(data / "small")
    assert mixture.meta.camera_keys == [VIEW]
    assert mixture.meta.total_frames == 21 + 10 + 5 + 4
    for index in (0, 8, 20):
        assert torch.equal(mixture[index][VIEW], arm[index]["observation.images.top"])
    for index in (0, 9):
        assert torch.equal(mixture[21 + index][VIEW], small[index]["observation.images.wrist"])
    assert mixture[0]["task"] == "Lift the cube."
    np.testing.assert_allclose(mixture.meta.stats[VIEW]["count"], mixture.meta.stats["index"]["count"])


def test_numbers_are_normalised_by_their_source_and_padded(data, mixed):
    mixture, small = read(mixed), read(data / "small")
    for key in ("action", "observation.state"):
        stats = small.meta.stats[key]
        for index in (0, 7):
            found = mixture[21 + index][key].numpy()
            np.testing.assert_allclose(
                found[:3], (small[index][key].numpy() - stats["mean"]) / stats["std"], rtol=1e-4
            )
            assert not found[3:].any()
    assert mixture.meta.stats["action"]["mean"].shape == (6,)
    np.testing.assert_allclose(mixture.meta.stats["action"]["count"], [40])


def test_other_rates_and_sizes_are_converted(data, mixed):
    mixture, fast = read(mixed), read(data / "fast")
    state = fast.meta.stats["observation.state"]
    for step in range(5):
        item = mixture[31 + step]
        assert item["timestamp"] == pytest.approx(step / 30)
        expected = (fast[2 * step]["observation.state"].numpy() - state["mean"]) / state["std"]
        np.testing.assert_allclose(item["observation.state"].numpy(), expected, rtol=1e-4)
    assert item[VIEW].shape == (3, 48, 64)
    assert float(item[VIEW][..., :14].mean()) < 0.05  # a square image gets a border
    assert float(item[VIEW][..., 18:].mean()) > 0.3


def test_weights_are_shares_of_the_duration(data, tmp_path):
    made = config(tmp_path / "m", source(data / "arm", weight=1), source(data / "fast", weight=1))
    episodes = made.episodes()
    assert len(episodes[1]) == 2  # all of the shorter source
    assert len(episodes[0]) < 3
    mix(made)
    notes = json.loads((tmp_path / "m" / "meta" / "mixture.json").read_text())
    assert [each["episodes"] for each in notes["sources"]] == [len(each) for each in episodes]
    mixture, arm = read(tmp_path / "m"), read(data / "arm")
    first = arm.meta.episodes[episodes[0][0]]["dataset_from_index"]
    error = mixture[0][VIEW] - arm[first]["observation.images.top"]
    assert float(error.abs().mean()) < 0.03  # encoded again, because its file held other episodes


def test_images_in_parquet_are_mixed_too(tmp_path):
    tiny_dataset(tmp_path / "a")
    tiny_dataset(tmp_path / "b", lengths=(3,), joints=2)
    mix(config(tmp_path / "m", source(tmp_path / "a"), source(tmp_path / "b", action="")))
    mixture, a = read(tmp_path / "m"), read(tmp_path / "a")
    assert torch.equal(mixture[5][VIEW], a[5]["observation.images.top"])
    assert MixtureNotes.of(mixture.meta).labelled == [True, True, True, False]


def test_training_learns_labelled_episodes_and_real_dimensions_only(mixed, hlrp_config):
    policy = HLRPPolicy(hlrp_config())
    policy._mixture = MixtureNotes.of(read(mixed).meta)
    assert sum(policy._mixture.labelled) == 3 + 1 + 2
    batch = training_batch(5)
    batch["episode_index"] = torch.tensor([0, 3, 4, 5, 6])
    weights = policy.action_weights(batch)
    small = [6 * 3 * flag for flag in policy._mixture.labelled[3:5]]
    assert weights.sum((1, 2)).tolist() == [36, *small, 36, 36]


def test_stock_training_takes_a_mixture(mixed, small, laq, tmp_path):
    label(LabelConfig(laq_of(laq, tmp_path), mixed, tmp_path / "labels.safetensors", num_workers=0))
    policy = HLRPConfig(
        **small, gap_s=0.1, stage="foundation", latent_labels=str(tmp_path / "labels.safetensors")
    )
    lerobot_train.train(
        TrainPipelineConfig(
            dataset=DatasetConfig(repo_id="local/mixture", root=str(mixed)),
            policy=policy,
            output_dir=tmp_path / "run",
            steps=2,
            batch_size=4,
            num_workers=0,
            save_freq=2,
            log_freq=1,
        )
    )
    saved = tmp_path / "run" / "checkpoints" / "000002" / "pretrained_model" / "config.json"
    saved = json.loads(saved.read_text())
    assert list(saved["input_features"]) == ["observation.state", VIEW]
    assert saved["laq_identity"]["camera"] == "view"


def laq_of(laq, tmp_path):
    """Save the small latent action model for the mixture's camera, and return the folder."""
    policy = HLRPLAQPolicy.from_pretrained(laq)
    policy.config.camera = "view"
    policy.config.input_features = {VIEW: next(iter(policy.config.input_features.values()))}
    policy.save_pretrained(tmp_path / "laq")
    return tmp_path / "laq"


@pytest.mark.slow
def test_a_second_command_with_the_same_output_is_refused(data, tmp_path, own_elsewhere):
    pid = own_elsewhere(tmp_path / "mixture").pid
    with pytest.raises(BlockingIOError, match=rf"mixture is in use by process {pid}\b"):
        mix(config(tmp_path / "mixture", source(data / "arm")))
    assert not list(tmp_path.iterdir())


def test_a_stopped_mixture_resumes(data, tmp_path, monkeypatch):
    made, done = config(tmp_path / "m", source(data / "arm"), source(data / "small")), []
    convert = mix_module.convert_source

    def fails(config, source, episodes, out):
        if source.root.name == "small":
            raise OSError("disk full")
        convert(config, source, episodes, out)

    monkeypatch.setattr(mix_module, "convert_source", fails)
    with pytest.raises(OSError, match="disk full"):
        mix(made)
    assert not made.output.exists()

    def counted(config, source, *rest):
        done.append(source.root.name)
        convert(config, source, *rest)

    monkeypatch.setattr(mix_module, "convert_source", counted)
    with pytest.raises(ValueError, match="begun with other options"):
        mix(config(tmp_path / "m", source(data / "arm")))
    mix(made)
    assert done == ["small"]
    assert read(made.output).meta.total_episodes == 5


def record_more(root, length=6):
    """Add an episode in a second session, which LeRobot writes to files of its own."""
    dataset = LeRobotDataset.resume("local/tiny", root=root, rgb_encoder=RGBEncoderConfig(vcodec="h264"))
    for number in range(length):
        frame = {key: np.full(6, number, np.float32) for key in ("action", "observation.state")}
        images = {f"observation.images.{name}": np.zeros((48, 64, 3), np.uint8) for name in ("top", "wrist")}
        dataset.add_frame(frame | images | {"task": "Lift the cube."})
    dataset.save_episode()
    dataset.finalize()


def test_a_recording_of_two_sessions_is_mixed(tmp_path):
    root = tiny_dataset(tmp_path / "arm", "h264")
    record_more(root)
    notes = mix(config(tmp_path / "m", source(root)))
    dataset = read(tmp_path / "m")
    assert len(notes.labelled) == dataset.meta.total_episodes == 4
    assert dataset[len(dataset) - 1]["observation.images.view"].mean() < 0.05


def test_a_source_that_grew_does_not_continue_unfinished_work(tmp_path, monkeypatch):
    root = tiny_dataset(tmp_path / "arm", "h264")
    monkeypatch.setattr(mix_module, "aggregate_datasets", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mix(config(tmp_path / "m", source(root)))
    monkeypatch.undo()
    record_more(root)
    with pytest.raises(ValueError, match="has a source that has changed"):
        mix(config(tmp_path / "m", source(root)))


def test_statistics_that_are_nan_are_rejected(tmp_path):
    root = tiny_dataset(tmp_path / "arm", "h264")
    stats = json.loads((root / "meta/stats.json").read_text())
    stats["action"]["std"][2] = float("nan")
    (root / "meta/stats.json").write_text(json.dumps(stats))
    with pytest.raises(ValueError, match=r"'arm' has std = .*nan.* of 'action'.*expected finite"):
        mix(config(tmp_path / "m", source(root)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: [source(d / "arm", "front")], r"cameras.view: found no 'observation.images.front'"),
        (lambda d: [source(d / "arm", action="act")], r"action: found no 'act'"),
        (lambda d: [source(d / "nothing")], "found no dataset"),
        (
            lambda d: [source(d / "arm"), SourceConfig(root=d / "small")],
            r"has cameras \[\], expected \['view'\]",
        ),
        (lambda d: [source(d / "arm", weight=1), source(d / "small")], "some with a weight"),
        (lambda d: [source(d / "arm", labelled=2)], "labelled = 2"),
        (lambda d: [], "sources: found none"),
    ],
)
def test_invalid_sources_are_rejected_by_name(data, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        mix(config(tmp_path / "m", *change(data)))


def test_slower_sources_are_rejected(data, tmp_path):
    with pytest.raises(ValueError, match="'arm' has 30 Hz"):
        mix(config(tmp_path / "m", source(data / "arm"), fps=60))


def test_the_command_reads_an_options_file(data, tmp_path, monkeypatch, capsys):
    path = tmp_path / "mixture.yaml"
    path.write_text(
        f"output: {tmp_path / 'm'}\nfps: 30\nheight: 48\nwidth: 64\nsources:\n"
        f"- {{root: {data / 'arm'}, cameras: {{view: observation.images.top}}, labelled: 0.34}}\n"
    )
    monkeypatch.setattr("sys.argv", ["hlrp-mix", f"--config_path={path}"])
    main()
    assert "arm: 3 episodes, actions of 1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main()
    assert "expected a new folder" in capsys.readouterr().err


def test_the_packaged_options_file_is_valid():
    import draccus

    path = find_configs()["hlrp_mixture"]
    made = draccus.parse(MixtureConfig, path, args=["--output=x"])
    assert len({source.name for source in made.sources}) == len(made.sources) == 10
    assert all(source.weight > 0 and list(source.cameras) == ["primary"] for source in made.sources)
