# SPDX-License-Identifier: Apache-2.0
"""Files, folders and videos that appear under their name only when they are complete."""

from contextlib import suppress

import av
import numpy as np
import pytest

from lerobot_processor_so101.atomic import atomic_path, write_json
from lerobot_processor_so101.recording import VideoWriter


def test_a_file_replaces_the_old_one_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1})
    with atomic_path(path) as temporary:
        temporary.write_text("b")
        assert path.read_text() == '{\n    "a": 1\n}'
    assert path.read_text() == "b"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_a_folder_replaces_the_old_one(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "old").touch()
    with atomic_path(tmp_path / "best") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["best", "new"]


@pytest.mark.parametrize("write", [lambda path: path.write_text("b"), lambda path: path.mkdir()])
def test_an_error_leaves_the_old_file(write, tmp_path):
    path = tmp_path / "a"
    path.write_text("a")
    with suppress(ZeroDivisionError), atomic_path(path) as temporary:
        write(temporary)
        raise ZeroDivisionError
    assert path.read_text() == "a"
    assert list(tmp_path.iterdir()) == [path]


def frames_of(path) -> list[np.ndarray]:
    with av.open(str(path)) as video:
        assert video.streams.video[0].average_rate == 15
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_a_video_contains_every_frame_also_after_an_error(tmp_path):
    path = tmp_path / "a.mp4"
    with suppress(ZeroDivisionError), VideoWriter(path, 15) as video:
        for level in (0, 120, 240):
            video.write(np.full((49, 65, 3), level, np.uint8))  # odd sides
            assert not path.exists()
        raise ZeroDivisionError
    assert video.count == 3
    assert [round(int(frame.mean()), -1) for frame in frames_of(path)] == [0, 120, 240]
    assert frames_of(path)[0].shape == (48, 64, 3)
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_frame_there_is_no_video(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 15):
        pass
    assert not list(tmp_path.iterdir())
