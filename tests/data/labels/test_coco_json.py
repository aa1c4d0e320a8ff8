"""COCO instance files, read directly."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.labels.annotation import IMAGE, OUTLINE, ROW
from data.labels.coco_json import find_image_dir, fit_masks, read_categories, read_coco_file, result_rows
from tests.saying import assert_says
from utils.errors import DataError
from utils.geometry.region import polygon_region

SQUARE, TRIANGLE = [10, 10, 20, 10, 20, 20, 10, 20], [30, 10, 40, 10, 40, 20]
CONTENT = {
    "images": [{"id": 42, "file_name": "b.jpg", "height": 40, "width": 60}, {"id": 7, "file_name": "sub/a.jpg"}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    "annotations": [
        {
            "id": 5,
            "image_id": 42,
            "category_id": 3,
            "bbox": [10, 10, 30, 10],
            "area": 150.5,
            "segmentation": [SQUARE, TRIANGLE],
        },
        {
            "id": 9,
            "image_id": 42,
            "category_id": 18,
            "bbox": [0, 0, 60, 40],
            "iscrowd": 1,
            "segmentation": {"counts": [80, 20, 2300], "size": [40, 60]},
        },
        {"id": 6, "image_id": 42, "category_id": 18, "bbox": [1.5, 2, 3, 4]},
    ],
}


def write(folder: Path, **changes: object) -> Path:
    """Write CONTENT with `changes` as a COCO file and return its path."""
    path = folder / "annotations" / "instances_val2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**CONTENT, **changes}))
    return path


def test_categories_in_file_order(tmp_path: Path) -> None:
    assert read_categories(write(tmp_path)) == {18: "dog", 3: "car"}


def test_boxes_parts_crowds_areas_and_ids(tmp_path: Path) -> None:
    content = read_coco_file(write(tmp_path), ["dog", "car"], tmp_path)
    assert content.categories == [18, 3]
    first, second = content.images
    assert (first.path, first.image_id, first.stated_hw) == (tmp_path / "b.jpg", 42, (40, 60))
    assert (second.path, second.stated_hw) == (tmp_path / "sub" / "a.jpg", None)
    assert first.objects.classes == [1, 0, 0]
    np.testing.assert_allclose(first.objects.boxes_xyxy, [(10, 10, 40, 20), (0, 0, 60, 40), (1.5, 2, 4.5, 6)])
    assert first.objects.crowd == [False, True, False]
    assert first.objects.areas == [150.5, 2400, 12]
    assert first.objects.annotation_ids == [5, 9, 6]
    assert [[len(part) for part in polygon] for polygon in first.objects.polygons] == [[4, 3], [], []]
    assert {row: counts.tolist() for row, counts in first.objects.run_lengths.items()} == {1: [80, 20, 2300]}
    assert first.objects.problems == []
    assert second.objects.classes == []


def test_names_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    content = read_coco_file(write(tmp_path), ["cat", "car", "dog"], tmp_path)
    assert content.categories == [19, 3, 18]
    assert content.images[0].objects.classes == [1, 2, 2]


def test_translated_names_are_matched_in_file_order(tmp_path: Path) -> None:
    content = read_coco_file(write(tmp_path), ["Hund", "Auto"], tmp_path)
    assert content.categories == [18, 3]
    assert content.images[0].objects.classes == [1, 0, 0]


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_coco_file(write(tmp_path), ["dogs", "cars", "cats"], tmp_path)
    assert_says(caught.value, 2, 3, "dog", "car", "dogs")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [1, 2, 0, 4]}, "the box has no area"),
        ({"bbox": [1, 2, 3]}, "expected four numbers"),
        ({"bbox": None}, "expected four numbers"),
        ({"image_id": 999}, "image_id 999 is not among the images"),
    ],
)
def test_bad_annotations_are_named_and_the_others_stay(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    annotations = copy.deepcopy(CONTENT["annotations"])
    annotations[0] |= change
    content = read_coco_file(write(tmp_path, annotations=annotations), ["dog", "car"], tmp_path)
    assert content.images[0].objects.classes == [0, 0]
    problems = content.problems + content.images[0].objects.problems
    assert [problem.kind for problem in problems] == [ROW]
    assert "annotations[0] (id 5)" in problems[0].where
    assert reason in problems[0].reason


def test_unknown_category_stops(tmp_path: Path) -> None:
    annotations = [{"id": 5, "image_id": 42, "category_id": 4, "bbox": [1, 1, 2, 2]}]
    with pytest.raises(DataError) as caught:
        read_coco_file(write(tmp_path, annotations=annotations), ["dog", "car"], tmp_path)
    assert_says(caught.value, "instances_val2017.json", "annotations[0]", "id 5", "category_id 4")


def test_image_id_twice_is_named(tmp_path: Path) -> None:
    content = read_coco_file(
        write(tmp_path, images=[*CONTENT["images"], {"id": 7, "file_name": "c.jpg"}]), ["dog", "car"], tmp_path
    )
    assert [image.path.name for image in content.images] == ["b.jpg", "c.jpg"]
    assert [(problem.kind, problem.reason) for problem in content.problems] == [
        (IMAGE, "image id twice, the last one kept: 7")
    ]


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "annotations", "images"])
def test_images_are_found_beside(tmp_path: Path, write_image: Callable[..., Path], folder: str) -> None:
    write_image(tmp_path / folder / "b.jpg")
    assert find_image_dir(write(tmp_path), ["missing.jpg", "b.jpg"]) == tmp_path / folder


def test_images_that_are_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_coco_file(write(tmp_path), ["dog", "car"])
    assert_says(caught.value, "b.jpg", "val2017", "images")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("{", ("JSON",)),
        ("[]", ("images", "COCO")),
        ('{"images": [], "annotations": []}', ("categories", "COCO")),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', ("categories", 0, 1)),
    ],
)
def test_no_coco_file(tmp_path: Path, text: str, facts: tuple[object, ...]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_coco_file(path, ["dog"])
    assert_says(caught.value, "a.json", *facts)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_coco_file(write(tmp_path, images=[]), ["dog", "car"])
    assert_says(caught.value, "images", "id", "file_name")


def with_mask(folder: Path, segmentation: object, **change: object) -> Path:
    """The file with another mask for its first object."""
    annotations = copy.deepcopy(CONTENT["annotations"])
    annotations[0] |= {"segmentation": segmentation, **change}
    return write(folder, annotations=annotations)


@pytest.mark.parametrize("counts", [[410, 3, 37, 3, 1947], "j<3U10fk1"])
def test_run_lengths_of_an_object_become_its_outline(tmp_path: Path, counts: object) -> None:
    objects = (
        read_coco_file(with_mask(tmp_path, {"counts": counts, "size": [40, 60]}), ["dog", "car"], tmp_path)
        .images[0]
        .objects
    )
    region = polygon_region(objects.polygons[0], (40, 60))
    assert (region.window, region.area) == ((slice(10, 13), slice(10, 12)), 6)
    assert list(objects.run_lengths) == [1]  # the crowd's


@pytest.mark.parametrize(
    ("segmentation", "parts", "reason"),
    [
        ([SQUARE, [1, 2, 3, 4]], 1, r"segmentation[1]: 4 numbers: expected x, y of three points or more"),
        ([[1, 2, 3, 4, 5]], 0, "segmentation[0]: 5 numbers"),
        ([[1, 2, 3, 4, 5, "x"]], 0, "segmentation[0]: no list of numbers"),
        ("polygon", 0, "segmentation is str"),
        ({"counts": [0, 9], "size": [40, 60]}, 0, "segmentation: the runs cover 9 pixels, expected 40 x 60"),
        ({"counts": [0, 100], "size": [10, 10]}, 0, "segmentation of 10 x 10 pixels: expected the image's 60 x 40"),
    ],
)
def test_what_is_wrong_with_a_mask_is_named_and_the_box_stays(
    tmp_path: Path, segmentation: object, parts: int, reason: str
) -> None:
    objects = read_coco_file(with_mask(tmp_path, segmentation), ["dog", "car"], tmp_path).images[0].objects
    assert [problem.kind for problem in objects.problems] == [OUTLINE]
    assert "annotations[0] (id 5)" in objects.problems[0].where
    assert reason in objects.problems[0].reason
    assert len(objects.polygons[0]) == parts
    assert len(objects.boxes_xyxy) == 3


def test_masks_outside_the_image_are_named_and_left_out(tmp_path: Path) -> None:
    far = [x + 100 for x in SQUARE]
    objects = read_coco_file(with_mask(tmp_path, [SQUARE, far]), ["dog", "car"], tmp_path).images[0].objects
    fit_masks(objects, tmp_path / "b.jpg", (40, 60))
    assert len(objects.polygons[0]) == 1
    assert str(objects.problems[0]).endswith(
        "b.jpg: object 1 (id 5): 1 of 2 parts lie outside the image of 60 x 40 pixels"
    )
    fit_masks(objects, tmp_path / "b.jpg", (40, 50))
    assert objects.run_lengths == {}
    assert "run lengths of 2400 pixels: the image has 50 x 40" in objects.problems[1].reason


def test_result_rows_keep_scores_apart() -> None:
    scores = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)
    rows = result_rows("b", np.array([[1, 2, 4.00004, 8]] * 2, np.float32), scores, [90, 3])
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        ("b", 90, [1, 2, 3, 6]),
        ("b", 3, [1, 2, 3, 6]),
    ]
    assert np.array_equal(np.array([row["score"] for row in rows], np.float32), scores)
    assert "segmentation" not in rows[0]
    assert result_rows(1, [[0, 0, 1, 1]], [0.5], [1], [{"size": [1, 1]}])[0]["segmentation"] == {"size": [1, 1]}
