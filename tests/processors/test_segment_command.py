# SPDX-License-Identifier: Apache-2.0
"""`so101-segment` on images, folders and videos, intact and damaged."""

import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lerobot_processor_so101.models import make_segmenter
from lerobot_processor_so101.models.efficientvit_fpn import (
    EfficientViTFPNConfig,
    EfficientViTFPNForSemanticSegmentation,
)
from lerobot_processor_so101.segmenter_training import predict as command
from lerobot_processor_so101.segmenter_training.predict import SegmentConfig, load_segmenter, segment
from tests.tiny import tiny_efficientvit_fpn

HEIGHT, WIDTH = 46, 61  # odd, which H.264 does not support


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny_efficientvit_fpn(tmp_path_factory.mktemp("model"), size=(32, 48))


def image_of(seed: int) -> np.ndarray:
    """Coarse noise, (46, 61, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((WIDTH, HEIGHT)))


def write_video(path: Path, frames: int = 12, **options) -> Path:
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("h264", rate=10, options={"g": "1"})
        stream.height, stream.width, stream.pix_fmt = 46, 60, "yuv420p"
        for index in range(frames):
            frame = np.ascontiguousarray(image_of(index)[:, :60])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return path


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_an_image_gives_the_segmenters_ids_and_an_overlay(model, tmp_path):
    Image.fromarray(image_of(0)).save(tmp_path / "photo.png")
    assert segment(SegmentConfig(tmp_path / "photo.png", tmp_path / "out", model)) == 1
    image = torch.from_numpy(image_of(0)).permute(2, 0, 1)[None] / 255
    expected = make_segmenter(model)(image).ids((HEIGHT, WIDTH))[0].numpy()
    ids = np.array(Image.open(tmp_path / "out" / "ids" / "photo.png"))
    np.testing.assert_array_equal(ids, expected)
    overlay = np.array(Image.open(tmp_path / "out" / "overlay" / "photo.png"))
    assert overlay.shape == (HEIGHT, WIDTH, 3)


def test_ids_can_be_left_out(model, tmp_path):
    Image.fromarray(image_of(0)).save(tmp_path / "photo.png")
    segment(SegmentConfig(tmp_path / "photo.png", tmp_path / "out", model, ids=False))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["overlay"]


def test_a_video_gives_an_overlay_of_equal_length_and_ids_of_every_frame(model, tmp_path):
    video = write_video(tmp_path / "clip.mp4")
    assert segment(SegmentConfig(video, tmp_path / "out", model)) == 12
    assert frames_in(tmp_path / "out" / "overlay" / "clip.mp4") == 12
    names = sorted(path.name for path in (tmp_path / "out" / "ids").iterdir())
    assert names == [f"clip_{index:06d}.png" for index in range(12)]
    assert Image.open(tmp_path / "out" / "ids" / "clip_000003.png").size == (60, 46)


def test_a_video_without_frame_count_is_read_to_its_end(model, tmp_path):
    video = write_video(tmp_path / "clip.mkv")
    assert segment(SegmentConfig(video, tmp_path / "out", model, ids=False)) == 12


@pytest.mark.parametrize(
    ("suffix", "options"), [(".mkv", {}), (".mp4", {"options": {"movflags": "faststart"}})]
)
def test_of_a_truncated_video_the_frames_before_the_damage_are_kept(model, tmp_path, suffix, options):
    video = write_video(tmp_path / f"clip{suffix}", **options)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"clip{suffix}: frame \d+ cannot be decoded .* truncated"):
        segment(SegmentConfig(video, tmp_path / "out", model))
    kept = frames_in(tmp_path / "out" / "overlay" / "clip.mp4")
    assert 2 <= kept <= 8
    assert len(list((tmp_path / "out" / "ids").glob("*.png"))) == kept
    assert len(list((tmp_path / "out" / "overlay").iterdir())) == 1


def test_of_a_folder_the_images_before_the_damage_are_kept(model, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(image_of(1)).save(folder / name)
    damaged = folder / "b.png"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    config = SegmentConfig(folder, tmp_path / "out", model)
    with pytest.raises(ValueError, match=r"b\.png: cannot be decoded"):
        segment(config)
    assert [path.name for path in (tmp_path / "out" / "overlay").iterdir()] == ["a.png"]
    shutil.copy(folder / "a.png", damaged)
    with pytest.raises(FileExistsError, match=r"a\.png exists already.*--overwrite=true"):
        segment(config)
    config.overwrite = True
    assert segment(config) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.mkdir(), "found no images"),
        (lambda path: path.write_bytes(b"words"), "cannot be decoded as an image"),
    ],
)
def test_unreadable_input_is_named(model, tmp_path, make, message):
    make(tmp_path / "input")
    with pytest.raises(ValueError, match=f"{message}|input: {message}"):
        segment(SegmentConfig(tmp_path / "input", tmp_path / "out", model))


def test_an_invalid_video_is_named(model, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"words")
    with pytest.raises(ValueError, match=r"clip\.mp4 cannot be opened as a video"):
        segment(SegmentConfig(tmp_path / "clip.mp4", tmp_path / "out", model))


def test_an_original_checkpoint_segments_at_its_own_size(tmp_path):
    torch.manual_seed(0)
    original = EfficientViTFPNForSemanticSegmentation(EfficientViTFPNConfig(unused_convs=True)).eval()
    hyper = {"num_classes": 6, "img_height": 32, "img_width": 48, "loss_type": "iou"}
    torch.save({"state_dict": original.state_dict(), "hyper_parameters": hyper}, tmp_path / "best.ckpt")
    segmenter = load_segmenter(str(tmp_path / "best.ckpt"), [])
    scores = segmenter(torch.rand(1, 3, 64, 96))
    assert scores.values.shape == (1, 6, 8, 12)
    assert segmenter.class_names[3] == "cube"
    with pytest.raises(ValueError, match="--classes"):
        load_segmenter(str(tmp_path / "best.ckpt"), ["cube"])


def test_the_command_ends_with_one_line_and_status_2(model, tmp_path, monkeypatch, capsys):
    arguments = [f"--input={tmp_path / 'none.png'}", f"--output={tmp_path / 'out'}", f"--model={model}"]
    monkeypatch.setattr(sys, "argv", ["so101-segment", *arguments])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.strip() == f"so101-segment: --input: there is no {tmp_path / 'none.png'}."
