"""Label files whose rows are neither boxes nor outlines."""

from pathlib import Path

import numpy as np
import pytest

from data.labels.annotation import ROW, Annotation, Objects
from data.labels.yolo_rows import Keypoints, crosses_itself, foreign_kind, keypoint_outlines, parse_keypoints
from data.labels.yolo_txt import read_label_file
from tests.saying import assert_says
from utils.errors import DataError

HW = (100, 200)
BOX = "0 0.5 0.5 0.2 0.2"
POSE = "0 0.3125 0.375 0.3125 0.41667 0.20 0.20 0.42 0.20 0.42 0.55 0.20 0.55 0.31 0.30 0.25 0.40 0.38 0.40 0.31 0.50"


def read(folder: Path, text: str, keypoints: Keypoints | None = None) -> Objects:
    """Parse `text` as the label file of an image of 200 x 100 pixels."""
    (folder / "a.txt").write_text(text, encoding="utf-8")
    return read_label_file(folder / "a.txt", 3, HW, keypoints)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (f"{BOX} 0.5 0.5 2", ("1 key point", "kpt_shape: [1, 3]")),
        (f"{BOX} 0.45 0.5 2 0 0 0", ("2 key points", "kpt_shape: [2, 3]")),
        (f"{BOX}{' 0.5 0.5 1' * 17}", ("17 key points", "kpt_shape: [17, 3]")),
        (f"{BOX}{' 0.5 0.5 2.000000' * 4}\n{BOX}{' 0 0 0' * 4}\n", ("4 key points", "2 of 2")),
        (f"{BOX} 0.87", ("a confidence", "--save-conf")),
        (f"{BOX} 0.87\n1 0.1 0.1 0.1 0.1 0.3\n{BOX}", ("2 of 3", "a confidence")),
        (f"{BOX} -0.7", ("an angle",)),
        (f"{BOX} 1.5", ("an angle",)),
        (f"{BOX} 12", ("a track number",)),
        (f"{BOX} 0.9 1\n1 0.2 0.2 0.1 0.1 0.8 2", ("a track number", "confidence")),
        (f"{BOX} 7 0.9", ("a track number", "confidence")),
        ("0 0.1 0.1 0.4 0.1 0.4 0.4 0.93", ("8 columns", "confidence")),
        (f"{BOX}{' 0.5 0.5 0.93' * 17}", ("56 columns", "kpt_shape: [17, 3]")),
        ("0.5 0.5 0.2 0.2\n0.1 0.1 0.1 0.1", ("without a class number",)),
        ("0 120 40 30 30", ("pixels", 120)),
        ("0 10 10 40 10 40 40 10 40", ("pixels", 40)),
        ("imagesource:GoogleEarth\ngsd:0.1\n" + "150 20 190 20 190 60 150 60 plane 0\n" * 2, ("DOTA", "2 of 2")),
        ("150 20 190 20 190 60 150 60 plane", ("DOTA",)),
        ("Car 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 69.44 -1.56", ("KITTI",)),
        ("0,0.5,0.5,0.2,0.2", ("commas",)),
        ("0, 0.5, 0.5, 0.2, 0.2", ("commas",)),
        ("0 0,5 0,5 0,2 0,2", ("commas",)),
        ("1,2,34.5,40,20,20,0.9,-1,-1,-1", ("commas",)),
        ("person 0.5 0.5 0.2 0.2", ("class name", "'person 0.5 0.5 0.2 0.2'")),
        ("traffic light 0.5 0.5 0.2 0.2", ("class name",)),
        ("person 0.93 12 20 30 40", ("class name",)),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_message(tmp_path: Path, text: str, facts: tuple[object, ...]) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, text)
    assert_says(caught.value, tmp_path / "a.txt", *facts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"{BOX}\n1 0.5 0.5 0.1 0.1",
        "0 0.1 0.1 0.4 0.1 0.4 0.4",  # a triangle
        "0 0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4",  # four corners, as of a rotated box
        "0 0 0 0 1 1 1 1 0 0 0",  # the whole image, closed: columns 8 and 11 are 0 and 1
        "0 0 0 1 0 1 1 0 1 0 0",
        "0 0.1 0.1 0.4 0.1 1 0.4 0.3 0.4 1 0.2",
        f"{BOX}\n0 0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4 0.2 0.2",
    ],
)
def test_boxes_and_outlines_are_read(tmp_path: Path, text: str) -> None:
    objects = read(tmp_path, text)
    assert objects.problems == []
    assert len(objects.classes) == len(text.splitlines())


def test_a_few_odd_rows_are_named_and_the_others_stay(tmp_path: Path) -> None:
    objects = read(tmp_path, f"{BOX}\n1 0.5 0.5 0.1 0.1\n0 0.2 0.2 0.1 0.1 0.9\n")
    assert objects.classes == [0, 1]
    assert [problem.kind for problem in objects.problems] == [ROW]


def test_stated_key_points_are_left_out_and_their_boxes_read(tmp_path: Path) -> None:
    objects = read(tmp_path, f"{POSE}\n{BOX}\n", Keypoints(8, 2))
    assert objects.problems == []
    assert objects.polygons == [[], []]
    np.testing.assert_allclose(objects.boxes_xyxy[0], (31.25, 16.6665, 93.75, 58.3335), atol=1e-3)
    assert read(tmp_path, f"{BOX} 0.5 0.5 2", Keypoints(1, 3)).classes == [0]
    with pytest.raises(DataError) as caught:
        read(tmp_path, POSE, Keypoints(17, 3))
    assert_says(caught.value, "a.txt:1", 21, 56, "kpt_shape")


@pytest.mark.parametrize("value", [17, [17], [17, 4], ["17", 3], [True, 3], [-1, 2], {"n": 3}])
def test_kpt_shape_of_another_form(value: object) -> None:
    with pytest.raises(DataError) as caught:
        parse_keypoints(value, "data.yaml: kpt_shape")
    assert_says(caught.value, "data.yaml: kpt_shape", "[17, 3]")


def outlines(rows: np.ndarray) -> list[Annotation]:
    """Annotations of one outline each, from (N, 2 K) numbers in parts of the image."""
    found = []
    for row in rows:
        objects = Objects()
        points = (row.reshape(-1, 2) * (HW[1], HW[0])).astype(np.float32)
        objects.add(0, np.zeros(4), [points], area=1)
        found.append(objects.annotation(Path("a.jpg"), HW))
    return found


def poses(count: int, number: int, values: int, seed: int = 0) -> np.ndarray:
    """Boxes anywhere in the image, each with key points inside, as rows without the class."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.05, 0.5, (count, 2))
    centre = size / 2 + rng.random((count, 2)) * (1 - size)
    points = centre[:, None] + rng.uniform(-0.5, 0.5, (count, number, 2)) * size[:, None]
    points[rng.random((count, number)) < 0.1] = 0  # not labelled
    if values == 3:
        points = np.concatenate((points, rng.random((count, number, 1))), 2)
    return np.concatenate((centre, size, points.reshape(count, -1)), 1)


def rings(count: int, number: int, spread: float, seed: int = 0) -> np.ndarray:
    """True outlines: points around a centre, anywhere in the image or (`spread` 0) in its middle."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, (count, number)), 1)
    radius = rng.uniform(0.05, 0.2, (count, number, 1))
    centre = 0.5 + rng.uniform(-0.25, 0.25, (count, 1, 2)) * spread
    return (centre + radius * np.stack((np.cos(angles), np.sin(angles)), 2)).reshape(count, -1)


@pytest.mark.parametrize("number", [2, 3, 5, 8, 17])
def test_key_points_without_visibility_are_known_by_all_rows_of_a_split(number: int) -> None:
    assert_says(keypoint_outlines(outlines(poses(60, number, 2))), f"kpt_shape: [{number}, 2]", 60)


@pytest.mark.parametrize("number", [4, 6])
def test_key_points_with_a_score(number: int) -> None:
    assert_says(keypoint_outlines(outlines(poses(60, number, 3))), f"kpt_shape: [{number}, 3]")


def test_one_row_of_key_points() -> None:
    rows = np.array([[float(word) for word in POSE.split()[1:]]])
    assert_says(keypoint_outlines(outlines(rows)), "kpt_shape: [8, 2]")


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("number", [3, 4, 5, 6, 10, 19, 40])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_outlines_with_equal_numbers_of_points_stay_outlines(number: int, spread: float, count: int) -> None:
    for seed in range(5):
        assert keypoint_outlines(outlines(rings(count, number, spread, seed))) == ""


def test_a_split_of_outlines_of_any_length_is_not_examined() -> None:
    assert keypoint_outlines([*outlines(poses(9, 8, 2)), *outlines(rings(1, 7, 1.0))]) == ""
    assert keypoint_outlines([]) == ""


def test_crossing_lines() -> None:
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    assert not crosses_itself(square)
    assert crosses_itself(square[[0, 1, 3, 2]])
    assert not crosses_itself(np.concatenate((square, square[:1])))


def test_nothing_is_found_in_nothing() -> None:
    assert foreign_kind([]) == ""
    assert foreign_kind([["imagesource:x"]]) == ""
