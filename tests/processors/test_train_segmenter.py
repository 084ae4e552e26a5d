# SPDX-License-Identifier: Apache-2.0
"""Training the segmenter: reading annotated frames, splitting, augmenting, measuring, resuming."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.utils.feature_utils import hw_to_dataset_features
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, EvalPrediction

from lerobot_processor_so101 import depth_to_disparity
from lerobot_processor_so101.models.efficientvit_fpn import CLASS_NAMES
from lerobot_processor_so101.segmenter_training.augment import make_augmentation
from lerobot_processor_so101.segmenter_training.config import TrainConfig
from lerobot_processor_so101.segmenter_training.data import (
    FrameDataset,
    Frames,
    class_table,
    load_frames,
    split_by_recording,
)
from lerobot_processor_so101.segmenter_training.metrics import (
    ObjectErrors,
    ValidationMetrics,
    full_size_predictions,
    mean_disparity_error,
)
from lerobot_processor_so101.segmenter_training.sources import FrameInfo, open_source, recording_of
from lerobot_processor_so101.segmenter_training.train import train

SIZE = (32, 48)


def blobs(seed: int) -> np.ndarray:
    """A mask with a table and a cube, (32, 48) uint8."""
    row, column = np.random.default_rng(seed).integers(4, 20, 2)
    ids = np.full(SIZE, 1, np.uint8)
    ids[SIZE[0] // 2 :] = 2
    ids[row : row + 8, column : column + 8] = 3
    return ids


def coloured(ids: np.ndarray) -> np.ndarray:
    """An image whose red encodes the class."""
    return np.stack([ids * 60, 255 - ids * 60, np.zeros_like(ids)], -1).astype(np.uint8)


def make_folder(folder: Path, recordings: int = 4, frames: int = 2) -> Path:
    """A folder as so101-masks writes it."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for recording in range(recordings):
        for frame in range(frames):
            name, ids = f"demo{recording}_{frame:05d}", blobs(10 * recording + frame)
            Image.fromarray(coloured(ids)).save(folder / "images" / f"{name}.png")
            Image.fromarray(ids).save(folder / "masks" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "annotated")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A LeRobotDataset of two episodes and two cameras, with ids and depth."""
    root = tmp_path_factory.mktemp("data") / "demos"
    images = {
        f"{camera}{kind}": (*SIZE, channels)
        for camera in ("top", "wrist")
        for kind, channels in (("", 3), ("_seg", 1), ("_depth", 1))
    }
    features = hw_to_dataset_features(images, "observation", use_video=False)
    data = LeRobotDataset.create("local/demos", 30, features, root=root, use_videos=False)
    for episode in range(2):
        for tick in range(3):
            frame = {"task": "look"}
            for number, camera in enumerate(("top", "wrist")):
                ids = blobs(100 * episode + 10 * tick + number)
                frame[f"observation.images.{camera}"] = coloured(ids)
                frame[f"observation.images.{camera}_seg"] = ids[..., None].astype(np.uint16)
                frame[f"observation.images.{camera}_depth"] = depth_of(ids)[..., None]
            data.add_frame(frame)
        data.save_episode()
    data.finalize()
    return root


def depth_of(ids: np.ndarray) -> np.ndarray:
    """Depth in millimetres, (32, 48) uint16."""
    return (1500 - 400 * ids.astype(np.uint16)).astype(np.uint16)


def load(path: Path, cache: Path, disparity: bool = False, **options) -> Frames:
    source = open_source(path, options.pop("every", 1), disparity)
    table = class_table(CLASS_NAMES, {}, source.class_names)
    return load_frames([source], options.pop("size", SIZE), [table], disparity, cache)


# --- reading ------------------------------------------------------------------------------------------------


def test_a_folder_is_read_exactly(folder, tmp_path):
    frames = load(folder, tmp_path)
    assert [info.recording for info in frames.infos] == [
        f"annotated/demo{r}" for r in range(4) for _ in range(2)
    ]
    np.testing.assert_array_equal(frames.masks[3], blobs(11))
    np.testing.assert_array_equal(frames.images[3], coloured(blobs(11)))


def test_a_lerobot_dataset_is_read_exactly(dataset, tmp_path):
    frames = load(dataset, tmp_path, disparity=True)
    assert len(frames.infos) == 12
    assert {info.recording for info in frames.infos} == {"demos/episode 0", "demos/episode 1"}
    assert len({info.camera for info in frames.infos}) == 2
    ids = blobs(100 * 1 + 10 * 2 + 1)  # episode 1, tick 2, wrist
    np.testing.assert_array_equal(frames.masks[11], ids)
    np.testing.assert_array_equal(frames.images[11], coloured(ids))
    np.testing.assert_allclose(frames.disparity[11], depth_to_disparity(depth_of(ids)) / 255, atol=1e-3)


def test_every_nth_frame_of_each_episode(dataset, tmp_path):
    names = [info.name for info in load(dataset, tmp_path, every=2).infos]
    assert [name.split(": ")[1].rpartition(",")[0] for name in names[::2]] == [
        f"episode {episode}, frame {tick}" for episode in (0, 1) for tick in (0, 2)
    ]


@pytest.mark.parametrize(
    ("name", "recording"),
    [
        ("grasp_demo0_00012", "grasp_demo0"),
        ("camera_rec0", "camera_rec0"),
        ("frame-7", "frame"),
        ("00012", "all"),
    ],
)
def test_recording_of_a_file_name(name, recording):
    assert recording_of(name) == recording


def test_excluded_frames_are_left_out_and_held_objects_form_a_stratum(tmp_path):
    folder = make_folder(tmp_path / "annotated")
    (folder / "excluded.json").write_text(
        '{"marks": {"demo0_00000.jpg": "Excluded", "demo1_00000.png": "Fine"}}'
    )
    (folder / "selections.json").write_text('{"marks": {"demo2_00000.png": "Grasp"}}')
    infos = open_source(folder).frames
    assert [Path(info.name).stem for info in infos if "demo0" in info.name] == ["demo0_00001"]
    assert [Path(info.name).stem for info in infos if info.stratum.endswith("grasp")] == ["demo2_00000"]
    assert len(infos) == 7


def test_stored_ids_can_be_given_another_class(folder, tmp_path):
    table = class_table(CLASS_NAMES[:3], {3: 1})
    frames = load_frames([open_source(folder)], SIZE, [table], False, tmp_path)
    np.testing.assert_array_equal(frames.masks[0], np.where(blobs(0) == 3, 1, blobs(0)))


def test_an_unknown_id_is_named_with_its_frame(folder, tmp_path):
    with pytest.raises(ValueError, match=r"demo0_00000\.png: found the ids 3, .*--class_ids='\{3: 3\}'"):
        load_frames([open_source(folder)], SIZE, [class_table(CLASS_NAMES[:3], {})], False, tmp_path)
    assert not list(tmp_path.iterdir())


def test_classes_that_a_dataset_names_are_matched_by_name(dataset, tmp_path):
    root = shutil.copytree(dataset, tmp_path / "named")
    info = json.loads((root / "meta" / "info.json").read_text())
    for camera in ("top", "wrist"):
        names = ["unlabeled", "table", "background", "plate"]
        info["features"][f"observation.images.{camera}_seg"]["info"]["class_names"] = names
    (root / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"frame 0, .*top_seg: found the ids 3 \(plate\)"):
        load(root, tmp_path / "cache")
    source = open_source(root)
    table = class_table(CLASS_NAMES, {3: 5}, source.class_names)
    frames = load_frames([source], SIZE, [table], False, tmp_path / "cache")
    np.testing.assert_array_equal(frames.masks[0], np.array([0, 2, 1, 5])[blobs(0)])


def test_frames_are_decoded_once(folder, tmp_path, monkeypatch):
    data = make_folder(tmp_path / "annotated")
    cache = tmp_path / "cache"
    before = load(data, cache).images.copy()
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
        np.testing.assert_array_equal(load(data, cache).images, before)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(data / "images" / "demo0_00000.png")
    assert load(data, cache).images[0].max() == 0
    assert load(data, cache, size=(40, 40)).masks.shape == (8, 40, 40)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "images" / "demo1_00001.png").unlink(), r"demo1_00001\.png: found no demo1_00001"),
        (
            lambda d: Image.new("L", (9, 9)).save(d / "masks" / "demo1_00001.png"),
            r"demo1_00001\.png: found 9x9",
        ),
        (lambda d: Image.new("RGB", SIZE[::-1]).save(d / "masks" / "demo1_00001.png"), "one channel"),
        (lambda d: _halve(d / "images" / "demo1_00001.png"), r"demo1_00001\.png: cannot be decoded"),
        (lambda d: shutil.rmtree(d / "masks"), "neither masks/ nor meta/info.json"),
        (lambda d: [path.unlink() for path in (d / "masks").iterdir()], "found no masks"),
        (lambda d: (d / "excluded.json").write_text("[]"), "excluded.json"),
        (lambda d: (d / "excluded.json").write_text('{"marks": []}'), "found no marks"),
    ],
)
def test_bad_frames_are_named(tmp_path, damage, message):
    data = make_folder(tmp_path / "annotated")
    damage(data)
    with pytest.raises(ValueError, match=message):
        load(data, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_full_disk_is_reported_before_anything_is_written(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OSError, match=r"0\.0 GB free"):
        load(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_depth_and_ids_that_are_missing_are_named(folder, dataset, tmp_path):
    with pytest.raises(ValueError, match="no depth"):
        open_source(folder, disparity=True)
    root = tmp_path / "blind"
    features = hw_to_dataset_features({"top": (*SIZE, 3)}, "observation", use_video=False)
    data = LeRobotDataset.create("local/blind", 30, features, root=root, use_videos=False)
    data.add_frame({"task": "look", "observation.images.top": coloured(blobs(0))})
    data.save_episode()
    data.finalize()
    with pytest.raises(ValueError, match=r"cameras \['top'\] but class ids of none"):
        open_source(root)


# --- split --------------------------------------------------------------------------------------------------


def infos(*recordings: tuple[str, str], frames: int = 3) -> list[FrameInfo]:
    return [
        FrameInfo(recording, stratum, "camera", f"{recording} {frame}")
        for recording, stratum in recordings
        for frame in range(frames)
    ]


def test_no_recording_is_on_both_sides_and_strata_are_split_alike():
    frames = infos(*((f"a{i}", "grasp") for i in range(20)), *((f"b{i}", "default") for i in range(20)))
    training, validation = split_by_recording(frames, 0.2, seed=1)
    assert sorted(training + validation) == list(range(len(frames)))
    sides = [{frames[row].recording for row in rows} for rows in (training, validation)]
    assert not sides[0] & sides[1]
    assert sorted(name[0] for name in sides[1]) == ["a"] * 4 + ["b"] * 4
    assert (training, validation) == split_by_recording(frames, 0.2, seed=1)
    assert validation != split_by_recording(frames, 0.2, seed=2)[1]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_both_sides_have_a_recording(share):
    assert all(split_by_recording(infos(("a", "x"), ("b", "y")), share, seed=0))


def test_one_recording_cannot_be_split():
    with pytest.raises(ValueError, match=r"found 1 recording \(demo0\), expected at least 2"):
        split_by_recording(infos(("demo0", "x")), 0.15, seed=0)


# --- augmentation -------------------------------------------------------------------------------------------


def test_disparity_is_normalised_over_the_visible_part(dataset, tmp_path):
    frames = load(dataset, tmp_path, disparity=True)
    rows = range(len(frames.infos))
    torch.manual_seed(0)
    for sample in FrameDataset(frames, rows, make_augmentation("upright", SIZE)):
        assert sample["disparity_labels"].min() == 0
        assert sample["disparity_labels"].max() == pytest.approx(1)
    sample = FrameDataset(frames, rows)[0]
    np.testing.assert_allclose(sample["disparity_labels"], frames.disparity[0], atol=1e-3)
    assert sample["pixel_values"].dtype == torch.float32


# --- measuring ----------------------------------------------------------------------------------------------


def test_metrics_are_those_of_all_batches_together():
    rng = np.random.default_rng(0)
    names = ["zero", "one", "two", "never"]
    truth, predicted = rng.integers(0, 3, (6, 8, 8)), rng.integers(0, 4, (6, 8, 8))
    disparity, guess = rng.random((2, 6, 8, 8)).astype(np.float32)
    measure = ValidationMetrics(names)
    for _ in range(2):  # the second epoch begins anew
        for batch in (slice(0, 4), slice(4, 6)):
            prediction = EvalPrediction(
                tuple(torch.from_numpy(a[batch]) for a in (predicted, guess)),
                tuple(torch.from_numpy(a[batch]) for a in (truth, disparity)),
            )
            result = measure(prediction, compute_result=batch.stop == 6)
    expected = [
        ((truth == c) & (predicted == c)).sum() / ((truth == c) | (predicted == c)).sum() for c in range(3)
    ]
    assert [result[f"iou_{name}"] for name in names[:3]] == pytest.approx(expected)
    assert np.isnan(result["iou_never"])
    assert result["iou"] == pytest.approx(np.mean(expected))
    assert result["disparity_error"] == pytest.approx(255 * np.abs(disparity - guess).mean(), rel=1e-5)


def square(images: int, *objects: tuple[int, int, int]) -> torch.Tensor:
    """Masks (B, 40, 60) with 6x6 objects of class 1: (image, top, left)."""
    masks = torch.zeros(images, 40, 60, dtype=torch.long)
    for image, top, left in objects:
        masks[image, top : top + 6, left : left + 6] = 1
    return masks


def test_misplaced_and_false_objects_are_counted():
    truth = square(5, (0, 5, 5), (1, 5, 5), (2, 5, 5), (3, 5, 5))
    found = square(5, (0, 5, 7), (1, 5, 5), (1, 30, 40), (3, 5, 9), (4, 20, 20))
    errors = ObjectErrors(3)
    errors.update(found[:3], truth[:3])
    errors.update(found[3:], truth[3:])
    misplaced, false = errors.compute()
    # 2 pixels off is near; a second blob moves the centre; one is missed; 4 pixels are more than 5 % of 60
    assert misplaced[1] == 3 / 4
    assert false[1] == 1
    assert misplaced[0] == 0
    assert false[2] == 0
    assert torch.isnan(misplaced[2])


def test_predictions_have_the_size_of_the_labels():
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1] = torch.tensor([-1.0, 1.0])
    ids, disparity = full_size_predictions((logits, torch.rand(1, 2, 2)), (torch.zeros(1, 8, 8), None))
    assert ids[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert disparity.shape == (1, 8, 8)


def test_the_plain_disparity_is_the_mean_of_each_camera():
    disparity = np.random.default_rng(0).random((6, 4, 4)).astype(np.float16)
    frames = Frames(
        [FrameInfo("r", "s", camera, "f") for camera in "abcaba"], disparity, disparity, disparity
    )  # the validation frame of c has no training frame
    expected = [np.abs(disparity[4] - disparity[1]), np.abs(disparity[5] - (disparity[[0, 3]].mean(0)))]
    assert mean_disparity_error(frames, [0, 1, 3], [2, 4, 5]) == pytest.approx(
        255 * np.mean(expected), rel=1e-2
    )


# --- training -----------------------------------------------------------------------------------------------


def config(data: Path, output: Path, **options) -> TrainConfig:
    defaults = {
        "height": SIZE[0],
        "width": SIZE[1],
        "epochs": 2,
        "init_from": "none",
        "workers": 0,
        "lr": 1e-3,
    }
    return TrainConfig([data], output, **{**defaults, **options})


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """What an undisturbed training of two epochs left."""
    output = tmp_path_factory.mktemp("trained") / "run"
    train(config(dataset, output, disparity_head=True, dtype="float16", val_share=0.5, workers=1))
    return output


def test_best_weights_load_offline_and_reach_the_reported_iou(trained, dataset, tmp_path):
    result = json.loads((trained / "metrics.json").read_text())
    model = AutoModelForSemanticSegmentation.from_pretrained(trained / "best").eval()
    processor = AutoImageProcessor.from_pretrained(trained / "best")
    assert model.dtype == torch.float32
    assert (trained / "best" / "model.safetensors").stat().st_size < 2e6
    assert model.config.training["iou"] == result["iou"]
    frames = load(dataset, tmp_path)
    rows = [i for i, info in enumerate(frames.infos) if info.recording in result["recordings"]["validation"]]
    assert len(rows) == result["frames"]["validation"] == 6
    predictions = []
    with torch.no_grad():
        for row in rows:
            inputs = processor(images=frames.images[row].copy(), return_tensors="pt")
            logits = model(**inputs).logits
            predictions.append(
                full_size_predictions(logits, torch.from_numpy(frames.masks[row].copy())[None])[0][0].numpy()
            )
    predicted, truth = np.stack(predictions), frames.masks[rows]
    for class_id, name in model.config.id2label.items():
        if class_id in truth:
            either = (predicted == class_id) | (truth == class_id)
            expected = ((predicted == class_id) & (truth == class_id)).sum() / either.sum()
            assert result["classes_iou"][name] == pytest.approx(expected, abs=1e-3)
        else:
            assert result["classes_iou"][name] is None


def test_metrics_contain_seed_command_and_recordings(trained):
    result = json.loads((trained / "metrics.json").read_text())
    assert set(result["recordings"]["training"]) & set(result["recordings"]["validation"]) == set()
    assert result["seed"] == 42
    assert result["command"].startswith("so101-train-segmenter")
    assert result["disparity_error"]["mean of the training frames of that camera"] > 0


def test_a_resumed_training_ends_as_an_undisturbed_one(trained, dataset, tmp_path):
    output = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(output / "best")
    (output / "metrics.json").unlink()
    last = max((output / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    (last / "trainer_state.json").unlink()  # killed while it wrote its last checkpoint
    train(
        config(dataset, output, disparity_head=True, dtype="float16", val_share=0.5, workers=1, resume=True)
    )
    expected = load_file(trained / "best" / "model.safetensors")
    for name, value in load_file(output / "best" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_a_finished_or_other_training_is_left_as_it_is(trained, dataset, tmp_path):
    options = {"disparity_head": True, "dtype": "float16", "val_share": 0.5}
    before = (trained / "metrics.json").read_bytes()
    with pytest.raises(FileExistsError, match="--resume=true"):
        train(config(dataset, trained, **options))
    saved = json.loads((trained / "training.json").read_text())
    del saved["single_objects"]  # an option that the version of that training did not have
    (trained / "training.json").write_text(json.dumps(saved))
    train(config(dataset, trained, resume=True, **options))
    assert (trained / "metrics.json").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="leave out --resume"):
        train(config(dataset, tmp_path / "none", resume=True, **options))
    output = shutil.copytree(trained, tmp_path / "run")
    (output / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"another --lr: found 0\.002, expected 0\.001"):
        train(config(dataset, output, resume=True, lr=2e-3, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs: found 0"),
        ({"height": 8}, "--height"),
        ({"augment": "wild"}, "--augment: found 'wild'"),
        ({"loss": "dice"}, "--loss: found 'dice'"),
        ({"dtype": "int8"}, "--dtype"),
        ({"val_share": 1.0}, "--val_share"),
        ({"lr": 1e-7}, "--lr"),
        ({"classes": ["cube", "cube"]}, "--classes"),
        ({"class_ids": {7: 6}}, "--class_ids: found 7: 6"),
        ({"workers": -1}, "--workers"),
    ],
)
def test_invalid_options_are_named(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(config(folder, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()
