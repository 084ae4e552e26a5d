# SPDX-License-Identifier: Apache-2.0
"""Mixtures: what goes in comes out, under one set of names; and training knows what counts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset
from lerobot.scripts import lerobot_train

from lerobot_policy_hlrp import HLRPConfig, mix as mix_module
from lerobot_policy_hlrp.label import LabelConfig, label
from lerobot_policy_hlrp.mix import main, mix
from lerobot_policy_hlrp.mixture import MixtureConfig, MixtureNotes, SourceConfig
from lerobot_policy_hlrp.modeling_hlrp import HLRPPolicy
from tests.policy_hlrp.conftest import training_batch
from tests.tiny_dataset import tiny_dataset

VIEW = "observation.images.view"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An arm, one of three joints, and one that is recorded twice as fast in larger pictures; all as video."""
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


def test_pictures_that_fit_are_not_touched(data, mixed):
    whole, arm, small = read(mixed), read(data / "arm"), read(data / "small")
    assert whole.meta.camera_keys == [VIEW]
    assert whole.meta.total_frames == 21 + 10 + 5 + 4
    for index in (0, 8, 20):
        assert torch.equal(whole[index][VIEW], arm[index]["observation.images.top"])
    for index in (0, 9):
        assert torch.equal(whole[21 + index][VIEW], small[index]["observation.images.wrist"])
    assert whole[0]["task"] == "Lift the cube."
    np.testing.assert_allclose(whole.meta.stats[VIEW]["count"], whole.meta.stats["index"]["count"])


def test_numbers_are_those_of_their_source_normalised_and_filled_up(data, mixed):
    whole, small = read(mixed), read(data / "small")
    for key in ("action", "observation.state"):
        stats = small.meta.stats[key]
        for index in (0, 7):
            found = whole[21 + index][key].numpy()
            np.testing.assert_allclose(
                found[:3], (small[index][key].numpy() - stats["mean"]) / stats["std"], rtol=1e-4
            )
            assert not found[3:].any()
    assert whole.meta.stats["action"]["mean"].shape == (6,)
    np.testing.assert_allclose(whole.meta.stats["action"]["count"], [40])


def test_other_rates_and_sizes_are_read_and_written_again(data, mixed):
    whole, fast = read(mixed), read(data / "fast")
    state = fast.meta.stats["observation.state"]
    for step in range(5):
        item = whole[31 + step]
        assert item["timestamp"] == pytest.approx(step / 30)
        expected = (fast[2 * step]["observation.state"].numpy() - state["mean"]) / state["std"]
        np.testing.assert_allclose(item["observation.state"].numpy(), expected, rtol=1e-4)
    assert item[VIEW].shape == (3, 48, 64)
    assert float(item[VIEW][..., :14].mean()) < 0.05  # a square picture has a border
    assert float(item[VIEW][..., 18:].mean()) > 0.3


def test_weights_are_shares_of_the_time(data, tmp_path):
    made = config(tmp_path / "m", source(data / "arm", weight=1), source(data / "fast", weight=1))
    episodes = made.episodes()
    assert len(episodes[1]) == 2  # the shorter one is used whole
    assert len(episodes[0]) < 3
    mix(made)
    notes = json.loads((tmp_path / "m" / "meta" / "mixture.json").read_text())
    assert [each["episodes"] for each in notes["sources"]] == [len(each) for each in episodes]
    whole, arm = read(tmp_path / "m"), read(data / "arm")
    start = arm.meta.episodes[episodes[0][0]]["dataset_from_index"]
    error = whole[0][VIEW] - arm[start]["observation.images.top"]
    assert float(error.abs().mean()) < 0.03  # encoded again, because its file held other episodes


def test_images_in_parquet_are_mixed_too(tmp_path):
    tiny_dataset(tmp_path / "a")
    tiny_dataset(tmp_path / "b", lengths=(3,), joints=2)
    mix(config(tmp_path / "m", source(tmp_path / "a"), source(tmp_path / "b", action="")))
    whole, a = read(tmp_path / "m"), read(tmp_path / "a")
    assert torch.equal(whole[5][VIEW], a[5]["observation.images.top"])
    assert MixtureNotes.of(whole.meta).labelled == [True, True, True, False]


def test_training_knows_what_counts(mixed, hlrp_config):
    policy = HLRPPolicy(hlrp_config())
    policy._mixture = MixtureNotes.of(read(mixed).meta)
    assert sum(policy._mixture.labelled) == 3 + 1 + 2
    batch = training_batch(5)
    batch["episode_index"] = torch.tensor([0, 3, 4, 5, 6])
    counts = policy.action_counts(batch)
    small = [6 * 3 * flag for flag in policy._mixture.labelled[3:5]]
    assert counts.sum((1, 2)).tolist() == [36, *small, 36, 36]


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
    assert (tmp_path / "run" / "checkpoints" / "000002").is_dir()


def laq_of(laq, tmp_path):
    """The small latent action model, for the mixture's camera."""
    from lerobot_policy_hlrp.modeling_hlrp_laq import HLRPLAQPolicy

    policy = HLRPLAQPolicy.from_pretrained(laq)
    policy.config.camera = "view"
    policy.config.input_features = {VIEW: next(iter(policy.config.input_features.values()))}
    policy.save_pretrained(tmp_path / "laq")
    return tmp_path / "laq"


def test_it_goes_on_where_it_was_stopped(data, tmp_path, monkeypatch):
    made, done = config(tmp_path / "m", source(data / "arm"), source(data / "small")), []
    whole = mix_module.conform

    def fails(config, source, episodes, out):
        if source.root.name == "small":
            raise OSError("disk full")
        whole(config, source, episodes, out)

    monkeypatch.setattr(mix_module, "conform", fails)
    with pytest.raises(OSError, match="disk full"):
        mix(made)
    assert not made.output.exists()

    def counted(config, source, *rest):
        done.append(source.root.name)
        whole(config, source, *rest)

    monkeypatch.setattr(mix_module, "conform", counted)
    with pytest.raises(ValueError, match="begun with other options"):
        mix(config(tmp_path / "m", source(data / "arm")))
    mix(made)
    assert done == ["small"]
    assert read(made.output).meta.total_episodes == 5


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
def test_what_cannot_be_mixed_is_named(data, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        mix(config(tmp_path / "m", *change(data)))


def test_slower_sources_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="'arm' has 30 Hz"):
        mix(config(tmp_path / "m", source(data / "arm"), fps=60))


def test_the_command_reads_a_file(data, tmp_path, monkeypatch, capsys):
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


def test_the_published_list_can_be_read():
    import draccus

    path = Path(__file__).parents[2] / "configs" / "hlrp_mixture.yaml"
    made = draccus.parse(MixtureConfig, path, args=["--output=x"])
    assert len({source.name for source in made.sources}) == len(made.sources) == 10
    assert all(source.weight > 0 and list(source.cameras) == ["primary"] for source in made.sources)
