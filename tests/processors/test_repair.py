# SPDX-License-Identifier: Apache-2.0
"""`so101-repair`: a killed recording of LeRobot gets back every finished episode."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.datasets import LeRobotDataset

from lerobot_processor_so101.recording import repair as repair_module
from lerobot_processor_so101.recording.footerless import recover
from lerobot_processor_so101.recording.repair import RepairConfig, main, repair
from tests.small_recording import CAMERA, add, check, frames, open_dataset


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Datasets of LeRobot with 13 episodes: `killed_` ones are copies of a recording that goes on."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, video in (("image", False), ("video", True)):
        dataset = open_dataset(folder / name, video, kind=LeRobotDataset)
        for episode in range(13):
            add(dataset, episode)
        dataset.add_frame(frames(13)[0])
        shutil.copytree(folder / name, folder / f"killed_{name}")
        dataset.clear_episode_buffer()
        dataset.finalize()
    return folder


@pytest.fixture(params=["image", "video"])
def killed(request, recordings, tmp_path) -> Path:
    return Path(shutil.copytree(recordings / f"killed_{request.param}", tmp_path / "d"))


def rows(root: Path) -> list[dict]:
    table = pa.concat_tables(
        pq.read_table(path) for path in sorted((root / "meta/episodes").rglob("*.parquet"))
    )
    return table.to_pylist()


def test_every_finished_episode_comes_back(killed, recordings):
    """The repaired dataset equals that of a recording which ended properly."""
    with pytest.raises(Exception, match=r"[Pp]arquet|magic"):
        LeRobotDataset("local/d", root=killed)
    found = repair(RepairConfig(killed))
    assert (found.episodes, found.frames, found.dropped) == (13, 64, [])
    check(killed, 13)
    whole = recordings / ("video" if (killed / "videos").exists() else "image")
    ours, theirs = rows(killed), rows(whole)
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        for key, value in row.items():
            if not key.startswith(f"stats/{CAMERA}"):  # those of a stream have another number of samples
                # recorded statistics are of float64, and quantiles those of a histogram
                close = {"rel": 1e-3 if "stats" in key else 1e-9}
                assert value == (
                    expected[key] if key == "tasks" else pytest.approx(expected[key], **close)
                ), key
    statistics = [LeRobotDataset("local/d", root=root).meta.stats for root in (killed, whole)]
    assert statistics[0].keys() == statistics[1].keys()
    for key in statistics[0]:
        for name in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(statistics[0][key][name], statistics[1][key][name], atol=0.02)
    assert not list(killed.glob("tmp*"))
    assert not (killed / "images").exists()


def test_the_damaged_dataset_is_kept_and_an_intact_one_is_left_alone(killed, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["so101-repair", f"--root={killed}"])
    main()
    assert f"13 episodes, 64 frames in {killed}\n" in capsys.readouterr().out
    damaged = killed.with_name("d.damaged")
    assert {
        killed / path.relative_to(damaged): path.read_bytes()
        for path in damaged.rglob("*.*")
        if path.is_file()
    } == before
    main()
    assert capsys.readouterr().out == f"{killed} is complete; nothing to repair.\n"


def test_the_source_stays_with_an_output(killed, tmp_path):
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    repair(RepairConfig(killed, tmp_path / "new"))
    check(tmp_path / "new", 13)
    assert {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("cut", np.random.default_rng(0).uniform(size=12).tolist())
@pytest.mark.parametrize("name", ["image", "video"])
def test_a_file_cut_anywhere_gives_the_row_groups_before(recordings, tmp_path, name, cut):
    path = recordings / name / "data/chunk-000/file-000.parquet"
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    ends = [
        max(
            column.dictionary_page_offset + column.total_compressed_size
            for column in (group.column(number) for number in range(group.num_columns))
        )
        for group in groups
    ]
    size = round(cut * ends[-1])
    (tmp_path / "cut").write_bytes(path.read_bytes()[:size])
    info = LeRobotDataset("local/d", root=recordings / name).meta.info
    repair_module.write_template(info, tmp_path / "template")
    count = recover(tmp_path / "cut", tmp_path / "template", tmp_path / "recovered")
    assert count == sum(end <= size for end in ends)
    if count:
        recovered = pq.ParquetFile(tmp_path / "recovered")
        for number in range(count):
            assert recovered.read_row_group(number).equals(file.read_row_group(number))


def test_other_types_and_pages(tmp_path):
    """Booleans have no dictionary, long columns have several pages, images leave their dictionary."""
    shapes = {
        "flag": ("bool", (1,)),
        "flags": ("bool", (2,)),
        "name": ("string", (1,)),
        "long": ("float64", (2, 3)),
    }
    features = {key: {"dtype": kind, "shape": shape, "names": None} for key, (kind, shape) in shapes.items()}
    features["image"] = {"dtype": "image", "shape": (96, 96, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create("local/d", 30, features, root=tmp_path / "d", use_videos=False)
    rng = np.random.default_rng(0)
    for length in (400, 3):
        for tick in range(length):
            frame = {"flag": np.array([tick % 3 == 0]), "flags": rng.random(2) > 0.5, "name": f"tick {tick}"}
            frame |= {"long": rng.random((2, 3)), "task": "x"}
            frame["image"] = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)  # 11 MB of images
            dataset.add_frame(frame)
        dataset.save_episode()
    shutil.copytree(tmp_path / "d", tmp_path / "killed")
    dataset.finalize()
    assert repair(RepairConfig(tmp_path / "killed")).episodes == 2
    tables = [pq.read_table(tmp_path / name / "data") for name in ("d", "killed")]
    assert tables[0].equals(tables[1])


def test_an_episode_whose_video_is_short_is_dropped_and_named(recordings, tmp_path):
    """The video ends after twelve episodes, as if the kill had come before the last was added to it."""
    root = Path(shutil.copytree(recordings / "killed_video", tmp_path / "d"))
    dataset = open_dataset(tmp_path / "short", video=True, kind=LeRobotDataset)
    for episode in range(12):
        add(dataset, episode)
    dataset.finalize()
    video = next((tmp_path / "short" / "videos").rglob("*.mp4")).relative_to(tmp_path / "short")
    shutil.copy(tmp_path / "short" / video, root / video)
    found = repair(RepairConfig(root))
    assert found.episodes == 12
    assert found.dropped == [f"episode 12: {video}: found 60 frames, expected 64"]
    check(root, 12)


def test_an_episode_with_nan_is_dropped_and_named(tmp_path):
    dataset = open_dataset(tmp_path / "d", video=False, kind=LeRobotDataset)
    add(dataset, 0)
    for frame in frames(1):
        dataset.add_frame({**frame, "action": np.full(3, np.nan, np.float32)})
    dataset.save_episode()
    add(dataset, 2)
    shutil.copytree(tmp_path / "d", tmp_path / "killed")
    dataset.finalize()
    found = repair(RepairConfig(tmp_path / "killed"))
    assert (found.episodes, found.dropped) == (2, ["episode 1: action: found NaN or infinity"])
    repaired = LeRobotDataset("local/d", root=tmp_path / "killed")
    np.testing.assert_array_equal(repaired.hf_dataset["index"], np.arange(10))
    np.testing.assert_array_equal(repaired[4]["action"], frames(2)[0]["action"])


@pytest.mark.parametrize("video", [False, True])
def test_a_kill_in_the_second_session(tmp_path, video):
    """Files of the first session are complete; LeRobot has begun new ones."""
    root = tmp_path / "d"
    for session in range(2):
        dataset = open_dataset(root, video, resume=session > 0, kind=LeRobotDataset)
        for episode in range(3):
            add(dataset, 3 * session + episode)
        if session == 0:
            dataset.finalize()
    shutil.copytree(root, tmp_path / "killed")
    dataset.finalize()
    assert repair(RepairConfig(tmp_path / "killed")).episodes == 6
    check(tmp_path / "killed", 6)
    resumed = open_dataset(tmp_path / "killed", video, resume=True)
    add(resumed, 6)
    resumed.finalize()
    check(tmp_path / "killed", 7)


@pytest.mark.parametrize("video", [False, True])
def test_recordings_with_several_files(tmp_path, monkeypatch, video):
    dataset = open_dataset(tmp_path / "d", video, kind=LeRobotDataset)
    for episode in range(9):
        # every third episode begins new files
        dataset.meta.info.data_files_size_in_mb = dataset.meta.info.video_files_size_in_mb = (
            episode % 3 and 100
        )
        add(dataset, episode)
    shutil.copytree(tmp_path / "d", tmp_path / "killed")
    dataset.finalize()
    assert len(list((tmp_path / "killed" / "data").rglob("*.parquet"))) == 3
    info = tmp_path / "killed" / "meta" / "info.json"
    info.write_text(info.read_text().replace('files_size_in_mb": 0', 'files_size_in_mb": 100'))
    assert repair(RepairConfig(tmp_path / "killed")).episodes == 9
    check(tmp_path / "killed", 9)


def test_a_video_whose_move_across_file_systems_was_killed(recordings, tmp_path, monkeypatch):
    """LeRobot leaves the complete file in the temporary folder and its beginning in the dataset."""
    root = Path(shutil.copytree(recordings / "killed_video", tmp_path / "d"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    video = next((root / "videos").rglob("*.mp4"))
    content = video.read_bytes()
    (tmp_path / "temporary" / "tmpabcdefgh.mp4").write_bytes(content)
    (tmp_path / "temporary" / "tmpother.mp4").write_bytes(content[::-1])
    video.write_bytes(content[: len(content) // 2])
    assert repair(RepairConfig(root)).episodes == 13
    check(root, 13)


def test_an_interrupted_repair_is_repeated(killed, monkeypatch):
    """A kill between the last two steps leaves no dataset under its name until the command runs again."""
    rename, names = Path.rename, []

    def killed_at_second(self, target):
        names.append(target)
        if len(names) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_at_second)
        with pytest.raises(KeyboardInterrupt):
            repair(RepairConfig(killed))
    assert not killed.exists()
    assert repair(RepairConfig(killed)).episodes == 13
    check(killed, 13)


def test_errors_name_the_way_out(recordings, tmp_path, own_elsewhere):
    killed = Path(shutil.copytree(recordings / "killed_image", tmp_path / "d"))
    with pytest.raises(FileNotFoundError, match="--root: found no dataset in"):
        repair(RepairConfig(tmp_path / "nothing"))
    with pytest.raises(FileExistsError, match="--output"):
        repair(RepairConfig(killed, tmp_path))
    info = killed / "meta" / "info.json"
    text = info.read_text()
    info.write_text("")
    with pytest.raises(ValueError, match="Copy that of a dataset recorded with the same options"):
        repair(RepairConfig(killed))
    info.write_text(text.replace('"total_episodes": 13', '"total_episodes": 0'))
    assert repair(RepairConfig(killed)).episodes == 13
    pid = own_elsewhere(tmp_path / "other").pid
    with pytest.raises(BlockingIOError, match=f"in use by process {pid}"):
        repair(RepairConfig(tmp_path / "other"))


def test_recordings_of_ours_are_repaired_too(tmp_path):
    dataset = open_dataset(tmp_path / "d", video=True)
    for episode in range(3):
        add(dataset, episode)
    dataset.finalize()
    next((tmp_path / "d" / "meta/episodes").rglob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"so101-repair --root="):
        open_dataset(tmp_path / "d", video=True, resume=True)
    assert repair(RepairConfig(tmp_path / "d")).episodes == 3
    check(tmp_path / "d", 3)
