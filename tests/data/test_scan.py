"""Whole splits: YOLO folders and lists, COCO files, what is skipped and what stops."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig, load_data_config
from data.labels.annotation import DUPLICATE, IMAGE, ROW, Problem, ScanReport
from data.scan import (
    check_outlines,
    load_annotations,
    print_report,
    print_shared,
    report_lines,
    settle_pixel_range,
)
from tests.deep_images import png, ramp, tiff, write_data_yaml, write_split
from tests.saying import assert_says
from utils.errors import DataError

NAMES = ["cat", "dog"]


@pytest.fixture
def folder(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """A training folder of four images: labelled, with a bad row, without label file, and broken."""
    for name in ("a", "b", "c"):
        write_image(tmp_path / "images" / "train" / f"{name}.jpg")
    (tmp_path / "images" / "train" / "d.jpg").write_bytes(b"no image")
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (labels / "b.txt").write_text("1 0.5 0.5 0.2 0.2\n1 0.5 0.5\n1 0.5 0.5 0.2 0.2\n")
    return tmp_path


def config(root: Path, *sources: str, split: str = "train") -> DataConfig:
    """Return the settings of a set with one split."""
    return DataConfig(root / "set.yaml", root, {split: tuple(root / source for source in sources)}, NAMES)


def test_folder(folder: Path) -> None:
    annotations, report = load_annotations(config(folder, "images/train"), "train")
    assert [annotation.path.name for annotation in annotations] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [annotation.image_id for annotation in annotations] == [1, 2, 3]
    assert [annotation.file_hw for annotation in annotations] == [(40, 60)] * 3
    assert [annotation.annotation_ids.tolist() for annotation in annotations] == [[1, 2], [3], []]
    np.testing.assert_allclose(annotations[0].boxes_xyxy, [(15, 10, 45, 30), (6, 4, 30, 20)])
    np.testing.assert_allclose(annotations[0].areas, [600, 192])
    assert (report.images, report.backgrounds, report.unlabelled, report.objects, report.polygons) == (3, 1, 1, 3, 1)
    assert [(problem.kind, Path(problem.where).name) for problem in report.problems] == [
        (ROW, "b.txt:2"),
        (DUPLICATE, "b.txt:3"),
        (IMAGE, "d.jpg"),
    ]
    assert report.categories == [0, 1]
    assert (folder / "images/train/d.jpg").read_bytes() == b"no image"


def test_second_reading_comes_from_the_cache_and_is_the_same(folder: Path) -> None:
    first, report = load_annotations(config(folder, "images/train"), "train")
    assert report.from_cache == 0
    assert (folder / "labels" / "train.cache.npz").is_file()
    second, again = load_annotations(config(folder, "images/train"), "train")
    assert again.from_cache == 4
    assert again.problems == report.problems
    assert (again.images, again.objects, again.unlabelled) == (report.images, report.objects, report.unlabelled)
    for before, after in zip(first, second, strict=True):
        assert (before.path, before.file_hw, before.image_id) == (after.path, after.file_hw, after.image_id)
        np.testing.assert_array_equal(before.boxes_xyxy, after.boxes_xyxy)
        np.testing.assert_array_equal(before.annotation_ids, after.annotation_ids)


def test_cache_notices_changed_new_and_removed_files(folder: Path, write_image: Callable[..., Path]) -> None:
    load_annotations(config(folder, "images/train"), "train")
    labels = folder / "labels" / "train"
    status = (labels / "a.txt").stat()
    (labels / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n1 0.1 0.1 0.5 0.1 0.5 0.5\n")  # as long as before
    os.utime(labels / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (labels / "b.txt").unlink()
    (labels / "c.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    write_image(folder / "images/train/d.jpg", (30, 30))
    annotations, report = load_annotations(config(folder, "images/train"), "train")
    assert report.from_cache == 0
    assert [annotation.classes.tolist() for annotation in annotations] == [[1, 1], [], [0], []]
    write_image(folder / "images/train/e.jpg")
    annotations, report = load_annotations(config(folder, "images/train"), "train")
    assert (report.from_cache, len(annotations)) == (4, 5)


def test_read_only_labels_are_said_once(folder: Path) -> None:
    (folder / "labels").chmod(0o555)
    try:
        _, report = load_annotations(config(folder, "images/train"), "train")
        _, again = load_annotations(config(folder, "images/train"), "train")
    finally:
        (folder / "labels").chmod(0o755)
    assert [path.name for path in (folder / "labels").iterdir()] == ["train"]
    assert "is read-only: the label cache is" in report.notes[0]
    assert (again.notes, again.from_cache) == ([], 4)


def test_list_file_and_several_sources(folder: Path, write_image: Callable[..., Path]) -> None:
    write_image(folder / "images" / "more" / "x.png", (20, 30))
    (folder / "lists").mkdir()
    (folder / "lists" / "train.txt").write_text(
        f"# two\n../images/train/a.jpg\n\n{folder}/images/train/b.jpg\n./images/train/missing.jpg\n"
    )
    annotations, report = load_annotations(config(folder, "lists/train.txt", "images/more"), "train")
    assert [annotation.path.name for annotation in annotations] == ["a.jpg", "b.jpg", "x.png"]
    assert [annotation.annotation_ids.tolist() for annotation in annotations] == [[1, 2], [3], []]
    assert ("missing.jpg", "cannot be read: No such file or directory") in [
        (Path(p.where).name, p.reason) for p in report.problems
    ]


def test_line_that_is_no_image_stops(folder: Path) -> None:
    (folder / "train.txt").write_text("images/train/a.jpg\nimages/train\n")
    with pytest.raises(DataError) as caught:
        load_annotations(config(folder, "train.txt"), "train")
    assert_says(caught.value, "train.txt:2", "images/train")


def test_numbers_in_image_names_become_image_ids(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for name in ("000042", "000007"):
        write_image(tmp_path / f"{name}.jpg")
    annotations, _ = load_annotations(config(tmp_path, "", split="val"), "val")
    assert [annotation.image_id for annotation in annotations] == [7, 42]


def test_class_beyond_the_names_stops(folder: Path) -> None:
    (folder / "labels/train/b.txt").write_text("1 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError) as caught:
        load_annotations(config(folder, "images/train"), "train")
    assert_says(caught.value, "b.txt:2", 2, "0 to 1")


def test_fewer_names_than_when_the_cache_was_written_stop(folder: Path) -> None:
    settings = config(folder, "images/train")
    load_annotations(settings, "train")
    with pytest.raises(DataError) as caught:
        load_annotations(DataConfig(settings.path, settings.root, settings.splits, ["cat"]), "train")
    assert_says(caught.value, "a.txt:2", 1, "0 to 0")


def test_no_labels_at_all(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    with pytest.raises(DataError) as caught:
        load_annotations(config(tmp_path, "images"), "train")
    assert_says(caught.value, "train", 1, "labels/a.txt")
    annotations, report = load_annotations(config(tmp_path, "images", split="val"), "val")
    assert (len(annotations), report.unlabelled) == (1, 1)


def test_no_images_and_no_usable_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError) as caught:
        load_annotations(config(tmp_path, "images"), "train")
    assert_says(caught.value, "images", ".jpg")
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load_annotations(config(tmp_path, "images"), "train")
    assert_says(caught.value, "a.jpg", "empty file")


def test_source_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError) as caught:
        load_annotations(config(tmp_path, "a.csv"), "train")
    assert_says(caught.value, "a.csv", ".txt", ".json")


def write_coco(root: Path, name: str, images: list[dict], annotations: list[dict]) -> None:
    """Write a COCO file with the categories 4 cat, 9 dog."""
    categories = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]
    (root / name).write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def test_coco_file(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg")
    images = [
        {"id": 30, "file_name": "a.jpg", "height": 40, "width": 60},
        {"id": 20, "file_name": "b.jpg", "height": 60, "width": 40},
    ]
    images.append({"id": 10, "file_name": "missing.jpg"})
    objects = [
        {"id": 8, "image_id": 30, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 5},
        {"id": 7, "image_id": 30, "category_id": 4, "bbox": [0, 0, 60, 40], "iscrowd": 1},
    ]
    write_coco(tmp_path, "val.json", images, objects)
    for from_cache in (0, 3):
        annotations, report = load_annotations(config(tmp_path, "val.json", split="val"), "val")
        assert (len(annotations), annotations[0].image_id, annotations[0].annotation_ids.tolist()) == (1, 30, [8, 7])
        assert (annotations[0].crowd.tolist(), annotations[0].classes.tolist()) == ([False, True], [1, 0])
        assert (report.categories, report.crowds, report.objects, report.from_cache) == ([4, 9], 1, 2, from_cache)
        assert [(Path(problem.where).name, problem.reason) for problem in report.problems] == [
            ("b.jpg", "60 x 40 pixels, but its COCO file says 40 x 60"),
            ("missing.jpg", "cannot be read: No such file or directory"),
        ]


def test_ids_that_are_not_unique_over_two_coco_files_are_counted_anew(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.jpg")
        image = {"id": 1, "file_name": f"{name}.jpg"}
        write_coco(
            tmp_path, f"{name}.json", [image], [{"id": 1, "image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4]}]
        )
    annotations, report = load_annotations(config(tmp_path, "a.json", "b.json"), "train")
    assert [annotation.image_id for annotation in annotations] == [1, 2]
    assert [annotation.annotation_ids.tolist() for annotation in annotations] == [[1], [2]]
    assert "counted from 1" in report.notes[0]


def scan(root: Path, *sources: str, split: str = "train") -> tuple[list[str], ScanReport]:
    """Return the images of a split below `root` with the classes of their objects, and the report."""
    annotations, report = load_annotations(config(root, *sources, split=split), split, require_labels=False)
    return [f"{one.path.relative_to(root)} {one.classes.tolist()}" for one in annotations], report


def write_label(path: Path, *classes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{number} 0.5 0.5 0.2 0.2\n" for number in classes))


def test_labels_of_a_linked_folder_belong_to_the_path_that_is_named(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    write_image(tmp_path / "images" / "train" / "a.jpg")
    write_label(tmp_path / "labels" / "train" / "a.txt", 0)
    write_label(tmp_path / "task" / "labels" / "train" / "a.txt", 1)
    (tmp_path / "task" / "images").symlink_to("../images")
    (tmp_path / "task" / "list.txt").write_text("images/train/a.jpg\n")
    (tmp_path / "task" / "set.yaml").write_text("train: images/train\nval: list.txt\nnames: [cat, dog]\n")
    settings = load_data_config(tmp_path / "task" / "set.yaml")
    for split in ("train", "val"):
        annotations, report = load_annotations(settings, split)
        assert [one.path for one in annotations] == [tmp_path / "task" / "images" / "train" / "a.jpg"]
        assert annotations[0].classes.tolist() == [1]
        assert_says(report.sources[0], 1, tmp_path / "task" / "labels" / "train")


def test_two_splits_that_link_to_one_folder_keep_their_own_labels_and_are_told(
    tmp_path: Path, write_image: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "store" / "a.jpg")
    write_image(tmp_path / "store" / "b.jpg")
    (tmp_path / "images").mkdir()
    for number, split in enumerate(("train", "val")):
        (tmp_path / "images" / split).symlink_to("../store")
        write_label(tmp_path / "labels" / split / "a.txt", number)
    train, _ = load_annotations(config(tmp_path, "images/train"), "train")
    val, _ = load_annotations(config(tmp_path, "images/val", split="val"), "val")
    assert [one.classes.tolist() for one in train] == [[0], []]
    assert [one.classes.tolist() for one in val] == [[1], []]
    print_shared(train, val)
    assert_says(capsys.readouterr().out, "train", "2 of 2", tmp_path / "images" / "val" / "a.jpg")
    other = write_image(tmp_path / "other" / "c.jpg")
    print_shared(train, load_annotations(config(tmp_path, str(other.parent), split="val"), "val")[0])
    assert capsys.readouterr().out == ""


def test_a_link_to_each_image(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        write_image(tmp_path / "store" / "images" / f"{name}.jpg")
        write_label(tmp_path / "store" / "labels" / f"{name}.txt", 0)
        (tmp_path / "images" / f"{name}.jpg").symlink_to(f"../store/images/{name}.jpg")
        write_label(tmp_path / "labels" / f"{name}.txt", 1)
    assert scan(tmp_path, "images")[0] == ["images/a.jpg [1]", "images/b.jpg [1]"]


def test_an_image_is_no_background_under_a_second_name(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "labels" / "a.txt", 0)
    (tmp_path / "images" / "latest.jpg").symlink_to("a.jpg")
    (tmp_path / "copy").symlink_to("images")
    found, report = scan(tmp_path, "images", "copy")
    assert found == ["images/a.jpg [0]"]
    assert (report.unlabelled, report.backgrounds) == (0, 0)
    (note,) = report.notes
    assert_says(note, 3, tmp_path / "images" / "latest.jpg")


def test_files_that_a_split_has_twice_are_counted(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "labels" / "a.txt", 0)
    (tmp_path / "list.txt").write_text("images/a.jpg\nimages/a.jpg\n")
    found, report = scan(tmp_path, "list.txt", "images")
    assert found == ["images/a.jpg [0]"] * 3
    assert_says(report.notes[0], 2, tmp_path / "images" / "a.jpg")


def test_loops_and_dead_links_are_named(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_image(tmp_path / "images" / "b.jpg")
    write_label(tmp_path / "labels" / "a.txt", 0)
    (tmp_path / "labels" / "b.txt").symlink_to("gone.txt")
    for name, target in (("self", "."), ("far", "gone"), ("c.jpg", "gone.jpg")):
        (tmp_path / "images" / name).symlink_to(target)
    found, report = scan(tmp_path, "images")
    assert found == ["images/a.jpg [0]"]
    loop, dead = report.notes
    assert_says(loop, 1, tmp_path / "images" / "self")
    assert_says(dead, 1, tmp_path / "images" / "far")
    label, image = report.problems
    assert_says(label, tmp_path / "labels" / "b.txt", "gone.txt")
    assert_says(image, tmp_path / "images" / "c.jpg", "gone.jpg")


def test_labels_at_the_target_of_a_link_are_named_and_not_read(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    write_image(tmp_path / "store" / "images" / "a.jpg")
    write_label(tmp_path / "store" / "labels" / "a.txt", 0)
    (tmp_path / "images").symlink_to("store/images")
    (tmp_path / "list.txt").symlink_to("store/list.txt")
    (tmp_path / "store" / "list.txt").write_text("images/a.jpg\n")
    found, report = scan(tmp_path, "images", split="val")
    assert (found, report.unlabelled) == (["images/a.jpg []"], 1)
    assert_says(report.notes[0], 1, tmp_path / "store" / "labels" / "a.txt")
    with pytest.raises(DataError) as caught:
        load_annotations(config(tmp_path, "images"), "train")
    assert_says(caught.value, tmp_path / "labels" / "a.txt", tmp_path / "store" / "labels" / "a.txt")
    (tmp_path / "images").unlink()
    found, report = scan(tmp_path, "list.txt")  # a linked list: its paths start at the list's own folder
    assert found == ["store/images/a.jpg [0]"]
    assert_says(report.notes[0], 1, tmp_path / "store")


@pytest.mark.parametrize("name", ["a.json", "no_suffix"])
def test_a_link_to_a_coco_file_finds_the_images_of_its_target(
    tmp_path: Path, write_image: Callable[..., Path], name: str
) -> None:
    write_image(tmp_path / "store" / "val2017" / "a.jpg")
    (tmp_path / "store" / "annotations").mkdir()
    write_coco(tmp_path / "store" / "annotations", "instances_val2017.json", [{"id": 1, "file_name": "a.jpg"}], [])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).symlink_to("../store/annotations/instances_val2017.json")
    (tmp_path / "set" / "set.yaml").write_text(f"val: {name}\n")
    annotations, report = load_annotations(load_data_config(tmp_path / "set" / "set.yaml"), "val")
    assert [one.path for one in annotations] == [tmp_path / "store" / "val2017" / "a.jpg"]
    assert_says(report.sources[0], 1, tmp_path / "set" / name, tmp_path / "store" / "val2017")


def test_a_label_folder_that_is_a_dead_link_stops(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "images" / "val" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "val").symlink_to("gone")
    with pytest.raises(DataError) as caught:
        scan(tmp_path, "images/val", split="val")
    assert_says(caught.value, tmp_path / "labels" / "val", "gone")


def test_files_that_are_not_named_as_images(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    jpeg = write_image(tmp_path / "images" / "a.jpg").read_bytes()
    for name in ("b.jfif", "c.heic", "d", "e.JPG_large", "a.bak", "f.bak"):
        (tmp_path / "images" / name).write_bytes(jpeg)
    (tmp_path / "images" / "g.heic").write_bytes(b"\0\0\0\x1cftypheic" + b"\0" * 40)
    (tmp_path / "images" / "h.dat").write_bytes(b"no picture")
    for name in "abcdegh":
        write_label(tmp_path / "labels" / f"{name}.txt", 0)
    found, report = scan(tmp_path, "images")
    assert found == [f"images/{name} [0]" for name in ("a.jpg", "b.jfif", "c.heic", "d", "e.JPG_large")]
    assert [(Path(one.where).name, "HEIC" in one.reason) for one in report.problems] == [("g.heic", True)]
    read, left_out, others, labels = report.notes
    assert_says(read, 4, tmp_path / "images" / "c.heic")
    assert_says(left_out, 2, tmp_path / "images" / "a.bak")
    assert_says(others, 1, tmp_path / "images" / "h.dat")
    assert_says(labels, 1, tmp_path / "labels" / "h.txt")


def test_labels_beside_images(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "set" / "a.jpg")
    write_label(tmp_path / "set" / "a.txt", 0)
    write_label(tmp_path / "set" / "b.jpg.txt", 1)
    for name in ("classes.txt", "train.txt", "thanks.txt"):
        (tmp_path / "set" / name).write_text("1 2 3 4 thanks\n")
    found, report = scan(tmp_path, "set")
    assert found == ["set/a.jpg [0]"]
    (note,) = report.notes
    assert_says(note, 1, tmp_path / "set" / "b.jpg.txt")


def test_labels_beside_images_that_have_a_label_folder_are_named(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "labels" / "a.txt", 0)
    write_label(tmp_path / "images" / "a.txt", 1)
    found, report = scan(tmp_path, "images")
    assert found == ["images/a.jpg [0]"]
    assert_says(report.notes[0], 1, tmp_path / "images" / "a.txt")


def test_lists_of_other_systems(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for name in "abc":
        write_image(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.txt").write_text(
        "# those of May\n..\\images\\a.jpg\n  # and one more\n'images/b.jpg' # dark\n\n", encoding="utf-16"
    )
    found, report = scan(tmp_path, "lists/a.txt", split="val")
    assert found == ["images/a.jpg []", "images/b.jpg []"]
    assert_says(report.notes[0], 1, tmp_path)


def test_the_working_folder_serves_whole_lists_only(
    tmp_path: Path, write_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here/a.jpg", "here/b.jpg", "set/b.jpg"):
        write_image(tmp_path / name)
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "set" / "a.txt").write_text("a.jpg\n./b.jpg\n")
    found, report = scan(tmp_path / "set", "a.txt", split="val")
    assert found == ["b.jpg []"]
    assert_says(report.problems[0], tmp_path / "set" / "a.jpg")
    (tmp_path / "set" / "b.jpg").unlink()
    annotations, report = load_annotations(config(tmp_path / "set", "a.txt", split="val"), "val")
    assert [one.path for one in annotations] == [tmp_path / "here" / "a.jpg", tmp_path / "here" / "b.jpg"]
    assert_says(report.notes[0], 2, tmp_path / "here")


@pytest.mark.parametrize("what", ["label", "image", "link"])
def test_cache_notices_what_keeps_size_and_time(tmp_path: Path, write_image: Callable[..., Path], what: str) -> None:
    image, label = write_image(tmp_path / "images" / "a.bmp"), tmp_path / "labels" / "a.txt"
    write_label(tmp_path / "store" / "0.txt", 0)
    write_label(tmp_path / "store" / "1.txt", 1)
    label.parent.mkdir()
    label.symlink_to("../store/0.txt")
    for path in (tmp_path / "store" / "0.txt", tmp_path / "store" / "1.txt", image):
        os.utime(path, ns=(10**18, 10**18))
    assert scan(tmp_path, "images")[0] == ["images/a.bmp [0]"]
    if what == "label":
        write_label(tmp_path / "store" / "0.txt", 1)
        os.utime(tmp_path / "store" / "0.txt", ns=(10**18, 10**18))
    elif what == "link":
        label.unlink()
        label.symlink_to("../store/1.txt")
    else:
        image.write_bytes(b"no image".ljust(image.stat().st_size, b"\0"))
        os.utime(image, ns=(10**18, 10**18))
        with pytest.raises(DataError) as caught:
            scan(tmp_path, "images")
        assert_says(caught.value, image)
        return
    found, report = scan(tmp_path, "images")
    assert (found, report.from_cache) == (["images/a.bmp [1]"], 0)


def test_coco_boxes_outside_are_counted(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "a.jpg")
    boxes = [[-10, -10, 30, 30], [100, 100, 10, 10], [1, 2, 3, 4]]
    objects = [{"id": 1 + n, "image_id": 3, "category_id": 9, "bbox": box} for n, box in enumerate(boxes)]
    write_coco(tmp_path, "val.json", [{"id": 3, "file_name": "a.jpg"}], objects)
    annotations, report = load_annotations(config(tmp_path, "val.json", split="val"), "val")
    assert annotations[0].boxes_xyxy.tolist() == [[0, 0, 20, 20], [1, 2, 4, 6]]
    assert (report.objects, report.clipped, [problem.kind for problem in report.problems]) == (2, 1, [ROW])


def test_coco_ids_that_are_texts_stay(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    images = [{"id": name, "file_name": f"{name}.jpg"} for name in "ba"]
    for image in images:
        write_image(tmp_path / image["file_name"])
    write_coco(tmp_path, "val.json", images, [{"id": "x", "image_id": "a", "category_id": "9", "bbox": [1, 2, 3, 4]}])
    annotations, report = load_annotations(config(tmp_path, "val.json", split="val"), "val")
    assert [annotation.image_id for annotation in annotations] == ["b", "a"]
    assert [annotation.file_name for annotation in annotations] == ["b.jpg", "a.jpg"]
    assert annotations[1].annotation_ids.tolist() == [1]
    assert report.categories == [4, 9]


def test_category_ids_of_two_coco_files_are_joined(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for number, categories in enumerate(([{"id": 7, "name": "cat"}], [{"id": 90, "name": "dog"}])):
        write_image(tmp_path / f"{number}.jpg")
        content = {"images": [{"id": number, "file_name": f"{number}.jpg"}], "categories": categories}
        objects = [{"id": 1, "image_id": number, "category_id": categories[0]["id"], "bbox": [1, 2, 3, 4]}]
        (tmp_path / f"{number}.json").write_text(json.dumps(content | {"annotations": objects}))
    annotations, report = load_annotations(config(tmp_path, "0.json", "1.json", split="val"), "val")
    assert report.categories == [7, 90]
    assert [annotation.classes.tolist() for annotation in annotations] == [[0], [1]]


POSE = "0 0.31 0.38 0.31 0.42 0.2 0.2 0.42 0.2 0.42 0.55 0.2 0.55 0.31 0.3 0.25 0.4 0.38 0.4 0.31 0.5\n"


def test_key_points_are_refused_by_the_split_or_their_boxes_are_read(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text(POSE)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError) as caught:
            load_annotations(config(tmp_path, "images"), "train")
        assert_says(caught.value, tmp_path / "images", 2, "kpt_shape: [8, 2]")
    (tmp_path / "set.yaml").write_text("train: images\nnames: [cat, dog]\nkpt_shape: [8, 2]\n")
    annotations, report = load_annotations(load_data_config(tmp_path / "set.yaml"), "train")
    assert [one.polygons for one in annotations] == [[[]], [[]]]
    np.testing.assert_allclose(annotations[0].boxes_xyxy, [(9.3, 6.8, 27.9, 23.6)], atol=1e-3)
    (note,) = report.notes
    assert_says(note, 21, 8, "kpt_shape")
    (tmp_path / "set.yaml").write_text("train: images\nnames: [cat, dog]\nkpt_shape: [0, 2]\n")
    annotations, report = load_annotations(load_data_config(tmp_path / "set.yaml"), "train")
    assert [len(one.polygons[0][0]) for one in annotations] == [10, 10]


def test_rotated_boxes_are_read_as_their_corners(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.2 0.3 0.5 0.2 0.6 0.5 0.3 0.6\n")
    annotations, report = load_annotations(config(tmp_path, "images"), "train")
    np.testing.assert_allclose(annotations[0].boxes_xyxy, [(12, 8, 36, 24)], atol=1e-3)
    (note,) = report.notes
    assert_says(note, 1, "four corners")


def test_report_text(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [Problem(ROW, f"a.txt:{line}", "4 columns") for line in (1, 2, 3)]
    report = ScanReport("val", images=2, backgrounds=1, objects=5, problems=problems, notes=["a note"])
    print_report(report, limit=2)
    assert capsys.readouterr().out.splitlines() == [
        "val: 2 images (1 without objects, 0 without a label file), 5 objects "
        "(0 with outlines, 0 crowd regions); 0 from the cache",
        "  a note",
        "  3 label rows skipped:",
        "    a.txt:1: 4 columns",
        "    a.txt:2: 4 columns",
        "    … and 1 more",
    ]
    assert len(report_lines(report)) == 6


def test_broken_text_in_a_name_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(ScanReport("val", problems=[Problem(IMAGE, os.fsdecode(b"b\xff.jpg"), "empty file")]))
    assert "b?.jpg" in capsys.readouterr().out


def test_bccd(shared: Path) -> None:
    root = shared / "datasets" / "bccd"
    annotations, report = load_annotations(config_of(root, "images/val", ["RBC", "WBC", "Platelets"]), "val")
    assert (report.images, report.objects, report.problems) == (87, 1137, [])
    assert annotations[0].file_hw == (480, 640)


def test_coco_tiny(shared: Path) -> None:
    names = load_data_config("coco.yaml").names
    settings = config_of(shared / "datasets" / "coco_tiny", "annotations/instances_val2017.json", names)
    annotations, report = load_annotations(settings, "val")
    assert (report.images, report.objects, report.crowds, report.polygons, report.problems) == (50, 382, 5, 377, [])
    assert (report.categories[0], report.categories[79]) == (1, 90)
    assert annotations[0].image_id == 397133
    assert annotations[0].areas.max() > 0


def config_of(root: Path, source: str, names: list[str]) -> DataConfig:
    """Return the settings of a validation split."""
    return DataConfig(root / "set.yaml", root, {"val": (root / source,)}, names)


def check(folder: Path) -> str | None:
    settings = config(folder, "images/train")
    annotations, _ = load_annotations(settings, "train")
    return check_outlines(annotations, settings, "train")


def test_objects_without_an_outline_are_counted(folder: Path) -> None:
    note = check(folder)
    assert note.startswith(
        f"train: 2 of 3 objects have a box but no outline, in 2 files ({folder / 'labels/train/a.txt'}, "
    )
    (folder / "labels/train/b.txt").write_text("")
    (folder / "labels/train/a.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n")
    assert check(folder) is None


def test_boxes_alone_are_refused_for_masks(folder: Path) -> None:
    (folder / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DataError) as error:
        check(folder)
    assert_says(error.value, "set.yaml", "train", "2 objects", "2 files", "a.txt", "b.txt", "outline")
    assert "\n" not in str(error.value)


@pytest.fixture
def deep_set(tmp_path: Path) -> Path:
    """A data yaml of images whose 12 bits stand in files of 16: up to 2000 and 4000 in train, up to 900 in val."""
    pixels = ramp("u2", hw=(8, 8))
    write_split(tmp_path, "train", [pixels * 10 + 90, pixels * 20 + 180], png, ".png")
    write_split(tmp_path, "val", [pixels + 709], tiff, ".tif")
    return write_data_yaml(tmp_path)


def test_deep_images_are_counted_and_kept_in_the_cache(deep_set: Path) -> None:
    found = [load_annotations(load_data_config(deep_set), "train")[1] for _ in range(2)]
    assert [report.from_cache for report in found] == [0, 2]
    assert [(deep.dtype, deep.low, deep.high) for deep in found[0].deep] == [
        ("uint16", 90, 2000),
        ("uint16", 180, 4000),
    ]
    assert found[0].deep == found[1].deep


def test_deep_images_of_a_coco_file_are_counted(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [ramp("u2", hw=(8, 8))], png, ".png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": 8, "height": 8}],
        "annotations": [box],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    (tmp_path / "data.yaml").write_text("train: coco.json\nimages: images/train\nnames: [cell]\n")
    (deep,) = load_annotations(load_data_config(tmp_path / "data.yaml"), "train")[1].deep
    assert (Path(deep.path).name, deep.dtype, deep.high) == ("0.png", "uint16", 191)


def settled(data: Path, split: str, *known: object) -> object:
    """Return the range of a split as `settle_pixel_range` finds it."""
    config = load_data_config(data)
    return settle_pixel_range(config, load_annotations(config, split)[1], *known)


def test_the_range_of_a_split_comes_from_its_highest_value(deep_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert settled(deep_set, "train") == (0, 4095)
    (line,) = capsys.readouterr().out.splitlines()
    assert_says(line, "train", "2 of 2 images", "uint16", "90 to 4000", "0 to 4095", "pixel_range")


def test_a_known_range_goes_before_the_splits_own(deep_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert settled(deep_set, "val") == (0, 1023)
    assert settled(deep_set, "val", (0, 4095), "as best.pt was trained") == (0, 4095)
    assert_says(capsys.readouterr().out.splitlines()[-1], "val", "709 to 900", "0 to 4095", "as best.pt was trained")


def test_the_yaml_goes_before_everything(deep_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data_yaml(deep_set.parent, "pixel_range: [100, 3000]\n")
    assert settled(deep_set, "train", (0, 4095), "as best.pt was trained") == (100, 3000)
    said = capsys.readouterr().out
    assert_says(said, "100 to 3000", "pixel_range", deep_set, "0 to 4095", "as best.pt was trained", "2 of them")


def test_a_range_that_no_image_needs_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\npixel_range: [0, 4095]\n")
    assert settled(folder / "data.yaml", "train") == (0, 4095)
    assert_says(capsys.readouterr().out, "8 bits", "pixel_range")


def test_images_of_8_bits_have_no_range_and_no_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    assert settled(folder / "data.yaml", "train") is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
def test_signed_and_float_images_need_the_key(tmp_path: Path, dtype: str) -> None:
    write_split(tmp_path, "train", [ramp(dtype, hw=(8, 8))], tiff, ".tif")
    data = write_data_yaml(tmp_path)
    with pytest.raises(DataError) as caught:
        settled(data, "train")
    assert_says(caught.value, data, "train", "1 images", np.dtype(dtype).name, "pixel_range")
    write_data_yaml(tmp_path, "pixel_range: [-100, 100]\n")
    assert settled(data, "train") == (-100, 100)


def test_an_image_with_nan_is_skipped_with_its_reason(tmp_path: Path) -> None:
    broken = ramp("f4", hw=(8, 8))
    broken[0, 0, 0] = np.nan
    write_split(tmp_path, "train", [ramp("f4", hw=(8, 8)), broken], tiff, ".tif")
    annotations, report = load_annotations(load_data_config(write_data_yaml(tmp_path)), "train")
    assert len(annotations) == len(report.deep) == 1
    (problem,) = report.problems
    assert (problem.kind, Path(problem.where).name) == (IMAGE, "1.tif")
    assert_says(problem, "NaN")
