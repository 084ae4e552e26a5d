# SPDX-License-Identifier: Apache-2.0
"""`so101-view`: datasets and live cameras, as videos, sheets and rerun recordings."""

import av
import numpy as np
import pytest
from lerobot.cameras.opencv import OpenCVCameraConfig
from lerobot.datasets import LeRobotDataset
from PIL import Image

from lerobot_processor_so101.viewer import view
from lerobot_processor_so101.viewer.view import ViewConfig, panels
from tests.tiny import tiny_efficientvit_fpn

HEIGHT, WIDTH, FRAMES = 48, 64, 5


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return tiny_efficientvit_fpn(tmp_path_factory.mktemp("segmenter"), disparity_head=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two episodes of five frames: one camera with ids, which are 3 in one column per frame."""
    names = ["height", "width", "channels"]
    features = {
        "observation.images.top": {"dtype": "image", "shape": (HEIGHT, WIDTH, 3), "names": names},
        "observation.images.top_seg": {
            "dtype": "image",
            "shape": (HEIGHT, WIDTH, 1),
            "names": names,
            "info": {"is_depth_map": True, "class_names": ["nothing", "floor", "ceiling", "mug"]},
        },
        "action": {"dtype": "float32", "shape": (1,), "names": ["joint"]},
    }
    folder = tmp_path_factory.mktemp("view") / "dataset"
    dataset = LeRobotDataset.create("local/view", 30, features, root=folder, use_videos=False)
    for episode in range(2):
        for frame in range(FRAMES):
            ids = np.zeros((HEIGHT, WIDTH, 1), np.uint16)
            ids[:, 10 * episode + frame] = 3
            dataset.add_frame(
                {
                    "observation.images.top": np.full((HEIGHT, WIDTH, 3), 40 * frame, np.uint8),
                    "observation.images.top_seg": ids,
                    "action": np.zeros(1, np.float32),
                    "task": "wait",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return folder


def observed(root, **options) -> ViewConfig:
    return ViewConfig(root=root, segmenter="observation", depth="none", height=HEIGHT, width=WIDTH, **options)


def test_a_dataset_gives_its_episode_and_class_names(root):
    cameras, fps, class_names, frames = panels(observed(root, episode=1))
    frames = list(frames)
    assert (cameras, fps, class_names) == (["top"], 30, ("nothing", "floor", "ceiling", "mug"))
    assert len(frames) == FRAMES
    assert [int(frame[0].ids[0].argmax()) for frame in frames] == [10, 11, 12, 13, 14]
    assert frames[2][0].rgb.shape == (HEIGHT, WIDTH, 3)
    assert (frames[2][0].rgb == 80).all()


def test_models_run_where_nothing_is_stored(root, segmenter):
    config = ViewConfig(root=root, segmenter=segmenter, height=24, width=32, frames=2)
    _, _, class_names, frames = panels(config)
    frames = list(frames)
    assert class_names[3] == "cube"
    assert len(frames) == 2
    assert frames[0][0].ids.shape == frames[0][0].disparity.shape == (24, 32)


def test_a_sheet(root, tmp_path):
    path = tmp_path / "new" / "sheet.png"
    assert view.view(observed(root, output=path)) == FRAMES
    assert Image.open(path).size == (2 * WIDTH, FRAMES * HEIGHT)


def test_a_video(root, segmenter, tmp_path):
    path = tmp_path / "view.mp4"
    assert view.view(ViewConfig(root=root, segmenter=segmenter, output=path, frames=3)) == 3
    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert [frame.shape for frame in frames] == [(HEIGHT, 3 * WIDTH, 3)] * 3
    assert abs(int(frames[2][10, 10].mean()) - 80) < 8
    assert list(tmp_path.iterdir()) == [path]


def test_a_rerun_recording(root, segmenter, tmp_path):
    path = tmp_path / "view.rrd"
    assert view.view(ViewConfig(root=root, segmenter=segmenter, output=path)) == FRAMES
    assert path.stat().st_size > 1000


class Camera:
    fps, is_connected = 15, False

    def connect(self):
        self.is_connected = True

    def async_read(self):
        return np.full((HEIGHT, WIDTH, 3), 51, np.uint8)

    def disconnect(self):
        self.is_connected = False


def test_live_cameras_are_disconnected(segmenter, tmp_path, monkeypatch):
    camera = Camera()
    monkeypatch.setattr(view, "make_cameras_from_configs", lambda configs: {"wrist": camera})
    config = ViewConfig(cameras={"wrist": OpenCVCameraConfig(index_or_path=0)}, segmenter=segmenter, frames=2)
    _, fps, _, frames = panels(config)
    (panel,) = next(frames)
    assert camera.is_connected
    assert fps == 15
    assert (panel.rgb == 51).all()
    assert view.view(ViewConfig(**{**vars(config), "output": tmp_path / "live.png"})) == 2
    del frames
    assert not camera.is_connected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--root or --cameras"),
        ({"output": "view.avi"}, r"--output: found view.avi, expected a name that ends in .mp4"),
        ({"segmenter": "none"}, "nothing to show"),
        ({"episode": 2}, "--episode: found 2, expected 0 to 1"),
        ({"depth": "observation", "segmenter": "observation"}, "top_depth"),
        ({"segmenter": "no/such-folder/here"}, "no/such-folder/here"),
    ],
)
def test_invalid_input_is_one_clear_error(options, message, root, monkeypatch, capsys):
    flags = {"root": root, **options} if options else {}
    monkeypatch.setattr("sys.argv", ["so101-view", *(f"--{key}={value}" for key, value in flags.items())])
    with pytest.raises(SystemExit) as stop:
        view.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message.replace(r"\.", ".") in error
    assert "Traceback" not in error


def test_images_of_different_sizes_are_stacked():
    small, large = (view.Panel("top", np.zeros((*size, 3), np.uint8)) for size in ((10, 20), (12, 30)))
    assert view.stack_panels([small, large], ()).shape == (22, 30, 3)
