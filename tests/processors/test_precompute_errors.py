# SPDX-License-Identifier: Apache-2.0
"""`so101-precompute` with invalid input: one clear error, and finished work stays."""

import shutil
import sys
from pathlib import Path

import av
import pytest
import torch

from lerobot_processor_so101.cli import describe_error
from lerobot_processor_so101.precompute import command, job, perception
from lerobot_processor_so101.precompute.command import main, precompute
from lerobot_processor_so101.precompute.perception import PrecomputeConfig
from tests.tiny import tiny_efficientvit_fpn, tiny_segformer
from tests.tiny_dataset import tiny_dataset


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny_segformer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("source") / "d", depth=True)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("video") / "d", "h264")


def config(root, output, **changes) -> PrecomputeConfig:
    return PrecomputeConfig(
        root=root, output=output, **{"height": 24, "width": 32, "device": "cpu", **changes}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmenter": None}, "neither --segmenter nor --depth"),
        ({"segmenter": None, "depth": "segmenter"}, "need a --segmenter"),
        ({"forms": ["ids", "masks"]}, r"--forms: found \['ids', 'masks'\]"),
        ({"forms": []}, "--forms: found none"),
        ({"height": 0}, "--height: found 0"),
        ({"executor": "dask"}, "--executor: found 'dask'"),
        ({"executor": "slurm"}, "--slurm.partition"),
        (
            {"cameras": ["front"]},
            r"--cameras: found \['front'\], expected different ones of \['top', 'wrist'\]",
        ),
        ({"segmenter": "./nowhere"}, "there is no such folder"),
        ({"depth": "segmenter"}, "no disparity head"),
        ({"classes": ["red cube"]}, "fixed classes"),
        ({"root": Path("nowhere")}, "found no dataset in nowhere"),
    ],
)
def test_options(changes, message, source, model, tmp_path):
    settings = {"root": source, "output": tmp_path / "out", "segmenter": model, **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        precompute(config(**settings))
    assert not list(tmp_path.iterdir()), "nothing was started"


def test_a_second_command_with_the_same_output_is_refused(source, model, tmp_path, own_elsewhere):
    pid = own_elsewhere(tmp_path / "out").pid
    with pytest.raises(BlockingIOError, match=rf"out is in use by process {pid}\b"):
        precompute(config(source, tmp_path / "out", segmenter=model))
    assert not list(tmp_path.iterdir())


def test_output_exists(source, model, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists already and was left as it is"):
        precompute(config(source, tmp_path / "out", segmenter=model))


def test_key_in_the_source(source, model, tmp_path):
    precompute(config(source, tmp_path / "once", segmenter=model, cameras=["top"]))
    with pytest.raises(ValueError, match=r"'observation.seg.top' is in .* already"):
        precompute(config(tmp_path / "once", tmp_path / "twice", segmenter=model))
    precompute(config(tmp_path / "once", tmp_path / "twice", segmenter=model, cameras=["wrist"]))


def test_source_without_rgb(source, model, tmp_path):
    precompute(config(source, tmp_path / "blind", segmenter=model, cameras=["top"], drop_rgb=True))
    with pytest.raises(ValueError, match="found no RGB camera"):
        precompute(config(tmp_path / "blind", tmp_path / "out", segmenter=model))


def test_damaged_dataset(source, model, tmp_path):
    shutil.copytree(source, tmp_path / "d")
    (tmp_path / "d/data/chunk-000/file-000.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"file-000.parquet is missing"):
        precompute(config(tmp_path / "d", tmp_path / "out", segmenter=model))


def keep_frames(path: Path, count: int) -> None:
    """Truncate a video after some frames but keep it valid."""
    short = path.with_suffix(".short.mp4")
    with av.open(str(path)) as old, av.open(str(short), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.dts is not None):
            if number < count:
                packet.stream = stream
                new.mux(packet)
    short.replace(path)


def test_a_short_video_is_refused_before_any_work(video, model, tmp_path):
    root = shutil.copytree(video, tmp_path / "d")
    keep_frames(root / "videos/observation.images.wrist/chunk-000/file-000.mp4", 15)
    with pytest.raises(ValueError, match=r"videos lack frames.*wrist.*mp4: found 15 frames, expected 21"):
        precompute(config(root, tmp_path / "out", segmenter=model))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("damage", ["frames", "bytes"])
def test_a_video_damaged_during_the_work(damage, video, model, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "check_videos", lambda root: None)  # the damage comes after this check
    root = shutil.copytree(video, tmp_path / "d")
    file = root / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    original = file.read_bytes()
    if damage == "frames":
        keep_frames(file, 15)  # episodes of 7, 5 and 9 frames: the third has 3 left
        message, finished = "wrist.*mp4: episode 2: found 3 frames, expected 9", 2
    else:
        file.write_bytes(original[:500])  # not even the index is left
        message, finished = "wrist.*mp4: episode 0: found 0 frames, expected 7", 0
    settings = config(root, tmp_path / "out", segmenter=model)
    with pytest.raises(ValueError, match=message):
        precompute(settings)
    assert len(list((tmp_path / "out.partial/episodes").glob("*.json"))) == finished
    assert not (tmp_path / "out").exists()
    file.write_bytes(original)
    monkeypatch.undo()
    assert precompute(settings).startswith(f"{sum((7, 5, 9)[finished:])} frames")


def test_a_full_disk_and_resuming(source, model, tmp_path, monkeypatch):
    """A real "no space left on device", from the device that is always full."""
    temporary = job.PartWriter._temporary

    def full_for_second(self):
        path = temporary(self)
        if self.episode.index == 1:
            path.symlink_to("/dev/full")
        return path

    settings = config(source, tmp_path / "out", segmenter=model)
    with monkeypatch.context() as patch:
        patch.setattr(job.PartWriter, "_temporary", full_for_second)
        with pytest.raises(OSError, match="No space left on device") as full:
            precompute(settings)
    assert "make room and give the same command again" in describe_error(full.value)
    assert [path.name for path in (tmp_path / "out.partial/episodes").glob("*.json")] == ["000000.json"]
    precompute(settings)
    precompute(config(source, tmp_path / "undisturbed", segmenter=model))
    for path in (tmp_path / "undisturbed").rglob("*.*"):
        assert (
            path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "undisturbed")).read_bytes()
        )


def test_logits_that_do_not_fit(source, model, tmp_path):
    with pytest.raises(ValueError, match=r"logits need .* TB, found .* free"):
        precompute(config(source, tmp_path / "out", segmenter=model, forms=["logits"], logits_size=300_000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_rgb": True}, "was made with --drop_rgb=false"),
        ({"height": 12}, "another size, form or model for 'observation.seg.top'"),
        ({"cameras": ["top"]}, "made with 'observation.seg.wrist', which is not requested now"),
        ({"forms": ["ids", "top_k"]}, "made with no 'observation.seg_top_k.top'"),
    ],
)
def test_other_options_than_the_unfinished_work(changes, message, source, model, tmp_path, monkeypatch):
    settings = {"root": source, "output": tmp_path / "out", "segmenter": model}
    with monkeypatch.context() as patch:
        patch.setattr(command, "assemble", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            precompute(config(**settings))
    with pytest.raises(ValueError, match=message):
        precompute(config(**settings, **changes))
    precompute(config(**settings))


def test_changed_source(source, model, tmp_path, monkeypatch):
    root = shutil.copytree(source, tmp_path / "d")
    with monkeypatch.context() as patch:
        patch.setattr(command, "assemble", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            precompute(config(root, tmp_path / "out", segmenter=model))
    info = root / "meta/info.json"
    info.write_text(info.read_text() + "\n")
    with pytest.raises(ValueError, match="the source has changed since"):
        precompute(config(root, tmp_path / "out", segmenter=model))


def test_nan(source, tmp_path, monkeypatch):
    folder = tiny_efficientvit_fpn(tmp_path / "m", disparity_head=True)
    real = perception.make_segmenter

    def damaged(*args):
        segmenter = real(*args)
        with torch.no_grad():
            segmenter.model.seg_head.bias[0] = torch.nan
        return segmenter

    monkeypatch.setattr(perception, "make_segmenter", damaged)
    with pytest.raises(ValueError, match=r"episode 0, frames 0 to 3: .* NaN or infinite for camera 'top'"):
        precompute(config(source, tmp_path / "out", segmenter=folder))


def test_the_command_prints_one_line(source, model, tmp_path, monkeypatch, capsys):
    arguments = [f"--root={source}", f"--output={tmp_path / 'out'}", f"--segmenter={model}", "--height=24"]
    monkeypatch.setattr(sys, "argv", ["so101-precompute", *arguments, "--cameras=[front]"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("so101-precompute: --cameras: found ['front']")
    monkeypatch.setattr(
        sys, "argv", ["so101-precompute", *arguments, "--forms=[ids,logits]", "--logits_size=8"]
    )
    main()
    printed = capsys.readouterr()
    assert printed.err.startswith("logits: 21 frames x 1.54 kB = 32.3 kB.\n")
    last = printed.out.strip().splitlines()[-1]
    assert last.startswith("21 frames of 2 cameras, ")
    assert "bytes per frame: observation.seg.top " in last
