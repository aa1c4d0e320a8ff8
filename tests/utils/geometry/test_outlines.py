"""Outlines of regions: filling them gives the region again, whatever its parts and holes."""

import numpy as np
import pytest

from data.labels.annotation import outline_area
from tests.utils.geometry.test_rle import random_masks
from utils.geometry.outlines import join_outlines, outline_norm, trace
from utils.geometry.region import Region, dense_masks, no_region, polygon_region
from utils.geometry.rle import cropped


def test_a_rectangle_by_hand() -> None:
    ((outline,),) = trace(Region(2, 3, np.ones((4, 5), bool)))
    assert sorted(map(tuple, outline.tolist())) == [(3, 2), (3, 6), (8, 2), (8, 6)]
    norm = outline_norm(Region(2, 3, np.ones((4, 5), bool)), (10, 20))
    assert sorted(map(tuple, norm.tolist())) == [(0.15, 0.2), (0.15, 0.6), (0.4, 0.2), (0.4, 0.6)]


def test_holes_and_parts_by_hand() -> None:
    mask = np.zeros((9, 12), bool)
    mask[0:6, 0:6], mask[2:4, 2:4], mask[7:9, 8:12] = True, False, True
    ring, block = trace(cropped(mask))
    assert [len(ring), len(block)] == [2, 1]
    assert outline_area(ring[0]) == 36
    assert np.ptp(ring[1], axis=0).tolist() == [2, 2]
    line = join_outlines([ring, block])
    assert np.array_equal(dense_masks([polygon_region([line], (9, 12))], (9, 12))[0], mask)
    assert outline_area(line) == pytest.approx(mask.sum(), abs=1)  # the hole counts against the rest


def test_filling_gives_the_region_again() -> None:
    for mask in random_masks():
        pieces = trace(cropped(mask))
        for parts in ([join_outlines(pieces)], [join_outlines([piece]) for piece in pieces]):
            filled = polygon_region([part.astype(np.float32) for part in parts if len(part)], mask.shape)
            assert np.array_equal(dense_masks([filled], mask.shape)[0], mask)


def test_nothing() -> None:
    assert trace(no_region()) == []
    assert outline_norm(no_region(), (4, 4)).shape == (0, 2)
    assert trace(Region(0, 0, np.zeros((3, 3), bool))) == []
