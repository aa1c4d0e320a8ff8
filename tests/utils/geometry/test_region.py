"""Regions: which pixels an outline holds, by hand and against a slow form of the same rule."""

import numpy as np
import pytest

from utils.geometry.region import Region, box_region, dense_masks, fill_part, no_region, polygon_region

SQUARE = np.array([[2, 1], [6, 1], [6, 4], [2, 4]], np.float32)


def dense(region: Region, size_hw: tuple[int, int]) -> np.ndarray:
    return dense_masks([region], size_hw)[0]


def inside(points: np.ndarray, x: float, y: float) -> bool:
    """The even-odd rule, edge by edge."""
    crossings = 0
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, 0), strict=True):
        crossings += (y1 <= y) != (y2 <= y) and x >= x1 + (y - y1) / (y2 - y1) * (x2 - x1)
    return crossings % 2 == 1


def test_a_square_on_pixel_edges_holds_exactly_its_pixels() -> None:
    region = polygon_region([SQUARE], (8, 10))
    assert (region.top, region.left, region.mask.shape, region.area) == (1, 2, (3, 4), 12)
    assert region.mask.all()


def test_a_pixel_counts_by_its_centre() -> None:
    assert polygon_region([SQUARE + 0.4], (8, 10)).window == (slice(1, 4), slice(2, 6))
    assert polygon_region([SQUARE + 0.6], (8, 10)).window == (slice(2, 5), slice(3, 7))
    triangle = np.array([[0, 0], [4, 0], [0, 4]], np.float32)
    assert dense(polygon_region([triangle], (4, 4)), (4, 4)).astype(int).tolist() == [
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_rule_point_by_point(seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-3, 15, (int(3 + seed), 2))  # edges cross each other, and the border
    expected = [[inside(points, column + 0.5, row + 0.5) for column in range(12)] for row in range(9)]
    assert fill_part(points, (9, 12)).tolist() == expected
    assert dense(polygon_region([points], (9, 12)), (9, 12)).tolist() == expected


def test_parts_are_united_and_a_seam_leaves_no_trace() -> None:
    assert polygon_region([SQUARE, SQUARE + 1], (10, 10)).area == 12 + 12 - 6
    hole = SQUARE[::-1] / 2 + (2, 1.25)  # (3, 1.75) to (5, 3.25): the pixels 3, 4 of row 2
    line = np.concatenate((SQUARE, SQUARE[:1], hole, hole[:1], SQUARE[:1]))
    filled = dense(polygon_region([line], (6, 8)), (6, 8))
    assert filled.sum() == 10
    assert not filled[2, 3:5].any()


def test_what_lies_outside_the_image_is_cut_off() -> None:
    assert polygon_region([SQUARE - (4, 0)], (8, 10)).window == (slice(1, 4), slice(0, 2))
    assert polygon_region([SQUARE + 100], (8, 10)).area == 0
    assert polygon_region([np.array([[1, 1], [5, 5], [3, 3]], np.float32)], (8, 10)).area == 0
    assert polygon_region([np.array([[1, 1], [np.nan, 5], [3, 3]], np.float32)], (8, 10)).area == 0
    assert polygon_region([], (8, 10)).area == no_region().area == 0


def test_box_region() -> None:
    assert box_region(np.array([1.4, 0.5, 3.5, 2.51]), (5, 6)).window == (slice(0, 3), slice(1, 3))
    assert box_region(np.array([-5, -5, 50, 50]), (5, 6)).mask.shape == (5, 6)
    assert box_region(np.array([3.0, 3, 1, 1]), (5, 6)).area == 0


def test_common_and_paint() -> None:
    first, second = polygon_region([SQUARE], (10, 10)), polygon_region([SQUARE + 2], (10, 10))
    assert first.common(second) == second.common(first) == 2
    assert first.common(no_region()) == 0
    assert first.common(polygon_region([SQUARE + 4], (10, 10))) == 0
    canvas = np.zeros((10, 10), np.int16)
    first.paint(canvas, 3)
    second.paint(canvas, 5)
    assert ((canvas == 3).sum(), (canvas == 5).sum()) == (10, 12)
