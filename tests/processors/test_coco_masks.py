# SPDX-License-Identifier: Apache-2.0
"""`so101-masks`: COCO annotations rasterised to PNGs of class ids."""

import errno
import json
import logging
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from lerobot_processor_so101.segmenter_training import coco_masks
from lerobot_processor_so101.segmenter_training.coco_masks import MasksConfig, make_masks

HEIGHT, WIDTH = 20, 30
NAMES = ["unlabeled", "background", "table", "cube", "static_finger", "moving_finger"]
BACKGROUND, TABLE, CUBE, STATIC, MOVING = range(1, 6)
CATEGORY = 70  # added to a class id, so that nothing passes by taking category ids for class ids
FULL = (0, 0, WIDTH, HEIGHT)


def box_mask(box):
    """(H, W) bool, True in x0 <= x < x1, y0 <= y < y1: the reference."""
    x0, y0, x1, y1 = box
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def polygon(box):
    x0, y0, x1, y1 = box
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def uncompressed(mask):
    """COCO's run lengths of a mask: down the columns, beginning with zeros."""
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def compressed(mask):
    rle = rle_tools.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def annotation(class_id, segmentation, image_id=0):
    return {"image_id": image_id, "category_id": CATEGORY + class_id, "segmentation": segmentation}


def boxes(*layers, image_id=0):
    return [annotation(class_id, polygon(box), image_id) for class_id, box in layers]


class Dataset:
    """A dataset folder and the content of its COCO file, for tests to break."""

    def __init__(self, root):
        self.root = root
        self.coco = {
            "categories": [{"id": CATEGORY + id_, "name": name} for id_, name in enumerate(NAMES) if id_],
            "images": [],
            "annotations": [],
        }

    def add(self, name, annotations, on_disk=None, size=(WIDTH, HEIGHT)):
        entry = {"id": len(self.coco["images"]), "file_name": name, "height": HEIGHT, "width": WIDTH}
        self.coco["images"].append(entry)
        self.coco["annotations"] += [{**line, "image_id": entry["id"]} for line in annotations]
        path = self.root / "images" / "default" / (on_disk or name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)

    def marks(self, name, marks):
        (self.root / f"{name}.json").write_text(json.dumps({"marks": marks}))

    def run(self, **options):
        path = self.root / "annotations" / "instances_default.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.coco))
        return make_masks(MasksConfig(self.root, **{"class_names": NAMES, **options}))

    def mask(self, name):
        with Image.open(self.root / "masks" / name) as image:
            assert (image.format, image.mode) == ("PNG", "L")
            return np.asarray(image)

    def masks(self):
        return sorted(path.name for path in (self.root / "masks").glob("**/*"))


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path)


# --- rasterisation -----------------------------------------------------------------------------------------


def test_rectangles_are_exact_to_the_pixel(dataset):
    table, cube = (0, 10, 30, 20), (4, 6, 11, 13)
    dataset.add("a.jpg", boxes((TABLE, table), (CUBE, cube)))
    dataset.run()
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[box_mask(table)] = TABLE
    expected[box_mask(cube)] = CUBE
    np.testing.assert_array_equal(dataset.mask("a.png"), expected)


@pytest.mark.parametrize("form", [uncompressed, compressed])
def test_polygons_and_both_forms_of_rle_are_rasterised_alike(dataset, form):
    shape = [[3.0, 2.0, 22.5, 5.5, 12.0, 17.0], [24, 12, 29, 12, 29, 18]]  # two parts of one object
    dataset.add("polygon.jpg", [annotation(CUBE, shape)])
    dataset.run()
    mask = dataset.mask("polygon.png")
    assert 50 < np.count_nonzero(mask) < 300

    dataset.add("rle.jpg", [annotation(CUBE, form(mask == CUBE))])
    dataset.run(overwrite=True)
    np.testing.assert_array_equal(dataset.mask("rle.png"), mask)


@pytest.mark.parametrize("form", [uncompressed, compressed])
def test_a_ragged_rle_is_exact(dataset, form):
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5
    dataset.add("a.jpg", [annotation(TABLE, form(mask))])
    dataset.run()
    np.testing.assert_array_equal(dataset.mask("a.png"), np.where(mask, TABLE, 0))


@pytest.mark.parametrize("form", [uncompressed, compressed])
@pytest.mark.parametrize("full", [False, True])
def test_rle_of_a_single_run(dataset, form, full):
    dataset.add("a.jpg", [annotation(TABLE, form(np.full((HEIGHT, WIDTH), full)))])
    dataset.run()
    assert (dataset.mask("a.png") == TABLE * full).all()


# Every pair of classes overlaps somewhere, and the order in the file is the reverse of both rendering orders.
OVERLAPPING = {
    MOVING: (8, 8, 20, 12),
    STATIC: (6, 4, 14, 16),
    CUBE: (10, 6, 16, 14),
    TABLE: (0, 9, 30, 20),
    BACKGROUND: FULL,
}


def rasterised_in(order):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for class_id in order:
        ids[box_mask(OVERLAPPING[class_id])] = class_id
    return ids


def test_the_two_rendering_orders(dataset):
    for name in ("default.jpg", "grasp.jpg"):
        dataset.add(name, boxes(*OVERLAPPING.items()))
    dataset.marks("selections", {"grasp.jpg": "anything"})
    summary = dataset.run()
    default = rasterised_in([BACKGROUND, TABLE, CUBE, STATIC, MOVING])
    grasp = rasterised_in([BACKGROUND, TABLE, STATIC, MOVING, CUBE])
    assert (default != grasp).any()
    np.testing.assert_array_equal(dataset.mask("default.png"), default)
    np.testing.assert_array_equal(dataset.mask("grasp.png"), grasp)
    assert (summary.masks, summary.grasp) == (2, 1)


def test_the_order_of_annotations_does_not_matter(dataset):
    layers = [*OVERLAPPING.items(), (CUBE, (1, 1, 12, 10)), (TABLE, (2, 2, 9, 9))]
    for index, order in enumerate([layers, layers[::-1]]):
        dataset.add(f"{index}.jpg", boxes(*order))
    dataset.run()
    np.testing.assert_array_equal(dataset.mask("0.png"), dataset.mask("1.png"))


def test_own_classes_and_held_class(dataset):
    dataset.coco["categories"] = [{"id": 1, "name": "bowl"}, {"id": 2, "name": "hand"}]
    layers = [{"category_id": 1, "segmentation": polygon(FULL)}]
    layers += [{"category_id": 2, "segmentation": polygon((0, 0, 5, 5))}]
    for name in ("free.jpg", "held.jpg"):
        dataset.add(name, layers)
    dataset.marks("selections", {"held.jpg": "Grasp"})
    dataset.run(class_names=["nothing", "bowl", "hand"], held=["bowl"])
    assert np.unique(dataset.mask("free.png")).tolist() == [1, 2]
    assert np.unique(dataset.mask("held.png")).tolist() == [1]


def test_the_default_classes_are_those_of_the_segmenter(dataset):
    dataset.add("a.jpg", boxes((MOVING, FULL)))
    dataset.run()
    summary = make_masks(MasksConfig(dataset.root, overwrite=True))
    assert list(summary.class_names) == NAMES
    assert (dataset.mask("a.png") == MOVING).all()


# --- which images ------------------------------------------------------------------------------------------


def test_excluded_and_unannotated_images_are_skipped_and_counted(dataset):
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        dataset.add(name, boxes((TABLE, FULL)) if name != "c.jpg" else [])
    dataset.marks("excluded", {"b.jpg": "Excluded", "d.jpg": "Excluded"})
    summary = dataset.run()
    assert dataset.masks() == ["a.png"]
    assert (summary.masks, summary.excluded, summary.without_annotations) == (1, 2, 1)


def test_marks_match_by_stem_and_never_by_part_of_it(dataset):
    for name in ("frame_1.jpg", "frame_10.jpg", "frame_2.png", "frame_20.png"):
        dataset.add(name, boxes((CUBE, FULL), (STATIC, FULL)))
    dataset.marks("selections", {"frame_1.png": "Grasp"})
    dataset.marks("excluded", {"frame_2.jpg": "Excluded"})
    dataset.run()
    assert dataset.masks() == ["frame_1.png", "frame_10.png", "frame_20.png"]
    assert (dataset.mask("frame_1.png") == CUBE).all()
    assert (dataset.mask("frame_10.png") == STATIC).all()


def test_only_the_suffix_of_an_image_is_cut_off(dataset):
    for name in ("rec.001.jpg", "rec.002.jpg"):
        dataset.add(name, boxes((TABLE, FULL)))
    dataset.marks("excluded", {"rec.002": "Excluded"})
    dataset.run()
    assert dataset.masks() == ["rec.001.png"]


def test_an_image_is_found_under_another_suffix_and_in_both_folders(dataset):
    dataset.add("a.jpg", boxes((TABLE, FULL)), on_disk="a.png")
    dataset.add("b.jpg", boxes((TABLE, FULL)), on_disk="../b.jpg")
    assert dataset.run().masks == 2


def test_marks_without_an_image_are_reported(dataset, caplog):
    dataset.add("a.jpg", boxes((CUBE, FULL)))
    dataset.marks("selections", {"a.jpg": "Grasp", "typo_grasp.jpg": "Grasp"})
    dataset.marks("excluded", {"typo_excluded.jpg": "Excluded", "a.jpg": "excluded"})
    with caplog.at_level(logging.WARNING):
        summary = dataset.run()
    assert "typo_grasp.jpg" in caplog.text
    assert "typo_excluded.jpg" in caplog.text
    assert "a 'excluded'" in caplog.text  # a value that excludes nothing
    assert (summary.masks, summary.grasp, summary.excluded) == (1, 1, 0)


def test_the_table_shows_shares_and_a_class_that_never_occurs(dataset):
    dataset.add("a.jpg", boxes((BACKGROUND, FULL), (TABLE, (0, 10, 30, 20))))
    dataset.add("b.jpg", boxes((BACKGROUND, FULL)))
    summary = dataset.run()
    assert summary.pixels.tolist() == [0, 900, 300, 0, 0, 0]
    assert summary.occurrences.tolist() == [0, 2, 1, 0, 0, 0]
    lines = summary.table().splitlines()
    assert "75.00 %" in lines[1 + BACKGROUND]
    assert ["never" in line for line in lines] == [False, True, False, False, True, True, True]


# --- bad input: one clear error, nothing written -----------------------------------------------------------


def refused(dataset, error, match, **options):
    with pytest.raises(error, match=match) as caught:
        dataset.run(**options)
    assert "\n" not in str(caught.value)
    assert dataset.masks() == []
    return str(caught.value)


def test_missing_images_are_counted_and_listed(dataset):
    for index in range(9):
        dataset.add(f"{index}.jpg", boxes((TABLE, FULL)))
    for index in range(1, 8):
        (dataset.root / "images" / "default" / f"{index}.jpg").unlink()
    message = refused(dataset, FileNotFoundError, r"7 of the 9 annotated images.*1\.jpg, .*5\.jpg and 2 more")
    assert "6.jpg" not in message


def test_an_image_of_another_size_names_both(dataset):
    dataset.add("a.jpg", boxes((TABLE, FULL)), size=(HEIGHT, WIDTH))
    refused(dataset, ValueError, r"a\.jpg has 20x30, not 30x20")


def test_a_file_that_is_not_an_image(dataset):
    dataset.add("a.jpg", boxes((TABLE, FULL)))
    (dataset.root / "images" / "default" / "a.jpg").write_text("not an image")
    refused(dataset, ValueError, r"a\.jpg: found no image")


def break_entry(key, **changes):
    def change(coco):
        coco[key][0].update(changes)

    return change


def append_copy(key, **changes):
    def change(coco):
        coco[key].append({**coco[key][0], **changes})

    return change


BAD_COCO = {
    "unknown image": (break_entry("annotations", image_id=9), r"annotations\[0\]: image_id: found 9"),
    "unknown category": (
        break_entry("annotations", category_id=9),
        r"annotations\[0\]: category_id: found 9",
    ),
    "unknown class": (
        break_entry("categories", name="backgroud"),
        r"'backgroud'.*nearest are \['background'",
    ),
    "same category id": (append_copy("categories", name="cube"), "categories: found the same id.*: 71"),
    "same category name": (append_copy("categories", id=9), "categories: found the same name.*: background"),
    "same image id": (append_copy("images", file_name="b.jpg"), "images: found the same id.*: 0"),
    "same stem": (append_copy("images", id=9, file_name="x/a.png"), "images: found the same file_name.*: a,"),
    "empty image": (break_entry("images", height=0), r"a\.jpg: found 30x0"),
    "no file name": (break_entry("images", file_name=None), r"images\[0\].*'file_name': str"),
    "no annotations": (lambda coco: coco.pop("annotations"), "no list 'annotations'"),
    "empty annotations": (lambda coco: coco["annotations"].clear(), "no annotated image among 1"),
    "entry is no object": (lambda coco: coco["images"].append(3), r"images\[1\]: found 3"),
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_a_coco_file_that_contradicts_itself(dataset, name):
    change, match = BAD_COCO[name]
    dataset.add("a.jpg", boxes((TABLE, FULL)))
    change(dataset.coco)
    refused(dataset, ValueError, match)


def rle(counts, size=(HEIGHT, WIDTH)):
    return {"size": list(size), "counts": counts}


WHOLE_RLE = compressed(np.ones((HEIGHT, WIDTH)))["counts"]
BAD_SEGMENTATIONS = {
    "two points": ([[1, 1, 5, 5]], "polygon of 4 numbers.*at least 3 points"),
    "odd numbers": ([[1, 1, 5, 5, 1, 5, 2]], "polygon of 7 numbers"),
    "second part": ([[1, 1, 5, 5, 1, 5], []], "polygon of 0 numbers"),
    "not nested": ([1, 1, 5, 5, 1, 5], "found a part 1,"),
    "not numbers": ([["1", "1", "5", "5", "1", "5"]], "found a part"),
    "not finite": ([[1, 1, float("nan"), 5, 1, 5]], "far outside"),
    "far outside": ([[1, 1, 1e12, 5, 1, 5]], "far outside"),
    "box only": ([], "no segmentation"),
    "size of another image": (rle([600], (WIDTH, HEIGHT)), r"RLE size: found \[30, 20\].*\[20, 30\]"),
    "no size": ({"counts": [600]}, "RLE size: found None"),
    "too short": (rle([300, 299]), "RLE counts.*600 pixels"),
    "too long": (rle([300, 301]), "RLE counts"),
    "negative": (rle([700, -100]), "RLE counts"),
    "compressed, too short": (rle(compressed(np.ones((HEIGHT - 1, WIDTH)))["counts"]), "RLE counts"),
    "compressed, too long": (rle(compressed(np.ones((HEIGHT + 1, WIDTH)))["counts"]), "RLE counts"),
    "compressed, cut off": (rle(WHOLE_RLE[:-1]), "RLE counts"),
    "compressed, other letters": (rle(WHOLE_RLE + "~"), "RLE counts"),
    "compressed, empty": (rle(""), "RLE counts"),
    "no counts": (rle(None), "RLE counts"),
}


@pytest.mark.parametrize("name", BAD_SEGMENTATIONS)
def test_an_invalid_segmentation(dataset, name):
    segmentation, match = BAD_SEGMENTATIONS[name]
    dataset.add("a.jpg", boxes((TABLE, FULL)))
    dataset.add("b.jpg", [annotation(CUBE, segmentation)])
    refused(dataset, ValueError, rf"annotations\[1\] of b\.jpg: .*{match}")


@pytest.mark.parametrize("name", ["annotations/instances_default", "selections", "excluded"])
@pytest.mark.parametrize("text", ['{"marks": {', "[]", '"\\ud8', "{}"])
def test_broken_json_names_the_file(dataset, name, text):
    dataset.add("a.jpg", boxes((TABLE, FULL)))
    dataset.run()
    path = dataset.root / f"{name}.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=name):
        make_masks(MasksConfig(dataset.root, class_names=NAMES, overwrite=True))


def test_files_that_are_not_there(dataset, tmp_path):
    refused(dataset, FileNotFoundError, "--dataset_path: found neither images/default nor images")
    dataset.add("a.jpg", boxes((TABLE, FULL)))
    for option in ("annotations", "selections", "excluded"):
        refused(
            dataset,
            FileNotFoundError,
            "nowhere.json: there is no such file",
            **{option: tmp_path / "nowhere.json"},
        )
    (dataset.root / "annotations" / "second.json").write_text("{}")
    refused(dataset, FileNotFoundError, "--annotations: found 2 .json files.*second.json")


def test_invalid_options(dataset):
    dataset.add("a.jpg", boxes((TABLE, FULL)))
    refused(dataset, ValueError, "--class_names", class_names=[*NAMES, "cube"])
    folder = dataset.root / "images" / "default"
    refused(dataset, ValueError, "--output_dir: .*contains the images", output_dir=folder, overwrite=True)
    dataset.marks("selections", {"a.jpg": "Grasp"})
    refused(dataset, ValueError, "--held: class 'cub'.*'cube'", held=["cub"])


# --- what is on disk already, and a disk that is full ------------------------------------------------------


def test_masks_are_replaced_only_when_asked(dataset, caplog):
    dataset.add("a.jpg", boxes((TABLE, FULL)))
    dataset.run()
    old = dataset.mask("a.png")
    dataset.coco["annotations"] = boxes((CUBE, FULL))
    dataset.add("b.jpg", boxes((CUBE, FULL)))
    with pytest.raises(FileExistsError, match=r"1 of these masks already: a\. .*--overwrite=true"):
        dataset.run()
    assert dataset.masks() == ["a.png"]
    np.testing.assert_array_equal(dataset.mask("a.png"), old)

    dataset.marks("excluded", {"b.jpg": "Excluded"})
    (dataset.root / "masks" / "b.png").write_bytes((dataset.root / "masks" / "a.png").read_bytes())
    dataset.run(overwrite=True)
    assert (dataset.mask("a.png") == CUBE).all()
    assert "1 PNGs are not from this run: b" in caplog.text


def test_a_full_disk_keeps_the_finished_masks_and_no_half_one(dataset, monkeypatch):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        dataset.add(name, boxes((TABLE, FULL)))
    save = Image.Image.save

    def full_at_b(image, path, **options):
        if path.name.startswith("b.png"):
            path.write_bytes(b"\x89PNG half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", full_at_b)
    with pytest.raises(OSError, match=r"No space left on device\. 1 of 3 masks are complete and stay"):
        dataset.run()
    assert dataset.masks() == ["a.png"]
    assert (dataset.mask("a.png") == TABLE).all()

    monkeypatch.undo()
    assert dataset.run(overwrite=True).masks == 3


# --- the command -------------------------------------------------------------------------------------------


def command(monkeypatch, dataset, *flags):
    names = f"--class_names=[{','.join(NAMES)}]"
    monkeypatch.setattr(sys, "argv", ["so101-masks", f"--dataset_path={dataset.root}", names, *flags])
    coco_masks.main()


def test_the_command_ends_with_one_line_of_counts(dataset, monkeypatch, capfd):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        dataset.add(name, boxes((CUBE, FULL)) if name != "c.jpg" else [])
    dataset.marks("selections", {"a.jpg": "Grasp"})
    dataset.run()
    capfd.readouterr()
    dataset.marks("excluded", {"gone.jpg": "Excluded"})
    command(monkeypatch, dataset, f"--output_dir={dataset.root / 'again'}")
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == (
        f"2 masks in {dataset.root / 'again'} (1 grasp frames); 0 images excluded, 1 without annotations"
    )
    assert len(out.splitlines()) == 1 + len(NAMES) + 1  # pycocotools is silent
    assert "2/2" in err
    assert err.splitlines()[0].endswith("excluded.json: 1 marks match no image: gone.jpg.")


@pytest.mark.parametrize("flag", ["--held=[cube]", "--overwrite=maybe"])
def test_the_command_ends_bad_input_with_one_line_and_code_2(dataset, monkeypatch, capfd, flag):
    dataset.add("a.jpg", boxes((TABLE, FULL)))
    dataset.run()
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, dataset, flag)
    out, err = capfd.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith("so101-masks: ")
    assert err.count("\n") == 1
