# SPDX-License-Identifier: Apache-2.0
"""`so101-precompute`: stored values equal live ones, and the rest of the dataset is unchanged."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.scripts.lerobot_dataset_viz import visualize_dataset

from lerobot_processor_so101.models import make_segmenter
from lerobot_processor_so101.models.depth import make_depth_estimator
from lerobot_processor_so101.perception.disparity import inverse_to_disparity
from lerobot_processor_so101.perception.identity import ModelIdentity
from lerobot_processor_so101.perception.stored import decode_disparity, decode_ids, decode_top_k
from lerobot_processor_so101.precompute import assemble
from lerobot_processor_so101.precompute.columns import Column, Tally
from lerobot_processor_so101.precompute.command import precompute
from lerobot_processor_so101.precompute.frames import read_batches
from lerobot_processor_so101.precompute.perception import PrecomputeConfig
from lerobot_processor_so101.precompute.source import Source
from tests.tiny import tiny_depth_anything, tiny_efficientvit_fpn, tiny_segformer
from tests.tiny_dataset import tiny_dataset

CAMERAS = ("top", "wrist")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A segmenter with a disparity head."""
    return tiny_efficientvit_fpn(tmp_path_factory.mktemp("model"), size=(64, 64), disparity_head=True)


@pytest.fixture(scope="module", params=["image", "h264", "libsvtav1"])
def source(request, tmp_path_factory) -> Path:
    """A dataset for each way to store images."""
    return tiny_dataset(tmp_path_factory.mktemp("source") / "d", request.param, lengths=(5, 3), depth=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A dataset with images in Parquet."""
    return tiny_dataset(tmp_path_factory.mktemp("images") / "d")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """A dataset with video."""
    return tiny_dataset(tmp_path_factory.mktemp("video") / "d", "h264")


def config(root, output, segmenter=None, **changes) -> PrecomputeConfig:
    settings = {"height": 24, "width": 32, "grid": 4, "logits_size": 16, "device": "cpu", "batch_size": 4}
    return PrecomputeConfig(root=root, output=output, segmenter=segmenter, **{**settings, **changes})


def dataset(root) -> LeRobotDataset:
    return LeRobotDataset("local/tiny", root=root)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_frames_are_those_of_lerobot_bit_for_bit(source):
    frames = dataset(source)
    index = 0
    for batch in read_batches(Source(source), Source(source).episodes, CAMERAS, batch_size=2):
        for row in range(batch.length):
            for camera in CAMERAS:
                expected = frames[index][f"observation.images.{camera}"]
                assert torch.equal(batch.images[camera][row], expected)
            index += 1
    assert index == len(frames)


def test_stored_is_live(source, model, tmp_path):
    before = contents(source)
    forms = ["ids", "top_k", "logits"]
    precompute(config(source, tmp_path / "out", model, forms=forms, depth="segmenter"))
    old, new = dataset(source), dataset(tmp_path / "out")
    segmenter = make_segmenter(model)
    for rows in (range(0, 4), range(4, 5), range(5, 8)):  # the batches of episodes of 5 and 3 frames
        frames = [torch.stack([old[i][f"observation.images.{c}"] for i in rows]) for c in CAMERAS]
        for camera, scores in zip(CAMERAS, segmenter.segment(frames), strict=True):
            stored = {
                key: torch.stack([new[i][f"observation.{key}{camera}"] for i in rows])
                for key in ("seg.", "disparity.", "seg_top_k.", "seg_logits_")
            }
            ids = decode_ids(stored["seg."])
            assert len(ids.unique()) > 1, "a constant output tests nothing"
            assert torch.equal(ids, scores.ids((24, 32)))
            assert torch.equal(decode_disparity(stored["disparity."]), scores.disparity_map((24, 32)))
            classes, shares = decode_top_k(stored["seg_top_k."], (4, 4))
            assert torch.equal(classes, scores.top_k(10, (4, 4))[0])
            torch.testing.assert_close(shares, scores.top_k(10, (4, 4))[1], rtol=0, atol=1 / 65535)
            assert torch.equal(stored["seg_logits_"], scores.as_logits().half().float())
    for index in range(len(old)):
        for key, value in old[index].items():
            found = new[index][key]
            assert torch.equal(value, found) if torch.is_tensor(value) else value == found, key
    assert contents(source) == before


def test_one_frame_at_a_time_gives_the_same(images, model, tmp_path):
    """A model rounds differently in another batch, so only the last bit may differ."""
    precompute(config(images, tmp_path / "out", model, depth="segmenter", batch_size=8))
    result, segmenter = dataset(tmp_path / "out"), make_segmenter(model)
    other = 0
    for index in range(len(result)):
        item = result[index]
        scores = segmenter(item["observation.images.top"][None])
        other += (decode_ids(item["observation.seg.top"]) != scores.ids((24, 32))[0]).sum().item()
        stored = decode_disparity(item["observation.disparity.top"])
        torch.testing.assert_close(stored, scores.disparity_map((24, 32))[0], rtol=0, atol=1 / 16)
    assert other <= 1e-3 * len(result) * 24 * 32


def test_disparity_may_be_floored(images, model, tmp_path):
    for floored in (False, True):
        precompute(config(images, tmp_path / f"{floored}", model, depth="segmenter", whole_disparity=floored))
    fine, floored = dataset(tmp_path / "False"), dataset(tmp_path / "True")
    key = "observation.disparity.top"
    assert torch.equal(decode_disparity(fine[0][key]).floor(), decode_disparity(floored[0][key]))
    assert floored.features[key]["info"]["whole"]
    assert floored.features[key]["info"]["pictures"] == list(
        floored.features["observation.images.top"]["shape"][:2]
    )
    assert "whole" not in fine.features[key]["info"]


def test_depth_model_beside_a_segmenter(images, tmp_path):
    segmenter, depth = tiny_segformer(tmp_path / "s"), tiny_depth_anything(tmp_path / "d")
    precompute(config(images, tmp_path / "out", segmenter, depth=depth, cameras=["wrist"]))
    result = dataset(tmp_path / "out")
    estimator = make_depth_estimator(depth)
    assert not [key for key in result.features if key.endswith(".top") and "image" not in key]
    for index in (0, len(result) - 1):
        item = result[index]
        (inverse,) = estimator.estimate([item["observation.images.wrist"][None]])
        stored = decode_disparity(item["observation.disparity.wrist"])
        torch.testing.assert_close(stored, inverse_to_disparity(inverse, (24, 32))[0], rtol=0, atol=1 / 16)
    identities = {
        key: ModelIdentity.from_dict(result.features[key]["info"]["perception"])
        for key in ("observation.seg.wrist", "observation.disparity.wrist")
    }
    assert identities["observation.seg.wrist"] == make_segmenter(segmenter).identity
    assert identities["observation.disparity.wrist"] == estimator.identity


def test_videos_are_linked_and_may_be_left_out(video, model, tmp_path, monkeypatch):
    precompute(config(video, tmp_path / "out", model))
    name = "videos/observation.images.top/chunk-000/file-000.mp4"
    assert os.path.samefile(video / name, tmp_path / "out" / name)

    def no_link(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(assemble.os, "link", no_link)
    precompute(config(video, tmp_path / "copied", model))
    assert not os.path.samefile(video / name, tmp_path / "copied" / name)
    assert contents(tmp_path / "copied") == contents(tmp_path / "out")

    precompute(config(video, tmp_path / "blind", model, drop_rgb=True))
    result = dataset(tmp_path / "blind")
    assert set(result[0]) >= {"observation.seg.top", "observation.state", "action"}
    assert not [key for key in result.features if "images" in key]
    assert not (tmp_path / "blind" / "videos").exists()
    assert b"observation.images" not in b"".join(contents(tmp_path / "blind" / "meta").values())


def test_statistics(images, model, tmp_path):
    precompute(config(images, tmp_path / "out", model, forms=["ids", "logits"], depth="segmenter"))
    result = dataset(tmp_path / "out")
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    for key in ("observation.seg.top", "observation.disparity.wrist"):
        values = torch.stack([result[index][key] for index in range(len(result))]).double()
        expected = {
            "min": values.min(),
            "max": values.max(),
            "mean": values.mean(),
            "std": values.std(correction=0),
        }
        for name, value in expected.items():
            assert np.shape(stats[key][name]) == (1, 1, 1)
            assert stats[key][name][0][0][0] == pytest.approx(value.item(), rel=1e-9)
        assert stats[key]["count"] == [len(result)]
    assert "observation.seg_logits_top" not in stats, "logits must never be normalised"
    assert stats["action"] == json.loads((images / "meta/stats.json").read_text())["action"]


def test_sizes():
    identity = ModelIdentity("m", "w")
    rng = np.random.default_rng(0)
    blobs = rng.integers(0, 6, (1, 1, 7, 7)).repeat(12, 2).repeat(12, 3)
    noise = rng.integers(0, 65536, (1, 1, 10, 1025))  # nothing is harder to compress
    for key, values, limit in (("ids", blobs, 2000), ("top_k", noise, 21000)):
        column = Column(key, "top", key, (84, 84), (84, 84, 1), identity, (84, 84))
        assert len(column.encode(values)[0]["bytes"].as_py()) < limit


def test_tallies_add_up_in_any_order():
    rng = np.random.default_rng(0)
    column = Column("k", "top", "ids", (5, 5), (5, 5, 1), ModelIdentity("m", "w"), (5, 5))
    batches = [rng.integers(0, 65536, (n, 1, 5, 5)) for n in (3, 1, 4)]
    totals = []
    for order in ([0, 1, 2], [2, 0, 1]):
        total = Tally()
        for index in order:
            part = Tally()
            part.add(batches[index], column.encode(batches[index]))
            total.merge(Tally(**vars(part)))
        totals.append(total.stats())
    assert totals[0] == totals[1]
    assert totals[0]["std"][0][0][0] == pytest.approx(np.concatenate(batches).std(), rel=1e-12)


def test_several_data_files(model, tmp_path):
    """Each data file is rewritten under its own name."""
    root = tiny_dataset(tmp_path / "one")
    _split_data_file(root)
    precompute(config(root, tmp_path / "out", model))
    old, new = dataset(root), dataset(tmp_path / "out")
    assert [name for name in contents(root) if name.startswith("data")] == [
        name for name in contents(tmp_path / "out") if name.startswith("data")
    ]
    segmenter = make_segmenter(model)
    for index in (0, 7, len(old) - 1):
        expected = segmenter.segment([old[index]["observation.images.top"][None]])[0].ids((24, 32))[0]
        assert torch.equal(decode_ids(new[index]["observation.seg.top"]), expected)


def _split_data_file(root: Path) -> None:
    """Move the last episode to a data file of its own, as LeRobot does when one gets too large."""
    data = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    pq.write_table(table.filter(pc.field("episode_index") < 2), data)
    pq.write_table(table.filter(pc.field("episode_index") == 2), data.with_name("file-001.parquet"))
    meta = root / "meta/episodes/chunk-000/file-000.parquet"
    episodes = pq.read_table(meta)
    column = episodes.column_names.index("data/file_index")
    pq.write_table(episodes.set_column(column, "data/file_index", pa.array([0, 0, 1])), meta)


def test_lerobot_dataset_viz_opens_it(images, model, tmp_path):
    precompute(config(images, tmp_path / "out", model, depth="segmenter"))
    path = visualize_dataset(dataset(tmp_path / "out"), 0, save=True, output_dir=tmp_path / "viz")
    assert path is not None
    assert Path(path).stat().st_size > 10_000
