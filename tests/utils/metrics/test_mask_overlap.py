"""Overlaps of masks, and what stands for objects without one."""

import numpy as np

from tests.utils.drawing.test_plots import annotation
from utils.geometry.region import Region, box_region
from utils.metrics.mask_overlap import mask_overlaps, truth_masks

HW = (100, 200)
NO_CROWD = np.zeros(1, bool)


def block(x1: int, y1: int, x2: int, y2: int) -> Region:
    return box_region(np.array([x1, y1, x2, y2]), HW)


def overlap(found: Region, truth: Region, classes: int = 0, crowd: bool = False) -> float:
    rows, columns = found.window
    detections = np.array([[columns.start, rows.start, columns.stop, rows.stop, 0.9, 0]], np.float32)
    return float(mask_overlaps(detections, lambda _row: found, [truth], np.array([classes]), np.array([crowd]))[0, 0])


def test_by_hand() -> None:
    assert overlap(block(0, 0, 10, 10), block(0, 0, 10, 8)) == 0.8
    assert overlap(block(0, 0, 10, 10), block(0, 0, 10, 10)) == 1
    assert overlap(block(0, 0, 10, 10), block(50, 0, 60, 10)) == 0
    assert overlap(block(0, 0, 10, 10), block(0, 0, 10, 8), classes=1) == 0
    ring = block(0, 0, 10, 10)
    ring.mask[2:8, 2:8] = False
    assert overlap(ring, block(0, 0, 10, 10)) == 0.64


def test_over_a_crowd_the_detections_own_area_counts() -> None:
    assert overlap(block(5, 0, 15, 10), block(0, 0, 10, 100), crowd=True) == 0.5
    assert overlap(block(0, 0, 10, 10), block(5, 0, 105, 10), crowd=True) == 0.5


def test_masks_that_cannot_match_are_not_made() -> None:
    asked = []

    def region_of(row: int) -> Region:
        asked.append(row)
        return block(0, 0, 10, 10)

    detections = np.array(
        [[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.9, 1], [90, 0, 99, 10, 0.9, 0], [0, 0, 30, 3, 0.9, 0]], np.float32
    )
    mask_overlaps(detections, region_of, [block(0, 0, 10, 10)], np.array([0]), NO_CROWD)
    assert asked == [0]
    assert mask_overlaps(detections[:0], region_of, [block(0, 0, 10, 10)], np.array([0]), NO_CROWD).shape == (0, 1)
    assert mask_overlaps(detections, region_of, [], np.zeros(0, np.int64), NO_CROWD[:0]).shape == (4, 0)


def test_objects_without_a_mask_are_ignored() -> None:
    image = annotation(3)
    image.polygons = [[np.array([[10, 20], [60, 20], [60, 80]], np.float32)], [], []]
    image.crowd[2] = True
    image.run_lengths = {2: np.array([200, 100, 100 * 200 - 300])}  # the third column
    regions, ignored = truth_masks(image)
    assert ignored.tolist() == [False, True, True]
    assert image.crowd.tolist() == [False, False, True]
    assert regions[1].window == (slice(20, 80), slice(10, 60))
    assert (regions[2].window, regions[2].area) == ((slice(0, 100), slice(2, 3)), 100)
    assert 1450 < regions[0].area < 1550
