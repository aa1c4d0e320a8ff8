from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.augment.sample import Sample
from data.augment.transforms import (
    flip,
    letterbox,
    letterbox_sample,
    random_hsv,
    random_matrix,
    random_warp,
    resized_hw,
    warp_image,
    warp_objects,
    worth_keeping,
)
from utils.geometry.placement import unletterbox

STILL = {
    "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0,
    "perspective": 0.0, "flipud": 0.0, "fliplr": 0.0, "mosaic": 0.0, "mixup": 0.0, "copy_paste": 0.0,
}  # fmt: skip
OCTAGON = np.array([[40, 20], [60, 20], [70, 30], [70, 50], [60, 60], [40, 60], [30, 50], [30, 30]], np.float32)


def settings(**changes: float) -> SimpleNamespace:
    return SimpleNamespace(**(STILL | changes))


def boxes_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def image_with(box: tuple[int, int, int, int], size_hw: tuple[int, int] = (100, 100)) -> np.ndarray:
    image = np.zeros((*size_hw, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def bright_box(image: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(image[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_resized_hw_brings_the_long_side_to_the_size() -> None:
    assert resized_hw((480, 640), 320) == (240, 320)
    assert resized_hw((100, 50), 320) == (320, 160)
    assert resized_hw((2000, 1), 320) == (320, 1)


def test_letterbox_centres_and_fills_with_grey() -> None:
    image, placement = letterbox(np.full((100, 200, 3), 7, np.uint8), (205, 300))
    assert image.shape == (205, 300, 3)
    assert placement.ratio_wh == (1.5, 1.5)
    assert placement.pad_wh == (0, 27)  # 55 rows of grey: 27 above and 28 below
    assert np.unique(image[:27]).tolist() == [114]
    assert np.unique(image[27:177]).tolist() == [7]
    assert np.unique(image[177:]).tolist() == [114]


def test_letterbox_without_scaleup_only_pads() -> None:
    image, placement = letterbox(np.full((100, 200, 3), 7, np.uint8), (300, 300), scaleup=False)
    assert image.shape == (300, 300, 3)
    assert placement.ratio_wh == (1.0, 1.0)
    assert placement.pad_wh == (50, 100)


@pytest.mark.parametrize(
    ("size_hw", "shape_hw"), [((480, 640), (320, 320)), ((101, 57), (64, 96)), ((333, 500), (256, 352))]
)
def test_letterbox_and_unletterbox_are_inverse(size_hw: tuple[int, int], shape_hw: tuple[int, int]) -> None:
    boxes = boxes_of((0, 0, 50, 40), (10, 20, 57, 101))
    sample = Sample(np.zeros((*size_hw, 3), np.uint8), np.zeros(2, np.int64), boxes, [[], []])
    boxed, placement = letterbox_sample(sample, shape_hw, scaleup=True)
    assert boxed.image_rgb.shape[:2] == shape_hw
    assert placement.original_hw == size_hw
    back = unletterbox(torch.from_numpy(boxed.boxes_xyxy), placement)
    assert np.allclose(back.numpy(), boxes, atol=1e-3)


def test_warp_doubles_box_outline_and_pixels_alike() -> None:
    matrix = np.array([[2.0, 0, -40], [0, 2.0, -20], [0, 0, 1]])
    boxes, _ = warp_objects(boxes_of((30, 20, 50, 60)), [[]], matrix, (200, 200))
    assert boxes.tolist() == [[20, 20, 60, 100]]
    warped = warp_image(image_with((30, 20, 50, 60)), matrix, (200, 200))
    assert bright_box(warped) == [20, 20, 60, 100]  # half a pixel off without the change to pixel centres
    assert warped[150, 199].tolist() == [114, 114, 114]


def test_warp_perspective_moves_pixels_with_their_box() -> None:
    matrix = np.array([[1.0, 0, 0], [0, 1.0, 0], [0.002, 0, 1]])
    boxes, _ = warp_objects(boxes_of((20, 20, 50, 60)), [[]], matrix, (100, 100))
    assert boxes[0] == pytest.approx([20 / 1.04, 20 / 1.1, 50 / 1.1, 60 / 1.04], abs=1e-4)
    assert bright_box(warp_image(image_with((20, 20, 50, 60)), matrix, (100, 100))) == pytest.approx(boxes[0], abs=1)


def test_warp_takes_boxes_from_corners_or_from_the_outline() -> None:
    turn = np.array([[0.0, -1, 100], [1, 0, 0], [0, 0, 1]])  # (x, y) to (100 - y, x)
    boxes, _ = warp_objects(boxes_of((30, 20, 70, 60)), [[]], turn, (100, 100))
    assert boxes.tolist() == [[40, 30, 80, 70]]
    half = np.sqrt(0.5)
    turn_45 = np.array([[half, -half, 50], [half, half, 0], [0, 0, 1]])
    boxes, _ = warp_objects(boxes_of((30, 20, 70, 60), (30, 20, 70, 60)), [[], [OCTAGON]], turn_45, (100, 200))
    assert boxes[0] == pytest.approx([50 - 30 * half, 50 * half, 50 + 50 * half, 130 * half], abs=1e-3)
    assert boxes[1] == pytest.approx([50 - 20 * half, 60 * half, 50 + 40 * half, 120 * half], abs=1e-3)


def test_each_label_stays_with_its_object_when_boxes_and_outlines_are_mixed() -> None:
    boxes = boxes_of((5, 5, 25, 25), (30, 20, 70, 60), (80, 80, 95, 95), (200, 200, 240, 240))
    polygons = [[], [OCTAGON], [], [OCTAGON + np.array((170, 180), np.float32)]]
    sample = Sample(np.zeros((300, 300, 3), np.uint8), np.array([0, 1, 2, 3]), boxes, polygons)
    warped = random_warp(
        sample, settings(), (100, 100), np.random.default_rng(0)
    )  # the middle 100 x 100: all boxes out but one
    assert warped.classes.tolist() == []
    warped = random_warp(sample, settings(), (260, 260), np.random.default_rng(0))  # shift by -20
    assert warped.classes.tolist() == [1, 2, 3]
    assert warped.boxes_xyxy.tolist() == [[10, 0, 50, 40], [60, 60, 75, 75], [180, 180, 220, 220]]
    assert [len(polygon) for polygon in warped.polygons] == [1, 0, 1]


def test_worth_keeping_asks_for_size_area_and_aspect() -> None:
    before = boxes_of((0, 0, 100, 100), (0, 0, 100, 100), (0, 0, 100, 100), (0, 0, 3, 3), (0, 0, 300, 3))
    after = boxes_of((0, 0, 100, 11), (0, 0, 100, 9), (0, 0, 100, 9), (0, 0, 2, 3), (0, 0, 303, 3))
    outlines = np.array([False, False, True, False, False])
    assert worth_keeping(before, after, outlines).tolist() == [True, False, True, False, False]


def test_random_matrix_centres_the_image_when_nothing_is_random() -> None:
    matrix, scale = random_matrix(settings(), (640, 640), (320, 320), np.random.default_rng(0))
    assert scale == 1
    assert np.allclose(matrix, [[1, 0, -160], [0, 1, -160], [0, 0, 1]])


@pytest.mark.parametrize("seed", range(5))
def test_random_warp_keeps_pixels_under_their_outline(seed: int) -> None:
    hyp = settings(degrees=30.0, translate=0.1, scale=0.3, shear=10.0, perspective=0.0005)
    square = np.array([[80, 90], [120, 90], [120, 130], [80, 130]], np.float32)
    sample = Sample(
        image_with((80, 90, 120, 130), (200, 200)), np.zeros(1, np.int64), boxes_of((80, 90, 120, 130)), [[square]]
    )
    warped = random_warp(sample, hyp, (200, 200), np.random.default_rng(seed))
    assert warped.boxes_xyxy[0] == pytest.approx(bright_box(warped.image_rgb), abs=1.5)


def test_flip_moves_pixels_and_boxes() -> None:
    sample = Sample(image_with((10, 20, 30, 60)), np.zeros(1, np.int64), boxes_of((10, 20, 30, 60)), [[]])
    for axis, expected in ((0, [70, 20, 90, 60]), (1, [10, 40, 30, 80])):
        flipped = flip(sample, axis)
        assert flipped.boxes_xyxy[0].tolist() == expected
        assert bright_box(flipped.image_rgb) == expected


def test_random_hsv_changes_only_the_value_when_asked_to() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert random_hsv(grey, settings(), np.random.default_rng(0)) is grey
    gain = 1 + np.random.default_rng(0).uniform(-1, 1, 3)[2] * 0.5
    assert np.unique(random_hsv(grey, settings(hsv_v=0.5), np.random.default_rng(0))).tolist() == [int(100 * gain)]
