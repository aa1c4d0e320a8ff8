"""COCO instance files, read directly."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from data.labels.annotation import IMAGE, OUTLINE, ROW
from data.labels.coco_json import fit_to_image, read_categories, read_coco_file
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [1, 2, 0, 4]}, "the box has no area"),
        ({"bbox": [1, 2, 3]}, "expected four numbers"),
        ({"bbox": None}, "expected four numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "expected four numbers"),
        ({"bbox": [1, 2, True, 4]}, "expected four numbers"),
        ({"image_id": 999}, "image_id 999 is not among the images"),
        ({"image_id": [42]}, "image_id [42] is not among the images"),
        ({"image_id": None}, "image_id None is not among the images"),
        ({"iscrowd": "yes"}, "iscrowd 'yes': expected 0 or 1"),
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


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("{", ("JSON",)),
        ("[]", ("images", "COCO")),
        ('{"images": [], "annotations": []}', ("categories", "COCO")),
        ('{"images": [], "annotations": [], "categories": []}', ("categories", 0)),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', ("categories[0]", 1, "name")),
        ("[" * 100_000, ("COCO",)),
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
        ([[1, 2], [1, 2, 3], SQUARE], 1, "2 of 3 parts, the first: segmentation[0]: 2 numbers"),
        (SQUARE, 0, "segmentation is one flat list of 8 numbers"),
        ([[1, 2, 3, 4, 5, 10**400]], 0, "segmentation[0]: no list of numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], 0, "a coordinate of 1e+09"),
        ({"counts": [0.5, 9.5], "size": [40, 60]}, 0, "counts is neither"),
        ({"counts": [10**30], "size": [40, 60]}, 0, "the runs cover"),
        ({"counts": "o" * 100, "size": [40, 60]}, 0, "larger than any image"),
        ({"counts": [10**12], "size": [10**6, 10**6]}, 0, "size is 1000000 x 1000000"),
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
    fit_to_image(objects, tmp_path / "b.jpg", (40, 60))
    assert len(objects.polygons[0]) == 1
    assert str(objects.problems[0]).endswith(
        "b.jpg: object 1 (id 5): 1 of 2 parts lie outside the image of 60 x 40 pixels"
    )
    fit_to_image(objects, tmp_path / "b.jpg", (40, 50))
    assert objects.run_lengths == {}
    assert "run lengths of 2400 pixels: the image has 50 x 40" in objects.problems[1].reason


def test_ids_are_numbers_or_texts(tmp_path: Path) -> None:
    images = [{"id": "b", "file_name": "b.jpg"}, {"id": "7", "file_name": "a.jpg"}]
    categories = [{"id": "x", "name": "dog"}, {"id": 3, "name": "car"}]
    annotations = [
        {"id": "n1", "image_id": "b", "category_id": "x", "bbox": [1, 1, 2, 2], "iscrowd": "0"},
        {"id": None, "image_id": 7, "category_id": "3", "bbox": [1, 1, 2, 2], "iscrowd": "1"},
    ]
    path = write(tmp_path, images=images, categories=categories, annotations=annotations)
    content = read_coco_file(path, ["dog", "car"], tmp_path)
    assert content.categories == ["x", 3]
    assert [image.image_id for image in content.images] == ["b", "7"]
    assert [image.objects.classes for image in content.images] == [[0], [1]]
    assert [image.objects.crowd for image in content.images] == [[False], [True]]
    assert (content.problems, content.notes) == ([], [])


@pytest.mark.parametrize("category_id", [[3], {"a": 1}, None, True, 3.5, "\ud800"])
def test_category_ids_that_are_none_stop(tmp_path: Path, category_id: object) -> None:
    annotations = [{"id": 5, "image_id": 42, "category_id": category_id, "bbox": [1, 1, 2, 2]}]
    with pytest.raises(DataError) as caught:
        read_coco_file(write(tmp_path, annotations=annotations), ["dog", "car"], tmp_path)
    assert_says(caught.value, "annotations[0]", "category_id")
    str(caught.value).encode()


@pytest.mark.parametrize("entry", [3, {"id": 1}, {"file_name": "c.jpg"}, {"id": [1], "file_name": "c.jpg"}])
@pytest.mark.parametrize("other", [{"id": 1, "file_name": "\ud800.jpg"}, {"id": 1, "file_name": "a\0.jpg"}])
def test_image_entries_that_cannot_be_used_are_named(tmp_path: Path, entry: object, other: object) -> None:
    path = write(tmp_path, images=[*CONTENT["images"], entry, other])
    content = read_coco_file(path, ["dog", "car"], tmp_path)
    assert [problem.kind for problem in content.problems] == [IMAGE, IMAGE]
    assert [problem.where.rpartition(": ")[2] for problem in content.problems] == ["images[2]", "images[3]"]
    "".join(map(str, content.problems)).encode()


def test_one_file_under_two_ids_is_named(tmp_path: Path) -> None:
    images = [*CONTENT["images"], {"id": 8, "file_name": "b.jpg"}]
    notes = read_coco_file(write(tmp_path, images=images), ["dog", "car"], tmp_path).notes
    assert len(notes) == 1
    assert_says(notes[0], 1, "b.jpg")


def test_boxes_are_clipped_at_the_border_and_dropped_outside(tmp_path: Path) -> None:
    boxes = [[-10, -10, 30, 30], [100, 100, 10, 10], [50, 30, 20, 20], [0, 0, 60.01, 40], [10, 10, 5, 5]]
    annotations = [
        {"id": number, "image_id": 42, "category_id": 3, "bbox": box, "area": box[2] * box[3]}
        for number, box in enumerate(boxes, 1)
    ]
    annotations[4] |= {"iscrowd": 1, "segmentation": {"counts": [80, 20, 2300], "size": [40, 60]}}
    path = write(tmp_path, annotations=annotations)
    objects = read_coco_file(path, ["dog", "car"], tmp_path).images[0].objects
    fit_to_image(objects, tmp_path / "b.jpg", (40, 60))
    np.testing.assert_allclose(objects.boxes_xyxy, [(0, 0, 20, 20), (50, 30, 60, 40), (0, 0, 60, 40), (10, 10, 15, 15)])
    assert objects.clipped == 2  # a hundredth of a pixel is rounding
    assert objects.areas[:2] == [400, 100]
    assert list(objects.run_lengths) == [3]
    assert objects.annotation_ids == [1, 3, 4, 5]
    assert [problem.kind for problem in objects.problems] == [ROW]
    assert_says(objects.problems[0], "object 2", "id 2", "60 x 40")
