"""YOLO label files, row by row."""

from pathlib import Path

import numpy as np
import pytest

from data.labels.annotation import DUPLICATE, OUTLINE, ROW, Objects
from data.labels.yolo_txt import label_path, label_rows, read_label_file
from tests.saying import assert_says
from utils.errors import DataError
from utils.geometry.region import Region, no_region, polygon_region

HW = (100, 200)


def read(folder: Path, text: str, num_classes: int = 3) -> Objects:
    """Parse `text` as the label file of an image of 200 x 100 pixels."""
    path = folder / "a.txt"
    path.write_text(text, encoding="utf-8")
    return read_label_file(path, num_classes, HW)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("set/images/train/a.jpg", "set/labels/train/a.txt"),
        ("set/Images/a.JPG", "set/labels/a.txt"),
        ("images/set/images/a.b.png", "images/set/labels/a.b.txt"),
        ("set/train/a.jpg", "set/train/a.txt"),
        ("set/images.jpg", "set/images.txt"),
    ],
)
def test_label_path(image: str, label: str) -> None:
    assert label_path(Path(image)) == Path(label)


def test_label_path_follows_the_spelling_that_exists(tmp_path: Path) -> None:
    (tmp_path / "Labels").mkdir()
    assert label_path(tmp_path / "Images" / "a.jpg").parent.name.lower() == "labels"
    assert label_path(tmp_path / "Images" / "a.jpg").parent.is_dir()


def test_boxes_and_polygons_in_one_file_are_each_read_as_what_they_are(tmp_path: Path) -> None:
    objects = read(tmp_path, "1 0.5 0.5 0.2 0.2\n2 0.1 0.2 0.3 0.2 0.3 0.6\n\n0 0.25 0.5 0.5 1\n")
    assert objects.classes == [1, 2, 0]
    np.testing.assert_allclose(objects.boxes_xyxy, [(80, 40, 120, 60), (20, 20, 60, 60), (0, 0, 100, 100)])
    assert [len(polygon) for polygon in objects.polygons] == [0, 1, 0]
    np.testing.assert_allclose(objects.polygons[1][0], [(20, 20), (60, 20), (60, 60)])
    np.testing.assert_allclose(objects.areas, [800, 800, 10000])  # the triangle is half of 40 x 40
    assert objects.problems == []
    assert objects.clipped == 0


def test_empty_file_has_no_objects(tmp_path: Path) -> None:
    objects = read(tmp_path, "\n \n")
    assert objects.annotation(Path("a.jpg"), HW).boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 0.5 0.5 0.2", "4 columns: expected 5"),
        ("0 0.5 0.5 0.2 0.2 0.9", "6 columns: expected 5"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 columns"),
        ("0 0.5 x 0.2 0.2", "'x' is no number"),
        ("0 0.5 nan 0.2 0.2", "nan is outside"),
        ("0 0.5 inf 0.2 0.2", "inf is outside"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5: expected a whole number"),
        ("-1 0.5 0.5 0.2 0.2", "class -1: expected a whole number"),
        ("nan 0.5 0.5 0.2 0.2", "class nan: expected a whole number"),
        ("inf 0.5 0.5 0.2 0.2", "class inf: expected a whole number"),
        ("0 120 40 30 30", "120 is outside 0..1"),
        ("0 0.5 0.5 1.002 0.2", "1.002 is outside 0..1"),
        ("0 0.5 0.5 0 0.2", "the box has no area"),
        ("0 0.1 0.1 0.1 0.5 0.1 0.9", "the box has no area"),
    ],
)
def test_a_bad_row_is_named_and_the_others_stay(tmp_path: Path, row: str, reason: str) -> None:
    objects = read(tmp_path, f"1 0.5 0.5 0.2 0.2\n{row}\n2 0.25 0.25 0.1 0.1\n")
    assert objects.classes == [1, 2]
    assert [(problem.kind, problem.where) for problem in objects.problems] == [(ROW, f"{tmp_path / 'a.txt'}:2")]
    assert reason in objects.problems[0].reason


def test_class_beyond_the_names_stops_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "0 0.5 0.5 0.2 0.2\n3 0.5 0.5 0.2 0.2\n")
    assert_says(caught.value, "a.txt:2", 3, "0 to 2")


def test_duplicate_rows_are_dropped_and_named(tmp_path: Path) -> None:
    objects = read(tmp_path, "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n0 .50 .5 .2 .2\n")
    assert objects.classes == [0, 1]
    assert [(problem.kind, problem.where) for problem in objects.problems] == [(DUPLICATE, f"{tmp_path / 'a.txt'}:3")]


def test_rounding_outside_is_moved_to_the_border_and_boxes_are_cut_there(tmp_path: Path) -> None:
    objects = read(tmp_path, "0 0.5 0.5 1.0005 1\n0 0 0.5 0.2 0.2\n")
    np.testing.assert_allclose(objects.boxes_xyxy, [(0, 0, 200, 100), (0, 40, 20, 60)])
    assert objects.clipped == 1
    assert objects.areas[1] == pytest.approx(400)


def test_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf1 0.5 0.5 0.2 0.2\r\n2 0.5 0.5 0.2 0.2\r\n")
    assert read_label_file(path, 3, HW).classes == [1, 2]


def test_undecodable_bytes_spoil_their_row_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"1 0.5 0.5 0.2 0.2\n\xff\xfe 0.5 0.5 0.2 0.2\n")
    objects = read_label_file(path, 3, HW)
    assert objects.classes == [1]
    assert [problem.where for problem in objects.problems] == [f"{path}:2"]


def test_an_outline_without_area_is_named_and_the_box_stays(tmp_path: Path) -> None:
    objects = read(tmp_path, "1 0.1 0.1 0.2 0.2 0.3 0.3\n1 0.1 0.1\n")
    assert (objects.problems[0].kind, objects.problems[0].reason) == (OUTLINE, "it encloses no area")
    assert "3 columns: expected 5" in objects.problems[1].reason
    assert objects.polygons == [[]]
    np.testing.assert_allclose(objects.boxes_xyxy, [(20, 10, 60, 30)])
    assert objects.areas == pytest.approx([800])


def test_rows_are_written_in_parts_of_the_image() -> None:
    boxes = np.array([[10, 20, 30, 60], [0, 0, 200, 100]], np.float32)
    assert label_rows(boxes, [3, 0], HW) == ["3 0.1 0.4 0.1 0.4", "0 0.5 0.5 1 1"]
    assert label_rows(boxes, [3, 0], HW, scores=[0.5, 0.123456789]) == [
        "3 0.1 0.4 0.1 0.4 0.5",
        "0 0.5 0.5 1 1 0.123457",
    ]
    assert label_rows(np.zeros((0, 4)), [], HW) == []


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    boxes, region = [[10, 20, 30, 60], [50, 40, 70, 50]], Region(40, 50, np.ones((10, 20), bool))
    objects = read(tmp_path, "\n".join(label_rows(boxes, [2, 1], HW, [no_region(), region])))
    assert (objects.classes, objects.problems) == ([2, 1], [])
    assert np.allclose(objects.boxes_xyxy, boxes, atol=1e-3)
    assert objects.polygons[0] == []
    assert polygon_region(objects.polygons[1], HW).area == region.area
